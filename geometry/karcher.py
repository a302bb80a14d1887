"""The mean of several subspaces of one dimension: along the Grassmannian, or of projectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from geometry.checks import count, finite, orthonormalised
from geometry.errors import GeometryError


class KarcherMean(NamedTuple):
    """The Karcher mean of subspaces.

    Attributes:
        basis: `[d, k]`, orthonormal.
        variance: weighted mean squared geodesic distance to the mean, in squared radians.
        distances: `[m]`, geodesic distance of each subspace to the mean, in radians.
        unique: whether all lie within π/4 of the mean, where it is known to be the only one.
        steps: iterations taken.
        residual: length of the mean logarithm at the end, in radians; 0 at a stationary point.
    """

    basis: Float[np.ndarray, "d k"]
    variance: float
    distances: Float[np.ndarray, " m"]
    unique: bool
    steps: int
    residual: float


class ProjectorMean(NamedTuple):
    """The extrinsic mean of subspaces.

    Attributes:
        basis: `[d, k]`, orthonormal, in falling order of eigenvalue.
        variance: weighted mean squared chordal distance to the mean, no unit: Σsin²θ, and where
            dimensions differ the distance ‖P1 - P2‖²_F / 2 = Σsin²θ + |k1 - k2| / 2.
        eigenvalues: of the mean projector, `[min(d, Σk_i)]`, falling, in [0, 1].
        gap: eigenvalue k less eigenvalue k + 1; the mean is ill-defined where it is near 0.
    """

    basis: Float[np.ndarray, "d k"]
    variance: float
    eigenvalues: Float[np.ndarray, " r"]
    gap: float


def karcher_mean(
    bases: ArrayLike | Sequence[ArrayLike],
    *,
    weights: ArrayLike | None = None,
    tolerance: float = 1e-10,
    steps: int = 200,
) -> KarcherMean:
    """The subspace with the least mean squared geodesic distance to `bases` `[m, d, k]`.

    Starts at the projector mean and repeats Q ← Exp_Q(mean_i Log_Q(Q_i)) (Karcher 1977; maps of
    Edelman, Arias & Smith 1998, SIAM J. Matrix Anal. 20, section 2.5), with half the step where
    the residual grew.

    Args:
        weights: `[m]`, not negative; the same for all unless given.
        tolerance: the length of the mean logarithm, in radians, at which it stops.

    Raises:
        GeometryError: other shapes, different dimensions, numbers that are not finite, dependent
            columns, a subspace with a direction orthogonal to the mean, no convergence.
    """
    stack, share = _members(bases, weights)
    if len({b.shape for b in stack}) > 1:
        raise GeometryError(
            f"The subspaces have {sorted({b.shape[1] for b in stack})} dimensions; a Karcher mean "
            "needs one number, so cut them to it or take projector_mean."
        )
    steps = count(steps, name="steps")
    # All that happens lies in the span of the members: take coordinates there.
    span = np.linalg.qr(np.hstack(stack))[0]
    inside = np.stack([span.T @ b for b in stack])
    weighted = np.hstack(list(np.sqrt(share)[:, None, None] * inside))
    q = np.linalg.svd(weighted, full_matrices=False)[0][:, : inside.shape[-1]]
    step, residual = 1.0, np.inf
    for taken in range(steps + 1):
        tangents, lengths = _logarithms(q, inside)
        mean = np.tensordot(share, tangents, axes=1)
        previous, residual = residual, float(np.linalg.norm(mean))
        if residual <= tolerance:
            break
        if residual > previous:
            step /= 2
        if taken < steps:
            q = _exponential(q, step * mean)
    else:
        raise GeometryError(
            f"The Karcher mean did not settle in {steps} steps (residual {residual:.1e} rad); "
            "the subspaces lie too far apart for one, or raise steps."
        )
    return KarcherMean(
        span @ q,
        float(share @ lengths**2),
        lengths,
        bool(lengths.max() < np.pi / 4),
        taken,
        residual,
    )


def projector_mean(
    bases: ArrayLike | Sequence[ArrayLike],
    *,
    k: int | None = None,
    weights: ArrayLike | None = None,
) -> ProjectorMean:
    """The k-dimensional subspace with the least mean squared chordal distance to `bases`.

    The first k eigenvectors of Σ w_i Q_iQ_iᵀ, in closed form (the extrinsic or chordal mean:
    Sarlette & Sepulchre 2009, SIAM J. Control Optim. 48; for unequal dimensions the flag mean of
    Draper et al. 2014).

    Args:
        bases: `[m, d, k]`, or a sequence of m bases `[d, k_i]`.
        k: dimensions of the mean; those of the members unless given, when they agree.
        weights: `[m]`, not negative; the same for all unless given.

    Raises:
        GeometryError: other shapes, numbers that are not finite, dependent columns, no k where
            dimensions differ, k above what the members span.
    """
    stack, share = _members(bases, weights)
    sizes = {b.shape[1] for b in stack}
    if k is None:
        if len(sizes) > 1:
            raise GeometryError(
                f"The subspaces have {sorted(sizes)} dimensions; say how many the mean has (k)."
            )
        k = sizes.pop()
    joined = np.hstack([np.sqrt(w) * b for w, b in zip(share, stack, strict=True)])
    axes, values, _ = np.linalg.svd(joined, full_matrices=False)
    eigenvalues = np.clip(values**2, 0.0, 1.0)
    rank = int(np.sum(values > 1e-10))
    k = count(k, name="k", most=rank)
    gap = float(eigenvalues[k - 1] - (eigenvalues[k] if k < len(eigenvalues) else 0.0))
    basis = axes[:, :k]
    # ‖P1 - P2‖²_F / 2, from the part of each member outside the mean: no loss where they agree.
    outside = [float(np.sum((b - basis @ (basis.T @ b)) ** 2)) for b in stack]
    squares = np.array([o + (k - b.shape[1]) / 2 for o, b in zip(outside, stack, strict=True)])
    return ProjectorMean(basis, float(share @ squares), eigenvalues, gap)


def running_projector_mean(
    average: tuple[Float[np.ndarray, "d r"], Float[np.ndarray, " r"]] | None,
    basis: Float[np.ndarray, "d k"],
    *,
    smooth: float,
    most: int,
) -> tuple[Float[np.ndarray, "d r"], Float[np.ndarray, " r"]]:
    """The averaged projector P after P <- smooth P + (1 - smooth) QQᵀ, as axes and eigenvalues.

    Its first k axes are the chordal mean of a stream of subspaces, each counting `smooth` times the
    next. `basis` Q and the axes of `average` (None before the first) are taken as orthonormal.

    Args:
        most: axes kept, those of the largest eigenvalues.
    """
    if average is None:
        return basis, np.ones(basis.shape[1])
    axes, weights = average
    joined = np.hstack([np.sqrt(smooth * weights) * axes, np.sqrt(1 - smooth) * basis])
    left, values, _ = np.linalg.svd(joined, full_matrices=False)
    return np.ascontiguousarray(left[:, :most]), values[:most] ** 2


def _members(bases: Any, weights: Any) -> tuple[list[np.ndarray], np.ndarray]:
    stack = [orthonormalised(b, name=f"basis {i}") for i, b in enumerate(bases)]
    if not stack:
        raise GeometryError("bases is empty; pass at least one basis [d, k].")
    if len({len(b) for b in stack}) > 1:
        raise GeometryError(
            f"The bases lie in {sorted({len(b) for b in stack})} dimensions; "
            "average subspaces of one space."
        )
    if weights is None:
        return stack, np.full(len(stack), 1 / len(stack))
    share = finite(weights, name="weights", ndim=1)
    if len(share) != len(stack) or (share < 0).any() or share.sum() == 0:
        raise GeometryError(
            f"weights must be {len(stack)} numbers that are not negative, and not all zero."
        )
    return stack, share / share.sum()


def _logarithms(q: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tangents `[m, d, k]` at q that lead to each of `others`, and their lengths `[m]`."""
    along = q.T @ others
    if np.linalg.svd(along, compute_uv=False).min() < 1e-8:
        raise GeometryError(
            "A subspace has a direction at right angles to the mean, so no shortest path leads "
            "there; leave it out, or take projector_mean."
        )
    rest = (others - q @ along) @ np.linalg.inv(along)
    u, tangents, vt = np.linalg.svd(rest, full_matrices=False)
    angles = np.arctan(tangents)
    return (u * angles[:, None, :]) @ vt, np.sqrt(np.sum(angles**2, axis=-1))


def _exponential(q: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    u, angles, vt = np.linalg.svd(tangent, full_matrices=False)
    reached = (q @ vt.T * np.cos(angles) + u * np.sin(angles)) @ vt
    return np.linalg.qr(reached)[0]
