"""Half-samples and permutations of whole groups, for a statistic of any kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from evidence.estimate import Estimate, EvidenceError, approximate, group_index, require_level
from evidence.interval import Ends
from evidence.jackknife import RowStatistic
from evidence.permutation import Alternative, permutation_p


def grouped_bootstrap(
    statistic: RowStatistic,
    groups: Any,
    *,
    draws: int = 400,
    seed: int,
    level: float = 0.95,
    bounds: Ends | None = None,
    unit: str = "",
) -> Estimate:
    """A statistic of rows with an interval from random halves of the groups.

    Half of the groups are drawn without replacement, so no draw holds a copy of a row: copies are
    nearest neighbours of each other, agree perfectly, and lower every rank, so that an ordinary
    bootstrap of an overlap, a CKA or a rank is off by much more than its own width. A mean of G/2
    groups of G varies around the mean of all with just the variance that the latter has (Politis,
    Romano and Wolf 1999, chapter 2), and other statistics do so for large G. What the halves lie
    off on average estimates the bias that falls as 1 / G, and is taken off; the interval is that of
    t with their standard deviation. Works for statistics that are not smooth, for which
    `grouped_jackknife` does not. Where both work, that one takes fewer calls and covers better for
    skewed groups, which this one does not allow for.

    Args:
        statistic: of row numbers (ascending integers).
        groups: `[n]`, the group of each row.
        draws: halves; those where the statistic is not finite are left out.
        bounds: the least and greatest value possible; what lies beyond is cut off.

    Raises:
        EvidenceError: no rows, a statistic that is not finite on the rows or on most halves.
    """
    require_level(level)
    member, count = group_index(groups)
    if len(member) == 0:
        raise EvidenceError("There are no rows: give the group of at least one.")
    if draws < 2:
        raise EvidenceError(f"The number of draws is {draws}: give at least 2.")
    rows = np.arange(len(member))
    value = float(statistic(rows))
    if not np.isfinite(value):
        raise EvidenceError(f"The statistic is {value} on the data themselves: check the rows.")
    if count < 4:
        told = f"no interval: {count} groups are too few for halves"
        return Estimate(value, level=level, n=count, unit=unit, method=told, seed=seed)
    rng = np.random.default_rng(seed)
    half = count // 2
    drawn = np.full(draws, np.nan)
    for draw in range(draws):
        chosen = np.zeros(count, dtype=bool)
        chosen[rng.choice(count, half, replace=False)] = True
        drawn[draw] = float(statistic(rows[chosen[member]]))
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < draws / 2:
        raise EvidenceError(
            f"The statistic is not finite on {draws - len(drawn)} of {draws} halves: there are too "
            "few groups for an interval."
        )
    # A mean of h of G groups varies by (G - h) / h of the variance of the mean of all, and is
    # biased as 1 / h where all are as 1 / G.
    share = half / (count - half)
    bias = share * (drawn.mean() - value)
    reach = special.stdtrit(count - 1, (1 + level) / 2) * np.sqrt(share) * drawn.std(ddof=1)
    ends = value - bias + np.array([0.0, -reach, reach])
    if bounds is not None:
        ends = ends.clip(*bounds)
    told = f"{len(drawn)} halves of {count} groups, bias of {bias:.2g} removed"
    return Estimate(
        float(ends[0]),
        float(ends[1]),
        float(ends[2]),
        level,
        count,
        unit=unit,
        method=approximate(told, count),
        seed=seed,
    )


def permuted_groups(groups: Any, *, draws: int, seed: int) -> np.ndarray:
    """`[draws, n]` row numbers in which groups of equal size have changed places as wholes.

    Rows keep their order inside a group. A size that one group alone has leaves it in place.

    Raises:
        EvidenceError: no draws, or no two groups of one size.
    """
    if draws < 1:
        raise EvidenceError(f"The number of draws is {draws}: give at least 1.")
    member, count = group_index(groups)
    sizes = np.bincount(member, minlength=count)
    order = np.argsort(member, kind="stable")
    starts = np.cumsum(sizes) - sizes
    kinds = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    if all(len(same) < 2 for same in kinds):
        raise EvidenceError(
            "No two groups have as many rows, so none can change places: give one row of each "
            "kind for each group, or average the rows of a group."
        )
    rng = np.random.default_rng(seed)
    found = np.empty((draws, len(member)), dtype=np.int64)
    for draw in range(draws):
        place = np.arange(count)
        for same in kinds:
            place[same] = rng.permutation(same)
        for same in kinds:
            steps = np.arange(int(sizes[same[0]]))
            own = order[starts[same][:, None] + steps]
            found[draw, own] = order[starts[place[same]][:, None] + steps]
    return found


def grouped_permutation(
    statistic: RowStatistic,
    groups: Any,
    *,
    draws: int = 999,
    seed: int,
    alternative: Alternative = "greater",
    unit: str = "",
) -> Estimate:
    """Is what belongs to a group more alike than groups exchanged for one another?

    Args:
        statistic: of the rows to take on one side, the other staying as it is; for example
            `lambda rows: geometry.linear_cka(x, y[rows])`. It gets 0..n-1 for the value and
            `permuted_groups` for the null.
        groups: `[n]`, the group of each row.

    Returns:
        `value`, with `null` the mean under permutation and `p`. There is no interval.

    Raises:
        EvidenceError: as `permuted_groups`, or a statistic that is not finite.
    """
    orders = permuted_groups(groups, draws=draws, seed=seed)
    value = float(statistic(np.arange(orders.shape[1])))
    null = np.array([float(statistic(order)) for order in orders])
    p = permutation_p(value, null, alternative=alternative)
    count = group_index(groups)[1]
    told = f"{draws} permutations of whole groups; no interval"
    return Estimate(value, n=count, null=float(null.mean()), p=p, unit=unit, method=told, seed=seed)
