"""The spread of states within classes: a shrunk covariance, and its inverse where n < d as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from geometry.checks import finite
from geometry.errors import GeometryError

Shrinkage = float | Literal["ledoit_wolf"]


@dataclass(frozen=True, eq=False)
class WithinCovariance:
    """Σ = (1 - γ) S + γ (tr S / d) I, with S the mean over rows of squared deviations.

    Attributes:
        deviations: `[n, d]`, rows less the mean of their class.
        shrinkage: γ, in [0, 1].
        means: `[classes, d]`. weights: `[classes]`, the share of rows in each. classes: in order.
    """

    deviations: Float[np.ndarray, "n d"]
    shrinkage: float
    means: Float[np.ndarray, "classes d"]
    weights: Float[np.ndarray, " classes"]
    classes: np.ndarray

    @property
    def level(self) -> float:
        """tr S / d, the variance of an average feature."""
        return float(np.sum(self.deviations**2) / self.deviations.size)

    def solve(self, columns: Float[np.ndarray, "d k"]) -> Float[np.ndarray, "d k"]:
        """Σ⁻¹ `columns`, through the n by n Gram matrix (Woodbury) where n < d.

        Raises:
            GeometryError: a covariance that has no inverse.
        """
        n, d = self.deviations.shape
        ridge = self.shrinkage * self.level
        if self.level == 0:
            raise GeometryError(
                "Rows do not differ within their classes, so there is no covariance to divide by; "
                "give more rows, or use differences in means."
            )
        if ridge == 0 and n <= d:
            raise self._singular()
        inverse = self._dense(ridge) if n >= d else self._woodbury(ridge)
        found = inverse(columns)
        return found + inverse(columns - self.apply(found))  # one step of refinement

    def apply(self, columns: Float[np.ndarray, "d k"]) -> Float[np.ndarray, "d k"]:
        """Σ `columns`."""
        rows = self.deviations
        spread = rows.T @ (rows @ columns) / len(rows)
        return (1 - self.shrinkage) * spread + self.shrinkage * self.level * columns

    def _dense(self, ridge: float) -> Any:
        rows = self.deviations
        matrix = (1 - self.shrinkage) * (rows.T @ rows) / len(rows) + ridge * np.eye(rows.shape[1])
        size = np.sqrt(np.diag(matrix))
        if (size == 0).any():
            raise self._singular()
        # To unit diagonal first, so that the units of features do not decide what is singular.
        try:
            factor = cho_factor(matrix / np.outer(size, size), lower=True)
        except LinAlgError:
            raise self._singular() from None
        if np.diag(factor[0]).min() ** 2 < len(matrix) * np.finfo(np.float64).eps:
            raise self._singular()
        return lambda columns: cho_solve(factor, columns / size[:, None]) / size[:, None]

    def _woodbury(self, ridge: float) -> Any:
        rows = self.deviations * np.sqrt((1 - self.shrinkage) / len(self.deviations))
        factor = cho_factor(rows @ rows.T + ridge * np.eye(len(rows)), lower=True)
        return lambda columns: (columns - rows.T @ cho_solve(factor, rows @ columns)) / ridge

    def _singular(self) -> GeometryError:
        n, d = self.deviations.shape
        return GeometryError(
            f"The covariance within classes of {n} rows in {d} dimensions has no inverse; give a "
            "shrinkage above 0, or more rows."
        )


def within_covariance(
    x: ArrayLike, labels: ArrayLike, *, shrinkage: Shrinkage = "ledoit_wolf"
) -> WithinCovariance:
    """Covariance of rows `x` `[n, d]` about the means of their classes.

    Args:
        shrinkage: γ, or "ledoit_wolf" for the γ with least expected squared error if rows were
            independent (Ledoit & Wolf 2004, lemma 3.4). Give a number where results must compare.

    Raises:
        GeometryError: numbers that are not finite, shapes that do not fit, one class, or a
            shrinkage outside [0, 1].
    """
    rows = finite(x, name="x", ndim=2)
    classes, code = class_codes(labels, n=len(rows))
    counts = np.bincount(code)
    one_hot = np.eye(len(classes))[code]
    centre = rows.mean(axis=0)  # taken off first, so that states far from zero keep their digits
    means = one_hot.T @ (rows - centre) / counts[:, None]
    deviations = (rows - centre) - means[code]
    rounding = np.finfo(np.float64).eps * 8 * np.abs(rows).max(axis=0)
    deviations[:, np.abs(deviations).max(axis=0) <= rounding] = 0.0
    if isinstance(shrinkage, str):
        if shrinkage != "ledoit_wolf":
            raise GeometryError(
                f"shrinkage is {shrinkage!r}; it must be 'ledoit_wolf' or a number from 0 to 1."
            )
        gamma = ledoit_wolf(deviations)
    else:
        gamma = float(shrinkage)
        if not 0 <= gamma <= 1:
            raise GeometryError(f"shrinkage is {shrinkage!r}; it must lie between 0 and 1.")
    return WithinCovariance(deviations, gamma, means + centre, counts / len(rows), classes)


def ledoit_wolf(deviations: Float[np.ndarray, "n d"]) -> float:
    """Ledoit and Wolf's γ of rows that are centred already; 0 where they are spherical or zero."""
    n, d = deviations.shape
    small = deviations @ deviations.T if n < d else deviations.T @ deviations
    squares = np.sum((small / n) ** 2) / d
    distance = squares - (np.trace(small) / n / d) ** 2
    if distance <= 1e-15 * squares:
        return 0.0
    fourth = np.sum(np.sum(deviations**2, axis=1) ** 2) / n / d
    return float(np.clip((fourth - squares) / n / distance, 0.0, 1.0))


def class_codes(labels: ArrayLike, *, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The classes in order, and the number of each row's class.

    Raises:
        GeometryError: another length, missing labels, or fewer than two classes.
    """
    array = np.asarray(labels)
    if array.shape != (n,):
        raise GeometryError(
            f"There are {n} rows but the labels have shape {array.shape}; give one for each row."
        )
    # Only a missing value differs from itself.
    missing = sum(value is None or value != value for value in array.tolist())
    if missing:
        raise GeometryError(f"{missing} of the labels are missing; leave those rows out.")
    classes, code = np.unique(
        array.astype(str) if array.dtype == object else array, return_inverse=True
    )
    if len(classes) < 2:
        raise GeometryError(
            f"All rows have the one label {str(classes[0])!r}; at least two classes are needed."
        )
    return classes, code
