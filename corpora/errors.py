"""The one error of this room, and how it names many rows briefly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

import numpy as np


class CorpusError(ValueError):
    """A corpus that cannot be read or used: what is wrong, and what to do."""


def some_rows(rows: Sequence[int] | np.ndarray, *, offset: int = 0, shown: int = 5) -> str:
    """`"rows 3, 8 and 11"`, or with more than `shown`: `"rows 3, 8, 9, 11, 15 and 40 more"`."""
    names = [str(int(row) + offset) for row in rows]
    if len(names) == 1:
        return f"row {names[0]}"
    if len(names) > shown:
        return f"rows {', '.join(names[:shown])} and {len(names) - shown} more"
    return f"rows {', '.join(names[:-1])} and {names[-1]}"


def nearest(wanted: str, known: Iterable[str], *, shown: int = 3) -> list[str]:
    """The names in `known` that look most like `wanted`, nearest first; empty when none does."""
    by_lower = {name.lower(): name for name in known}
    found = get_close_matches(wanted.lower(), list(by_lower), n=shown, cutoff=0.5)
    inside = [low for low in by_lower if low and (low in wanted.lower() or wanted.lower() in low)]
    return [by_lower[low] for low in dict.fromkeys([*found, *inside])][:shown]
