"""Estimates of patching are slopes, means of slopes and exact attention; their error is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from activations import ModelError, open_model
from interventions import (
    AnswerLogProb,
    EditError,
    LogitDifference,
    align_tokens,
    attribution_sweep,
    patch_sweep,
)
from interventions.agreement import agreement, drawn
from interventions.query_key import QueryKey

from .circuits import induction_model, induction_pairs, linear_model, place_by_place
from .conftest import _hf, _tokenizer

PAIRS = [("a b c d e f g", "a h c i e f g"), ("j k l m", "n k o p l m"), ("q r s t a", "b q r c a")]
METRIC = LogitDifference(["c"] * 3, ["d"] * 3)


class Shift:
    """Adds an array to the states at a site."""

    name = "shift"

    def __init__(self, site: str, by: torch.Tensor) -> None:
        self.sites, self.by = (site,), by

    def __call__(self, activation: torch.Tensor, site: str, positions: Any) -> torch.Tensor:
        return activation + self.by


class Hold:
    """Puts a whole tensor in place of the states at a site."""

    name = "hold"

    def __init__(self, site: str, states: torch.Tensor) -> None:
        self.sites, self.states = (site,), states

    def __call__(self, activation: torch.Tensor, site: str, positions: Any) -> torch.Tensor:
        return self.states.expand_as(activation)


@pytest.fixture(scope="module")
def precise() -> Any:
    """GPT-2, which computes in f64 throughout where its weights are."""
    return open_model(_hf("gpt2").double(), tokenizer=_tokenizer())


def figure(model: Any, base: str, *edits: Any) -> float:
    right, wrong = model.encode("c d")
    with model.edited(*edits):
        logits = model.logits(*model.pad([model.encode(base)]))[0, -1].double()
    return float(logits[right] - logits[wrong])


def change(model: Any, base: str, source: str, cell: Any) -> torch.Tensor:
    """Source less base state of one cell, zero elsewhere, `[1, pos, *row]`."""
    b, s = model.encode(base), model.encode(source)
    aligned = align_tokens(b, s)
    one, other = (model.activations(*model.pad([ids]), [cell.site])[cell.site] for ids in (b, s))
    by = torch.zeros_like(one)
    end = len(b) - cell.position
    for place in range(end - cell.width, end):
        if aligned[place] >= 0:
            head = slice(None) if cell.head < 0 else cell.head
            by[0, place, head] = other[0, aligned[place], head] - one[0, place, head]
    return by


def slope(model: Any, base: str, site: str, by: torch.Tensor, *more: Any) -> float:
    """By central differences; edits `more` are open."""
    step = 1e-5
    ends = [figure(model, base, Shift(site, sign * step * by), *more) for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("most", [24, 3])
def test_attribution_patching_is_a_central_difference(precise: Any, most: int) -> None:
    sweep = attribution_sweep(
        precise, PAIRS, sites=["resid_mid", "attn_out", "z", "q", "v", "mlp_post"], layers=[1],
        heads=True, max_positions=most, metric=METRIC,
    )  # fmt: skip
    moved = 0
    for cell in sweep.frame.itertuples():
        base, source = PAIRS[cell.pair]
        by = change(precise, base, source, cell)
        expected = slope(precise, base, cell.site, by)
        assert cell.value - cell.base == pytest.approx(expected, rel=1e-5, abs=1e-8)
        assert cell.score == pytest.approx(abs(expected), rel=1e-5, abs=1e-8)
        moved += expected != 0
    assert moved > 40


@pytest.mark.parametrize("method", ["atp", "ig", "atp*"])
def test_the_layout_and_the_plain_runs_are_those_of_the_exact_sweep(
    model: Any, method: Any
) -> None:
    options: dict[str, Any] = {
        "sites": ["resid_post", "z"], "heads": True, "max_positions": 3, "way": "both",
        "metric": AnswerLogProb(["b c", "d", "e f g"]),
    }  # fmt: skip
    exact = patch_sweep(model, PAIRS, **options)
    found = attribution_sweep(model, PAIRS, method=method, check=9999, **options)
    same = ["pair", "way", "site", "layer", "head", "position", "width", "patched"]
    assert found.frame[same].equals(exact.frame[same])
    for column in ("base", "source"):
        np.testing.assert_allclose(found.frame[column], exact.frame[column], atol=1e-5)
    assert set(exact.summary.columns) | {"score"} == set(found.summary.columns)
    assert len(found.summary) == len(exact.summary)
    assert found.array(way="noise").shape == exact.array(way="noise").shape
    whole = exact.frame.merge(found.error.frame, on=same[:6])
    assert len(whole) == found.error.cells == exact.work.runs  # all that could be run were
    np.testing.assert_allclose(whole["value"] - whole["base"], whole["exact"], atol=1e-4)
    assert "Pearson" in repr(found) and method in repr(found)
    assert len(found.leading) == 16
    highest = found.frame["score"].sort_values(ascending=False)[:16]
    np.testing.assert_allclose(found.leading["score"], highest)
    both = exact.frame.merge(found.leading, on=same[:6])
    np.testing.assert_allclose(both["value"] - both["base"], both["exact"], atol=1e-4)


@pytest.mark.parametrize("method", ["atp", "ig", "atp*"])
def test_all_methods_are_exact_on_a_linear_model(method: Any) -> None:
    model = linear_model()
    metric = LogitDifference(["c"], ["d"])
    pairs = [("a b e f", "g b h i")]
    sites = ["resid_pre", "resid_post", "mlp_out", "mlp_post"]
    exact = patch_sweep(model, pairs, sites=sites, metric=metric)
    found = attribution_sweep(model, pairs, method=method, sites=sites, metric=metric, steps=2)
    assert exact.frame["recovered"].abs().max() > 0.5
    np.testing.assert_allclose(found.frame["value"], exact.frame["value"], atol=1e-5)
    assert found.error.relative < 1e-5 and found.error.pearson.value > 0.9999


@pytest.mark.parametrize(
    "metric", ["kl", METRIC, AnswerLogProb(["b c", "d", "e"])], ids=["kl", "logits", "answer"]
)
@pytest.mark.parametrize("path", ["site", "inputs"])
def test_integrated_gradients_are_complete_over_a_cut(model: Any, path: Any, metric: Any) -> None:
    found = attribution_sweep(
        model, PAIRS, method="ig", sites="embed", path=path, steps=256, metric=metric, check=3
    )
    sums = found.completeness
    assert sums is not None and len(sums) == len(PAIRS)
    # Texts of one length whose tokens all have a counterpart: the cut is the whole source run.
    whole = found.frame[found.frame["pair"] == 0]
    gap = (whole["source"] - whole["base"]).iloc[0]
    assert (whole["value"] - whole["base"]).sum() == pytest.approx(gap, rel=0.01)
    assert sums["exact"].iloc[0] == pytest.approx(gap, rel=1e-3)
    np.testing.assert_allclose(sums["attributed"], sums["exact"], rtol=0.01)


def test_integrated_gradients_are_the_mean_slope_of_the_path(precise: Any) -> None:
    """The path of a later site, cell by cell, against edits made by hand."""
    site, steps = "blocks.1.hook_resid_pre", 5
    base, source = PAIRS[0]
    found = attribution_sweep(
        precise,
        [PAIRS[0]],
        method="ig",
        sites=site,
        steps=steps,
        metric=LogitDifference(["c"], ["d"]),
    )
    through = attribution_sweep(
        precise, [PAIRS[0]], method="ig", path="inputs", sites=site, steps=steps,
        metric=LogitDifference(["c"], ["d"]),
    )  # fmt: skip
    cells = found.frame[found.frame["width"] > 0]
    all_of_it = sum(change(precise, base, source, cell) for cell in cells.itertuples())
    embed = precise.embedding_site
    inputs = change(
        precise, base, source, SimpleNamespace(site=embed, position=0, width=7, head=-1)
    )
    for one, other in zip(found.frame.itertuples(), through.frame.itertuples(), strict=True):
        by = change(precise, base, source, one)
        shares = (np.arange(steps) + 0.5) / steps
        own = [slope(precise, base, site, by, Shift(site, s * all_of_it)) for s in shares]
        assert one.value - one.base == pytest.approx(np.mean(own), rel=1e-4, abs=1e-7)
        moved = [slope(precise, base, site, by, Shift(embed, s * inputs)) for s in shares]
        assert other.value - other.base == pytest.approx(np.mean(moved), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("most", [24, 3])
def test_queries_and_keys_change_attention_as_patching_them_does(precise: Any, most: int) -> None:
    """AtP*: the pattern under each patched cell, read from its own run, times the slope in it."""
    pairs = PAIRS[:2]
    sweep = attribution_sweep(
        precise, pairs, method="atp*", sites=["q", "k"], layers=[0, 2], heads=True,
        max_positions=most, metric=LogitDifference(["c"] * 2, ["d"] * 2),
    )  # fmt: skip
    moved = 0
    for cell in sweep.frame.itertuples():
        base, source = pairs[cell.pair]
        pattern = QueryKey.pattern(cell.site)
        ids = precise.pad([precise.encode(base)])
        before = precise.activations(*ids, [pattern])[pattern]
        with precise.edited(Shift(cell.site, change(precise, base, source, cell))):
            after = precise.activations(*ids, [pattern])[pattern]
        expected = slope(precise, base, pattern, after - before)
        assert cell.value - cell.base == pytest.approx(expected, rel=1e-4, abs=1e-7)
        moved += abs(expected) > 1e-6
    assert moved > 20


def test_keys_that_several_queries_share_are_corrected_together() -> None:
    model = open_model(_hf("llama"), tokenizer=_tokenizer())  # two heads of queries, one of keys
    found = attribution_sweep(
        model, PAIRS, method="atp*", sites="k", layers=[2], heads=True, metric=METRIC
    )
    for cell in found.frame.itertuples():
        base, source = PAIRS[cell.pair]
        by = change(model, base, source, cell)
        pattern = QueryKey.pattern(cell.site)
        ids = model.pad([model.encode(base)])
        before = model.activations(*ids, [pattern])[pattern]
        with model.edited(Shift(cell.site, by)):
            after = model.activations(*ids, [pattern])[pattern]
        step = 1e-2
        ends = [figure(model, base, Shift(pattern, s * step * (after - before))) for s in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * step)
        assert cell.value - cell.base == pytest.approx(expected, rel=2e-2, abs=2e-3)


def test_graddrop_is_the_mean_size_of_slopes_with_one_block_held(precise: Any) -> None:
    base, source = PAIRS[0]
    sites = ["blocks.0.attn.hook_z", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_mid"]
    sweep = attribution_sweep(
        precise, [PAIRS[0]], method="atp*", sites=sites, metric=LogitDifference(["c"], ["d"])
    )
    ids = precise.pad([precise.encode(base)])
    writes = {
        block: [f"blocks.{block}.hook_attn_out", f"blocks.{block}.hook_mlp_out"]
        for block in range(3)
    }
    states = precise.activations(*ids, [s for both in writes.values() for s in both])
    for cell in sweep.frame.itertuples():
        by = change(precise, base, source, cell)
        each = []
        for both in writes.values():
            held = [Hold(site, states[site]) for site in both]
            each.append(abs(slope(precise, base, cell.site, by, *held)))
        own = cell.layer if "resid" not in cell.site else None
        assert own is None or each[own] == pytest.approx(0, abs=1e-9)
        expected = sum(each) / (3 if own is None else 2)
        assert cell.score == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_saturated_attention_is_seen_by_the_correction_and_not_by_the_slope() -> None:
    model, circuit = induction_model()
    pairs, right, wrong = induction_pairs()
    options: dict[str, Any] = {
        "sites": circuit.keys, "heads": True, "max_positions": 1,
        "metric": LogitDifference(right, wrong), "align": place_by_place,
    }  # fmt: skip
    exact = patch_sweep(model, pairs, **options).frame
    exact = exact[exact["head"] == circuit.induction_head]
    assert (exact["recovered"] > 0.99).all()
    recovered = {}
    for method in ("atp", "atp*"):
        frame = attribution_sweep(model, pairs, method=method, **options).frame
        recovered[method] = frame[frame["head"] == circuit.induction_head]["recovered"]
    assert recovered["atp"].abs().max() < 0.05
    np.testing.assert_allclose(recovered["atp*"], exact["recovered"], atol=0.1)


def test_results_do_not_depend_on_the_batch(model: Any, monkeypatch: Any) -> None:
    for method in ("atp", "ig", "atp*"):
        options: dict[str, Any] = {
            "method": method, "sites": ["resid_pre", "q", "k"], "steps": 2, "check": 3,
            "metric": METRIC,
        }  # fmt: skip
        whole = attribution_sweep(model, PAIRS, **options)
        for budget in (1, 20):
            small = attribution_sweep(model, PAIRS, token_budget=budget, **options)
            for column in ("value", "score"):
                np.testing.assert_allclose(small.frame[column], whole.frame[column], atol=1e-4)
            assert whole.work.runs == small.work.runs
    from interventions import gradient_runs

    real, refused = gradient_runs.gradients, []

    def short_of_memory(model: Any, ids: Any, *args: Any, **named: Any) -> Any:
        if len(ids) > 2:
            refused.append(len(ids))
            raise torch.OutOfMemoryError
        return real(model, ids, *args, **named)

    monkeypatch.setattr(gradient_runs, "gradients", short_of_memory)
    halved = attribution_sweep(model, PAIRS, **options)
    assert refused
    np.testing.assert_allclose(halved.frame["value"], whole.frame["value"], atol=1e-4)


def test_the_error_is_that_of_the_drawn_cells(model: Any) -> None:
    found = attribution_sweep(model, PAIRS, metric=METRIC, check=20, seed=1)
    error, frame = found.error, found.error.frame
    assert len(frame) == 20 and error.cells > 20
    counts = frame["layer"].value_counts()
    assert counts.max() - counts.min() <= 1 and len(counts) == 3
    assert error.pearson.value == pytest.approx(stats.pearsonr(frame.effect, frame.exact)[0])
    assert error.spearman.value == pytest.approx(stats.spearmanr(frame.effect, frame.exact)[0])
    ranks = stats.spearmanr(frame["score"], frame["exact"].abs())[0]
    assert error.ranking.value == pytest.approx(ranks)
    worst = error.worst(3)
    misses = (frame["effect"] - frame["exact"]).abs().sort_values(ascending=False)
    np.testing.assert_allclose(worst["miss"].abs(), misses[:3])
    expected = np.linalg.norm(frame.effect - frame.exact) / np.linalg.norm(frame.exact)
    assert error.relative == pytest.approx(expected)
    assert error.pearson.n == 3 and error.pearson.low <= error.pearson.value
    again = attribution_sweep(model, PAIRS, metric=METRIC, check=20, seed=1)
    assert again.error.frame.equals(frame)
    other = attribution_sweep(model, PAIRS, metric=METRIC, check=20, seed=2)
    assert not other.error.frame[["site", "position"]].equals(frame[["site", "position"]])


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(3, 30), st.integers(0, 9))
def test_draws_are_spread_over_layers(layers: list[int], count: int, seed: int) -> None:
    chosen = drawn(layers, count, seed)
    assert len(set(chosen)) == len(chosen) == min(count, len(layers))
    taken, there = (np.bincount(np.asarray(x, dtype=int), minlength=5) for x in (
        np.asarray(layers)[chosen], layers))  # fmt: skip
    short = taken < there  # layers that had more to give
    if short.any():
        assert taken.max() - taken[short].min() <= 1


def test_what_is_constant_has_no_correlation() -> None:
    frame = pd.DataFrame(
        {"pair": [0, 0, 1, 1], "effect": [0.0] * 4, "exact": [1.0, 2, 3, 4], "score": [0.0] * 4}
    )
    error = agreement(frame, ["x", "y"], 9, seed=0, level=0.95)
    assert np.isnan(error.pearson.value) and error.relative == 1 and error.pearson.n == 2
    assert "4 of 9 cells" in str(error)


def test_nothing_differs_nothing_is_attributed(model: Any) -> None:
    for method in ("atp", "ig", "atp*"):
        found = attribution_sweep(model, [("a b", "a b")], method=method, sites=["z", "k"], steps=2)
        assert (found.frame["value"] == found.frame["base"]).all()
        assert (found.frame["score"] == 0).all() and len(found.error.frame) == 0
        assert np.isnan(found.error.relative)


def test_half_precision_is_warned_of() -> None:
    model = open_model(_hf("gpt2").to(torch.bfloat16), tokenizer=_tokenizer())
    with pytest.warns(UserWarning, match="underflow"):
        attribution_sweep(model, PAIRS, metric=METRIC)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "atp+"}, "method is 'atp\\+'"),
        ({"path": "logits"}, "path is 'logits'"),
        ({"steps": 0}, "at least 1"),
        ({"check": 0}, "`check` is 0"),
        ({"top": 0}, "at least 1"),
        ({"metric": lambda logits, source, base: logits.argmax(-1).double()}, "no gradient"),
        ({"metric": lambda logits, source, base: logits[:, 0] * float("nan")}, "not finite"),
        ({"sites": "pattern"}, "attention between positions"),
        ({"groups": [1]}, "3 pairs and 1 groups"),
    ],
)
def test_bad_attributions_say_what_is_wrong(model: Any, options: Any, message: str) -> None:
    with pytest.raises(EditError, match=message):
        attribution_sweep(model, PAIRS, **options)


def test_models_that_cannot_be_corrected_or_differentiated_are_refused() -> None:
    nnsight = open_model(_hf("gpt2"), tokenizer=_tokenizer(), engine="nnsight")
    with pytest.raises(ModelError, match="no gradients"):
        attribution_sweep(nnsight, PAIRS)
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=23, hidden_size=16, word_embed_proj_dim=16, ffn_dim=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=24, pad_token_id=0,
    )  # fmt: skip
    opt = open_model(OPTForCausalLM(config), tokenizer=_tokenizer())
    with pytest.raises(EditError, match="cannot be made of its scores"):
        attribution_sweep(opt, PAIRS, method="atp*", sites="q")
