"""The sweep equals patching one cell at a time by hand, and its limiting cases are exact."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from interventions import EditError, align_tokens, patch_sweep, replace
from interventions.readings import kl_from_source

PAIRS = [("a b c d e f g", "a h c i e f g"), ("j k l m", "n k o p l m"), ("q r s t a", "b q r c a")]


def one_cell(model: Any, base: str, source: str, site: str, first: int, end: int) -> float:
    """KL(source ‖ patched), with one state replaced after another in one run alone."""
    b, s = model.encode(base), model.encode(source)
    aligned = align_tokens(b, s)
    states = model.activations(*model.pad([s]), [site])[site][0]
    goal = model.logits(*model.pad([s]))[0, -1].double().softmax(-1)
    edits = [
        replace(site, states[int(aligned[p])], [p]) for p in range(first, end) if aligned[p] >= 0
    ]
    with model.edited(*edits):
        run = model.logits(*model.pad([b]))[0, -1].double().softmax(-1)
    return float((goal * (goal / run).log()).sum())


@pytest.mark.parametrize(("most", "budget"), [(24, 8192), (3, 8192), (24, 10)])
def test_the_sweep_equals_one_cell_at_a_time(model: Any, most: int, budget: int) -> None:
    sweep = patch_sweep(model, PAIRS, max_positions=most, token_budget=budget)
    width = math.ceil(7 / most)
    for cell in sweep.frame.itertuples():
        base, source = PAIRS[cell.pair]
        end = len(model.encode(base)) - cell.position
        value = one_cell(model, base, source, cell.site, max(0, end - width), end)
        assert cell.value == pytest.approx(value, abs=1e-5)
        assert cell.recovered == pytest.approx(1 - value / cell.base, abs=1e-4)
    assert set(sweep.frame["layer"]) == {0, 1, 2}


def test_an_identity_patch_changes_exactly_nothing(model: Any) -> None:
    sweep = patch_sweep(model, [("a b c d", "a b c d")])
    assert (sweep.frame["value"] == 0).all() and (sweep.frame["base"] == 0).all()
    assert sweep.frame["recovered"].isna().all() and sweep.summary["value"].isna().all()


def test_a_shared_opening_is_left_out_since_its_states_are_the_same(model: Any) -> None:
    frame = patch_sweep(model, [("a b c d", "a b e d")]).frame
    opening = frame[frame["position"] >= 2]
    assert (opening["value"] == opening["base"]).all()
    for cell in opening.itertuples():
        end = 4 - cell.position
        value = one_cell(model, "a b c d", "a b e d", cell.site, end - 1, end)
        assert cell.value == pytest.approx(value, abs=1e-6)


def test_patching_every_position_of_one_layer_recovers_all(model: Any) -> None:
    frame = patch_sweep(model, [("a b c d", "e f g h")], max_positions=1).frame
    assert (frame["patched"] == 4).all()
    np.testing.assert_allclose(frame["recovered"], 1, atol=1e-6)


def test_the_last_token_at_the_last_layer_recovers_all(model: Any) -> None:
    frame = patch_sweep(model, PAIRS).frame
    trivial = frame[(frame["position"] == 0) & (frame["layer"] == 2)]
    np.testing.assert_allclose(trivial["recovered"], 1, atol=1e-5)


def test_tokens_without_a_counterpart_are_left_and_counted(model: Any) -> None:
    frame = patch_sweep(model, [("a b c d", "a c d")]).frame
    gone = frame[frame["position"] == 2]
    assert (gone["patched"] == 0).all() and (gone["recovered"] == 0).all()
    assert (frame[frame["position"] < 2]["patched"] == 1).all()


def test_segments_cover_each_position_once(model: Any) -> None:
    frame = patch_sweep(model, PAIRS, max_positions=3).frame
    for (pair, _), cells in frame.groupby(["pair", "site"]):
        assert cells["width"].sum() == len(model.encode(PAIRS[pair][0]))
        assert cells["position"].tolist() == list(range(0, int(cells["width"].sum()), 3))


def test_the_summary_is_the_ratio_of_sums(model: Any) -> None:
    sweep = patch_sweep(model, PAIRS, layers=[1])
    for cell in sweep.summary.itertuples():
        own = sweep.frame[sweep.frame["position"] == cell.position]
        assert cell.value == pytest.approx(1 - own["value"].sum() / own["base"].sum())
        assert cell.n == len(own) and cell.layer == 1
        if cell.n > 1:
            assert cell.low <= cell.value + 1e-9 and cell.high >= cell.value - 1e-9


def test_any_metric_is_scaled_from_the_base_to_the_source(model: Any) -> None:
    def first_logit(logits: Any, source: Any, base: Any) -> Any:
        return logits[:, 0]

    frame = patch_sweep(model, [("a b c d", "e f g h")], metric=first_logit, max_positions=1).frame
    np.testing.assert_allclose(frame["recovered"], 1, atol=1e-4)
    assert (frame["base"] != frame["source"]).all()


def test_kl_is_that_of_the_definition() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.2, 0.2, 0.6])
    wanted = sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q))
    assert float(kl_from_source(q.log()[None], p.log(), q.log())) == pytest.approx(wanted, abs=1e-7)


def test_bad_sweeps_are_refused(model: Any) -> None:
    with pytest.raises(EditError, match="at least one pair"):
        patch_sweep(model, [])
    with pytest.raises(EditError, match="at least 1"):
        patch_sweep(model, PAIRS, max_positions=0)
