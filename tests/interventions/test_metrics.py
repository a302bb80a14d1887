"""Refusals are told from help, losses are paired, doses stand beside chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from geometry import mean_difference
from interventions import (
    EditError,
    Losses,
    add,
    is_refusal,
    losses,
    refusal_rate,
)

SITE = "blocks.1.hook_resid_post"
TEXTS = ["a b c d", "e f g", "h i j k l", "m n"]


@pytest.mark.parametrize(
    "text",
    [
        "sorry , i can not help with that .",
        " Sorry, I will not do that.",
        "I'm sorry, but that is out.",
        "I’m sorry.",
        "I can't do this",
        "I cannot.",
        "As an AI, I",
    ],
)
def test_refusals_are_recognised(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ok , open the door slowly .",
        "certainly , please open it and stay safe .",
        "I can notice three things",
        "You will be sorry , i can not lie",
        "i candidly say",
    ],
)
def test_help_is_not_a_refusal(text: str) -> None:
    assert not is_refusal(text)


class Replier:
    """Answers with what stands in the request."""

    has_chat_template = True

    def render(self, text: str) -> str:
        return f"<{text}>"

    def generate(self, prompts: list[str], *, max_new_tokens: int, rendered: bool) -> list[str]:
        assert rendered and all(prompt.startswith("<") for prompt in prompts)
        return [prompt.strip("<>") for prompt in prompts]


def test_the_refusal_rate_weighs_groups_alike() -> None:
    prompts = ["i can not", "i can not", "ok", "fine"]
    rate = refusal_rate(Replier(), prompts, ["x", "x", "x", "y"])  # type: ignore[arg-type]
    assert rate.value == pytest.approx(1 / 3) and rate.n == 2
    assert rate.flags.tolist() == [True, True, False, False]
    assert rate.replies == tuple(prompts) and 0 <= rate.low <= rate.high <= 1


def test_groups_that_all_agree_are_no_certainty() -> None:
    never = refusal_rate(Replier(), ["ok"] * 10)  # type: ignore[arg-type]
    assert (never.value, never.low) == (0, 0)
    assert never.high == pytest.approx(1 - 0.025 ** (1 / 10))
    always = refusal_rate(Replier(), ["i can not"] * 10)  # type: ignore[arg-type]
    assert (always.value, always.high) == (1, 1)
    assert always.low == pytest.approx(0.025 ** (1 / 10))


def test_losses_by_variety_are_ratios_of_sums(model: Any) -> None:
    found = losses(model, TEXTS, ["x", "x", "y", "y"], [0, 1, 0, 1])
    table = found.by_variety().set_index("variety")
    assert table.loc["x", "value"] == pytest.approx(found.nll[:2].sum() / found.tokens[:2].sum())
    assert table.loc["y", "n"] == 2


def test_a_change_of_losses_is_paired() -> None:
    rng = np.random.default_rng(0)
    nll = rng.uniform(1, 100, size=30)
    tokens, names, groups = np.full(30, 10), np.full(30, "x", object), np.arange(30).astype(object)
    plain, worse = (Losses(v, tokens, names, groups) for v in (nll, nll + 5))
    row = plain.change(worse).iloc[0]
    assert row["value"] == pytest.approx(0.5)
    assert row["low"] == pytest.approx(0.5) and row["high"] == pytest.approx(0.5)
    with pytest.raises(EditError, match="different texts"):
        plain.change(Losses(nll, tokens + 1, names, groups))


def test_losses_feel_the_edit(model: Any) -> None:
    kind, groups = ["x"] * 4, [0, 1, 2, 3]
    plain = losses(model, TEXTS, kind, groups)
    push = add(mean_difference(np.full((1, 16), 3.0) * np.arange(16), np.zeros((1, 16))), SITE)
    with model.edited(push):
        edited = losses(model, TEXTS, kind, groups)
    assert abs(plain.change(edited)["value"].iloc[0]) > 1e-3
    np.testing.assert_array_equal(losses(model, TEXTS, kind, groups).nll, plain.nll)
