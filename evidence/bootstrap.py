"""Intervals over groups: the t interval on group means, and the cluster bootstrap.

Rows of one group are not independent, so groups are drawn, never rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from scipy import stats

from evidence.estimate import (
    Estimate,
    EvidenceError,
    approximate,
    group_index,
    require_finite,
    require_level,
)

Statistic = Callable[[np.ndarray], Any]


def cluster_mean(
    values: Any,
    groups: Any,
    *,
    level: float = 0.95,
    unit: str = "",
    null: float = np.nan,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """The mean over groups of the group means, with Student's t interval on those means.

    For groups g = 1..G with mean ȳ_g of their rows: value m = Σ ȳ_g / G and interval
    m ± t_{G-1, (1+level)/2} · s / √G, where s² = Σ (ȳ_g - m)² / (G - 1). Each group weighs the
    same however many rows it has. With one group the interval is NaN.

    Args:
        values: `[n]`, one figure per row.
        groups: `[n]`, the group of each row.
        null: the value expected under no effect; where given, `p` is the two-sided t test.
        bounds: the least and greatest value possible, `(0, 1)` for a share. The interval then
            stays inside; and where every group lies at one bound, its other end is the exact
            limit for G groups without an exception (Clopper and Pearson 1934), not the bound.

    Raises:
        EvidenceError: nothing given, lengths that differ, values that are not finite, or values
            outside the bounds.
    """
    require_level(level)
    y = np.asarray(values, dtype=np.float64)
    member, count = _grouped(y, groups)
    means = np.bincount(member, weights=y) / np.bincount(member)
    value = float(means.mean())
    if count < 2:
        return Estimate(value, level=level, n=count, null=null, unit=unit, method="one group")
    error = float(means.std(ddof=1) / np.sqrt(count))
    half = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
    p = np.nan
    if not np.isnan(null):
        distance = abs(value - null)
        p = float(2 * stats.t.sf(distance / error, count - 1)) if error else float(distance == 0)
    low, high, told = value - half, value + half, f"t interval on the means of {count} groups"
    if bounds is not None:
        if y.min() < bounds[0] or y.max() > bounds[1]:
            raise EvidenceError(f"Some values lie outside {bounds}: give the right bounds.")
        low, high = max(low, bounds[0]), min(high, bounds[1])
        reach = _unseen(count, level) * (bounds[1] - bounds[0])
        if value in bounds:
            low = bounds[1] - reach if value == bounds[1] else low
            high = bounds[0] + reach if value == bounds[0] else high
            told = f"exact limit for {count} groups without an exception"
    return Estimate(value, low, high, level, count, null, p, unit, approximate(told, count))


def _unseen(count: int, level: float) -> float:
    """The largest share of exceptions that `count` groups without one leave possible."""
    return float(1 - ((1 - level) / 2) ** (1 / count))


def cluster_bootstrap(
    sums: Any,
    statistic: Statistic,
    *,
    draws: int = 2000,
    seed: int,
    level: float = 0.95,
    method: Literal["bca", "percentile"] = "bca",
    unit: str = "",
) -> Estimate:
    """A bootstrap interval for a statistic of sums over groups (ratios, weighted means, ...).

    Groups are drawn with replacement as counts `[draws, G]`, so that all resamples are one matrix
    product with `sums`. BCa corrects bias and skew with z₀ = Φ⁻¹(#{θ* < θ̂} / B), ties counted
    half, and the acceleration a = Σ(θ̄ - θ₍g₎)³ / (6 (Σ(θ̄ - θ₍g₎)²)^{3/2}) of the
    delete-one-group jackknife (Efron 1987).

    Args:
        sums: `[G, m]`, for each group the sums that the statistic needs.
        statistic: from summed sums `[..., m]` to values `[...]`; also called with one `[m]` at a
            time where it cannot take a stack.
        draws: resamples; those where the statistic is not finite are left out.

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
    require_finite(table, "group sums")
    count = len(table)
    value = float(_apply(statistic, table.sum(axis=0)[None])[0])
    if not np.isfinite(value):
        raise EvidenceError(f"The statistic is {value} on the data themselves: check the sums.")
    if count < 2:
        return Estimate(value, level=level, n=count, unit=unit, method="one group", seed=seed)
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
    return Estimate(
        value,
        float(low),
        float(high),
        level,
        count,
        unit=unit,
        method=approximate(told, count),
        seed=seed,
    )


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
) -> Estimate:
    """Balanced accuracy (the mean over classes of recall) with a BCa interval over groups.

    What was fitted stays fixed, so the interval states the uncertainty of the evaluation, not of
    the training. A class that a resample lacks is left out of that resample's mean. Where every
    row is right (or every row wrong) resamples do not vary, and the other end of the interval is
    the limit for G groups without an exception (Clopper and Pearson 1934).

    Args:
        correct: `[n]`, whether each held-out row was classified rightly (or a score in [0, 1]).
        labels: `[n]`, the true class of each row.
        groups: `[n]`, the group of each row.
        null: chance; one over the number of classes unless given.

    Raises:
        EvidenceError: nothing given, lengths that differ, or scores that are not finite.
    """
    hit = np.asarray(correct, dtype=np.float64)
    member, count = _grouped(hit, groups)
    classes, label = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    if len(label) != len(hit):
        raise EvidenceError(f"There are {len(hit)} scores and {len(label)} labels: give as many.")
    k = len(classes)
    cell = member * k + label
    hits = np.bincount(cell, weights=hit, minlength=count * k).reshape(count, k)
    totals = np.bincount(cell, minlength=count * k).reshape(count, k)

    def recall(summed: np.ndarray) -> np.ndarray:
        right, all_of_them = summed[..., :k], summed[..., k:]
        seen = all_of_them > 0
        each = np.divide(right, all_of_them, out=np.zeros_like(right), where=seen)
        return each.sum(axis=-1) / seen.sum(axis=-1)

    estimate = cluster_bootstrap(
        np.hstack([hits, totals]), recall, draws=draws, seed=seed, level=level
    )
    low, high, told = estimate.low, estimate.high, estimate.method
    if count > 1 and (np.all(hit == 1) or np.all(hit == 0)):
        reach = _unseen(count, level)
        low, high = (1 - reach, 1.0) if hit[0] == 1 else (0.0, reach)
        told = approximate(f"exact limit for {count} groups without an exception", count)
    return Estimate(
        estimate.value,
        low,
        high,
        level,
        count,
        null=1 / k if null is None else null,
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
