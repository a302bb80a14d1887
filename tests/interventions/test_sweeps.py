"""Sweeps as forks give what whole passes and TransformerLens's helpers give, for every metric."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activations.forking import CannotFork
from interventions import (
    AnswerLogProb,
    ContinuationLoss,
    EditError,
    LogitDifference,
    compose,
    patch_sweep,
    replace,
    scale,
)
from interventions.sweep_runs import ForkedCases

from .conftest import WORDS

PAIRS = [("a b c d e f g", "a h c i e f g"), ("j k l m", "n k o p l m"), ("q r s t a", "b q r c a")]
SITES = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v"]

words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)


@settings(max_examples=12)
@given(
    pairs=st.lists(st.tuples(words, words), min_size=1, max_size=3),
    sites=st.lists(st.sampled_from(SITES), min_size=1, max_size=2, unique=True),
    heads=st.booleans(),
    most=st.integers(1, 8),
    budget=st.integers(1, 60),
    way=st.sampled_from(["denoise", "noise", "both"]),
)
def test_forks_give_the_figures_of_whole_passes(
    model: Any, pairs: Any, sites: Any, heads: bool, most: int, budget: int, way: Any
) -> None:
    options = {"sites": sites, "heads": heads, "max_positions": most, "way": way}
    forked = patch_sweep(model, pairs, passes="forked", token_budget=budget, **options)
    whole = patch_sweep(model, pairs, passes="whole", **options)
    columns = ["pair", "way", "site", "layer", "head", "position", "width", "patched"]
    assert forked.frame[columns].equals(whole.frame[columns])
    for column in ("value", "base", "source"):
        np.testing.assert_allclose(forked.frame[column], whole.frame[column], atol=1e-4)
    assert forked.work.runs == whole.work.runs
    assert forked.work.block_tokens <= whole.work.block_tokens <= whole.work.whole


@pytest.mark.parametrize(
    ("helper", "sites", "heads", "most"),
    [
        ("get_act_patch_resid_pre", "resid_pre", False, 24),
        ("get_act_patch_resid_mid", "resid_mid", False, 24),
        ("get_act_patch_attn_out", "attn_out", False, 24),
        ("get_act_patch_mlp_out", "mlp_out", False, 24),
        ("get_act_patch_attn_head_out_by_pos", "z", True, 24),
        ("get_act_patch_attn_head_q_by_pos", "q", True, 24),
        ("get_act_patch_attn_head_v_by_pos", "v", True, 24),
        ("get_act_patch_attn_head_out_all_pos", "z", True, 1),
    ],
)
def test_maps_are_those_of_transformer_lens(
    model: Any, helper: str, sites: str, heads: bool, most: int
) -> None:
    from transformer_lens import patching

    base, source = "a b c d e", "f b g d h"
    right, wrong = model.encode("c d")
    ids = [torch.tensor([model.encode(text)]) for text in (base, source)]
    with torch.no_grad():  # with gradients its helper for resid_mid reaches the MLP alone
        _, cache = model.bridge.run_with_cache(ids[1])
        expected = getattr(patching, helper)(
            model.bridge, ids[0], cache, lambda logits: logits[0, -1, right] - logits[0, -1, wrong]
        )
    sweep = patch_sweep(
        model,
        [(base, source)],
        sites=sites,
        heads=heads,
        max_positions=most,
        metric=LogitDifference(["c"], ["d"]),
        align=lambda b, s: np.arange(len(b)),
    )
    assert len(sweep.frame) == expected.numel()
    for cell in sweep.frame.itertuples():
        place: list[int] = [cell.layer]
        place += [] if most == 1 else [4 - cell.position]
        place += [cell.head] if heads else []
        assert cell.value == pytest.approx(float(expected[tuple(place)]), abs=1e-4)


def test_the_other_way_is_the_sweep_of_exchanged_pairs(model: Any) -> None:
    both = patch_sweep(model, PAIRS, way="both").frame
    turned = patch_sweep(model, [(b, a) for a, b in PAIRS]).frame
    noised = both[both["way"] == "noise"].reset_index(drop=True)
    np.testing.assert_allclose(noised["value"], turned["value"], atol=1e-5)
    assert (noised["position"] == turned["position"]).all()


def test_answers_of_several_tokens_are_the_sum_over_them(model: Any) -> None:
    answers = ["b c d", "e", "f g"]
    sweep = patch_sweep(model, PAIRS, metric=AnswerLogProb(answers), max_positions=1, layers=[1])
    loss = patch_sweep(model, PAIRS, metric=ContinuationLoss(answers), max_positions=1, layers=[1])
    for pair, ((base, source), answer) in enumerate(zip(PAIRS, answers, strict=True)):
        cell = sweep.frame[sweep.frame["pair"] == pair].iloc[0]
        more = model.encode(answer)
        for text, found in ((base, cell["base"]), (source, cell["source"])):
            start = model.encode(text)
            logits = model.logits(torch.tensor([start + more]))[0].double().log_softmax(-1)
            expected = sum(float(logits[len(start) + i - 1, t]) for i, t in enumerate(more))
            assert found == pytest.approx(expected, abs=1e-4)
        mean = loss.frame[loss.frame["pair"] == pair].iloc[0]
        assert mean["value"] == pytest.approx(-cell["value"] / len(more), abs=1e-4)
    assert loss.unit == "nats per token"


def test_only_the_text_is_patched_and_not_its_answer(model: Any) -> None:
    frame = patch_sweep(model, PAIRS, metric=AnswerLogProb(["b c d"] * 3)).frame
    for pair, (base, _) in enumerate(PAIRS):
        own = frame[(frame["pair"] == pair) & (frame["layer"] == 0)]
        assert own["width"].sum() == len(model.encode(base)) and own["position"].min() == 0


def test_a_sweep_that_was_cut_off_goes_on(model: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("interventions.patching._PIECE_BYTES", 1)  # a piece a pair
    whole = patch_sweep(model, PAIRS, store=tmp_path / "whole")
    real, asked = ForkedCases.patched, []

    def killed(self: Any, tasks: Any) -> Any:
        asked.append(self)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(self, tasks)

    monkeypatch.setattr(ForkedCases, "patched", killed)
    with pytest.raises(KeyboardInterrupt):
        patch_sweep(model, PAIRS, store=tmp_path / "cut")
    resumed = patch_sweep(model, PAIRS, store=tmp_path / "cut")
    assert len(asked) == 4
    assert resumed.frame.equals(whole.frame) and resumed.summary.equals(whole.summary)
    with pytest.raises(EditError, match="other texts"):
        patch_sweep(model, PAIRS[:2], store=tmp_path / "cut")
    with pytest.raises(EditError, match="other sites"):
        patch_sweep(model, PAIRS, sites="mlp_out", store=tmp_path / "cut")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(EditError, match="no sweep and is not empty"):
        patch_sweep(model, PAIRS, store=tmp_path / "other")


def test_a_pass_that_memory_does_not_hold_is_made_in_halves(model: Any, monkeypatch: Any) -> None:
    expected = patch_sweep(model, PAIRS)
    real, refused = ForkedCases._run, []

    def short_of_memory(self: Any, record: Any, forks: Any) -> Any:
        if len(forks) > 4:
            refused.append(len(forks))
            raise torch.OutOfMemoryError
        return real(self, record, forks)

    monkeypatch.setattr(ForkedCases, "_run", short_of_memory)
    halved = patch_sweep(model, PAIRS)
    assert refused
    np.testing.assert_allclose(halved.frame["value"], expected.frame["value"], atol=1e-5)


def test_sweeps_under_an_edit_run_whole_passes_with_it(model: Any) -> None:
    site = model.resolve_sites("resid_post", [1])[0]
    half = scale(None, 0.5, sites=site)
    with model.edited(half):
        found = patch_sweep(model, PAIRS[:1], layers=[0])
        with pytest.raises(CannotFork, match="edits are open"):
            patch_sweep(model, PAIRS[:1], layers=[0], passes="forked")
    base, source = (model.encode(text) for text in PAIRS[0])
    first = model.resolve_sites("resid_post", [0])[0]
    with model.edited(half):
        states = model.activations(*model.pad([source]), [first])[first][0]
        goal = model.logits(*model.pad([source]))[0, -1].double().log_softmax(-1)
    put = replace(first, states[3], [3])
    with model.edited(compose(half, put)):
        run = model.logits(*model.pad([base]))[0, -1].double().log_softmax(-1)
    cell = found.frame[found.frame["position"] == 3].iloc[0]
    assert cell["value"] == pytest.approx(float((goal.exp() * (goal - run)).sum()), abs=1e-5)


def test_the_array_has_sites_in_rows_and_positions_in_columns(model: Any) -> None:
    sweep = patch_sweep(model, [("a b c d", "e f g h")])
    table = sweep.array()
    assert list(table.columns) == [3, 2, 1, 0]
    assert list(table.index) == model.resolve_sites("resid_post")
    assert table.iloc[-1, -1] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"way": "sideways"}, "way is 'sideways'"),
        ({"passes": "fast"}, "passes is 'fast'"),
        ({"metric": "accuracy"}, "There is no metric 'accuracy'"),
        ({"metric": LogitDifference(["a"], ["b"])}, "3 pairs and 1 for right answers"),
        ({"metric": LogitDifference(["a"] * 3, ["a"] * 3)}, "same token"),
        ({"metric": AnswerLogProb("abc")}, "one text for answers"),
        ({"metric": AnswerLogProb([[], [3], [3]])}, "has no token"),
        ({"metric": lambda logits, source, base: logits}, "one figure for each run"),
        ({"align": lambda base, source: [0]}, "alignment of pair 0"),
        ({"align": lambda base, source: [99] * len(base)}, "alignment of pair 0"),
        ({"metric": AnswerLogProb(["a " * 70] * 3)}, "context holds 64"),
        ({"token_budget": 0}, "at least 1"),
    ],
)
def test_bad_sweeps_say_what_is_wrong(model: Any, options: Any, message: str) -> None:
    with pytest.raises(EditError, match=message):
        patch_sweep(model, PAIRS, **options)


def test_nothing_differs_nothing_recovered(model: Any) -> None:
    sweep = patch_sweep(model, [("a b", "a b")], way="both", heads=True, sites="z")
    assert sweep.work.runs == 0 and (sweep.frame["value"] == sweep.frame["base"]).all()
    assert all(math.isnan(x) for x in sweep.frame["recovered"])
