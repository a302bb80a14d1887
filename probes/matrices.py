"""One matrix in many products with a few rows, and the inverse of a symmetric one.

Nearly all of it is matrix products in NumPy, during which other threads run.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Strips:
    """A matrix [m, k] that is multiplied often, cut into columns.

    A few rows times a matrix is small enough, cut so, for BLAS to take it as it lies; whole, it
    would be copied into another order every time, which took as long as the product.
    """

    WIDTH = 32

    def __init__(self, matrix: Array) -> None:
        m, self.k = matrix.shape
        full, rest = divmod(self.k, self.WIDTH)
        self.strips = np.empty((full + (rest > 0), m, self.WIDTH), matrix.dtype)
        body = matrix[:, : self.k - rest].reshape(m, full, self.WIDTH)
        self.strips[:full] = body.transpose(1, 0, 2)
        if rest:
            self.strips[full] = 0
            self.strips[full, :, :rest] = matrix[:, self.k - rest :]

    def times(self, v: Array) -> Array:
        """v [..., m] times the matrix."""
        rows = v.reshape(-1, v.shape[-1])
        count, _, width = self.strips.shape
        found = np.empty((len(rows), count * width), v.dtype)
        aim = found.reshape(len(rows), count, width).transpose(1, 0, 2)
        np.matmul(rows, self.strips, out=aim)
        return np.ascontiguousarray(found[:, : self.k]).reshape(*v.shape[:-1], self.k)


def spaced(n: int, d: int, dtype: type) -> Array:
    """An empty matrix [n, d] with rows an odd number of cache lines apart.

    At a power of two apart the elements of a column would contend for a few places of the cache,
    and turning such a matrix over took eight times as long.
    """
    line = 64 // np.dtype(dtype).itemsize
    return np.empty((n, (-(-d // line) | 1) * line), dtype)[:, :d]


def inverse(s: Array) -> Array:
    """The inverse of a symmetric positive matrix, by its Cholesky factor.

    By halves, so that nearly all of it is matrix products; LAPACK's routine, as SciPy calls it,
    would hold up every other thread meanwhile.

    Raises:
        numpy.linalg.LinAlgError: it is not positive, in its precision.
    """
    return _squared(inverse_root(s))


def inverse_root(s: Array) -> Array:
    """L⁻¹ of s = LLᵀ. Raises as `inverse`."""
    n = len(s)
    if n <= 64:
        return np.linalg.inv(np.linalg.cholesky(s))
    k = n // 2
    first = inverse_root(s[:k, :k])
    below = s[k:, :k] @ first.T
    second = inverse_root(s[k:, k:] - below @ below.T)
    root = np.zeros_like(s)
    root[:k, :k], root[k:, k:] = first, second
    root[k:, :k] = -second @ (below @ first)
    return root


def inverse_without(whole: Array, kept: Array, others: Array) -> Array:
    """The inverse of s[kept, kept] of a symmetric positive s, from that of s, `whole`.

    By the inverse of a block matrix: B_kk - B_ko B_oo⁻¹ B_ok, B the whole. Raises as `inverse`.
    """
    edge = whole[others]
    drop = edge[:, kept].T @ inverse_root(edge[:, others]).T
    found = whole.take(kept, axis=0).take(kept, axis=1)
    found -= drop @ drop.T
    return found


def _squared(root: Array) -> Array:
    """RᵀR of a lower triangle, half of which is known to be nought."""
    n = len(root)
    if n <= 160:
        return root.T @ root
    k = n // 2
    corner = np.ascontiguousarray(root[k:, :k])
    out = np.empty_like(root)
    out[:k, :k] = _squared(root[:k, :k]) + corner.T @ corner
    out[k:, k:] = _squared(root[k:, k:])
    out[:k, k:] = corner.T @ root[k:, k:]
    out[k:, :k] = out[:k, k:].T
    return out
