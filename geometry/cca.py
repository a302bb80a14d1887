"""Canonical correlations of two representations, and their means: CCA, SVCCA, PWCCA."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from geometry.checks import finite
from geometry.errors import GeometryError


def canonical_correlations(x: ArrayLike, y: ArrayLike) -> Float[np.ndarray, " min_rank"]:
    """Canonical correlations of `x` `[n, d1]` and `y` `[n, d2]`, largest first, in [0, 1].

    As many as the smaller of the two ranks (Hotelling 1936; by QR or SVD of centred columns,
    Björck & Golub 1973). Columns that do not vary, and those that depend on others, do not count.
    Independent columns correlate too, at about √((d1 + d2) / n): have 10 rows for each column.

    Raises:
        GeometryError: rows that differ in number, numbers that are not finite, no variation, or so
            few rows (at most the sum of the ranks) that some correlations are 1 whatever x and y.
    """
    one, two = _pair(x, y)
    return _correlations(_span(one, "x"), _span(two, "y"))[1]


def cca_similarity(x: ArrayLike, y: ArrayLike) -> float:
    """The mean canonical correlation, in [0, 1] (Raghu et al. 2017, section 2).

    Raises:
        GeometryError: as `canonical_correlations`.
    """
    return float(canonical_correlations(x, y).mean())


def svcca(x: ArrayLike, y: ArrayLike, *, variance: float = 0.99) -> float:
    """The mean canonical correlation of the leading principal components, in [0, 1].

    Of each side as many components as hold `variance` of it (Raghu et al. 2017), so that features
    are not to be scaled first unless their units differ.

    Raises:
        GeometryError: a variance outside (0, 1], or as `canonical_correlations` for the components.
    """
    if not 0 < variance <= 1:
        raise GeometryError(f"variance is {variance!r}; it must lie in (0, 1].")
    one, two = (_leading(m, variance) for m in _pair(x, y))
    return float(_correlations(one, two)[1].mean())


def pwcca(x: ArrayLike, y: ArrayLike) -> float:
    """The mean canonical correlation weighted by what each explains of `x`, in [0, 1].

    Σ α_i ρ_i / Σ α_i with α_i = Σ_j |⟨h_i, x_j⟩|, h_i the canonical variates of x and x_j its
    centred columns (Morcos et al. 2018, section 2). Not symmetric: the weights are x's.

    Raises:
        GeometryError: as `canonical_correlations`.
    """
    one, two = _pair(x, y)
    basis = _span(one, "x")
    axes, correlations = _correlations(basis, _span(two, "y"))
    weights = np.abs((basis @ axes).T @ one).sum(axis=1)
    return float(weights @ correlations / weights.sum())


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    one, two = finite(x, name="x", ndim=2), finite(y, name="y", ndim=2)
    if len(one) != len(two):
        raise GeometryError(
            f"x has {len(one)} rows and y {len(two)}; they need the same rows in the same order."
        )
    return _centred(one), _centred(two)


def _centred(x: np.ndarray) -> np.ndarray:
    """Centred columns; what rounding leaves of a constant one is made zero."""
    centred = x - x.mean(axis=0)
    constant = np.linalg.norm(centred, axis=0) <= 1e-12 * np.linalg.norm(x, axis=0)
    return np.where(constant, 0.0, centred)


def _span(centred: np.ndarray, name: str) -> np.ndarray:
    """Orthonormal basis `[n, rank]` of the columns, whose lengths do not count."""
    lengths = np.linalg.norm(centred, axis=0)
    if not lengths.any():
        raise GeometryError(f"{name} does not vary over its {len(centred)} rows; leave it out.")
    unit = centred[:, lengths > 0] / lengths[lengths > 0]
    axes, values, _ = np.linalg.svd(unit, full_matrices=False)
    return axes[:, values > max(unit.shape) * 1e-14 * values[0]]


def _leading(centred: np.ndarray, variance: float) -> np.ndarray:
    """The left singular vectors that hold `variance` of the columns."""
    axes, values, _ = np.linalg.svd(centred, full_matrices=False)
    energy = values**2
    if not energy.any():
        raise GeometryError(
            f"A representation does not vary over its {len(centred)} rows; leave it out."
        )
    held = np.cumsum(energy) / energy.sum()
    kept = int(np.searchsorted(held, variance - 1e-12)) + 1
    rank = int(np.sum(values > max(centred.shape) * 1e-14 * values[0]))
    return axes[:, : min(kept, rank)]


def _correlations(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Canonical axes `[rank, m]` in the first basis, and the m correlations."""
    n, ranks = len(one), (one.shape[1], two.shape[1])
    if n - 1 < sum(ranks):
        raise GeometryError(
            f"There are {n} rows for ranks {ranks[0]} and {ranks[1]}, so some correlations are 1 "
            "whatever the data; take more rows, or fewer principal components."
        )
    axes, correlations, _ = np.linalg.svd(one.T @ two, full_matrices=False)
    return axes, np.clip(correlations, 0.0, 1.0)
