"""Distances between subspaces, for one pair or for all pairs of many.

All of them are functions of the principal angles θ. Ye & Lim (2016, SIAM J. Matrix Anal. 37)
say what they become where dimensions differ, and are followed here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from geometry.checks import finite, orthonormalised
from geometry.errors import GeometryError

Metric = Literal[
    "geodesic",
    "chordal",
    "projection_frobenius",
    "projection_operator",
    "martin",
    "fubini_study",
    "procrustes",
]
Unequal = Literal["complete", "contained"]

# Squared cosines above this give way to sines: at 0.1 rad an arc cosine still has 14 digits.
_NEAR = 0.99
# A cosine below this is that of a right angle, up to rounding.
_RIGHT = 1e-14


def subspace_distance(
    q1: ArrayLike, q2: ArrayLike, *, metric: Metric = "geodesic", unequal: Unequal = "complete"
) -> float:
    """Distance between the column spaces of `q1` `[d, k1]` and `q2` `[d, k2]`.

    With principal angles θ:

    - `geodesic`: √Σθ², radians, the length of the shortest path on the Grassmannian;
    - `chordal`: √Σsin²θ;
    - `projection_frobenius`: ‖P1 - P2‖_F = √(2Σsin²θ + |k1 - k2|);
    - `projection_operator`: ‖P1 - P2‖₂ = sin θ_max;
    - `martin`: √(-Σ log cos²θ), infinite where one direction is orthogonal to the other space;
    - `fubini_study`: arccos Πcos θ, radians;
    - `procrustes`: 2√Σsin²(θ/2), the Frobenius distance of the best aligned bases.

    Args:
        unequal: where k1 differs from k2, `"complete"` takes the |k1 - k2| angles that are missing
            as right angles, which gives a metric between subspaces of any dimensions (for Martin
            infinity, for Fubini-Study π/2, for the operator norm 1); `"contained"` leaves them
            out, so that the distance is 0 where one contains the other, and no metric. Neither
            may be compared between pairs whose dimensions differ.

    Raises:
        GeometryError: other shapes, numbers that are not finite, dependent columns, an unknown
            metric.
    """
    return float(distance_matrix([q1, q2], metric=metric, unequal=unequal)[0, 1])


def distance_matrix(
    bases: ArrayLike | Sequence[ArrayLike],
    *,
    metric: Metric = "geodesic",
    unequal: Unequal = "complete",
) -> Float[np.ndarray, "*layers v v"]:
    """The distance of every two of V subspaces: symmetric, zeros on the diagonal.

    Args:
        bases: `[..., V, d, k]`, or a sequence of V bases `[d, k_i]`.
        metric, unequal: as in `subspace_distance`.

    Raises:
        GeometryError: as `subspace_distance`.
    """
    if metric not in get_args(Metric):
        raise GeometryError(f"metric is {metric!r}; choose from {', '.join(get_args(Metric))}.")
    if unequal not in get_args(Unequal):
        raise GeometryError(f"unequal is {unequal!r}; choose 'complete' or 'contained'.")
    stack, sizes = _stacked(bases)
    upper, angles = _angles(stack, sizes)
    k1, k2 = sizes[upper[0]], sizes[upper[1]]
    place = np.arange(angles.shape[-1])
    real = place < np.minimum(k1, k2)[:, None]
    missing = (place < np.maximum(k1, k2)[:, None]) & ~real
    if unequal == "contained":
        missing = np.zeros_like(missing)
    angles = np.where(missing, np.pi / 2, np.where(real, angles, 0.0))
    found = _METRICS[metric](angles)
    if metric == "projection_frobenius":
        # A missing right angle is one dimension of one projector, a real one is one of each.
        found = np.sqrt(np.maximum(found**2 - missing.sum(axis=-1), 0.0))
    return _square(found, upper, stack, 0.0)


def angle_matrix(bases: ArrayLike | Sequence[ArrayLike]) -> Float[np.ndarray, "*layers v v k"]:
    """Principal angles in radians between every two of V subspaces, smallest first.

    Precise also for tiny angles, which are taken from sines (Knyazev & Argentati 2002). Where
    subspaces have fewer than k dimensions, the angles beyond the smaller one's are NaN.

    Args:
        bases: `[..., V, d, k]`, or a sequence of V bases `[d, k_i]`; k is then the largest.

    Raises:
        GeometryError: as `subspace_distance`.
    """
    stack, sizes = _stacked(bases)
    upper, angles = _angles(stack, sizes)
    place = np.arange(angles.shape[-1])
    known = place < np.minimum(sizes[upper[0]], sizes[upper[1]])[:, None]
    own = np.where(place < sizes[:, None], 0.0, np.nan)
    square = _square(np.where(known, angles, np.nan), upper, stack, 0.0)
    square[..., np.arange(len(sizes)), np.arange(len(sizes)), :] = own
    return square


def containment_matrix(bases: ArrayLike | Sequence[ArrayLike]) -> Float[np.ndarray, "*layers v v"]:
    """How much of subspace a lies in b, at `[..., a, b]`: ‖Q_bᵀQ_a‖²_F / k_a, in [0, 1].

    Args:
        bases: `[..., V, d, k]`, or a sequence of V bases `[d, k_i]`.

    Raises:
        GeometryError: as `subspace_distance`.
    """
    stack, sizes = _stacked(bases)
    return np.clip(_shared(stack) / sizes[:, None], 0.0, 1.0)


def overlap_matrix(bases: ArrayLike | Sequence[ArrayLike]) -> Float[np.ndarray, "*layers v v"]:
    """Mean squared cosine of the principal angles of every two: ‖Q_aᵀQ_b‖²_F / min(k_a, k_b).

    Args:
        bases: `[..., V, d, k]`, or a sequence of V bases `[d, k_i]`.

    Raises:
        GeometryError: as `subspace_distance`.
    """
    stack, sizes = _stacked(bases)
    return np.clip(_shared(stack) / np.minimum(sizes[:, None], sizes), 0.0, 1.0)


def _geodesic(angles: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(angles**2, axis=-1))


def _chordal(angles: np.ndarray) -> np.ndarray:
    return np.sqrt(np.sum(np.sin(angles) ** 2, axis=-1))


def _projection_frobenius(angles: np.ndarray) -> np.ndarray:
    return np.sqrt(2 * np.sum(np.sin(angles) ** 2, axis=-1))


def _projection_operator(angles: np.ndarray) -> np.ndarray:
    return np.sin(angles.max(axis=-1))


def _log_cosines(angles: np.ndarray) -> np.ndarray:
    """Σ log cos θ without loss for tiny angles, -inf with a right one."""
    cosines = np.where(np.cos(angles) < _RIGHT, 0.0, np.cos(angles))
    near = angles < np.pi / 4
    with np.errstate(divide="ignore"):
        far = np.log(np.where(near, 1.0, cosines))
    return np.sum(
        np.where(near, np.log1p(-(np.sin(np.where(near, angles, 0.0)) ** 2)) / 2, far), -1
    )


def _martin(angles: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(-2 * _log_cosines(angles), 0.0))


def _fubini_study(angles: np.ndarray) -> np.ndarray:
    log = _log_cosines(angles)
    return np.arctan2(np.sqrt(-np.expm1(2 * log)), np.exp(log))


def _procrustes(angles: np.ndarray) -> np.ndarray:
    return 2 * np.sqrt(np.sum(np.sin(angles / 2) ** 2, axis=-1))


_METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "geodesic": _geodesic,
    "chordal": _chordal,
    "projection_frobenius": _projection_frobenius,
    "projection_operator": _projection_operator,
    "martin": _martin,
    "fubini_study": _fubini_study,
    "procrustes": _procrustes,
}


def _stacked(bases: Any) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal bases `[..., V, d, k]`, filled up with columns of zeros, and each one's k."""
    if isinstance(bases, np.ndarray) and bases.dtype != object:
        if bases.ndim < 3:
            raise GeometryError(
                f"bases has shape {bases.shape}; pass [V, d, k], or a list of bases [d, k]."
            )
        stack = finite(bases, name="bases", ndim=bases.ndim)
        return _orthonormal(stack), np.full(stack.shape[-3], stack.shape[-1])
    given = [finite(b, name=f"basis {i}", ndim=2) for i, b in enumerate(bases)]
    if not given:
        raise GeometryError("bases is empty; pass at least one basis [d, k].")
    if len({b.shape for b in given}) == 1:
        stack = np.stack(given)
        return _orthonormal(stack), np.full(len(given), stack.shape[-1])
    if len({len(b) for b in given}) > 1:
        raise GeometryError(
            f"The bases lie in {sorted({len(b) for b in given})} dimensions; "
            "compare subspaces of one space."
        )
    sizes = np.array([b.shape[1] for b in given])
    stack = np.zeros((len(given), len(given[0]), sizes.max()))
    for i, basis in enumerate(given):
        stack[i, :, : sizes[i]] = orthonormalised(basis, name=f"basis {i}")
    return stack, sizes


def _orthonormal(stack: np.ndarray) -> np.ndarray:
    """`orthonormalised` for a stack `[..., d, k]`; what fails is found by the plain version."""
    k = stack.shape[-1]
    if k <= stack.shape[-2]:
        products = stack.swapaxes(-1, -2) @ stack
        if np.abs(products - np.eye(k)).max() < 1e-12:
            return stack
    flat = stack.reshape(-1, *stack.shape[-2:])
    made = [orthonormalised(b, name=f"basis {i}") for i, b in enumerate(flat)]
    return np.stack(made).reshape(stack.shape)


def _angles(
    stack: np.ndarray, sizes: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """The pairs a < b, and their angles `[..., pairs, k]`, right ones where there are none."""
    v, d, k = stack.shape[-3:]
    first, second = np.triu_indices(v, 1)
    # One product of all bases with all: [V k, V k], of which the blocks above the diagonal count.
    flat = stack.swapaxes(-3, -2).reshape(*stack.shape[:-3], d, v * k)
    products = (flat.swapaxes(-1, -2) @ flat).reshape(*stack.shape[:-3], v, k, v, k)
    products = np.moveaxis(products, -3, -2)[..., first, second, :, :]
    cosines = np.clip(np.linalg.svd(products, compute_uv=False), 0.0, 1.0)
    angles = np.arccos(cosines)
    near = cosines**2 > _NEAR
    for small, large in {(min(a, b), max(a, b)) for a, b in zip(sizes[first], sizes[second])}:
        of_these = (np.minimum(sizes[first], sizes[second]) == small) & (
            np.maximum(sizes[first], sizes[second]) == large
        )
        where = np.nonzero(near.any(axis=-1) & of_these)
        if not len(where[0]):
            continue
        pair, layer = where[-1], where[:-1]
        swap = sizes[first[pair]] > sizes[second[pair]]
        inner = stack[(*layer, np.where(swap, second[pair], first[pair]))][..., :small]
        outer = stack[(*layer, np.where(swap, first[pair], second[pair]))][..., :large]
        rest = inner - outer @ (outer.swapaxes(-1, -2) @ inner)
        sines = np.clip(np.linalg.svd(rest, compute_uv=False)[..., ::-1], 0.0, 1.0)
        chosen = near[where][..., :small]
        angles[(*where, slice(small))] = np.where(
            chosen, np.arcsin(sines), angles[where][..., :small]
        )
    return (first, second), angles


def _shared(stack: np.ndarray) -> np.ndarray:
    """‖Q_aᵀQ_b‖²_F for all pairs `[..., V, V]`."""
    v, d, k = stack.shape[-3:]
    flat = stack.swapaxes(-3, -2).reshape(*stack.shape[:-3], d, v * k)
    products = flat.swapaxes(-1, -2) @ flat
    return np.sum(products.reshape(*stack.shape[:-3], v, k, v, k) ** 2, axis=(-3, -1))


def _square(
    values: np.ndarray, upper: tuple[np.ndarray, np.ndarray], stack: np.ndarray, diagonal: float
) -> np.ndarray:
    """Values of pairs, `[..., pairs]` or `[..., pairs, k]`, as a symmetric array over V x V."""
    layers, v = stack.shape[:-3], stack.shape[-3]
    square = np.full((*layers, v, v, *values.shape[len(layers) + 1 :]), diagonal)
    lead = (slice(None),) * len(layers)
    square[(*lead, upper[0], upper[1])] = values
    square[(*lead, upper[1], upper[0])] = values
    return square
