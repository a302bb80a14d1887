"""Calibration and code length as estimates, with intervals over groups of the rows scored."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from evidence import Estimate, cluster_bootstrap, jackknife_estimate, permutation_p
from probes.calibration import checked, confidence_bins
from probes.checks import names
from probes.codelength import CodeLength
from probes.errors import ProbeError


def calibration_estimate(
    probabilities: ArrayLike,
    labels: ArrayLike,
    classes: ArrayLike,
    groups: ArrayLike,
    *,
    bins: int = 10,
    draws: int = 999,
    level: float = 0.95,
    seed: int,
) -> Estimate:
    """Expected calibration error less what chance adds to it, with p for a calibrated probe.

    In bin b the gap, a sum over rows, varies around its expectation μ_b with a spread σ_b that the
    groups show, and |gap| is larger than |μ_b| on average. So |μ_b| is taken as what makes the
    mean of |N(μ_b, σ_b²)| the gap that was seen, or 0 if none does (this correction is ours). The
    interval is a jackknife over groups of the sum; its low end is 0 unless p is below 1 - level.
    For p the gaps of whole groups change signs at random, as they might if the probe were
    calibrated; `null` is the mean plain error then.

    Args:
        probabilities: `[n, classes]`, of held-out rows. labels, groups: `[n]`. classes:
            `[classes]`, those of the columns.
        bins: as in `reliability_curve`.

    Raises:
        ProbeError: as `reliability_curve`, or groups that do not match the rows.
    """
    p, code = checked(probabilities, labels, classes)
    member = _members(groups, len(p))
    which, _ = confidence_bins(p, bins)
    gaps = np.zeros((int(member.max()) + 1, bins))
    np.add.at(gaps, (member, which), (p.argmax(axis=1) == code) - p.max(axis=1))
    rows = np.bincount(member)
    n, total = len(rows), len(p)
    if n < 3:
        why = f"no estimate: {n} group{'s' * (n > 1)} cannot say how far gaps vary"
        return Estimate(np.nan, level=level, n=n, unit="probability", method=why)
    flips = np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, n))
    drawn = np.abs(flips @ gaps).sum(axis=1) / total
    chance = permutation_p(float(np.abs(gaps.sum(axis=0)).sum() / total), drawn)
    sums, squares = gaps.sum(axis=0), (gaps**2).sum(axis=0)
    found = jackknife_estimate(
        float(_unfolded(sums, squares, n) / total),
        _unfolded(sums - gaps, squares - gaps**2, n - 1) / (total - rows),
        level=level,
        null=float(drawn.mean()),
        p=chance,
        bounds=(0.0, 1.0),
        unit="probability",
    )
    return Estimate(
        found.value,
        found.low if chance < 1 - level else 0.0,
        found.high,
        level,
        n,
        found.null,
        chance,
        found.unit,
        f"{found.method}; chance taken off in each of {bins} bins",
        seed,
    )


def brier_estimate(
    probabilities: ArrayLike,
    labels: ArrayLike,
    classes: ArrayLike,
    groups: ArrayLike,
    *,
    level: float = 0.95,
) -> Estimate:
    """`brier_score` with an interval over groups, beside that of equal probabilities.

    Raises:
        ProbeError: as `brier_score`, or groups that do not match the rows.
    """
    p, code = checked(probabilities, labels, classes)
    squares = np.sum((p - np.eye(p.shape[1])[code]) ** 2, axis=1)
    return _mean(squares, groups, 1 - 1 / p.shape[1], "squared distance", level)


def log_loss_estimate(
    probabilities: ArrayLike,
    labels: ArrayLike,
    classes: ArrayLike,
    groups: ArrayLike,
    *,
    level: float = 0.95,
) -> Estimate:
    """`log_loss` in nats with an interval over groups, beside that of equal probabilities.

    Raises:
        ProbeError: as `log_loss`, groups that do not match the rows, or a label that was held
            impossible, for which the mean is infinite.
    """
    p, code = checked(probabilities, labels, classes)
    given = p[np.arange(len(p)), code]
    if (given == 0).any():
        raise ProbeError(
            f"{int((given == 0).sum())} labels were held impossible, so the loss is infinite; "
            "raise the least probability, or take brier_estimate."
        )
    return _mean(-np.log(given), groups, float(np.log(p.shape[1])), "nats", level)


def code_estimate(code: CodeLength, groups: ArrayLike, *, level: float = 0.95) -> Estimate:
    """A code length in nats for each label, with an interval over groups for a prequential code.

    `null` is the code without states. The interval is of the labels coded by the probes as they
    were fitted, mean over orders: it leaves out what other groups to learn from would change.

    Args:
        groups: `[n]`, of the rows that were coded.

    Raises:
        ProbeError: groups that do not match the rows.
    """
    n = len(np.asarray(groups))
    each = code.by_row
    if len(each) and len(each) != n:
        raise ProbeError(f"The code is of {len(each)} rows, but there are {n} groups.")
    member = _members(groups, n)
    null = code.uniform / n
    if not len(each):
        why = "no interval: a variational code is one figure for all groups"
        return Estimate(
            code.nats / n, n=int(member.max()) + 1, null=null, unit="nats per label", method=why
        )
    return _mean(each, member, null, "nats per label", level)


def _mean(each: np.ndarray, groups: ArrayLike, null: float, unit: str, level: float) -> Estimate:
    """The mean over rows; groups with more rows weigh more, as in the plain score."""
    member = _members(groups, len(each))
    sums = np.stack([np.bincount(member, weights=each), np.bincount(member)], axis=1)
    found = cluster_bootstrap(sums, lambda s: s[..., 0] / s[..., 1], seed=0, level=level, unit=unit)
    return Estimate(
        found.value, found.low, found.high, level, found.n, null, unit=unit, method=found.method
    )


def _members(groups: ArrayLike, n: int) -> np.ndarray:
    return np.unique(names(groups, what="groups", n=n), return_inverse=True)[1]


_SHIFTS = np.linspace(0, 8, 1601)
#: Mean of |N(shift, 1)|.
_FOLDED = _SHIFTS * (2 * stats.norm.cdf(_SHIFTS) - 1) + 2 * stats.norm.pdf(_SHIFTS)


def _unfolded(sums: np.ndarray, squares: np.ndarray, n: int) -> Any:
    """Σ_b |μ_b| from sums over n groups and sums of their squares, `[..., bins]`."""
    spread = np.sqrt(np.maximum(squares - sums**2 / n, 0.0) * n / (n - 1))
    seen = np.abs(sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = seen / spread
    # Beyond the table, and without any spread, the gap is as it was seen.
    shift = np.where(ratio < _SHIFTS[-1], np.interp(ratio, _FOLDED, _SHIFTS) * spread, seen)
    return shift.sum(axis=-1)
