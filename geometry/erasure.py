"""Erasure of a concept: LEACE in closed form, and the iterated nullspace of linear readers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from geometry.checks import count, finite
from geometry.discriminant import Kind
from geometry.errors import GeometryError
from geometry.subspace import Subspace
from geometry.within import class_codes

Method = Literal["leace", "orthogonal"]
WeightsOf = Callable[[np.ndarray, np.ndarray], ArrayLike]


@dataclass(frozen=True, eq=False)
class LeaceEraser:
    """The affine map r(x) = x - L R (x - μ), after which states and concept do not covary.

    On the rows it was fitted to, no linear reader then does better than one that ignores the
    states (Belrose et al. 2023, section 3). On other rows this holds as far as their covariances
    agree, which needs many more rows than dimensions; a reader that is not linear may still find
    the concept.

    Attributes:
        mean: `[d]`, μ. left: `[d, r]`, L. right: `[r, d]`, R. R L = I, so r(r(x)) = r(x).
        covariance: `[d, c]`, of states with the concept, before erasure.
        method: "leace", oblique, which moves states least in mean square of all affine maps that
            erase (section 4), or "orthogonal", the projection off the same subspace.
        n: rows. shrinkage: as given to the fitter.
    """

    mean: Float[np.ndarray, " d"]
    left: Float[np.ndarray, "d r"]
    right: Float[np.ndarray, "r d"]
    covariance: Float[np.ndarray, "d c"]
    method: Method
    n: int
    shrinkage: float

    @classmethod
    def fit(
        cls,
        x: ArrayLike,
        labels: ArrayLike,
        *,
        method: Method = "leace",
        shrinkage: float = 0.0,
    ) -> LeaceEraser:
        """An eraser of the classes `labels` `[n]` from states `x` `[n, d]`. See `LeaceFitter`.

        Raises:
            GeometryError: shapes that do not fit, numbers that are not finite, or one class.
        """
        rows = finite(x, name="x", ndim=2)
        classes, code = class_codes(labels, n=len(rows))
        fitter = LeaceFitter(rows.shape[1], len(classes))
        fitter.update(rows, np.eye(len(classes))[code])
        return fitter.eraser(method=method, shrinkage=shrinkage)

    def __call__(self, x: ArrayLike) -> Float[np.ndarray, "*rows d"]:
        """`x` `[..., d]` without the concept, in f64.

        Raises:
            GeometryError: another width.
        """
        points = np.asarray(x, dtype=np.float64)
        if points.ndim == 0 or points.shape[-1] != len(self.mean):
            raise GeometryError(
                f"The points have shape {points.shape}, but this eraser needs "
                f"[..., {len(self.mean)}]."
            )
        return points - ((points - self.mean) @ self.right.T) @ self.left.T

    @property
    def rank(self) -> int:
        """Dimensions that are taken out: at most the classes less one."""
        return self.left.shape[1]

    @property
    def projection(self) -> Float[np.ndarray, "d d"]:
        """I - L R."""
        return np.eye(len(self.mean)) - self.left @ self.right

    def subspace(self, *, kind: Kind = "pattern", site: str = "") -> Subspace:
        """What is taken out ("pattern", the span of L), or by what it is read ("readout", of R).

        The patterns span the covariance of states with the concept, and for classes that is the
        span of `mean_differences`. Singular values are those of L or R.

        Raises:
            GeometryError: states that do not covary with the concept.
        """
        if kind not in ("readout", "pattern"):
            raise GeometryError(f"kind is {kind!r}; it must be 'readout' or 'pattern'.")
        if self.rank == 0:
            raise GeometryError(
                "The states do not covary with the concept, so nothing is erased; check the labels."
            )
        basis, values, _ = np.linalg.svd(
            self.left if kind == "pattern" else self.right.T, full_matrices=False
        )
        return Subspace(
            basis,
            self.mean,
            values,
            site=site,
            provenance={
                "method": f"leace_{kind}" if self.method == "leace" else "orthogonal_erasure",
                "kind": kind,
                "whitened": self.method == "leace",
                "metric": "covariance of the states" if self.method == "leace" else "states",
                "shrinkage": self.shrinkage,
                "n": self.n,
            },
        )


class LeaceFitter:
    """Means and covariances of states `[n, d]` and concept `[n, c]`, added up batch by batch.

    fitter = LeaceFitter(d, classes)
    for x, z in batches:
        fitter.update(x, z)
    erase = fitter.eraser()

    Sums are in f64 about a running mean (Chan, Golub & LeVeque 1983), so that states far from
    zero, and many batches, lose no digits; how rows are cut into batches changes nothing else.

    Attributes:
        n: rows so far. mean: `[d]`. covariance: `[d, d]`. cross_covariance: `[d, c]`.
    """

    def __init__(self, d: int, c: int) -> None:
        self.n = 0
        self._x_mean = np.zeros(count(d, name="d"))
        self._z_mean = np.zeros(count(c, name="c"))
        self._zz = np.zeros(c)
        self._xx = np.zeros((d, d))
        self._xz = np.zeros((d, c))

    def update(self, x: ArrayLike, z: ArrayLike) -> LeaceFitter:
        """Adds rows `x` `[n, d]` and their concept `z` `[n, c]`: one-hot classes, or real values.

        Raises:
            GeometryError: shapes that do not fit, or numbers that are not finite; nothing is added.
        """
        states = finite(x, name="x", ndim=2)
        concept = finite(z, name="z", ndim=2)
        d, c = self._xz.shape
        if states.shape[1] != d or concept.shape != (len(states), c):
            raise GeometryError(
                f"x has shape {states.shape} and z {concept.shape}, but this fitter needs "
                f"[n, {d}] and [n, {c}], with classes one-hot."
            )
        m = len(states)
        own_x, own_z = states.mean(axis=0), concept.mean(axis=0)
        dx, dz = own_x - self._x_mean, own_z - self._z_mean
        weight = self.n * m / (self.n + m)
        states, concept = states - own_x, concept - own_z
        self._xx += states.T @ states + weight * np.outer(dx, dx)
        self._xz += states.T @ concept + weight * np.outer(dx, dz)
        self._zz += np.sum(concept**2, axis=0) + weight * dz**2
        self.n += m
        self._x_mean = self._x_mean + dx * (m / self.n)
        self._z_mean = self._z_mean + dz * (m / self.n)
        return self

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """Of the states."""
        return self._x_mean.copy()

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Of the states, divided by n."""
        return self._xx / max(self.n, 1)

    @property
    def cross_covariance(self) -> Float[np.ndarray, "d c"]:
        """Of the states with the concept, divided by n."""
        return self._xz / max(self.n, 1)

    def eraser(self, *, method: Method = "leace", shrinkage: float = 0.0) -> LeaceEraser:
        """The map for the rows so far: L = W⁺U, R = UᵀW, with W = Σ^-½ and U a basis of W Σ_xz.

        (Belrose et al. 2023, section 4.) Directions along which states do not vary, but for
        rounding, are left alone.

        Args:
            method: "leace", or "orthogonal" for L = Rᵀ a basis of Σ_xz.
            shrinkage: γ of Σ = (1 - γ) S + γ (tr S / d) I. Above 0 the concept is erased as fully,
                from the rows given, but by a map that moves them further; raise it where rows are
                few and the map is to serve others.

        Raises:
            GeometryError: fewer than two rows, an unknown method, shrinkage outside [0, 1].
        """
        if self.n < 2:
            raise GeometryError(f"{self.n} rows have no covariance; update with at least two.")
        if method not in ("leace", "orthogonal"):
            raise GeometryError(f"method is {method!r}; it must be 'leace' or 'orthogonal'.")
        if not 0 <= shrinkage <= 1:
            raise GeometryError(f"shrinkage is {shrinkage!r}; it must lie between 0 and 1.")
        d = len(self._x_mean)
        sigma, cross = self.covariance, self.cross_covariance
        sigma = (1 - shrinkage) * sigma + shrinkage * np.trace(sigma) / d * np.eye(d)
        values, axes = np.linalg.eigh(sigma)
        rounding = np.finfo(np.float64).eps * max(values[-1], 0.0)
        # States far from zero are themselves rounded, each by up to eps times its size.
        rounding = max(d * rounding, (np.finfo(np.float64).eps * np.abs(self._x_mean).max()) ** 2)
        root = np.sqrt(values[values > rounding])
        axes = axes[:, values > rounding]
        # Columns of unit spread, so that the units of the concept decide nothing.
        spread = np.sqrt(self._zz / self.n)
        inner = axes.T @ (cross / np.where(spread == 0, 1.0, spread))
        basis, sizes, _ = np.linalg.svd(inner / root[:, None], full_matrices=False)
        rank = int((sizes > max(1e-9 * sizes.max(initial=0.0), 1e-12)).sum())
        if method == "leace":
            basis = basis[:, :rank]
            left, right = axes @ (root[:, None] * basis), (axes @ (basis / root[:, None])).T
        else:
            left = axes @ np.linalg.svd(inner, full_matrices=False)[0][:, :rank]
            right = left.T
        return LeaceEraser(self.mean, left, right, cross, method, self.n, float(shrinkage))


class NullspaceResult(NamedTuple):
    """What iterated nullspace projection took out.

    Attributes:
        rounds: the subspace that each round removed, orthogonal to those before.
        subspace: all of them together; its `reject` erases.
    """

    rounds: tuple[Subspace, ...]
    subspace: Subspace


def iterated_nullspace(
    x: ArrayLike,
    labels: ArrayLike,
    *,
    rounds: int,
    fit: WeightsOf | None = None,
    enough: Callable[[np.ndarray], bool] | None = None,
    site: str = "",
) -> NullspaceResult:
    """Fits a linear reader, projects off what it reads, and again (INLP; Ravfogel et al. 2020).

    It takes out many more dimensions than LEACE for the same end, and which ones depends on their
    order. Bases are made orthonormal together, since products of projections drift.

    Args:
        x, labels: `[n, d]` and `[n]`.
        rounds: at most so many; fewer where nothing is left to read.
        fit: takes states `[n, d]` and class numbers `[n]`, and gives weights `[classes, d]` or
            `[1, d]`, such as `lambda x, y: LinearProbe().fit(x, y).coef_`; least squares to
            one-hot classes where it is left out.
        enough: takes the projected states `[n, d]`, and says whether to stop; give the accuracy on
            held-out groups against that of the majority.

    Returns:
        A subspace for each round and all of them together, measured from the mean of all rows.
        Singular values are those of the weights.

    Raises:
        GeometryError: shapes that do not fit, numbers that are not finite, one class, or a first
            round that reads nothing.
    """
    rows = finite(x, name="x", ndim=2)
    classes, code = class_codes(labels, n=len(rows))
    rounds = count(rounds, name="rounds")
    n, d = rows.shape
    centre = rows.mean(axis=0)
    left = rows - centre
    # What is below this is rounding, in the states and in what the projections leave of them.
    least = max(n, d) * np.finfo(np.float64).eps * float(np.abs(rows).max()) * np.sqrt(n)
    reader = least_squares if fit is None else fit
    removed = np.zeros((d, 0))
    found: list[Subspace] = []
    for number in range(rounds):
        if np.linalg.norm(left) <= least or removed.shape[1] == d:
            break
        weights = finite(reader(left + centre, code), name="the weights of fit", ndim=2)
        if weights.shape[1] != d:
            raise GeometryError(
                f"fit gave weights of shape {weights.shape}; they must be [classes, {d}]."
            )
        towards = weights[-1] if len(weights) == 1 else weights[-1] - weights[0]
        weights = weights if len(weights) == 1 else weights - weights.mean(axis=0)
        size = np.linalg.norm(weights)
        weights = weights - (weights @ removed) @ removed.T
        _, values, axes = np.linalg.svd(weights, full_matrices=False)
        kept = (values > 1e-9 * size) & (np.linalg.norm(left @ axes.T, axis=0) > least)
        if not kept.any() or np.ptp(left @ weights.T, axis=0).max() <= 1e-9:
            break  # scores that do not move over the rows read nothing
        signed = axes[kept].T * np.where(axes[kept] @ towards < 0, -1.0, 1.0)
        q, upper = np.linalg.qr(np.hstack([removed, signed]))
        q *= np.where(np.diag(upper) < 0, -1.0, 1.0)
        removed, new = q, q[:, removed.shape[1] :]
        found.append(_nullspace(new, centre, values[kept], site, classes, number + 1, fit))
        left = (rows - centre) - ((rows - centre) @ removed) @ removed.T
        if enough is not None and enough(left + centre):
            break
    if not found:
        raise GeometryError(
            "The first reader reads nothing, so nothing is removed; check the labels."
        )
    values = np.concatenate([space.singular_values for space in found])
    return NullspaceResult(
        tuple(found), _nullspace(removed, centre, values, site, classes, len(found), fit)
    )


def least_squares(x: np.ndarray, code: np.ndarray) -> Float[np.ndarray, "classes d"]:
    """Weights of the shortest least-squares map from centred states to one-hot classes."""
    one_hot = np.eye(int(code.max()) + 1)[code]
    return np.linalg.lstsq(x - x.mean(axis=0), one_hot - one_hot.mean(axis=0), rcond=1e-10)[0].T


def _nullspace(
    basis: np.ndarray,
    centre: np.ndarray,
    values: np.ndarray,
    site: str,
    classes: np.ndarray,
    number: int,
    fit: WeightsOf | None,
) -> Subspace:
    return Subspace(
        basis,
        centre,
        values,
        site=site,
        provenance={
            "method": "iterated_nullspace",
            "whitened": False,
            "rounds": number,
            "reader": "least_squares" if fit is None else getattr(fit, "__name__", "given"),
            "classes": [str(c) for c in classes],
        },
    )
