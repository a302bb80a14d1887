"""A figure together with how sure we are of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Below this many groups every interval here covers less often than it says.
FEW_GROUPS = 20


class EvidenceError(ValueError):
    """Data from which no estimate can be made: what is wrong, and what to do."""


@dataclass(frozen=True)
class Estimate:
    """A value, its interval, and what both rest on; NaN where a part has no meaning.

    `n` counts independent units (groups, not rows). `null` is the value expected when there is
    nothing to find, `p` the probability of a value at least as extreme then. `method` says in
    words how the interval was made.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    level: float = 0.95
    n: int = 0
    null: float = math.nan
    p: float = math.nan
    unit: str = ""
    method: str = ""
    seed: int | None = None

    def __str__(self) -> str:
        """As in `0.93 [0.88, 0.97] (95%, n = 60 groups)`, without the parts that are not known."""
        shown = _figure(self.value)
        facts = []
        if not (math.isnan(self.low) and math.isnan(self.high)):
            shown += f" [{_figure(self.low)}, {_figure(self.high)}]"
            facts.append(f"{100 * self.level:g}%")
        if self.n:
            facts.append(f"n = {self.n} group{'s' if self.n != 1 else ''}")
        if not math.isnan(self.p):
            facts.append(f"p = {self.p:.2g}")
        return f"{shown} ({', '.join(facts)})" if facts else shown

    def as_row(self) -> dict[str, Any]:
        """The columns `value`, `low`, `high`, `level`, `n`, `p`, `unit`, `seed` of a result."""
        names = ("value", "low", "high", "level", "n", "p", "unit", "seed")
        return {name: getattr(self, name) for name in names}


def _figure(number: float) -> str:
    if math.isnan(number):
        return "unknown"
    return f"{number:.2f}" if 0.01 <= abs(number) < 100 or number == 0 else f"{number:.3g}"


def approximate(method: str, n_groups: int) -> str:
    """The method in words, with a warning where the groups are too few for it to be exact."""
    if n_groups >= FEW_GROUPS:
        return method
    return f"{method}; approximate, since {n_groups} groups are few"


def group_index(groups: Any) -> tuple[np.ndarray, int]:
    """Group names `[n]` as numbers `[n]` from 0, and how many groups there are."""
    names, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    return member, len(names)


def require_finite(values: np.ndarray, what: str) -> None:
    """Raise `EvidenceError` where `values` hold NaN or infinity."""
    wrong = int(np.sum(~np.isfinite(values)))
    if wrong:
        raise EvidenceError(
            f"{wrong} of {values.size} {what} are not finite: leave those rows out, or find out "
            "where they come from."
        )


def require_level(level: float) -> None:
    """Raise `EvidenceError` for a level that is no probability."""
    if not 0.0 < level < 1.0:
        raise EvidenceError(f"The level is {level}: give one between 0 and 1, as 0.95.")
