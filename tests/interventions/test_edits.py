"""Edits do what their formulas say, wherever the model runs, and leave nothing behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from geometry import Subspace, mean_difference, random_subspace
from interventions import EditError, ablate, add, replace

SITE = "blocks.1.hook_resid_post"
D = 16


def space(k: int = 3, seed: int = 0, mean_seed: int = 1) -> Subspace:
    mean = np.random.default_rng(mean_seed).normal(size=D)
    return random_subspace(D, k, seed=seed, mean=mean)


def states(model: Any, text: str, *edits: Any, site: str = SITE) -> np.ndarray:
    ids, mask = model.pad([model.encode(text)])
    with model.edited(*edits):
        return model.activations(ids, mask, [site])[site][0].double().numpy()


def hooks(module: torch.nn.Module) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules()]


def test_ablation_to_the_mean_sets_exactly_the_coordinates(model: Any) -> None:
    s = space()
    plain, edited = states(model, "a b c d"), states(model, "a b c d", ablate(s, SITE))
    wanted = np.tile(s.mean @ s.basis, (4, 1))
    np.testing.assert_allclose(edited @ s.basis, wanted, atol=1e-5)
    rest = np.eye(D) - s.basis @ s.basis.T
    np.testing.assert_allclose(edited @ rest, plain @ rest, atol=1e-5)


def test_ablation_to_zero_removes_the_coordinates(model: Any) -> None:
    s = space()
    edited = states(model, "a b c d", ablate(s, SITE, to="zero"))
    np.testing.assert_allclose(edited @ s.basis, 0, atol=1e-5)


def test_adding_at_scale_one_moves_mean_to_mean() -> None:
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(size=(40, D)) + 2, rng.normal(size=(30, D))
    edit = add(mean_difference(positive, negative, site=SITE))
    moved = edit(torch.as_tensor(negative)[None], SITE, None)[0].numpy()
    np.testing.assert_allclose(moved.mean(0), positive.mean(0), atol=1e-12)


def test_each_site_has_its_own_subspace(model: Any) -> None:
    other = "blocks.0.hook_resid_post"
    spaces = {SITE: space(seed=0), other: space(seed=5)}
    edit = ablate(spaces)
    assert set(edit.sites) == {SITE, other}
    for site, s in spaces.items():
        edited = states(model, "a b c", edit, site=site)
        np.testing.assert_allclose(edited @ s.basis, np.tile(s.mean @ s.basis, (3, 1)), atol=1e-5)


def test_only_the_named_positions_change(model: Any) -> None:
    plain = states(model, "a b c d")
    edited = states(model, "a b c d", ablate(space(), SITE, positions=[1, 3]))
    changed = np.abs(edited - plain).max(axis=1) > 1e-3
    assert changed.tolist() == [False, True, False, True]


def test_replaced_states_stand_bit_for_bit_at_their_positions(model: Any) -> None:
    values = torch.randn(2, D, generator=torch.Generator().manual_seed(0))
    plain = states(model, "a b c d")
    edited = states(model, "a b c d", replace(SITE, values, [2, 0]))
    np.testing.assert_array_equal(edited[[2, 0]], values.double().numpy())
    np.testing.assert_array_equal(edited[[1, 3]], plain[[1, 3]])


def test_edits_apply_in_the_order_given(model: Any) -> None:
    push = add(mean_difference(np.ones((1, D)), np.zeros((1, D))), SITE)
    wipe = ablate(random_subspace(D, D, seed=0), SITE, to="zero")
    np.testing.assert_allclose(states(model, "a b", wipe, push), 1, atol=1e-5)
    np.testing.assert_allclose(states(model, "a b", push, wipe), 0, atol=1e-5)


def fail_inside(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """An edit works, then a second one fails in the middle of the forward pass."""
    with model.edited(ablate(space(), SITE)):
        model.logits(ids, mask)
        with model.edited(ablate(random_subspace(8, 2, seed=0), SITE)):
            model.logits(ids, mask)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_after_the_context(model: Any, fails: bool) -> None:
    ids, mask = model.pad([model.encode("a b c d e")])
    before, hooked = model.logits(ids, mask), hooks(model.hf)
    if fails:
        with pytest.raises(EditError, match="8 dimensions"):
            fail_inside(model, ids, mask)
    else:
        with model.edited(ablate(space(), SITE)):
            assert not torch.equal(model.logits(ids, mask), before)
    assert torch.equal(model.logits(ids, mask), before)
    assert hooks(model.hf) == hooked


@pytest.mark.parametrize("positions", [None, [1, 6]])
def test_an_edit_acts_in_cached_decoding_as_in_a_full_pass(
    model: Any, positions: list[int] | None
) -> None:
    edit = ablate(space(k=8), SITE, positions=positions)
    prompts, steps = ["a b c d", "e f"], 5
    with model.edited(edit):
        written = model.generate(prompts, max_new_tokens=steps)
        for prompt, reply in zip(prompts, written):
            ids = list(model.encode(prompt))
            for _ in range(steps):
                batch, mask = model.pad([ids])
                ids.append(int(model.logits(batch, mask)[0, -1].argmax()))
                if ids[-1] == model.tokenizer.eos_token_id:
                    break
            new = ids[len(model.encode(prompt)) :]
            assert reply.split() == model.tokenizer.decode(new, skip_special_tokens=True).split()


def test_half_precision_stays_half_precision() -> None:
    h = torch.randn(1, 2, D, dtype=torch.bfloat16)
    assert ablate(space(), SITE)(h, SITE, None).dtype == torch.bfloat16


def test_the_activation_given_is_not_changed_in_place() -> None:
    h = torch.randn(1, 2, D)
    kept = h.clone()
    ablate(space(), SITE)(h, SITE, None)
    replace(SITE, torch.zeros(D), [0])(h, SITE, None)
    assert torch.equal(h, kept)


def test_bad_edits_are_refused_in_one_sentence() -> None:
    s = space()
    with pytest.raises(EditError, match="full name of a site"):
        ablate(s, "resid_post")
    with pytest.raises(EditError, match="has no site"):
        ablate(s)
    with pytest.raises(EditError, match="'mean' or 'zero'"):
        ablate(s, SITE, to="nought")  # type: ignore[arg-type]
    with pytest.raises(EditError, match="3 dimensions"):
        add(s, SITE)
    with pytest.raises(EditError, match="scale is nan"):
        add(space(k=1), SITE, scale=float("nan"))
    with pytest.raises(EditError, match="not all finite"):
        replace(SITE, torch.full((D,), torch.nan), [0])
    with pytest.raises(EditError, match="one value for each position"):
        replace(SITE, torch.zeros(2, D), [0, 1, 2])
    with pytest.raises(EditError, match="is negative"):
        ablate(s, SITE, positions=[-1])
    with pytest.raises(EditError, match="made for 16 dimensions"):
        ablate(s, SITE)(torch.zeros(1, 2, 8), SITE, None)


def test_a_subspace_with_nan_is_refused() -> None:
    s = space()
    broken = object.__new__(Subspace)
    for name in ("basis", "singular_values", "site", "provenance"):
        object.__setattr__(broken, name, getattr(s, name))
    object.__setattr__(broken, "mean", np.full(D, np.nan))
    with pytest.raises(EditError, match="not finite"):
        ablate(broken, SITE)
