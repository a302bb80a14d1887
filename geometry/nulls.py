"""What subspaces share by chance: drawn uniformly, or with the spread that activations have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.stats import beta

from geometry.checks import count, finite, spread
from geometry.errors import GeometryError

_CELLS = 4_000_000  # numbers drawn at once, 32 MB


class HaarMoments(NamedTuple):
    """Mean and standard deviation of an overlap."""

    mean: float
    sd: float


class CosineNull(NamedTuple):
    """Absolute cosine of a line and a random subspace: its mean, sd and an upper quantile."""

    mean: float
    sd: float
    quantile: float


def haar_overlap(d: int, k1: int, k2: int) -> HaarMoments:
    """Mean and sd of `overlap` for uniform subspaces of dimensions k1 and k2.

    The sum T of squared cosines has E T = k1 k2/d and
    Var T = 2 k1 k2 (d-k1)(d-k2) / (d² (d-1)(d+2)); the overlap is T / min(k1, k2).

    Raises:
        GeometryError: k1 or k2 above d.
    """
    d, k1, k2 = _sizes(d, k1, k2)
    if d == 1:
        return HaarMoments(1.0, 0.0)
    variance = 2 * k1 * k2 * (d - k1) * (d - k2) / (d**2 * (d - 1) * (d + 2))
    least = min(k1, k2)
    return HaarMoments(k1 * k2 / d / least, float(np.sqrt(variance)) / least)


def haar_overlap_sample(
    d: int, k1: int, k2: int, *, draws: int, seed: int
) -> Float[np.ndarray, " draws"]:
    """Overlaps of `draws` pairs of uniform subspaces.

    One of the two is held at the first axes, which loses nothing: the other is uniform.

    Raises:
        GeometryError: k1 or k2 above d, or no draws.
    """
    d, k1, k2 = _sizes(d, k1, k2)
    draws = count(draws, name="draws")
    small, large = sorted((k1, k2))
    rng = np.random.default_rng(seed)
    parts = [
        np.sum(np.linalg.qr(rng.standard_normal((size, d, small)))[0][:, :large] ** 2, axis=(1, 2))
        for size in _batches(draws, d * small)
    ]
    return np.clip(np.concatenate(parts) / small, 0.0, 1.0)


def covariance_overlap_sample(
    covariance: ArrayLike, k1: int, k2: int, *, draws: int, seed: int
) -> Float[np.ndarray, " draws"]:
    """Overlaps of pairs of subspaces whose columns are drawn from N(0, `covariance` `[d, d]`).

    Activations vary much more along some axes than along others, so that subspaces estimated from
    them share far more than uniform ones do: the uniform null would call nearly every two aligned.

    Raises:
        GeometryError: a covariance that is not square, symmetric and positive semidefinite, or
            of rank below k1 or k2.
    """
    matrix = finite(covariance, name="covariance", ndim=2)
    d = len(matrix)
    if matrix.shape != (d, d):
        raise GeometryError(f"covariance has shape {matrix.shape}; it must be square.")
    scale = np.abs(matrix).max()
    if np.abs(matrix - matrix.T).max() > 1e-6 * scale:
        raise GeometryError("covariance is not symmetric; pass numpy.cov(x, rowvar=False).")
    _, k1, k2 = _sizes(d, k1, k2)
    draws = count(draws, name="draws")
    values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    if values[0] < -1e-6 * scale:
        raise GeometryError("covariance has negative eigenvalues; pass numpy.cov(x, rowvar=False).")
    kept = values[values > d * np.finfo(np.float64).eps * max(values[-1], 0.0)]
    if len(kept) < max(k1, k2):
        raise GeometryError(
            f"covariance has rank {len(kept)}, so no {max(k1, k2)} dimensions can be drawn from "
            "it; lower k, or take it from more rows."
        )
    # In the eigenbasis the covariance is diagonal, and overlaps do not depend on the basis.
    spread = np.sqrt(kept)[:, None]
    rng = np.random.default_rng(seed)
    parts = []
    for size in _batches(draws, len(kept) * (k1 + k2)):
        one = np.linalg.qr(spread * rng.standard_normal((size, len(kept), k1)))[0]
        two = np.linalg.qr(spread * rng.standard_normal((size, len(kept), k2)))[0]
        parts.append(np.sum((one.transpose(0, 2, 1) @ two) ** 2, axis=(1, 2)))
    return np.clip(np.concatenate(parts) / min(k1, k2), 0.0, 1.0)


def angle_sample(
    d: int, k1: int, k2: int, *, spectrum: ArrayLike | None = None, draws: int, seed: int
) -> Float[np.ndarray, "draws min_k"]:
    """Principal angles in radians of `draws` pairs of random subspaces, smallest first.

    Uniform (Haar) subspaces, or with a `spectrum` `[m]` the spans of columns from a Gaussian with
    these covariance eigenvalues, as `covariance_overlap_sample` draws them. An eigenvalue of the
    Gram matrix of n < d rows is one of their covariance, and cheaper. Angles below about 1e-8 are
    rounding.

    Raises:
        GeometryError: k1 or k2 above d, a spectrum of lower rank than either, or no draws.
    """
    d, k1, k2 = _sizes(d, k1, k2)
    draws = count(draws, name="draws")
    roots = np.ones(d) if spectrum is None else spread(spectrum, d=d, k=max(k1, k2))
    rng = np.random.default_rng(seed)
    parts = []
    for size in _batches(draws, len(roots) * (k1 + k2)):
        one = np.linalg.qr(roots[:, None] * rng.standard_normal((size, len(roots), k1)))[0]
        two = np.linalg.qr(roots[:, None] * rng.standard_normal((size, len(roots), k2)))[0]
        parts.append(np.linalg.svd(one.transpose(0, 2, 1) @ two, compute_uv=False))
    return np.arccos(np.clip(np.concatenate(parts), 0.0, 1.0))


def cosine_null(d: int, k: int = 1, *, level: float = 0.95) -> CosineNull:
    """Absolute cosine between a fixed line and a uniform subspace of dimension k in d dimensions.

    Its square is Beta(k/2, (d-k)/2) (Absil, Edelman & Koev 2006), so all is exact.

    Raises:
        GeometryError: k not below d, or a level outside (0, 1).
    """
    d = count(d, name="d")
    k = count(k, name="k", most=d)
    if k == d:
        raise GeometryError(f"k is {k}, all of the space, so every cosine is 1; lower it.")
    if not 0 < level < 1:
        raise GeometryError(f"level is {level!r}; it must lie between 0 and 1.")
    from scipy.special import gammaln

    square = beta(k / 2, (d - k) / 2)
    mean = float(
        np.exp(gammaln((k + 1) / 2) - gammaln(k / 2) + gammaln(d / 2) - gammaln((d + 1) / 2))
    )
    return CosineNull(
        mean, float(np.sqrt(max(k / d - mean**2, 0.0))), float(np.sqrt(square.ppf(level)))
    )


def _sizes(d: int, k1: int, k2: int) -> tuple[int, int, int]:
    d = count(d, name="d")
    return d, count(k1, name="k1", most=d), count(k2, name="k2", most=d)


def _batches(draws: int, cells: int) -> Iterator[int]:
    """Sizes that sum to `draws` and keep memory bounded."""
    most = max(1, _CELLS // cells)
    for start in range(0, draws, most):
        yield min(most, draws - start)
