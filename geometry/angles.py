"""How much two subspaces share, as angles and as overlap."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from geometry.checks import orthonormalised
from geometry.errors import GeometryError


def principal_angles(q1: ArrayLike, q2: ArrayLike) -> Float[np.ndarray, " min_k"]:
    """Principal angles in radians between the column spaces of `q1` `[d, k1]` and `q2` `[d, k2]`.

    Smallest first. Cosines give the angles above 45 degrees and sines those below, since an arc
    cosine cannot tell angles under about 1e-8 from zero (Björck & Golub 1973; Knyazev & Argentati
    2002). The columns need not be orthonormal.

    Raises:
        GeometryError: other shapes, numbers that are not finite, dependent columns.
    """
    small, large = _bases(q1, q2)
    if small.shape[1] > large.shape[1]:
        small, large = large, small
    cosines = np.linalg.svd(large.T @ small, compute_uv=False)
    sines = np.linalg.svd(small - large @ (large.T @ small), compute_uv=False)[::-1]
    return np.where(
        cosines**2 > 0.5,
        np.arcsin(np.clip(sines, 0.0, 1.0)),
        np.arccos(np.clip(cosines, 0.0, 1.0)),
    )


def overlap(q1: ArrayLike, q2: ArrayLike) -> float:
    """Mean squared cosine of the principal angles: ‖Q1ᵀQ2‖²_F / min(k1, k2), in [0, 1].

    Raises:
        GeometryError: as `principal_angles`.
    """
    one, two = _bases(q1, q2)
    shared = np.sum((one.T @ two) ** 2) / min(one.shape[1], two.shape[1])
    return float(np.clip(shared, 0.0, 1.0))


def containment(inner: ArrayLike, outer: ArrayLike) -> float:
    """How much of `inner` `[d, k1]` lies in `outer` `[d, k2]`: ‖Q2ᵀQ1‖²_F / k1, in [0, 1].

    Raises:
        GeometryError: as `principal_angles`.
    """
    one, two = _bases(inner, outer)
    return float(np.clip(np.sum((two.T @ one) ** 2) / one.shape[1], 0.0, 1.0))


def _bases(q1: ArrayLike, q2: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    one = orthonormalised(q1, name="the first basis")
    two = orthonormalised(q2, name="the second basis")
    if one.shape[0] != two.shape[0]:
        raise GeometryError(
            f"The bases lie in {one.shape[0]} and {two.shape[0]} dimensions; "
            "compare subspaces of one space."
        )
    return one, two
