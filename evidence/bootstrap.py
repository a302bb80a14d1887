"""Intervals over groups: for means, for statistics of sums, for balanced accuracy.

Rows of one group are not independent, so groups are left out or drawn, never rows. What the
default covers, measured, is in docs/statistics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from scipy import stats

from evidence.estimate import (
    FEW_GROUPS,
    Estimate,
    EvidenceError,
    approximate,
    group_index,
    require_finite,
    require_level,
)
from evidence.interval import Ends, MeanMethod, group_interval
from evidence.jackknife import jackknife_estimate

Statistic = Callable[[np.ndarray], Any]
SumsMethod = Literal["skewness", "bca", "percentile"]

#: A class that lies in fewer groups than this has a recall of unknown spread.
_FEW_OF_A_CLASS = 5

_NAMES = {"skewness": "skewness-corrected t interval", "t": "t interval"}


def cluster_mean(
    values: Any,
    groups: Any,
    *,
    level: float = 0.95,
    unit: str = "",
    null: float = np.nan,
    bounds: Ends | None = None,
    method: MeanMethod = "skewness",
) -> Estimate:
    """The mean over groups of the group means, with a t interval on those means.

    For groups g = 1..G with mean ȳ_g of their rows: value m = Σ ȳ_g / G, and the interval that
    `evidence.interval.group_interval` makes of the ȳ_g. With `method="t"` it is Student's,
    m ± t_{G-1, (1+level)/2} · s / √G, too narrow where group means are skewed. Each group weighs
    the same however many rows it has. With one group the interval is NaN.

    Args:
        values: `[n]`, one figure per row.
        groups: `[n]`, the group of each row.
        null: the value expected under no effect; where given, `p` is two-sided and below
            1 - level just where the interval leaves `null` out.
        bounds: the least and greatest value possible, `(0, 1)` for a share. The interval then
            stays inside, and is no wider than the exact one for groups that are each at one bound
            or the other (Clopper and Pearson 1934), which is also its far end where all groups
            lie at one.

    Raises:
        EvidenceError: nothing given, lengths that differ, values that are not finite, or values
            outside the bounds.
    """
    require_level(level)
    y = np.asarray(values, dtype=np.float64)
    member, count = _grouped(y, groups)
    if bounds is not None and (y.min() < bounds[0] or y.max() > bounds[1]):
        raise EvidenceError(f"Some values lie outside {bounds}: give the right bounds.")
    means = np.bincount(member, weights=y) / np.bincount(member)
    value = float(means.mean())
    if count < 2 and not (bounds is not None and value in bounds):
        return Estimate(value, level=level, n=count, null=null, unit=unit, method="one group")
    found = group_interval(value, means, level=level, null=null, bounds=bounds, method=method)
    told = f"{_NAMES[method]} on the means of {count} groups"
    return Estimate(
        value,
        found.low,
        found.high,
        level,
        count,
        null,
        found.p,
        unit,
        approximate(found.said(told), count),
    )


def cluster_bootstrap(
    sums: Any,
    statistic: Statistic,
    *,
    draws: int = 2000,
    seed: int,
    level: float = 0.95,
    method: SumsMethod = "skewness",
    unit: str = "",
) -> Estimate:
    """An interval over groups for a statistic of sums over them (ratios, weighted means, ...).

    By default each group is left out once. The pseudo-values G θ̂ - (G - 1) θ̂₍g₎ of this jackknife
    say what each group contributes (Miller 1974), and `evidence.interval.group_interval` makes of
    them an interval around θ̂ that allows for their skewness: it covers better than the bootstrap
    does with few groups, draws nothing, and takes G evaluations. The statistic must be smooth.

    For a bootstrap, groups are drawn with replacement as counts `[draws, G]`, so that all resamples
    are one matrix product with `sums`. BCa corrects bias and skew with z₀ = Φ⁻¹(#{θ* < θ̂} / B),
    ties counted half, and the acceleration a = Σ(θ̄ - θ₍g₎)³ / (6 (Σ(θ̄ - θ₍g₎)²)^{3/2}) of the
    jackknife (Efron 1987).

    Args:
        sums: `[G, m]`, for each group the sums that the statistic needs.
        statistic: from summed sums `[..., m]` to values `[...]`; also called with one `[m]` at a
            time where it cannot take a stack.
        draws: resamples of a bootstrap; those where the statistic is not finite are left out.
        method: `"skewness"`, or a bootstrap: `"bca"`, or plain `"percentile"`.

    Raises:
        EvidenceError: no groups, sums that are not finite, or a statistic that is not finite on
            the data or on most resamples.
    """
    require_level(level)
    table = np.asarray(sums, dtype=np.float64)
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or len(table) == 0:
        raise EvidenceError(
            f"The group sums have shape {table.shape}: give one row for each group, [G, m]."
        )
    if draws < 1:
        raise EvidenceError(f"The number of draws is {draws}: give at least 1.")
    if method not in ("skewness", "bca", "percentile"):
        raise EvidenceError(f"The method is {method!r}: choose 'skewness', 'bca' or 'percentile'.")
    require_finite(table, "group sums")
    count = len(table)
    value = float(_apply(statistic, table.sum(axis=0)[None])[0])
    if not np.isfinite(value):
        raise EvidenceError(f"The statistic is {value} on the data themselves: check the sums.")
    if count < 2:
        return Estimate(value, level=level, n=count, unit=unit, method="one group")
    if method == "skewness":
        left_out = _apply(statistic, table.sum(axis=0) - table)
        return jackknife_estimate(value, left_out, level=level, unit=unit)
    low, high, told = _bootstrapped(table, statistic, value, draws, seed, level, method)
    told = approximate(told, count)
    return Estimate(value, low, high, level, count, unit=unit, method=told, seed=seed)


def _bootstrapped(
    table: np.ndarray,
    statistic: Statistic,
    value: float,
    draws: int,
    seed: int,
    level: float,
    method: SumsMethod,
) -> tuple[float, float, str]:
    count = len(table)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)
    drawn = _apply(statistic, counts @ table)
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < draws / 2:
        raise EvidenceError(
            f"The statistic is not finite on {draws - len(drawn)} of {draws} resamples: there are "
            "too few groups for an interval."
        )
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    name = "percentile"
    if method == "bca":
        left_out = _apply(statistic, table.sum(axis=0) - table)
        corrected = _bca_tails(value, drawn, left_out, tails)
        tails, name = (corrected, "BCa") if corrected is not None else (tails, name)
    low, high = np.quantile(drawn, tails)
    told = f"{name} bootstrap over {count} groups, {draws} draws"
    if len(drawn) < draws:
        told += f" of which {draws - len(drawn)} were undefined"
    return float(low), float(high), told


def _bca_tails(
    value: float, drawn: np.ndarray, left_out: np.ndarray, tails: np.ndarray
) -> np.ndarray | None:
    """The corrected quantiles, or None where the correction has no meaning (no spread at all)."""
    below = np.mean(drawn < value) + np.mean(drawn == value) / 2
    if not 0 < below < 1 or not np.all(np.isfinite(left_out)):
        return None
    spread = left_out.mean() - left_out
    scale = float(np.sum(spread**2))
    a = float(np.sum(spread**3) / (6 * scale**1.5)) if scale > 0 else 0.0
    z0 = stats.norm.ppf(below)
    z = z0 + stats.norm.ppf(tails)
    return np.clip(stats.norm.cdf(z0 + z / (1 - a * z)), 0.0, 1.0)


def balanced_accuracy_interval(
    correct: Any,
    labels: Any,
    groups: Any,
    *,
    seed: int,
    level: float = 0.95,
    draws: int = 2000,
    null: float | None = None,
    method: SumsMethod = "skewness",
) -> Estimate:
    """Balanced accuracy (the mean over classes of recall) with an interval over groups.

    What was fitted stays fixed, so the interval states the uncertainty of the evaluation, not of
    the training. A class that is missing when a group is left out, or from a resample, is left out
    of that mean. The interval is that of `cluster_bootstrap` for a figure within 0 and 1: where
    every row is right (or every row wrong), the other end is the limit for G groups without an
    exception (Clopper and Pearson 1934).

    Args:
        correct: `[n]`, whether each held-out row was classified rightly (or a score in [0, 1]).
        labels: `[n]`, the true class of each row.
        groups: `[n]`, the group of each row.
        draws, seed: of a bootstrap. The default method draws nothing, and keeps the seed as that of
            the folds by which rows were held out.
        null: chance; one over the number of classes unless given.

    Raises:
        EvidenceError: nothing given, lengths that differ, or scores that are not in [0, 1].
    """
    hit = np.asarray(correct, dtype=np.float64)
    member, count = _grouped(hit, groups)
    if hit.min() < 0 or hit.max() > 1:
        raise EvidenceError("Some scores lie outside 0 and 1: say of each row if it is right.")
    classes, label = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    if len(label) != len(hit):
        raise EvidenceError(f"There are {len(hit)} scores and {len(label)} labels: give as many.")
    k = len(classes)
    cell = member * k + label
    hits = np.bincount(cell, weights=hit, minlength=count * k).reshape(count, k)
    totals = np.bincount(cell, minlength=count * k).reshape(count, k)

    def recall(summed: np.ndarray) -> np.ndarray:
        # Sums less a group's own carry rounding, which must not pass for a row.
        right, all_of_them = summed[..., :k], summed[..., k:]
        seen = all_of_them > 0.5
        each = np.divide(right, all_of_them, out=np.zeros_like(right), where=seen)
        return each.sum(axis=-1) / seen.sum(axis=-1)

    table = np.hstack([hits, totals])
    told_null = 1 / k if null is None else null
    sure = bool(np.all(hit == hit[0])) and hit[0] in (0, 1)
    if count < 2 or (method != "skewness" and not sure):
        drawn = cluster_bootstrap(table, recall, draws=draws, seed=seed, level=level, method=method)
        return replace(drawn, null=told_null, unit="balanced accuracy")
    value = float(recall(table.sum(axis=0)))
    pseudo = count * value - (count - 1) * recall(table.sum(axis=0) - table)
    found = group_interval(value, pseudo, level=level, bounds=(0.0, 1.0))
    told = approximate(found.said(f"{_NAMES['skewness']}, jackknife over {count} groups"), count)
    rarest = int((totals > 0).sum(axis=0).min())
    if rarest < _FEW_OF_A_CLASS and count >= FEW_GROUPS:
        told += f"; approximate, since one class lies in {rarest} of them"
    return Estimate(
        value,
        found.low,
        found.high,
        level,
        count,
        told_null,
        unit="balanced accuracy",
        method=told,
        seed=seed,
    )


def _grouped(values: np.ndarray, groups: Any) -> tuple[np.ndarray, int]:
    if values.ndim != 1 or values.size == 0:
        raise EvidenceError(
            f"The values have shape {values.shape}: give one figure for each row, and at least one."
        )
    member, count = group_index(groups)
    if len(member) != len(values):
        raise EvidenceError(
            f"There are {len(values)} values and {len(member)} groups: give the group of each row."
        )
    require_finite(values, "values")
    return member, count


def _apply(statistic: Statistic, summed: np.ndarray) -> np.ndarray:
    """The statistic of each row of `summed` `[B, m]`, at once where the statistic can."""
    with np.errstate(divide="ignore", invalid="ignore"):
        try:
            whole = np.asarray(statistic(summed), dtype=np.float64)
            # A statistic that is written for one [m] may well return something of a stack.
            one = float(np.asarray(statistic(summed[0]), dtype=np.float64))
            stacks = whole.shape == (len(summed),) and _same(whole[0], one)
        except (TypeError, ValueError, IndexError):
            stacks = False
        if stacks:
            return whole
        return np.array([float(statistic(row)) for row in summed])


def _same(first: float, second: float) -> bool:
    return bool(np.isclose(first, second, rtol=1e-9, atol=1e-12, equal_nan=True))
