"""What every function here asks of the arrays that it is given."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from geometry.errors import GeometryError


def finite(values: ArrayLike, *, name: str, ndim: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """`values` as f64 with `ndim` axes, none of them empty.

    Raises:
        GeometryError: numbers that are not finite, another number of axes, or no numbers.
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise GeometryError(
            f"{name} is not an array of real numbers; pass a {ndim}-dimensional one."
        ) from error
    if array.ndim != ndim:
        raise GeometryError(
            f"{name} has shape {array.shape}, but {ndim} axes are needed; reshape it."
        )
    if array.size == 0:
        raise GeometryError(f"{name} has shape {array.shape}, which holds nothing; pass some rows.")
    if not np.isfinite(array).all():
        raise GeometryError(
            f"{name} holds {int((~np.isfinite(array)).sum())} values that are NaN or infinite; "
            "remove those rows, or capture in a wider dtype."
        )
    return array


def orthonormalised(
    vectors: ArrayLike, *, name: str, tolerance: float = 1e-6
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Orthonormal basis `[d, k]` of the columns of `vectors` `[d, k]`.

    Columns are scaled first, so that their lengths do not decide what counts as dependent.

    Raises:
        GeometryError: more columns than dimensions, or columns that depend on one another.
    """
    columns = finite(vectors, name=name, ndim=2)
    d, k = columns.shape
    if k > d:
        raise GeometryError(
            f"{name} has {k} columns in {d} dimensions; a basis is [d, k] with k at most d, "
            "so perhaps it is transposed."
        )
    lengths = np.linalg.norm(columns, axis=0)
    if (lengths == 0).any():
        raise GeometryError(f"{name} has a column of zeros, which spans nothing; drop it.")
    unit = columns / lengths
    if np.abs(unit.T @ unit - np.eye(k)).max() < 1e-12:
        return unit
    if np.linalg.svd(unit, compute_uv=False)[-1] < tolerance:
        raise GeometryError(
            f"{name} has {k} columns that depend on one another; drop those that add nothing."
        )
    q, r = np.linalg.qr(unit)
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


def count(value: Any, *, name: str, most: int | None = None) -> int:
    """A whole number of at least 1, and at most `most`.

    Raises:
        GeometryError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise GeometryError(f"{name} is {value!r}; it must be a whole number of at least 1.")
    if most is not None and value > most:
        raise GeometryError(f"{name} is {value}, but at most {most} fit here; lower it.")
    return int(value)


def spread(spectrum: ArrayLike, *, d: int, k: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Square roots of the eigenvalues of a covariance that are not zero up to rounding.

    Raises:
        GeometryError: numbers that are not finite, negative ones, or fewer than `k` to draw from.
    """
    values = finite(spectrum, name="spectrum", ndim=1)
    if (values < -1e-6 * np.abs(values).max()).any():
        raise GeometryError("spectrum has negative numbers; pass eigenvalues of a covariance.")
    kept = np.sqrt(values[values > d * np.finfo(np.float64).eps * values.max()])
    if len(kept) < k:
        raise GeometryError(
            f"spectrum has rank {len(kept)}, so no {k} dimensions can be drawn from it; lower k, "
            "or take it from more rows."
        )
    return kept


def members(groups: ArrayLike, *, n: int, least: int) -> np.ndarray[Any, np.dtype[np.intp]]:
    """The number of each row's group, from 0.

    Raises:
        GeometryError: another length than `n`, missing names, or fewer groups than `least`.
    """
    names = np.asarray(groups)
    if names.shape != (n,):
        raise GeometryError(
            f"groups has shape {names.shape}, but there are {n} rows; give one each."
        )
    # Only a missing value differs from itself.
    missing = sum(value is None or value != value for value in names.tolist())
    if missing:
        raise GeometryError(f"{missing} of the groups are missing; leave those rows out.")
    found, member = np.unique(names.astype(str), return_inverse=True)
    if len(found) < least:
        raise GeometryError(
            f"There are {len(found)} groups, too few for an interval; at least {least} are needed."
        )
    return member
