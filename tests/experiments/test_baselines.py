"""What a probe must beat stands beside it: in the rows, in one sentence, and in the figure."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert

from activations import capture, open_model, random_like
from experiments.compare import bench as benches
from experiments.compare import findings, probing
from experiments.figures import chart_probe_curve
from experiments.inputs import Inputs, read_inputs
from experiments.results import as_frame, row
from experiments.settings import CompareSettings
from probes import baselines, probe_sites

MEASURE = "variety_probe_accuracy"
SITES = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


def made(**controls: float) -> pd.DataFrame:
    """A probe that reaches 0.90 [0.86, 0.94] at the last of three depths, and these controls."""

    def say(value: float, control: str = "", depth: int = -1) -> dict[str, Any]:
        where = {"site": SITES[depth], "layer": max(depth - 1, 0)} if depth >= 0 else {}
        told = {"low": value - 0.04, "high": min(value + 0.04, 1.0), "n": 60}
        return row(MEASURE, value, control=control, **where) | told

    rows = [say(0.5 + 0.2 * i, depth=i) for i in range(3)]
    rows += [say(0.2, "control_task", i) for i in range(3)]
    for name, value in controls.items():
        depths = range(3) if name == "random_model" else [-1]
        rows += [
            say(value - 0.01 * (2 - max(i, 0)), name, i) if i >= 0 else say(value, name)
            for i in depths
        ]
    return as_frame([*rows, say(0.2, "chance"), say(0.2, "majority")])


@pytest.fixture(scope="module")
def bench() -> benches.Bench:
    """The organism on thirty-six sentences and some requests, captured in memory."""
    settings = CompareSettings(model="organism/aligned", layers=[1], permutations=20, folds=3)
    model, inputs = benches.open_checked(settings), read_inputs(settings)
    frame = inputs.corpus.frame
    names = sorted(set(frame["group"][frame["behaviour"] == ""]))[:12]
    asked = np.flatnonzero(frame["behaviour"] != "")
    kept = [*np.flatnonzero(frame["group"].isin(names)), *asked[:12], *asked[-12:]]
    corpus = inputs.corpus.take(kept)
    small = Inputs(corpus, inputs.standard, inputs.train[kept], (), None)
    sites = benches.choose_sites(model, settings)
    store = capture(model, corpus, sites=sites, progress=False)
    return benches.Bench(settings, small, model, sites, store)


def test_every_row_is_what_the_functions_say_of_the_same_folds(
    bench: benches.Bench, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = as_frame(probing.probe(bench))
    corpus = bench.inputs.corpus
    twin = capture(random_like(bench.model, seed=0), corpus, sites=bench.sites, progress=False)
    for column, rows in (
        ("variety", corpus.variety_rows()),
        ("behaviour", corpus.behaviour_rows()),
    ):
        frame = corpus.frame.iloc[rows]
        labels, groups = frame[column].to_numpy(), frame["group"].to_numpy()
        here = found[found["measure"] == f"{column}_probe_accuracy"].set_index("control")
        ids = [bench.model.encode(bench.model.render(t) if b else t, rendered=bool(b))
               for t, b in zip(frame["text"], frame["behaviour"])]  # fmt: skip
        expected = baselines(
            list(frame["text"]), labels, groups, n_folds=3, seed=0,
            token_ids=[i[-1] for i in ids], lengths=[len(i) for i in ids],
        )  # fmt: skip
        assert set(expected) == {"majority", "text_length", "read_token", "text_ngrams"}
        for name, estimate in expected.items():
            one = here.loc[name]
            assert (one["value"], one["low"], one["high"]) == pytest.approx(
                (estimate.value, estimate.low, estimate.high)
            )
            assert one["site"] == "" and one["n"] == estimate.n
        states = {site: twin[site][rows] for site in bench.sites}
        random = here.loc["random_model"].set_index("site")["value"]
        for result in probe_sites(states, labels, groups, n_folds=3, permutations=0, seed=0):
            assert random[result.site] == pytest.approx(result.accuracy.value), result.site
        assert set(random.index) == set(bench.sites) and len(bench.sites) == 2


def test_the_random_model_is_left_out_when_asked_and_no_token_is_read_in_a_mean(
    bench: benches.Bench,
) -> None:
    asked = bench.settings.model_copy(update={"random_model": False, "tokens": "mean"})
    plain = benches.Bench(asked, bench.inputs, bench.model, bench.sites, bench.store)
    found = as_frame(probing.probe(plain))
    assert not {"random_model", "read_token"} & set(found["control"])
    assert {"majority", "text_length", "text_ngrams"} <= set(found["control"])


def test_a_model_that_has_no_random_twin_is_compared_without_and_it_is_said(
    bench: benches.Bench, caplog: pytest.LogCaptureFixture
) -> None:
    model = open_model("organism/aligned")
    model.hf.config.quantization_config = {"quant_method": "gptq"}
    one = benches.Bench(bench.settings, bench.inputs, model, bench.sites, bench.store)
    with caplog.at_level(logging.WARNING, "isogloss"):
        assert benches.untrained(one, progress=False) is None
    assert "no model with random weights is probed beside this one" in caplog.text
    assert "quantised" in caplog.text
    said = findings.caveats(made())
    assert any("No model with random weights" in sentence for sentence in said)
    said = findings.caveats(made(random_model=0.5))
    assert not any("No model with random weights" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("controls", "sentence"),
    [
        (
            {"text_length": 0.3, "read_token": 0.2, "text_ngrams": 0.5, "random_model": 0.7},
            "Variety is read beyond the text's length (0.30 [0.26, 0.34]), the token that is read "
            "(0.20 [0.16, 0.24]), character n-grams (0.50 [0.46, 0.54]) and a model of the same "
            "shape with random weights (0.70 [0.66, 0.74]).",
        ),
        (
            {"text_length": 0.3, "text_ngrams": 0.99, "random_model": 0.87},
            "Variety is read beyond the text's length (0.30 [0.26, 0.34]), but not shown to be "
            "read beyond character n-grams (0.99 [0.95, 1.00]) and a model of the same shape with "
            "random weights (0.87 [0.83, 0.91]).",
        ),
        (
            {"text_ngrams": 0.9},
            "Variety is not shown to be read beyond character n-grams (0.90 [0.86, 0.94]).",
        ),
    ],
)
def test_one_sentence_says_beyond_what_a_variety_is_read(
    controls: dict[str, float], sentence: str
) -> None:
    assert sentence in findings.sentences(made(**controls), "standard")


def test_the_figure_draws_random_weights_by_depth_and_equal_rules_once() -> None:
    frame = made(text_length=0.3, read_token=0.2, text_ngrams=0.5, random_model=0.7)
    for theme in ("light", "dark"):
        chart = chart_probe_curve(frame, theme)
        shown = vl_convert.vegalite_to_svg(chart.to_json())
        for name in ("random weights", "length of the text", "text alone (character n-grams)"):
            assert shown.count(f">{name}</text>") == 1, name
        assert shown.count(">token that is read, commonest class, chance</text>") == 1
    spec = chart_probe_curve(frame).to_dict()
    lines = [layer for layer in spec["layer"] if layer["mark"]["type"] == "line"]
    assert len(lines) == 3
    drawn = [d for d in spec["datasets"].values() if d and d[0].get("line") == "random weights"]
    assert [(point["depth"], round(point["value"], 2)) for point in drawn[0]] == [
        ("embed", 0.68), ("0", 0.69), ("1", 0.70),
    ]  # fmt: skip
