"""Subspaces from activations: a difference of means, or the main axes of paired differences."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from geometry.checks import count, finite
from geometry.errors import GeometryError
from geometry.subspace import Subspace


def mean_difference(
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    mean: Literal["negative", "midpoint"] = "negative",
    site: str = "",
) -> Subspace:
    """The direction from the mean of `negative` `[m, d]` to the mean of `positive` `[n, d]`.

    Its singular value is the distance between the means; coordinates are measured from the
    negative mean, or from halfway. Difference in means: Marks & Tegmark 2023; Arditi et al. 2024.

    Raises:
        GeometryError: other shapes, numbers that are not finite, means that coincide.
    """
    high = finite(positive, name="positive", ndim=2)
    low = finite(negative, name="negative", ndim=2)
    _same_width(high, low, "positive", "negative")
    if mean not in ("negative", "midpoint"):
        raise GeometryError(f"mean is {mean!r}; it must be 'negative' or 'midpoint'.")
    above, below = high.mean(axis=0), low.mean(axis=0)
    difference = above - below
    length = float(np.linalg.norm(difference))
    scale = max(float(np.linalg.norm(above)), float(np.linalg.norm(below)))
    if length <= 1e-12 * scale or length == 0.0:
        raise GeometryError(
            "The two means coincide, so no direction leads from one to the other; "
            "check the labels, or read another site."
        )
    return Subspace(
        (difference / length)[:, None],
        below if mean == "negative" else (above + below) / 2,
        np.array([length]),
        site=site,
        provenance={
            "method": "mean_difference",
            "whitened": False,
            "mean": mean,
            "n_positive": len(high),
            "n_negative": len(low),
        },
    )


def paired_differences(x: ArrayLike, reference: ArrayLike, *, k: int, site: str = "") -> Subspace:
    """The k main axes of `x - reference`, row by row (`[n, d]` both), uncentred.

    Uncentred, because the mean difference is the first thing that pairs have in common. The
    singular values are those of the differences divided by √n, so they are root-mean-square
    distances and do not grow with n. The mean is the reference's.

    Raises:
        GeometryError: other shapes, numbers that are not finite, k above the differences' rank.
    """
    own = finite(x, name="x", ndim=2)
    other = finite(reference, name="reference", ndim=2)
    if own.shape != other.shape:
        raise GeometryError(
            f"x has shape {own.shape} and reference {other.shape}; "
            "pairs need the same rows in the same order."
        )
    n, d = own.shape
    k = count(k, name="k", most=min(n, d))
    difference = own - other
    _, values, axes = np.linalg.svd(difference, full_matrices=False)
    least = max(n, d) * np.finfo(np.float64).eps * max(values[0], np.abs(own).max())
    rank = int((values > least).sum())
    if rank < k:
        raise GeometryError(
            f"The differences have rank {rank}, so they span no {k} dimensions; "
            "lower k, or add pairs that differ."
        )
    # A singular vector's sign is free: point each axis to the side where the differences lie.
    signs = np.where(difference.sum(axis=0) @ axes[:k].T < 0, -1.0, 1.0)
    return Subspace(
        axes[:k].T * signs,
        other.mean(axis=0),
        values[:k] / np.sqrt(n),
        site=site,
        provenance={"method": "paired_differences", "whitened": False, "n": n, "k": k},
    )


def random_subspace(d: int, k: int, *, seed: int, mean: ArrayLike | None = None) -> Subspace:
    """A subspace drawn uniformly (Haar) from all of dimension k, with singular values of 1.

    Raises:
        GeometryError: k above d, or a mean of another shape.
    """
    d = count(d, name="d")
    k = count(k, name="k", most=d)
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, k)))
    centre = np.zeros(d) if mean is None else finite(mean, name="mean", ndim=1)
    return Subspace(
        q * np.where(np.diag(r) < 0, -1.0, 1.0),
        centre,
        np.ones(k),
        provenance={"method": "random_subspace", "seed": int(seed)},
    )


def _same_width(one: np.ndarray, two: np.ndarray, first: str, second: str) -> None:
    if one.shape[1] != two.shape[1]:
        raise GeometryError(
            f"{first} has {one.shape[1]} columns and {second} {two.shape[1]}; "
            "take both from one site."
        )
