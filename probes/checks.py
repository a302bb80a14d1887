"""What every function here asks of states, labels and groups."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from probes.errors import ProbeError


def names(values: ArrayLike, *, what: str, n: int | None = None) -> np.ndarray:
    """`values` `[n]` as an array of one axis, none of them missing.

    Raises:
        ProbeError: another shape or length, or a missing value.
    """
    array = np.asarray(values)
    if array.ndim != 1 or len(array) == 0:
        raise ProbeError(f"The {what} have shape {array.shape}; give one for each row.")
    if n is not None and len(array) != n:
        raise ProbeError(f"There are {n} rows but {len(array)} {what}; give one for each row.")
    missing = int(pd.isna(array).sum())
    if missing:
        raise ProbeError(f"{missing} of the {what} are missing; leave those rows out.")
    return array.astype(str) if array.dtype == object else array


def codes(labels: ArrayLike, *, n: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The classes in order, and each row's number among them.

    Raises:
        ProbeError: missing labels, or fewer than two classes.
    """
    classes, code = np.unique(names(labels, what="labels", n=n), return_inverse=True)
    if len(classes) < 2:
        raise ProbeError(
            f"All rows have the one label {str(classes[0])!r}; a probe needs at least two classes."
        )
    return classes, code


def states(x: ArrayLike, *, site: str = "") -> np.ndarray:
    """States `[n, d]` in f64.

    Raises:
        ProbeError: another shape, no rows, or values that are not finite.
    """
    where = f" at {site}" if site else ""
    array = np.asarray(x, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ProbeError(f"The states{where} have shape {array.shape}; give [rows, features].")
    wrong = int((~np.isfinite(array)).any(axis=1).sum())
    if wrong:
        raise ProbeError(
            f"{wrong} rows of the states{where} hold NaN or infinite values; leave those rows "
            "out, or capture in a wider dtype."
        )
    return array
