"""A figure together with how sure we are of it."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Below this many groups intervals of skewed figures cover less often than they say.
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

    def __post_init__(self) -> None:
        # One NaN for all, since a NaN equals only itself: estimates of the same parts are equal.
        for name in ("value", "low", "high", "null", "p"):
            if math.isnan(getattr(self, name)):
                object.__setattr__(self, name, math.nan)

    def __str__(self) -> str:
        """As in `0.93 [0.88, 0.97] (95%, n = 60 groups, null 0.50, p = 0.005)`, as far as known."""
        shown = _figure(self.value)
        facts = []
        if not (math.isnan(self.low) and math.isnan(self.high)):
            shown += f" [{_figure(self.low)}, {_figure(self.high)}]"
            facts.append(f"{100 * self.level:g}%")
        if self.n:
            facts.append(f"n = {self.n} group{'s' if self.n != 1 else ''}")
        if not math.isnan(self.null):
            facts.append(f"null {_figure(self.null)}")
        if not math.isnan(self.p):
            facts.append(f"p = {self.p:.2g}")
        return f"{shown} ({', '.join(facts)})" if facts else shown

    def _repr_html_(self) -> str:
        """One line of a table, with how the interval was made below it."""
        facts = {"value": _figure(self.value) + (f" {self.unit}" if self.unit else "")}
        if not (math.isnan(self.low) and math.isnan(self.high)):
            facts[f"{100 * self.level:g}%"] = f"[{_figure(self.low)}, {_figure(self.high)}]"
        if self.n:
            facts["groups"] = str(self.n)
        if not math.isnan(self.null):
            facts["null"] = _figure(self.null)
        if not math.isnan(self.p):
            facts["p"] = f"{self.p:.2g}"
        names = "".join(f"<th>{name}</th>" for name in facts)
        cells = "".join(f"<td>{html.escape(fact)}</td>" for fact in facts.values())
        below = f"<p><small>{html.escape(self.method)}</small></p>" if self.method else ""
        return f"<table><tr>{names}</tr><tr>{cells}</tr></table>{below}"

    def as_row(self) -> dict[str, Any]:
        """The columns `value`, `low`, `high`, `level`, `n`, `p`, `unit`, `seed` of a result.

        A null is no column there but a row beside this one, with its name in `control`.
        """
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
    few = f"{n_groups} group{'s are' if n_groups != 1 else ' is'} few"
    return f"{method}; approximate, and too narrow where groups are skewed, since {few}"


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
