"""Every kind of edit against its formula in NumPy, made by a hook on the plain model."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from activations import capture
from corpora import Corpus
from geometry import LeaceEraser, Subspace, mean_difference, random_subspace
from interventions import (
    Ablation,
    Addition,
    EditError,
    Replacement,
    ablate,
    add,
    clamp,
    mean_ablate,
    project_out,
    replace,
    resample,
    rotate,
    scale,
    zero_ablate,
)

from .by_hand import D_HEAD, HEADS, RESID, TOLERANCE, D, Formula, Z, hooked, logits

TEXT = "a b c d e f"
rng = np.random.default_rng(0)
MEAN = rng.normal(size=D)
SPACE = random_subspace(D, 3, seed=0, mean=MEAN)
PLANE = random_subspace(D, 2, seed=1, mean=MEAN)
LOW = rng.normal(size=(9, D))
LINE = mean_difference(rng.normal(size=(9, D)) + 1, LOW)
OBLIQUE = LeaceEraser.fit(
    rng.normal(size=(60, D)) @ rng.normal(size=(D, D)) + 2 * np.eye(3, D)[np.arange(60) % 3],
    np.arange(60) % 3,
)
Q, U, B = SPACE.basis, LINE.basis[:, 0], PLANE.basis
LENGTH, START = LINE.singular_values[0], LOW.mean(0)
TURN = np.linalg.qr(rng.normal(size=(3, 3)))[0]
VALUE = rng.normal(size=D)
TWO = rng.normal(size=(2, D))

#: By name: an edit made with options, and what it is to do with states `[B, T, d]`.
KINDS: dict[str, tuple[Callable[..., Any], Formula]] = {
    "ablate": (lambda **o: ablate(SPACE, **o), lambda h: h - (h - MEAN) @ Q @ Q.T),
    "ablate to zero": (lambda **o: ablate(SPACE, to="zero", **o), lambda h: h - h @ Q @ Q.T),
    "add": (lambda **o: add(LINE, scale=1.5, **o), lambda h: h + 1.5 * LENGTH * U),
    "scale": (lambda **o: scale(SPACE, -2, **o), lambda h: h - 3 * (h - MEAN) @ Q @ Q.T),
    "scale about zero": (
        lambda **o: scale(SPACE, 0.5, about="zero", **o),
        lambda h: h - 0.5 * h @ Q @ Q.T,
    ),
    "scale all": (lambda **o: scale(None, 0.3, **o), lambda h: 0.3 * h),
    "project out": (lambda **o: project_out(SPACE, **o), lambda h: h @ (np.eye(D) - Q @ Q.T)),
    "erase": (lambda **o: project_out(OBLIQUE, **o), lambda h: OBLIQUE(h)),
    "clamp": (
        lambda **o: clamp(LINE, 0.7, **o),
        lambda h: h - np.outer((h - START) @ U - 0.7, U).reshape(h.shape),
    ),
    "clamp in differences": (
        lambda **o: clamp(LINE, 1, unit="difference", **o),
        lambda h: h - np.outer((h - START) @ U - LENGTH, U).reshape(h.shape),
    ),
    "clamp between": (
        lambda **o: clamp(LINE, (-0.1, 0.2), about="zero", **o),
        lambda h: h + (np.minimum(np.maximum(h @ U, -0.1), 0.2) - h @ U)[..., None] * U,
    ),
    "rotate by an angle": (
        lambda **o: rotate(PLANE, np.pi / 2, **o),
        # A quarter turn takes (x, y) to (-y, x).
        lambda h: (
            h
            - (h - MEAN) @ B @ B.T
            + np.stack([-(h - MEAN) @ B[:, 1], (h - MEAN) @ B[:, 0]], -1) @ B.T
        ),
    ),
    "rotate by a matrix": (
        lambda **o: rotate(SPACE, TURN, about="zero", **o),
        lambda h: h - h @ Q @ Q.T + np.einsum("ij,btj->bti", TURN, h @ Q) @ Q.T,
    ),
    "zero": (lambda **o: zero_ablate(o.pop("sites"), **o), lambda h: 0 * h),
    "mean": (
        lambda **o: mean_ablate(dict.fromkeys([o.pop("sites")], VALUE), **o),
        lambda h: np.broadcast_to(VALUE, h.shape),
    ),
    "resample": (  # of two, the one that is not the first
        lambda **o: resample(dict.fromkeys([o.pop("sites")], TWO), seed=0, **o),
        lambda h: np.broadcast_to(TWO[1], h.shape),
    ),
}


def put_at(edit: Formula, tokens: list[int], heads: list[int]) -> Formula:
    """`edit` at some tokens and the share of some heads, the rest as it was."""

    def only(h: np.ndarray) -> np.ndarray:
        new, out = edit(h), h.copy()
        for token in tokens:
            for head in heads:
                own = slice(head * D_HEAD, (head + 1) * D_HEAD)
                out[:, token, own] = new[:, token, own]
        return out

    return only


@pytest.mark.parametrize("name", KINDS)
def test_an_edit_of_the_stream_equals_its_formula_in_a_hand_placed_hook(
    opened: Any, name: str
) -> None:
    model, plain = opened
    make, formula = KINDS[name]
    ids = model.encode(TEXT)
    for positions, tokens in ((None, range(6)), ([1, 4], [1, 4]), (slice(2, 5), [2, 3, 4])):
        with hooked(plain, RESID, put_at(formula, list(tokens), [0, 1])):
            expected = logits(plain, ids)
        with model.edited(make(sites=RESID, positions=positions)):
            got = model.logits(torch.tensor([ids]))[0]
        torch.testing.assert_close(got, expected, **TOLERANCE)
        assert (expected - logits(plain, ids)).abs().max() > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_an_edit_of_one_head_leaves_the_others(opened: Any, name: str) -> None:
    model, plain = opened
    make, formula = KINDS[name]
    ids = model.encode(TEXT)
    with hooked(plain, Z, put_at(formula, [0, 3, 5], [1])):
        expected = logits(plain, ids)
    with model.edited(make(sites=Z, heads=1, positions=[0, 3, 5])):
        got = model.logits(torch.tensor([ids]))[0]
    torch.testing.assert_close(got, expected, **TOLERANCE)


def test_what_is_as_wide_as_one_head_is_made_in_each_head(opened: Any) -> None:
    model, plain = opened
    space = random_subspace(D_HEAD, 2, seed=3, mean=rng.normal(size=D_HEAD))

    def each(h: np.ndarray) -> np.ndarray:
        rows = h.reshape(*h.shape[:2], HEADS, D_HEAD)
        return space.reject(rows).reshape(h.shape)

    ids = model.encode(TEXT)
    for heads, own in ((None, [0, 1]), (0, [0])):
        with hooked(plain, Z, put_at(each, list(range(6)), own)):
            expected = logits(plain, ids)
        with model.edited(ablate(space, Z, heads=heads)):
            got = model.logits(torch.tensor([ids]))[0]
        torch.testing.assert_close(got, expected, **TOLERANCE)


@pytest.mark.parametrize("site", ["q", "k", "v", "z", "result"])
def test_heads_are_edited_at_every_site_that_has_them(opened: Any, site: str) -> None:
    model, _ = opened
    name, ids = model.resolve_sites(site, [1])[0], torch.tensor([model.encode(TEXT)])
    before = model.activations(ids, None, [name])[name]
    with model.edited(zero_ablate(name, heads=[0], positions=[2])):
        after = model.activations(ids, None, [name])[name]
    expected = before.clone()
    expected[:, 2, 0] = 0
    torch.testing.assert_close(after, expected)
    assert after[:, 2, 0].abs().max() == 0 < before[:, 2, 0].abs().max()


def test_attention_of_one_head_from_one_token_is_taken_out(model: Any) -> None:
    site, ids = "blocks.1.attn.hook_pattern", torch.tensor([model.encode(TEXT)])
    before = model.activations(ids, None, [site])[site]
    with model.edited(zero_ablate(site, heads=[1], positions=[4])):
        got = model.activations(ids, None, [site, Z])
    expected = before.clone()
    expected[:, 1, 4] = 0
    torch.testing.assert_close(got[site], expected, rtol=0, atol=0)
    assert got[Z][0, 4, 1].abs().max() == 0 < got[Z][0, 4, 0].abs().max()
    with model.edited(replace(site, before[0, :, 4].flatten(), [4]), scale(None, 1, site)):
        torch.testing.assert_close(model.activations(ids, None, [site])[site], before)


def test_replaced_heads_stand_bit_for_bit_and_the_others_stay(opened: Any) -> None:
    model, _ = opened
    ids = torch.tensor([model.encode(TEXT)])
    before = model.activations(ids, None, [Z])[Z]
    whole = torch.randn(2, D, generator=torch.Generator().manual_seed(0))
    own = whole.unflatten(-1, (HEADS, D_HEAD))[:, 1]
    expected = before.clone()
    expected[0, [5, 0], 1] = own
    for values in (whole, own):
        with model.edited(replace(Z, values, [5, 0], heads=1)):
            after = model.activations(ids, None, [Z])[Z]
        torch.testing.assert_close(after, expected, rtol=0, atol=0)


def test_an_eraser_on_a_running_model_gives_what_it_gives_on_captured_states(opened: Any) -> None:
    model, _ = opened
    texts = ["a b c d", "e f g h", "i j k l", "m n o p", "q r s t", "b d f h"] * 2
    ids = torch.tensor([model.encode(text) for text in texts])
    states = model.activations(ids, None, [RESID])[RESID].double().numpy()
    rows, label = states.reshape(-1, D), np.tile([0, 1, 2, 0], len(texts))
    eraser = LeaceEraser.fit(rows, label, shrinkage=0.1)
    with model.edited(project_out(eraser, RESID)):
        got = model.activations(ids, None, [RESID])[RESID].double().numpy()
    np.testing.assert_allclose(got, eraser(states), atol=1e-4)
    one_hot = np.eye(3)[label]
    erased, centred = got.reshape(-1, D), one_hot - one_hot.mean(0)
    assert np.abs(centred.T @ erased / len(rows)).max() < 1e-4 < 1e-2
    assert np.abs(centred.T @ rows / len(rows)).max() > 1e-2
    assert not np.allclose(eraser.projection, eraser.projection.T, atol=1e-3)  # it is oblique


def test_the_mean_of_a_store_is_that_of_its_rows(model: Any) -> None:
    frame = {"text": ["a b c", "d e", "f g h i", "j k"], "variety": ["x", "y"] * 2}
    corpus = Corpus.from_frame(pd.DataFrame({**frame, "group": list("1122")}))
    store = capture(model, corpus, sites=[RESID, Z], tokens="all", progress=False)
    ids = torch.tensor([model.encode(TEXT)])
    with model.edited(mean_ablate(store.select(variety="x"))):
        got = model.activations(ids, None, [Z, RESID])
    for site in (Z, RESID):
        mean = np.asarray(store[site])[store.rows["variety"] == "x"].mean(0, dtype=np.float64)
        np.testing.assert_allclose(got[site][0].numpy(), np.tile(mean, (6, *[1] * mean.ndim)), 1e-5)


def test_scaling_and_clamping_meet_the_other_kinds_at_their_ends() -> None:
    h = torch.randn(2, 3, D, dtype=torch.float64)
    same = [
        (scale(SPACE, 0, RESID), ablate(SPACE, RESID)),
        (scale(SPACE, 0, RESID, about="zero"), project_out(SPACE, RESID)),
        (scale(None, 0, RESID), zero_ablate(RESID)),
        (clamp(LINE, 0, RESID), ablate(LINE, RESID)),
        (rotate(PLANE, np.pi, RESID), scale(PLANE, -1, RESID)),
        (clamp(LINE, (None, 1e9), RESID), scale(None, 1, RESID)),
    ]
    for one, other in same:
        torch.testing.assert_close(one(h, RESID), other(h, RESID), msg=one.name)


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_stays_and_is_rounded_once(name: str) -> None:
    make, formula = KINDS[name]
    h = torch.randn(2, 4, D, generator=torch.Generator().manual_seed(0)).bfloat16()
    got = make(sites=RESID, positions=[1])(h[:1], RESID, None)
    assert got.dtype == torch.bfloat16
    expected = torch.as_tensor(np.array(formula(h[:1].double().numpy()))).bfloat16()
    torch.testing.assert_close(got[:, 1], expected[:, 1], rtol=2**-8, atol=1e-3)
    torch.testing.assert_close(got[:, [0, 2, 3]], h[:1, [0, 2, 3]], rtol=0, atol=0)


@pytest.mark.parametrize("name", KINDS)
def test_gradients_pass_through_and_the_activation_stays_as_it_was(name: str) -> None:
    edit = KINDS[name][0](sites=RESID, positions=[0, 2])
    with torch.inference_mode():
        edit(torch.randn(1, 3, D, dtype=torch.float64), RESID, None)
    h = torch.randn(1, 3, D, dtype=torch.float64, requires_grad=True)
    kept = h.detach().clone()
    assert torch.autograd.gradcheck(lambda x: edit(x, RESID, None), (h,))
    assert torch.equal(h.detach(), kept)


def test_a_loss_is_differentiable_in_what_was_put_in(opened: Any) -> None:
    model, _ = opened
    ids = torch.tensor([model.encode(TEXT)])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    value = torch.randn(1, D, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def loss(v: torch.Tensor) -> torch.Tensor:
        edit = replace(RESID, v, [5]) + ablate(SPACE, RESID)
        out, _ = model.engine.run(inputs, edits=[(RESID, lambda x: edit(x, RESID))])
        return out.logits[0, -1].double().log_softmax(-1)[4]

    loss(value).backward()
    push = torch.randn(1, D, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        slope = (loss(value + 1e-2 * push) - loss(value - 1e-2 * push)) / 2e-2
    assert value.grad is not None
    np.testing.assert_allclose(float((value.grad * push).sum()), float(slope), rtol=2e-2, atol=1e-4)
    assert abs(float(slope)) > 1e-3
    model.hf.zero_grad()


def test_bad_edits_are_refused_in_one_sentence() -> None:
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: scale(SPACE, float("inf"), RESID), "factor is inf"),
        (lambda: scale(SPACE, 2, RESID, about="origin"), "'mean' or 'zero'"),  # type: ignore[arg-type]
        (lambda: scale(None, 2), "give `sites`"),
        (lambda: clamp(SPACE, 1, RESID), "no one direction to clamp"),
        (lambda: clamp(LINE, (2, 1), RESID), "above the upper"),
        (lambda: clamp(LINE, (None, None), RESID), "one number, or bounds"),
        (lambda: clamp(LINE, "far", RESID), "value is 'far'"),  # type: ignore[arg-type]
        (lambda: clamp(LINE, 1, RESID, unit="gap"), "'unit' or 'difference'"),  # type: ignore[arg-type]
        (lambda: rotate(SPACE, 0.5, RESID), "turns a plane"),
        (lambda: rotate(PLANE, np.eye(3), RESID), r"needs \(2, 2\)"),
        (lambda: rotate(PLANE, 2 * np.eye(2), RESID), "not orthogonal"),
        (lambda: rotate(PLANE, np.nan, RESID), "not finite"),
        (lambda: project_out({RESID: SPACE, Z: OBLIQUE}), "one kind"),  # type: ignore[dict-item]
        (lambda: project_out(OBLIQUE), "has no site"),
        (lambda: project_out(MEAN, RESID), "ndarray was given"),  # type: ignore[arg-type]
        (lambda: zero_ablate("z"), "full name of a site"),
        (lambda: zero_ablate([]), "has no site"),
        (lambda: zero_ablate(3), "3 is no full name"),  # type: ignore[arg-type]
        (lambda: rotate(PLANE, "far", RESID), "neither an angle"),  # type: ignore[arg-type]
        (lambda: mean_ablate(SPACE, RESID), "A Subspace holds no states"),  # type: ignore[arg-type]
        (lambda: resample(MEAN, RESID, seed=0), "A ndarray holds no states"),  # type: ignore[arg-type]
        (lambda: mean_ablate({RESID: MEAN * np.nan}), "not finite"),
        (lambda: mean_ablate({RESID: MEAN}, Z), "No mean was given for blocks.1.attn.hook_z"),
        (lambda: ablate(SPACE, RESID, positions="frist"), "'frist': give all, all_but_first"),  # type: ignore[arg-type]
        (lambda: ablate(SPACE, RESID, positions=slice(-3, None)), "Position -3 is negative"),
        (lambda: ablate(SPACE, RESID, positions=slice(0, 9, 2)), "step 2"),
        (lambda: ablate(SPACE, RESID, positions=[1.5]), "whole numbers"),  # type: ignore[list-item]
        (lambda: ablate(SPACE, RESID, heads=[]), "at least one head"),
        (lambda: ablate(SPACE, RESID, heads=-1), "at least one head"),
        (lambda: ablate(SPACE, RESID, heads=0)(torch.zeros(1, 2, D), RESID), "has none"),
        (lambda: zero_ablate(Z, heads=2)(torch.zeros(1, 2, 2, 8), Z), "head 2 and .* heads 0 to 1"),
        (lambda: ablate(SPACE, Z)(torch.zeros(1, 2, 3, 8), Z), r"3 heads of 8 \(24 together\)"),
        (lambda: ablate(SPACE, RESID)(torch.zeros(1, 2, 8), RESID), "16 dimensions and .* has 8"),
    ]
    for call, said in wrong:
        with pytest.raises(EditError, match=said):
            call()


def test_an_edit_made_from_its_class_is_the_one_that_the_function_makes() -> None:
    h = torch.randn(2, 3, D, dtype=torch.float64)
    pairs = [
        (Ablation({RESID: SPACE}), ablate(SPACE, RESID, name="ablate")),
        (
            Ablation({RESID: SPACE}, "zero", positions=(1,)),
            ablate(SPACE, RESID, to="zero", positions=1, name="ablate"),
        ),
        (Addition({RESID: LENGTH * U}, 2.0), add(LINE, RESID, scale=2, name="add")),
        (
            Replacement(RESID, h[:1, :1], torch.tensor([[2]])),
            replace(RESID, h[0, 0], [2], name="replace"),
        ),
    ]
    for one, other in pairs:
        torch.testing.assert_close(one(h, RESID), other(h, RESID), rtol=0, atol=0)
        assert one.describe() == other.describe()


def test_descriptions_are_json_and_tell_edits_apart() -> None:
    named = Subspace(Q, MEAN, np.ones(3), site=RESID, provenance={"name": "refusal"})
    edit = ablate(named, positions=slice(1, None))
    assert edit.name == "ablate(refusal)"
    told = edit.describe()
    assert {k: told[k] for k in ("kind", "sites", "positions", "heads", "to")} == {
        "kind": "ablate",
        "sites": [RESID],
        "positions": "1:",
        "heads": None,
        "to": "mean",
    }
    edits = [make(sites=RESID) for make, _ in KINDS.values()]
    edits += [edit, ablate(SPACE, RESID, heads=[1]), replace(RESID, VALUE, [1, 2])]
    edits += [clamp(LINE, (None, 1), RESID), edit + ablate(SPACE, RESID)]
    said = [json.dumps(e.describe(), sort_keys=True, allow_nan=False) for e in edits]
    assert len(set(said)) == len(said)
    assert json.dumps(KINDS["mean"][0](sites=RESID).describe(), sort_keys=True) in said
