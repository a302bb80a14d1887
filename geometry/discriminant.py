"""Subspaces in which classes differ: their means, their means against their spread, a readout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from geometry.checks import finite
from geometry.errors import GeometryError
from geometry.subspace import Subspace
from geometry.within import Shrinkage, WithinCovariance, within_covariance

Kind = Literal["readout", "pattern"]


def mean_differences(x: ArrayLike, labels: ArrayLike, *, site: str = "") -> Subspace:
    """The span of the class means of `x` `[n, d]` about the mean of all rows.

    At most classes - 1 dimensions, by decreasing spread of the means: singular values are those of
    √π_c (μ_c - μ), π_c the share of rows in class c, in the units of the states. The mean is that
    of all rows. With two classes it is the direction towards the second.

    Raises:
        GeometryError: other shapes, numbers that are not finite, one class, means that coincide.
    """
    within = within_covariance(x, labels, shrinkage=0.0)
    spread, centre = between(within)
    axes, values, mixing = np.linalg.svd(spread, full_matrices=False)
    rank = int((values > 1e-9 * values[0]).sum())
    return Subspace(
        axes[:, :rank] * _signs(mixing[:rank].T),
        centre,
        values[:rank],
        site=site,
        provenance={
            "method": "mean_differences",
            "whitened": False,
            "n": len(within.deviations),
            "classes": [str(c) for c in within.classes],
        },
    )


def linear_discriminants(
    x: ArrayLike,
    labels: ArrayLike,
    *,
    shrinkage: Shrinkage = "ledoit_wolf",
    kind: Kind = "readout",
    site: str = "",
) -> Subspace:
    """Fisher's discriminants: axes u of S_b u = κ Σ u, by decreasing κ, at most classes - 1.

    S_b is the covariance of the class means and Σ that within classes, shrunk
    (`within_covariance`). The basis is that of the u made orthonormal in their order, in the
    coordinates of the states; singular values are √κ, the distance of the means in standard
    deviations within classes. The mean is that of all rows.

    Args:
        kind: "readout" for u, the axes that tell classes apart; "pattern" for Σ u, the axes along
            which states differ, which is what an intervention moves (Haufe et al. 2014). The
            patterns span what `mean_differences` spans.

    Raises:
        GeometryError: as `within_covariance` and its `solve`, or means that coincide.
    """
    return discriminants_of(within_covariance(x, labels, shrinkage=shrinkage), kind=kind, site=site)


def discriminants_of(
    within: WithinCovariance, *, kind: Kind = "readout", site: str = ""
) -> Subspace:
    """`linear_discriminants` of a covariance that is at hand."""
    if kind not in ("readout", "pattern"):
        raise GeometryError(f"kind is {kind!r}; it must be 'readout' or 'pattern'.")
    spread, centre = between(within)
    solved = within.solve(spread)
    kappa, mixing = np.linalg.eigh(spread.T @ solved)
    kappa, mixing = kappa[::-1], mixing[:, ::-1]
    kept = kappa > 1e-12 * kappa[0]
    mixing = mixing[:, kept] * _signs(mixing[:, kept])
    q, r = np.linalg.qr((solved if kind == "readout" else spread) @ mixing)
    return Subspace(
        q * np.where(np.diag(r) < 0, -1.0, 1.0),
        centre,
        np.sqrt(kappa[kept]),
        site=site,
        provenance={
            "method": "linear_discriminants",
            "kind": kind,
            "whitened": True,
            "metric": "covariance within classes",
            "shrinkage": within.shrinkage,
            "n": len(within.deviations),
            "classes": [str(c) for c in within.classes],
        },
    )


def probe_weights(
    weights: ArrayLike,
    mean: ArrayLike,
    *,
    site: str = "",
    provenance: Mapping[str, Any] | None = None,
) -> Subspace:
    """The readout of a linear probe: the span of the differences between its classes' weights.

    `weights` is `[classes, d]`, or `[1, d]` of the second of two classes, in the units of the
    states; a vector that all classes share changes no prediction and is taken off. Singular values
    are those of the weights; coordinates are measured from `mean` `[d]`. With one vector it is the
    direction of that vector.

    Raises:
        GeometryError: other shapes, numbers that are not finite, weights that are all zero.
    """
    rows = finite(weights, name="weights", ndim=2)
    if len(rows) > 1:
        rows = rows - rows.mean(axis=0)
    _, values, axes = np.linalg.svd(rows, full_matrices=False)
    if values[0] == 0:
        raise GeometryError("All weights of this probe are zero, so it reads no direction.")
    kept = values > 1e-9 * values[0]
    basis = axes[kept].T
    if len(rows) == 1 and basis[:, 0] @ rows[0] < 0:
        basis = -basis
    return Subspace(
        basis,
        finite(mean, name="mean", ndim=1),
        values[kept],
        site=site,
        provenance={"method": "probe_weights", "whitened": False, **(provenance or {})},
    )


def between(within: WithinCovariance) -> tuple[np.ndarray, np.ndarray]:
    """√π_c (μ_c - μ) as columns `[d, classes]`, and μ `[d]`, the mean of all rows.

    Raises:
        GeometryError: means that coincide.
    """
    first = within.means[0]
    centre = within.weights @ (within.means - first) + first
    spread = ((within.means - centre) * np.sqrt(within.weights)[:, None]).T
    if np.linalg.norm(spread) <= 1e-12 * max(float(np.abs(within.means).max()), 1e-300):
        raise GeometryError(
            "The means of the classes coincide, so no direction leads from one to another; "
            "check the labels, or read another site."
        )
    return spread, centre


def _signs(mixing: np.ndarray) -> np.ndarray:
    """Signs `[k]` of axes that weigh classes by the columns of `mixing` `[classes, k]`.

    Each points to the class that weighs most, and to the second where there are two.
    """
    last = 1 if len(mixing) == 2 else np.abs(mixing).argmax(axis=0)
    return np.where(mixing[last, np.arange(mixing.shape[1])] < 0, -1.0, 1.0)
