"""Edits in cached decoding of batches padded on the left, against running each text whole again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from geometry import mean_difference, random_subspace
from interventions import add, replace, resample, scale, zero_ablate

from .by_hand import D_HEAD, RESID, TOLERANCE, D, Formula, Z, greedy, hooked, logits

PROMPTS = ["a b c d e f", "g h", "i", "j k l m"]
STEPS = 5
PUSH = 4 * np.random.default_rng(0).normal(size=D)
LINE = mean_difference(PUSH[None], np.zeros((1, D)))
SPACE = random_subspace(D, 8, seed=0, mean=PUSH)

#: By rule: which positions of a text it means, if the text has `n` tokens and `m` are generated.
RULES: dict[str, Callable[[int, int], range]] = {
    "all": lambda n, m: range(n + m),
    "all_but_first": lambda n, m: range(1, n + m),
    "prompt": lambda n, m: range(n),
    "last": lambda n, m: range(n - 1, n),
    "generated": lambda n, m: range(n, n + m),
    "from_last": lambda n, m: range(n - 1, n + m),
}


def only(formula: Formula, tokens: range) -> Formula:
    def at(h: np.ndarray) -> np.ndarray:
        chosen = [t for t in tokens if t < h.shape[1]]
        out = h.copy()
        out[:, chosen] = formula(h)[:, chosen]
        return out

    return at


def words(model: Any, ids: list[int]) -> str:
    return model.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("rule", RULES)
def test_positions_mean_the_same_tokens_with_a_cache_and_without(opened: Any, rule: str) -> None:
    model, plain = opened
    edit = add(LINE, RESID, positions=rule) + scale(SPACE, -1, RESID, positions=rule)  # type: ignore[arg-type]
    q, mean = SPACE.basis, SPACE.mean

    def formula(h: np.ndarray) -> np.ndarray:
        pushed = h + PUSH
        return pushed - 2 * (pushed - mean) @ q @ q.T

    expected = []
    for prompt in PROMPTS:
        ids = model.encode(prompt)
        here = only(formula, RULES[rule](len(ids), STEPS))
        expected.append(words(model, greedy(plain, ids, STEPS, RESID, here)))
    with model.edited(edit):
        got = model.generate(PROMPTS, max_new_tokens=STEPS)
    assert got == expected
    assert got != model.generate(PROMPTS, max_new_tokens=STEPS)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_in_a_plain_pass_all_tokens_are_given_whatever_the_padding(
    opened: Any, rule: str, side: str
) -> None:
    model, plain = opened
    ids = [model.encode(prompt) for prompt in PROMPTS]
    tokens, mask = model.pad(ids, side=side)
    with model.edited(add(LINE, RESID, positions=rule)):  # type: ignore[arg-type]
        got = model.logits(tokens, mask)
    for row, one in enumerate(ids):
        with hooked(plain, RESID, only(lambda h: h + PUSH, RULES[rule](len(one), 0))):
            expected = logits(plain, one)
        torch.testing.assert_close(got[row][mask[row] > 0], expected, **TOLERANCE)


def test_a_head_is_silent_in_every_step(opened: Any) -> None:
    model, plain = opened

    def silent(h: np.ndarray) -> np.ndarray:
        return np.concatenate([0 * h[..., :D_HEAD], h[..., D_HEAD:]], axis=-1)

    expected = [
        words(model, greedy(plain, model.encode(prompt), STEPS, Z, silent)) for prompt in PROMPTS
    ]
    with model.edited(zero_ablate(Z, heads=[0])):
        assert model.generate(PROMPTS, max_new_tokens=STEPS) == expected


@pytest.mark.parametrize("prompts", [["a b c"], ["a b c d e f", "g h", "j k l m"] * 3])
def test_states_for_each_text_reach_that_text_in_whatever_batches(
    opened: Any, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from activations import model as running

    model, plain = opened
    small = running.length_batches
    monkeypatch.setattr(running, "length_batches", lambda n, budget: small(n, budget=8))
    values = 3 * np.random.default_rng(1).normal(size=(len(prompts), 1, D))
    expected, losses = [], []
    for prompt, value in zip(prompts, values, strict=True):
        ids = model.encode(prompt)
        put = only(lambda h, value=value: np.broadcast_to(value, h.shape), range(0, 1))
        expected.append(words(model, greedy(plain, ids, STEPS, RESID, put)))
        with hooked(plain, RESID, put):
            said = logits(plain, ids).log_softmax(-1)
        losses.append(-sum(float(said[i, t]) for i, t in enumerate(ids[1:])))
    with model.edited(replace(RESID, values, [0])):
        assert model.generate(prompts, max_new_tokens=STEPS) == expected
        np.testing.assert_allclose(model.losses(prompts)[0], losses, rtol=1e-4)


def test_each_text_keeps_its_donor_at_every_step(opened: Any) -> None:
    model, plain = opened
    prompts = ["a b c d", "e f"]
    source = 3 * np.random.default_rng(2).normal(size=(2, 6, D))
    edit = resample({RESID: source}, seed=0, positions="from_last")
    expected = []
    for number, prompt in enumerate(prompts):
        ids, donor = model.encode(prompt), source[1 - number]  # of two, the other one

        def theirs(h: np.ndarray, donor: np.ndarray = donor) -> np.ndarray:
            return donor[np.minimum(np.arange(h.shape[1]), 5)][None]

        put = only(theirs, range(len(ids) - 1, 99))
        expected.append(words(model, greedy(plain, ids, STEPS, RESID, put)))
    with model.edited(edit):
        assert model.generate(prompts, max_new_tokens=STEPS) == expected
