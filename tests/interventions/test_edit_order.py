"""In which order edits act, alone, added, and in nested contexts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geometry import mean_difference, random_subspace
from interventions import EditError, ablate, add, clamp, compose, project_out, rotate, scale

from .by_hand import RESID, TOLERANCE, D, hooked, logits

OTHER = "blocks.0.hook_resid_post"
V = np.random.default_rng(1).normal(size=D)
LINE = mean_difference(V[None], np.zeros((1, D)))
PLANE = random_subspace(D, 2, seed=0, mean=np.ones(D))
EDITS = [
    add(LINE, RESID, scale=2),
    project_out(LINE, RESID),
    scale(PLANE, 3, RESID),
    rotate(PLANE, 0.7, RESID, positions=[1]),
    clamp(LINE, 0.5, RESID, positions="all_but_first"),
]


def test_adding_and_then_projecting_out_is_not_the_other_way_round(opened: Any) -> None:
    model, plain = opened
    ids = model.encode("a b c d")
    u = LINE.basis[:, 0]
    push, wipe = EDITS[0], EDITS[1]
    found = {}
    for name, edit, formula in (
        ("push, wipe", push + wipe, lambda h: (h + 2 * V) @ (np.eye(D) - np.outer(u, u))),
        ("wipe, push", wipe + push, lambda h: h @ (np.eye(D) - np.outer(u, u)) + 2 * V),
    ):
        with hooked(plain, RESID, formula):
            expected = logits(plain, ids)
        with model.edited(edit):
            found[name] = model.logits(torch.tensor([ids]))[0]
        torch.testing.assert_close(found[name], expected, **TOLERANCE)
    assert (found["push, wipe"] - found["wipe, push"]).abs().max() > 1e-2


@given(order=st.lists(st.integers(0, len(EDITS) - 1), min_size=1, max_size=5))
def test_a_sum_a_composition_and_one_after_another_are_the_same(order: list[int]) -> None:
    edits = [EDITS[i] for i in order]
    h = torch.randn(2, 3, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = h
    for edit in edits:
        expected = edit(expected, RESID)
    total = edits[0]
    for edit in edits[1:]:
        total = total + edit
    torch.testing.assert_close(total(h, RESID), expected, rtol=0, atol=0)
    together = compose(*edits)
    torch.testing.assert_close(together(h, RESID), expected, rtol=0, atol=0)
    split = len(edits) // 2
    nested = compose(compose(*edits[:split], *edits[split:]))
    assert nested.describe() == together.describe()


def test_inner_contexts_come_after_outer_ones_and_lists_in_their_order(opened: Any) -> None:
    model, _ = opened
    ids = torch.tensor([model.encode("a b c d")])
    a, b, c = EDITS[:3]
    with model.edited(a + b + c):
        expected = model.logits(ids)
    with model.edited(a), model.edited(b), model.edited(c):
        torch.testing.assert_close(model.logits(ids), expected, rtol=0, atol=0)
    with model.edited(a, b, c):
        torch.testing.assert_close(model.logits(ids), expected, rtol=0, atol=0)
    with model.edited(c, b, a):
        assert (model.logits(ids) - expected).abs().max() > 1e-2


def test_a_composition_spans_sites_and_edits_each_where_it_belongs(opened: Any) -> None:
    model, _ = opened
    ids = torch.tensor([model.encode("a b c d")])
    both = add(LINE, OTHER) + ablate({RESID: PLANE, OTHER: PLANE}) + add(LINE, RESID, scale=3)
    assert both.sites == (OTHER, RESID) and both.name == (
        f"add({OTHER}) + ablate(2 sites) + add({RESID})"
    )
    with model.edited(both):
        got = model.logits(ids)
    late = (ablate(PLANE, RESID), add(LINE, RESID, scale=3))
    with model.edited(*late), model.edited(add(LINE, OTHER), ablate(PLANE, OTHER)):
        torch.testing.assert_close(model.logits(ids), got, rtol=0, atol=0)


def test_an_edit_of_ones_own_composes_with_ours() -> None:
    class Double:
        name, sites = "double", (RESID,)

        def __call__(self, x: torch.Tensor, site: str, positions: Any = None) -> torch.Tensor:
            return 2 * x

    h = torch.randn(1, 2, D)
    both = add(LINE, RESID) + Double()
    torch.testing.assert_close(both(h, RESID), 2 * (h + torch.tensor(V).float()))
    assert both.describe()["edits"][1] == {"name": "double", "sites": [RESID]}
    with pytest.raises(EditError, match="is no edit"):
        compose(Double(), "add")  # type: ignore[arg-type]
    with pytest.raises(EditError, match="no edits"):
        compose()
