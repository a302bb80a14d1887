"""Two measurements of the same rows, as of a model before and after a change: what differs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from evidence.bootstrap import cluster_mean
from evidence.estimate import Estimate, EvidenceError, group_index
from evidence.interval import Ends
from evidence.jackknife import jackknife_estimate


def paired_change(
    before: Any,
    after: Any,
    groups: Any,
    *,
    level: float = 0.95,
    bounds: Ends | None = None,
    unit: str = "",
) -> Estimate:
    """The mean over groups of after - before, row by row; `null` is 0 and p two-sided.

    As `cluster_mean` of the differences. Where `bounds` are given and no group differs, the
    interval is not of width zero: it reaches to the exact limit for so many groups without an
    exception (`unseen_change`), since of figures such as refusals an unchanged few do not show
    that none change.

    Args:
        before, after: `[n]`, the same rows in the same order. groups: `[n]`.
        bounds: the least and greatest value of one measurement, as (0, 1) for a share.

    Raises:
        EvidenceError: as `cluster_mean`, or lengths that differ.
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if first.shape != second.shape:
        raise EvidenceError(
            f"There are {first.size} figures before and {second.size} after: give the same rows."
        )
    span = None if bounds is None else bounds[1] - bounds[0]
    ends = None if span is None else (-span, span)
    found = cluster_mean(second - first, groups, level=level, unit=unit, null=0.0, bounds=ends)
    same = span is not None and found.value == 0 == found.low == found.high
    return unseen_change(found, span) if same and span is not None else found


def balanced_accuracy_change(
    before: Any, after: Any, labels: Any, groups: Any, *, level: float = 0.95, seed: int
) -> Estimate:
    """Balanced accuracy after less before, of two classifiers on the same held-out rows.

    The mean over classes of the change of recall, with a jackknife over groups in which both are
    left out together; what was fitted stays fixed. `null` is 0 and p two-sided. Where no row is
    classified otherwise than before, the interval is that of `unseen_change`.

    Args:
        before, after: `[n]`, whether each row was classified rightly.
        labels, groups: `[n]`. seed: that of the folds, which is kept.

    Raises:
        EvidenceError: nothing given, or lengths that differ.
    """
    hits = [np.asarray(given, np.float64) for given in (before, after)]
    member, count = group_index(groups)
    classes, label = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    if not len(label) or len({len(hits[0]), len(hits[1]), len(member), len(label)}) > 1:
        raise EvidenceError(
            f"There are {len(hits[0])} rows before, {len(hits[1])} after, {len(label)} labels and "
            f"{len(member)} groups: give one of each for each row, and at least one row."
        )
    k = len(classes)
    cell = member * k + label

    def summed(weights: np.ndarray | None) -> np.ndarray:
        return np.bincount(cell, weights=weights, minlength=count * k).reshape(count, k)

    gained, totals = summed(hits[1] - hits[0]), summed(None)

    def change(gain: np.ndarray, rows: np.ndarray) -> Any:
        seen = rows > 0
        each = np.divide(gain, rows, out=np.zeros(gain.shape), where=seen)
        return each.sum(axis=-1) / seen.sum(axis=-1)

    found = jackknife_estimate(
        float(change(gained.sum(axis=0), totals.sum(axis=0))),
        change(gained.sum(axis=0) - gained, totals.sum(axis=0) - totals)
        if count > 1
        else np.full(1, np.nan),
        level=level,
        null=0.0,
        bounds=(-1.0, 1.0),
        unit="balanced accuracy",
    )
    if not np.any(hits[1] != hits[0]) and count > 1:
        found = unseen_change(found, 1.0)
    return replace(found, seed=seed)


def unseen_change(found: Estimate, span: float) -> Estimate:
    """`found`, a change of exactly zero in all n groups, with the interval that this leaves.

    If a share q of all groups changed (by `span`, one way), n drawn at random would hold none with
    probability (1 - q)^n; the ends are the largest q that keeps this above (1 - level) / 2
    (Clopper and Pearson 1934).
    """
    reach = span * (1 - ((1 - found.level) / 2) ** (1 / max(found.n, 1)))
    told = f"exact limit for {found.n} groups without a change"
    return replace(found, low=-reach, high=reach, p=1.0, method=told)
