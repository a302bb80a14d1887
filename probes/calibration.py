"""Whether a probe's probabilities are to be believed."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from probes.checks import names
from probes.errors import ProbeError


def reliability_curve(
    probabilities: ArrayLike, labels: ArrayLike, classes: ArrayLike, *, bins: int = 10
) -> pd.DataFrame:
    """What was claimed and what came true, for rows with about the same confidence.

    Confidence is the probability of the likeliest class, and rows are put in `bins` bins of equal
    width on (0, 1], each closed above; ties between classes go to the first.

    Args:
        probabilities: `[n, classes]`. labels: `[n]`. classes: `[classes]`, those of the columns.

    Returns:
        One row for each bin with rows: columns low, high, n, confidence (mean), accuracy.

    Raises:
        ProbeError: rows that are not probabilities, labels that are no class, no bins.
    """
    p, code = checked(probabilities, labels, classes)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == code
    which, edges = confidence_bins(p, bins)
    rows = [
        {
            "low": edges[b],
            "high": edges[b + 1],
            "n": int((which == b).sum()),
            "confidence": float(confidence[which == b].mean()),
            "accuracy": float(right[which == b].mean()),
        }
        for b in np.unique(which)
    ]
    return pd.DataFrame(rows)


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, classes: ArrayLike, *, bins: int = 10
) -> float:
    """Mean gap |accuracy - confidence| over rows, in [0, 1] (ECE; Guo et al. 2017, eq. 3).

    Bins are those of `reliability_curve`. It depends on their number, and with few rows it is
    above zero for a calibrated probe too: `calibration_estimate` takes that off.

    Raises:
        ProbeError: as `reliability_curve`.
    """
    curve = reliability_curve(probabilities, labels, classes, bins=bins)
    gap = (curve["accuracy"] - curve["confidence"]).abs()
    return float((gap * curve["n"]).sum() / curve["n"].sum())


def brier_score(probabilities: ArrayLike, labels: ArrayLike, classes: ArrayLike) -> float:
    """Mean squared distance from the one-hot labels, summed over classes, in [0, 2] (Brier 1950).

    With two classes it is twice the one-column score of scikit-learn's default.

    Raises:
        ProbeError: as `reliability_curve`.
    """
    p, code = checked(probabilities, labels, classes)
    return float(np.mean(np.sum((p - np.eye(p.shape[1])[code]) ** 2, axis=1)))


def log_loss(probabilities: ArrayLike, labels: ArrayLike, classes: ArrayLike) -> float:
    """Mean -log p of the labels, in nats; infinite where a label was held impossible.

    Raises:
        ProbeError: as `reliability_curve`.
    """
    p, code = checked(probabilities, labels, classes)
    with np.errstate(divide="ignore"):
        return float(-np.mean(np.log(p[np.arange(len(p)), code])))


def confidence_bins(p: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The bin `[n]` of each row's confidence, and the edges `[bins + 1]`.

    Raises:
        ProbeError: no bins.
    """
    if bins < 1:
        raise ProbeError(f"bins is {bins}; it must be at least 1.")
    edges = np.linspace(0, 1, bins + 1)
    return np.clip(np.searchsorted(edges, p.max(axis=1), side="left") - 1, 0, bins - 1), edges


def checked(
    probabilities: ArrayLike, labels: ArrayLike, classes: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `[n, classes]` and the column of each label.

    Raises:
        ProbeError: rows that are not probabilities, or labels that are no class.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    columns = names(classes, what="classes")
    if p.ndim != 2 or p.shape[0] == 0 or p.shape[1] != len(columns):
        raise ProbeError(
            f"The probabilities have shape {p.shape}; give [rows, {len(columns)}], a column for "
            "each class."
        )
    given = names(labels, what="labels", n=len(p))
    if not (np.isfinite(p).all() and (p >= 0).all() and np.abs(p.sum(axis=1) - 1).max() < 1e-5):
        raise ProbeError("The rows are not probabilities: each must be 0 or more and sum to 1.")
    match = given[:, None] == columns
    if not (match.sum(axis=1) == 1).all():
        wrong = given[match.sum(axis=1) != 1][0]
        raise ProbeError(f"The label {str(wrong)!r} is not one of the classes, or is two of them.")
    return p, match.argmax(axis=1)
