"""`isogloss run diff` and `before_after`: nothing where nothing differs, and what was planted."""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import organisms
from activations import Model, ModelError, capture, open_model
from apps.cli import main
from experiments import ConfigError
from experiments.compare.bench import Bench
from experiments.compare.directions import compare_directions
from experiments.compare.subspaces import compare_subspaces
from experiments.diff import DiffSettings, before_after, wide
from experiments.diff.job import run_diff
from experiments.diff.observing import Texts
from experiments.diff.probing import transferred
from experiments.inputs import Inputs, read_inputs
from experiments.results import as_frame
from experiments.settings import CompareSettings
from geometry import mean_difference
from interventions import ablate

SMALL: dict[str, Any] = {
    "max_groups": 24,
    "layers": [1, 3],
    "folds": 3,
    "control_draws": 1,
    "null_draws": 50,
    "split_draws": 4,
    "bootstrap_draws": 20,
    "text_groups": 4,
    "new_tokens": 8,
    "promoted": 3,
    "k": 2,
}
SETTINGS = DiffSettings(**SMALL)
KEYS = ["measure", "site", "variety", "reference", "behaviour", "control", "position"]


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return read_inputs(SETTINGS)


@pytest.fixture(scope="module")
def aligned() -> Model:
    return open_model("organism/aligned")


@pytest.fixture(scope="module")
def drifted() -> Model:
    return open_model("organism/drifted")


@pytest.fixture(scope="module")
def drift(aligned: Model, drifted: Model, inputs: Inputs) -> pd.DataFrame:
    return before_after(aligned, drifted, inputs, settings=SETTINGS)


def value(frame: pd.DataFrame, measure: str, **where: Any) -> float:
    rows = frame[frame["measure"] == measure]
    for column, wanted in ({"control": ""} | where).items():
        rows = rows[rows[column] == wanted]
    assert len(rows) == 1, rows
    return float(rows["value"].iloc[0])


def test_a_model_against_itself_changes_nothing(aligned: Model, inputs: Inputs) -> None:
    found = before_after(aligned, aligned, inputs, settings=SETTINGS)
    changes = found[found["measure"].str.endswith("_change")]
    assert changes["measure"].nunique() > 8 and (changes["value"] == 0).all()
    assert not (changes["low"] > 0).any() and not (changes["high"] < 0).any()
    between = found[(found["edit"] != "") & (found["control"] == "")].groupby("measure")["value"]
    for name in ("next_token_kl", "state_shift"):
        assert (between.get_group(name) == 0).all()
    for name in ("model_cka", "model_subspace_overlap", "model_direction_cosine"):
        np.testing.assert_allclose(between.get_group(name), 1.0, atol=1e-6)
    assert (between.get_group("perplexity_ratio") == 1).all()
    assert not (found["measure"] == "promoted_token").any()  # no shift promotes anything
    assert set(found["edit"]) == {"", "model(organism/aligned)"}


def test_what_drift_took_is_refusal_and_by_variety_as_the_organism_was_made(
    drift: pd.DataFrame,
) -> None:
    after = {"edit": "model(organism/drifted)"}
    change = "refusal_rate_change"
    assert value(drift, change, behaviour="harmful", variety="", **after) < -0.3
    assert value(drift, change, behaviour="harmless", variety="", **after) == 0
    told = {"behaviour": "harmful", **after}
    left = pd.Series(organisms.truth().drift_refusal)
    lost = pd.Series({v: value(drift, change, variety=v, **told) for v in left.index})
    assert np.corrcoef(left, lost)[0, 1] > 0.8
    # Its texts are no less likely, and harmfulness is read as before: drifted, not broken.
    loss = drift[drift["measure"] == "loss_change"]
    assert len(loss) == 9 and loss["value"].abs().max() < 0.02
    probe = drift[drift["measure"] == "behaviour_probe_accuracy_change"]
    assert probe["value"].abs().max() < 0.1


def test_rows_before_are_those_of_compare(
    drift: pd.DataFrame, aligned: Model, inputs: Inputs
) -> None:
    shared = {k: v for k, v in SMALL.items() if k in CompareSettings.model_fields}
    settings = CompareSettings(**shared)
    sites = [s for s in dict.fromkeys(drift["site"]) if s]
    store = capture(aligned, inputs.corpus, sites=sites, progress=False)
    bench = Bench(settings, inputs, aligned, sites, store)
    texts = Texts.of(inputs, SETTINGS)
    bench.answers = dict.fromkeys(map(int, texts.requests), False)
    theirs = as_frame([*compare_subspaces(bench), *compare_directions(bench)])
    for measure in ("subspace_overlap", "direction_subspace_cosine"):
        both = theirs[theirs["measure"] == measure].merge(
            drift[(drift["edit"] == "") & (drift["measure"] == measure)], on=KEYS
        )
        both = both[both["variety"] != ""]
        assert len(both) > 8
        for column in ("value", "low", "high"):
            np.testing.assert_allclose(both[f"{column}_x"], both[f"{column}_y"], atol=1e-9)


def test_losses_are_those_of_the_plain_models(
    drift: pd.DataFrame, aligned: Model, drifted: Model, inputs: Inputs
) -> None:
    rows = Texts.of(inputs, SETTINGS).sentences
    frame = inputs.corpus.frame.iloc[rows]
    means = []
    for model in (aligned, drifted):
        losses = []
        for text in frame["text"]:
            ids = torch.tensor([model.encode(text)])
            with torch.no_grad():
                losses.append(float(model.hf(ids, labels=ids).loss))
        means.append(pd.Series(losses).groupby(frame["variety"].to_numpy()).mean())
    for variety, change in (means[1] - means[0]).items():
        assert value(drift, "loss", variety=variety, edit="") == pytest.approx(
            means[0][variety], abs=1e-4
        )
        assert value(drift, "loss_change", variety=variety) == pytest.approx(change, abs=1e-4)
        ratio = value(drift, "perplexity_ratio", variety=variety)
        assert ratio == pytest.approx(np.exp(change), abs=1e-4)


def test_an_edit_that_takes_refusal_out_shows_as_what_it_is(aligned: Model, inputs: Inputs) -> None:
    sites = aligned.resolve_sites("resid_post")
    sides = [inputs.requests(b, train=True, most=64) for b in ("harmful", "harmless")]
    store = capture(aligned, inputs.corpus, sites=sites, progress=False)
    edit = ablate({s: mean_difference(store[s][sides[0]], store[s][sides[1]]) for s in sites})
    found = before_after(aligned, None, inputs, edit=edit, settings=SETTINGS, label="without")
    assert set(found["edit"]) == {"", "without"}
    told = {"variety": "", "behaviour": "harmful"}
    assert value(found, "refusal_rate", edit="", **told) > 0.9
    assert value(found, "refusal_rate_change", edit="without", **told) < -0.9
    length = found[(found["measure"] == "direction_length_change")]
    assert (length["value"] < -0.5).all() and (length["high"] < 0).all()
    # All that told harmful requests from harmless ones is gone from the ablated states' means.
    after = found[(found["measure"] == "direction_length") & (found["edit"] == "without")]
    assert (after["value"] < 0.2).all()


def test_a_probe_carried_over_reads_the_same_states_alike_and_other_axes_not() -> None:
    rng = np.random.default_rng(0)
    labels, groups = np.tile(["a", "b", "c"], 40), np.repeat(np.arange(40), 3)
    centres = 4 * rng.standard_normal((3, 12))
    x = centres[np.searchsorted(["a", "b", "c"], labels)] + rng.standard_normal((120, 12))
    turned = x @ np.linalg.qr(rng.standard_normal((12, 12)))[0]
    assert transferred(x, x, labels, groups, SETTINGS).mean() > 0.98
    assert transferred(x, x - 1e-9, labels, groups, SETTINGS).mean() > 0.98
    assert transferred(x, turned, labels, groups, SETTINGS).mean() < 0.7
    both = labels != "c"
    two = transferred(x[both], x[both], labels[both], groups[both], SETTINGS)
    assert (
        two.mean() > 0.98
        and not transferred(x[both], -x[both], labels[both], groups[both], SETTINGS).mean() > 0.6
    )


def own_model(name: str, *, d: int = 32, layers: int = 4, tokenizer: Any) -> Model:
    """A small model with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=d,
        intermediate_size=2 * d,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    model = open_model(LlamaForCausalLM(config).eval(), tokenizer=tokenizer)
    model.name = name
    return model


@pytest.fixture(scope="module")
def letters(inputs: Inputs) -> Any:
    """A tokenizer of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="!")


def test_other_tokens_leave_out_kl_and_tell_losses_per_character(
    aligned: Model, inputs: Inputs, letters: Any
) -> None:
    other = own_model("letters", tokenizer=letters)
    found = before_after(aligned, other, inputs, settings=SETTINGS)
    measures = set(found["measure"])
    assert not {"next_token_kl", "loss", "perplexity", "state_shift", "promoted_token"} & measures
    assert {"text_loss_change", "variety_probe_accuracy_change", "model_cka"} <= measures
    said = " ".join(found.attrs["left_out"])
    assert "other tokens" in said and "128 and 32 wide" in said
    frame = inputs.corpus.frame.iloc[Texts.of(inputs, SETTINGS).sentences]
    own = frame[frame["variety"] == inputs.standard]["text"]
    naive = np.mean([aligned.losses([t])[0][0] / len(t) for t in own])
    standard = value(found, "text_loss", variety=inputs.standard, edit="")
    assert standard == pytest.approx(naive, abs=1e-4)


def test_another_depth_leaves_out_what_goes_by_layer(aligned: Model, inputs: Inputs) -> None:
    other = own_model("short", layers=2, tokenizer=aligned.tokenizer)
    settings = SETTINGS.model_copy(update={"layers": []})
    found = before_after(aligned, other, inputs, settings=settings)
    measures = set(found["measure"])
    assert {"variety_probe_accuracy", "loss_change", "next_token_kl"} <= measures
    assert not {"variety_probe_accuracy_change", "model_cka", "subspace_overlap"} & measures
    assert any("4 and 2 layers" in said for said in found.attrs["left_out"])


def test_only_one_model_is_held_at_a_time(inputs: Inputs) -> None:
    settings = SETTINGS.model_copy(update={"layers": [3], "new_tokens": 0})
    first: list[weakref.ref[Any]] = []

    def before() -> Model:
        model = open_model("organism/base")
        first.append(weakref.ref(model.hf))
        return model

    def after() -> Model:
        assert first[0]() is None
        return open_model("organism/aligned")

    found = before_after(before, after, inputs, settings=settings)
    assert "refusal_rate" not in set(found["measure"])
    assert any("No replies" in said for said in found.attrs["left_out"])


def test_each_figure_is_one_line_of_the_table(drift: pd.DataFrame) -> None:
    lines = wide(drift)
    keys = [*KEYS, "layer"]
    assert not lines.duplicated(keys).any()
    assert not drift.duplicated([*KEYS, "edit"]).any()
    line = lines[(lines["measure"] == "refusal_rate") & (lines["variety"] == "")].iloc[0]
    assert line["after"] - line["before"] == pytest.approx(line["change"])
    assert line["change_low"] <= line["change"] <= line["change_high"]
    both = lines.dropna(subset=["change"])
    np.testing.assert_allclose(both["after"] - both["before"], both["change"], atol=1e-9)
    known = both.dropna(subset=["change_low"])
    assert (known["change_low"] <= known["change"] + 1e-9).all()
    assert (known["change"] <= known["change_high"] + 1e-9).all()
    assert set(lines.dropna(subset=["between"])["measure"]) >= {"next_token_kl", "model_cka"}


def test_nothing_to_compare_with_is_refused(aligned: Model, inputs: Inputs) -> None:
    with pytest.raises(ConfigError, match="give `after`, or an `edit`"):
        before_after(aligned, None, inputs)


def test_a_second_model_that_is_not_there_is_refused_before_a_run_is_made(tmp_path: Path) -> None:
    settings = DiffSettings(**SMALL, after=str(tmp_path / "none"))
    with pytest.raises(ModelError):
        run_diff(settings, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def command(*arguments: Any) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["isogloss", "run", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    return int(end.value.code or 0)


def test_the_command_takes_two_models_and_writes_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = [f"--set={key}={json.dumps(v)}" for key, v in SMALL.items() if key != "layers"]
    out = tmp_path / "run"
    told = ["diff", "organism/base", "organism/aligned", "--layers", "3", *sizes]
    assert command(*told, "--out", out, "--quiet", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["run"] == str(out)
    table = pd.read_csv(out / "table.csv")
    refusal = table[(table["measure"] == "refusal_rate") & table["variety"].isna()]
    refusal = refusal.set_index("behaviour")["change"]
    assert refusal["harmful"] > 0.9 and refusal["harmless"] < 0.1
    report = (out / "report.md").read_text()
    assert "Of harmful requests the share refused is 0.00 before, 1.00 after" in report
    assert "| measure | site |" in report and (out / "figures" / "before_after.png").exists()
    assert 'after = "organism/aligned"' in (out / "config.toml").read_text()
    environment = json.loads((out / "environment.json").read_text())
    assert environment["after_digest"] != environment["model_digest"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("diff", "organism/base"), "MODEL and AFTER, and 1 was given"),
        (("diff", "a", "b", "c"), "3 were given: a b c"),
        (("diff", "a", "b", "--model", "c"), "MODEL is given twice"),
        (("diff", "a", "b", "--set", "after=c"), "AFTER is given twice"),
        (("diff", "a", "b", "--set", "k=0"), "Setting 'k'"),
        (("patch", "organism/base"), "unexpected extra argument"),
    ],
)
def test_a_wrong_command_is_told_in_one_sentence(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments) == 2
    told = capsys.readouterr().err
    assert said in told and len(told.strip().splitlines()) == 1
