"""Where an edit acts: at which positions of a text, and at which heads."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from interventions.errors import EditError

Rule = Literal["all", "all_but_first", "prompt", "last", "generated", "from_last"]
"""Positions by name: every one; every one but the first, where attention rests; those of the text
that was given; the last of those; those generated; and the last given with those generated, which
are the ones that a next token is taken from.
"""
Positions = Rule | int | Sequence[int] | slice


class Span(NamedTuple):
    """Positions from `start` up to before `end`, or without end."""

    start: int
    end: int | None


Chosen = Rule | Span | tuple[int, ...]


def as_positions(positions: Positions | None) -> Chosen:
    """Positions as an edit keeps them: a rule, a span, or numbers.

    Raises:
        EditError: an unknown rule, a position that is negative or no number, a slice with a step.
    """
    if positions is None:
        return "all"
    if isinstance(positions, str):
        if positions not in get_args(Rule):
            raise EditError(
                f"`positions` is {positions!r}: give {', '.join(get_args(Rule))}, numbers from 0, "
                "or a slice."
            )
        return positions
    if isinstance(positions, slice):
        if positions.step not in (None, 1):
            raise EditError(
                f"`positions` is a slice with step {positions.step}: give numbers, as in "
                "range(0, 10, 2)."
            )
        ends = [0 if positions.start is None else positions.start]
        ends += [] if positions.stop is None else [positions.stop]
        start, *end = _forward(ends)
        return Span(start, end[0] if end else None)
    return _forward(positions)


def _forward(positions: int | Sequence[int]) -> tuple[int, ...]:
    chosen = _numbers(positions, "positions")
    if any(number < 0 for number in chosen):
        raise EditError(
            f"Position {min(chosen)} is negative: count token positions from 0, since a text that "
            "is being generated has no last one yet; positions='last' is the last that was given."
        )
    return chosen


def _numbers(given: Any, what: str) -> tuple[int, ...]:
    try:
        return tuple(operator.index(n) for n in ([given] if np.ndim(given) == 0 else given))
    except TypeError:
        raise EditError(f"`{what}` is {given!r}: give whole numbers from 0.") from None


def as_heads(heads: int | Sequence[int] | None) -> tuple[int, ...] | None:
    """Heads as an edit keeps them; None for all.

    Raises:
        EditError: none at all, a negative one, or no numbers.
    """
    if heads is None:
        return None
    chosen = _numbers(heads, "heads")
    if not chosen or min(chosen) < 0:
        raise EditError(f"`heads` is {heads!r}: give at least one head, numbered from 0.")
    return chosen


def positions_said(chosen: Chosen) -> str | list[int]:
    """Positions in a description: a rule's name, numbers, or a span as `1:9`."""
    if isinstance(chosen, str):
        return chosen
    if isinstance(chosen, Span):
        return f"{chosen.start}:{'' if chosen.end is None else chosen.end}"
    return list(chosen)


def at_positions(chosen: Chosen, here: Tensor, given: Tensor | None) -> Tensor | None:
    """Which tokens `[B, T]` an edit changes, by their positions `here` `[B, T]`; None for all.

    `given` `[B]` is how many tokens of each text were given; all of them where None.
    """
    if chosen == "all":
        return None
    if isinstance(chosen, Span):
        after = here >= chosen.start
        return after if chosen.end is None else after & (here < chosen.end)
    if not isinstance(chosen, str):
        return torch.isin(here, torch.tensor(chosen, device=here.device))
    if chosen == "all_but_first":
        return here > 0
    count = here.amax(-1) + 1 if given is None else given.to(here.device)
    last = count[:, None] - 1
    if chosen == "last":
        return here == last
    if chosen == "prompt":
        return here <= last
    return here > last if chosen == "generated" else here >= last


def at_heads(heads: tuple[int, ...] | None, count: int, device: torch.device) -> Tensor | None:
    """Which of `count` heads `[count]` an edit changes; None for all."""
    if heads is None:
        return None
    return torch.isin(torch.arange(count, device=device), torch.tensor(heads, device=device))
