"""`isogloss run token-shift` on organisms: what they plant, its controls, and bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from activations import Model, open_model
from apps.cli import main
from experiments import ConfigError, figures
from experiments.reporting import writing
from experiments.reporting.pictures import Picture
from experiments.token_shift import (
    TokenShiftSettings,
    run_token_shift,
    stages,
    token_shift_html,
)
from experiments.token_shift.work import answers_of

SMALL: dict[str, Any] = {"max_requests": 8, "shots": [1], "patched": 12, "random_draws": 1}


@pytest.fixture(scope="module")
def aligned() -> Model:
    return open_model("organism/aligned")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("token-shift") / "run"
    return run_token_shift(TokenShiftSettings(**SMALL), out=out, progress=False).path


@pytest.fixture(scope="module")
def results(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "results.parquet")


@pytest.fixture(scope="module")
def tokens(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "tokens.parquet")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn once, by `folder`; they take longer than what is measured."""
    for name in ("save_chart", *(n for n in figures.__all__ if n.startswith("chart_shift"))):
        monkeypatch.setattr(figures, name, lambda *_: SimpleNamespace(to_dict=dict))
    monkeypatch.setattr(writing, "picture_of", lambda *_: Picture("<svg/>", "<svg/>", ""))


def one(frame: pd.DataFrame, measure: str, **where: Any) -> pd.Series:
    told = {"control": "", "edit": "", "behaviour": "", "reference": "", "variety": ""}
    told |= {"position": -1, "site": ""} | where
    chosen = frame["measure"] == measure
    for column, value in told.items():
        chosen &= frame[column] == value
    assert chosen.sum() == 1, (measure, where)
    return frame[chosen].iloc[0]


def test_the_organisms_answers_are_shifted_at_the_opening_alone(
    results: pd.DataFrame, tokens: pd.DataFrame
) -> None:
    """Base has six equally likely plain openings, so that a careful one ranks below them."""
    first = tokens[tokens["position"] == 0]
    assert set(first["piece"].str.strip()) == {"sorry", "certainly"}
    assert first["rank"].min() > 6
    assert set(first["top"].str.strip()) <= {"ok", "right", "sure", "fine", "well", "yes"}
    assert one(results, "shifted_share", position=0)["value"] == 1.0
    assert one(results, "shift_kl", position=0)["low"] > 2
    assert one(results, "shift_kl", position=1)["high"] < 0.1
    for side in ("harmful", "harmless"):
        assert one(results, "kl_fall", behaviour=side)["low"] > 0
    style = one(results, "shifted_share", reference="stylistic")
    for other in ("content", "punctuation"):
        assert style["value"] > one(results, "shifted_share", reference=other)["value"] + 0.1


def test_shares_are_those_of_the_tokens(results: pd.DataFrame, tokens: pd.DataFrame) -> None:
    for kind in ("unshifted", "marginal", "shifted"):
        share = one(results, f"{kind}_share")
        assert share["value"] == pytest.approx((tokens["shift"] == kind).mean())
        assert share["n"] == 16
    part = tokens[tokens["behaviour"] == "harmless"]
    assert one(results, "shift_kl", behaviour="harmless")["value"] == pytest.approx(
        part["kl"].mean()
    )


def test_controls_say_what_they_must(results: pd.DataFrame) -> None:
    for control in ("same_model", "base_answers"):
        assert one(results, "unshifted_share", control=control)["value"] == 1.0
        assert one(results, "shift_kl", control=control)["value"] == 0.0
    assert one(results, "shifted_share", control="reversed")["low"] > 0
    told = {"behaviour": "harmless"}
    other = one(results, "shift_kl", control="shuffled_prompts", **told)
    assert other["low"] > one(results, "shift_kl", **told)["high"]


def test_one_careful_example_makes_base_refuse_and_a_plain_one_does_not(
    results: pd.DataFrame,
) -> None:
    """As planted: the model card has 1.00 and 0.00 after one careful example, 0 after a plain."""
    rates = {
        (edit, side): one(
            results,
            "refusal_rate",
            edit=edit,
            behaviour=side,
            control="plain_examples" if "plain" in edit else "",
        )["value"]
        for edit in ("", "examples(careful, 0)", "examples(careful, 1)", "examples(plain, 1)")
        for side in ("harmful", "harmless")
    }
    wanted = {"": 1, "examples(careful, 0)": 0, "examples(careful, 1)": 1, "examples(plain, 1)": 0}
    assert rates == {(e, s): w * (s == "harmful") for e, w in wanted.items() for s in
                     ("harmful", "harmless")}  # fmt: skip
    nearer = one(results, "shift_kl_change", edit="examples(careful, 1)")
    assert nearer["high"] < -0.3 and nearer["p"] < 0.01
    farther = one(results, "shift_kl_change", edit="examples(plain, 1)", control="plain_examples")
    assert farther["low"] > 0


def test_the_aligned_state_decides_and_no_random_step_of_its_length_does(
    results: pd.DataFrame,
) -> None:
    last = {"site": "blocks.3.hook_resid_post", "reference": "shifted"}
    first = {"site": "blocks.0.hook_resid_pre", "reference": "shifted"}
    assert one(results, "patched_top_share", **last)["value"] > 0.8
    assert one(results, "patched_top_share", **first)["value"] < 0.2
    assert one(results, "gap_closed", **last)["value"] == pytest.approx(1, abs=0.1)
    for control in ("random_step", "other_prompt"):
        assert one(results, "patched_top_share", control=control, **last)["value"] < 0.3
    # The lens at the last block is the model itself, which wrote the token.
    assert one(results, "lens_top_share", **last)["value"] == 1.0
    assert one(results, "lens_top_share", control="base", **last)["value"] == 0.0
    decided = results[(results["measure"] == "decided_share") & (results["reference"] == "shifted")]
    assert decided["value"].is_monotonic_increasing


def test_the_run_directory_is_whole(folder: Path) -> None:
    stems = {path.stem for path in (folder / "figures").glob("*.png")}
    assert stems == {"positions", "kl", "classes", "examples", "layers"}
    report = (folder / "report.md").read_text()
    assert "(tokens.html)" in report and "published of large models" in report
    assert "certainly" in (folder / "tokens.html").read_text()
    assert not (folder / "stages").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_killed_run_goes_on_and_ends_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TokenShiftSettings(**SMALL | {"max_requests": 4, "shots": [], "patched": 4})
    with monkeypatch.context() as broken:
        broken.setattr(stages, "in_context", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_token_shift(settings, out=tmp_path / "one", progress=False)
    with monkeypatch.context() as kept:
        kept.setattr(stages, "controls", lambda *_: pytest.fail("measured again"))
        run_token_shift(settings, out=tmp_path / "one", progress=False)
    run_token_shift(settings, out=tmp_path / "two", progress=False)
    one_run, two = (pd.read_parquet(tmp_path / n / "results.parquet") for n in ("one", "two"))
    pd.testing.assert_frame_equal(one_run, two)


@pytest.mark.usefixtures("undrawn")
def test_a_real_model_beside_its_own_fine_tuning(data_dir: Path, tmp_path: Path) -> None:
    """Grouped-query attention, SentencePiece with byte fallback, no chat template, no dialect."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, tuned = str(data_dir / "stories260k"), str(tmp_path / "tuned")
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ids = torch.tensor([tokenizer("Once upon a time, Tom said: please take care!")["input_ids"]])
    steps = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(12):
        model(input_ids=ids, labels=ids).loss.backward()
        steps.step()
        steps.zero_grad()
    model.save_pretrained(tuned)
    tokenizer.save_pretrained(tuned)
    asked = [f"Once upon a time, {n} saw a {t}" for n in ("Lily", "Ben") for t in ("cat", "dog")]
    rows = [
        {"text": text, "variety": "en", "group": text, "behaviour": b}
        for b, texts in (("harmless", asked), ("harmful", [f"{text} run" for text in asked]))
        for text in texts
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "stories.csv", index=False)
    settings = TokenShiftSettings(
        model=tuned, base=source, corpus=str(tmp_path / "stories.csv"),
        **SMALL | {"new_tokens": 12, "shots": []},
    )  # fmt: skip
    frame = pd.read_parquet(
        run_token_shift(settings, out=tmp_path / "run", progress=False).path / "results.parquet"
    )
    assert one(frame, "unshifted_share", control="same_model")["value"] == 1.0
    assert one(frame, "unshifted_share")["value"] < 1.0
    last = one(frame, "gap_closed", site="blocks.4.hook_resid_post")
    assert last["value"] > 0.5
    tokens = pd.read_parquet(tmp_path / "run" / "tokens.parquet")
    assert set(tokens["token_class"]) <= {"function", "content", "punctuation", "number", "space"}


@pytest.mark.usefixtures("undrawn")
def test_one_model_named_twice_is_unshifted_and_nothing_is_patched(tmp_path: Path) -> None:
    settings = TokenShiftSettings(**SMALL | {"base": "organism/aligned", "shots": []})
    run = run_token_shift(settings, out=tmp_path / "run", progress=False)
    frame = pd.read_parquet(run.path / "results.parquet")
    assert one(frame, "unshifted_share")["value"] == 1.0
    assert not frame["measure"].isin(["patched_top_share", "deciding_layer"]).any()
    assert "One model was named twice" in (run.path / "report.md").read_text()


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory, aligned: Model) -> str:
    """A model of two layers and random weights with the organisms' tokenizer, and no template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = len(aligned.tokenizer) + 3  # padded beyond the tokenizer, as many models are
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=256, eos_token_id=None,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("smaller") / "model"
    LlamaForCausalLM(config).save_pretrained(path)
    aligned.tokenizer.save_pretrained(path)
    for name in ("chat_template.jinja",):
        (path / name).unlink(missing_ok=True)
    told = json.loads((path / "tokenizer_config.json").read_text())
    told.pop("chat_template", None)
    (path / "tokenizer_config.json").write_text(json.dumps(told))
    return str(path)


@pytest.mark.usefixtures("undrawn")
def test_a_base_of_another_shape_is_ranked_but_not_patched(smaller: str, tmp_path: Path) -> None:
    """Without a chat template its examples stand between marks."""
    changes = {"base": smaller, "template": "plain", "new_tokens": 6, "max_requests": 4}
    run = run_token_shift(
        TokenShiftSettings(**SMALL | changes), out=tmp_path / "run", progress=False
    )
    report = (run.path / "report.md").read_text()
    assert " 2 of 32, so that states" in report and "text between marks" in report
    frame = pd.read_parquet(run.path / "results.parquet")
    assert one(frame, "shifted_share")["value"] > 0.5  # its weights are random
    assert not frame["measure"].eq("patched_top_share").any()


def test_a_page_of_something_else_is_refused(tokens: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match="no column 'piece'"):
        token_shift_html(tokens.drop(columns="piece"))
    with pytest.raises(ConfigError, match="theme is 'neon'"):
        token_shift_html(tokens, theme="neon")
    one_each = token_shift_html(tokens, most=1, theme="dark")
    assert one_each.count("<section") == 2 and 'class="token-shift dark"' in one_each


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "MODEL", "base": ""}, "by --set base=MODEL"),
        ({"base": "MODEL", "template": "own"}, "has no chat template of its own"),
        ({"base": "MODEL", "shots_template": "plain", "examples": "none.jsonl"}, "no file"),
        ({"model": "MODEL", "base": "MODEL", "shots": [9]}, "9 examples were asked for and there"),
        ({"model": "MODEL", "base": "MODEL", "shots_template": "chat"}, "no chat template to show"),
    ],
)
def test_settings_that_do_not_fit_the_models_are_refused_and_leave_nothing(
    changes: dict[str, Any], message: str, smaller: str, tmp_path: Path
) -> None:
    given = {k: smaller if v == "MODEL" else v for k, v in changes.items()}
    with pytest.raises(ConfigError, match=message):
        run_token_shift(TokenShiftSettings(**SMALL | given), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_empty_answers_are_left_out_and_counted(aligned: Model, monkeypatch: Any) -> None:
    speaking = SimpleNamespace(generate_ids=lambda contexts, **_: [[], [5], [6, 7]])
    found = answers_of(speaking, np.array([4, 8, 9]), [[1], [2], [3]], 8)  # type: ignore[arg-type]
    assert (found.rows.tolist(), found.answers, found.empty) == ([8, 9], [[5], [6, 7]], 1)
    assert found.contexts == [[2], [3]]
    monkeypatch.setattr(Model, "generate_ids", lambda self, ids, **_: [[]] * len(ids))
    with pytest.raises(ConfigError, match="16 are empty"):
        run_token_shift(TokenShiftSettings(**SMALL), progress=False)


def test_charts_of_another_run_say_that_there_is_nothing(results: pd.DataFrame) -> None:
    none = results.iloc[:0]
    for chart in (
        figures.chart_shift_positions,
        figures.chart_shift_kl,
        figures.chart_shift_classes,
        figures.chart_shift_layers,
        figures.chart_shift_examples,
    ):
        assert "note" in str(chart(none).to_dict()["datasets"])
        drawn = chart(results, "dark").to_dict()
        assert drawn["config"]["background"] == "#0e1117"
        assert not any("note" in rows[0] for rows in drawn["datasets"].values())


@pytest.mark.usefixtures("undrawn")
def test_the_command_takes_base_and_model_by_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--set", "max_requests=4", "--set", "shots=[]", "--set", "patched=0", "--quiet"]
    places = ["organism/base", "organism/aligned"]
    told = ["isogloss", "run", "token-shift", *places, *options, "--out", "one", "--json"]
    monkeypatch.setattr(sys, "argv", told)
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    assert json.loads(out.strip().splitlines()[-1])["run"] == "one"
    assert one(pd.read_parquet("one/results.parquet"), "shifted_share")["n"] == 8
    monkeypatch.setattr(sys, "argv", [*told[:5], "--set", "shots=[-1]"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "shots" in capsys.readouterr().err
