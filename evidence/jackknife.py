"""Intervals for any smooth statistic of rows in groups: leave each group out once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from evidence.estimate import (
    Estimate,
    EvidenceError,
    approximate,
    group_index,
    require_level,
)
from evidence.interval import Ends, Interval, group_interval

#: A statistic of the rows whose numbers it is given.
RowStatistic = Callable[[np.ndarray], float]


def jackknife_estimate(
    value: float,
    left_out: Any,
    *,
    debias: bool = False,
    level: float = 0.95,
    null: float = np.nan,
    p: float | None = None,
    bounds: Ends | None = None,
    unit: str = "",
    what: str = "groups",
    n: int | None = None,
) -> Estimate:
    """An estimate from a statistic and its values with each group left out.

    The pseudo-values G θ̂ - (G - 1) θ̂₍g₎ say what each group contributes (Quenouille 1956; Tukey
    1958); the interval is what `evidence.interval.group_interval` makes of them. No group is ever
    counted twice, so a statistic that compares rows with each other (an overlap, CKA) meets no
    copies, of which a bootstrap is full.

    Args:
        value: θ̂, of all groups.
        left_out: `[G]`, θ̂₍g₎ without group g.
        debias: report, and centre the interval at, the mean pseudo-value, which is free of the
            part of the bias that falls as 1 / G; else θ̂.
        null: the value expected under no effect. p: of a test made elsewhere; else, with a
            `null`, two-sided and below 1 - level just where the interval leaves `null` out.
        bounds: the least and greatest value possible; what lies beyond is cut off.
        what, n: what was left out, and how many groups there are, where it was blocks of groups.

    Returns:
        The estimate; with a NaN interval, and why, where some group cannot be left out.

    Raises:
        EvidenceError: a value that is not finite, or no values.
    """
    require_level(level)
    without = np.asarray(left_out, dtype=np.float64)
    if without.ndim != 1 or without.size == 0:
        raise EvidenceError(
            f"The values without each group have shape {without.shape}: give one for each, [G]."
        )
    if not np.isfinite(value):
        raise EvidenceError(f"The statistic is {value} on the data themselves: check the rows.")
    count = len(without)
    groups = count if n is None else n
    undefined = int(np.sum(~np.isfinite(without)))
    if count < 2 or undefined:
        told = "one group" if count < 2 else f"no interval: undefined without {undefined} {what}"
        return Estimate(float(value), level=level, n=groups, null=null, unit=unit, method=told)
    pseudo = count * value - (count - 1) * without
    centre = float(pseudo.mean()) if debias else float(value)
    found = group_interval(centre, pseudo, level=level, null=null)
    if bounds is not None:
        centre, low, high = np.clip([centre, found.low, found.high], *bounds).tolist()
        found = Interval(low, high, found.p, found.warning)
    told = f"skewness-corrected t interval, jackknife over {count} {what}"
    if debias:
        told += f", bias of {value - pseudo.mean():.2g} removed"
    return Estimate(
        centre,
        found.low,
        found.high,
        level,
        groups,
        null,
        found.p if p is None else p,
        unit,
        approximate(found.said(told), groups),
    )


def grouped_jackknife(
    statistic: RowStatistic,
    groups: Any,
    *,
    debias: bool = True,
    most: int = 60,
    seed: int = 0,
    level: float = 0.95,
    null: float = np.nan,
    p: float | None = None,
    bounds: Ends | None = None,
    unit: str = "",
) -> Estimate:
    """A statistic of rows with an interval over their groups, by leaving each group out once.

    Args:
        statistic: of row numbers (ascending integers), for example
            `lambda rows: geometry.effective_rank(x[rows])`. It is called G + 1 times, must be
            smooth (no median, no nearest neighbours), and its bias must fall as 1 / G.
        groups: `[n]`, the group of each row.
        most: above this many groups they are joined at random, by `seed`, into this many blocks
            that are left out whole, which costs no more than `most` + 1 calls.
        debias, level, null, p, bounds: as in `jackknife_estimate`.

    Raises:
        EvidenceError: no rows, fewer than two blocks asked for, a statistic that is not finite.
    """
    member, count = group_index(groups)
    if len(member) == 0:
        raise EvidenceError("There are no rows: give the group of at least one.")
    if most < 2:
        raise EvidenceError(f"most is {most}: leave out at least 2 blocks.")
    what = "groups"
    block = member
    if count > most:
        block = np.random.default_rng(seed).permutation(np.arange(count) % most)[member]
        what = f"blocks of {count} groups"
    rows = np.arange(len(member))
    without = np.full(1, np.nan)
    if count > 1:
        without = np.array([float(statistic(rows[block != b])) for b in range(block.max() + 1)])
    return jackknife_estimate(
        float(statistic(rows)),
        without,
        debias=debias,
        level=level,
        null=null,
        p=p,
        bounds=bounds,
        unit=unit,
        what=what,
        n=count,
    )
