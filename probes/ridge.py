"""Ridge regression to classes: every penalty, every labelling and every group left out, at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from probes.checks import codes, names, states
from probes.errors import ProbeError
from probes.readout import LinearReadout, scales
from probes.splits import grouped_folds

ALPHAS = tuple(np.logspace(-4, 2, 20).tolist())


class RidgePath:
    """Ridge regression from centred states for any penalty, after one eigendecomposition.

    Minimises Σ‖y - Wz - b‖² + λ‖W‖², b free, with λ = alpha times the mean squared norm of the
    rows, so that one alpha means the same for states of any unit and width. With G = zzᵀ (or zᵀz,
    the smaller) decomposed once, each penalty and each set of targets costs two thin products
    (Hastie, Tibshirani & Friedman 2009, eq. 3.47).

    Attributes:
        level: mean squared norm of the rows, by which alpha is multiplied.
    """

    def __init__(self, z: Float[np.ndarray, "n d"]) -> None:
        n, d = z.shape
        self._z = z
        self.level = float(np.sum(z**2) / n) or 1.0
        self._dual = n <= d
        values, axes = np.linalg.eigh(z @ z.T if self._dual else z.T @ z)
        self._squares = np.maximum(values, 0.0)
        self._axes = axes
        # Rows in the coordinates of the main axes: z V, which for z = U S Vᵀ is U S.
        self._rows = axes * np.sqrt(self._squares) if self._dual else z @ axes

    def weights(self, targets: Float[np.ndarray, "n t"], alpha: float) -> Float[np.ndarray, "t d"]:
        """W for `targets`, from which their mean is taken off."""
        own = targets - targets.mean(axis=0)
        shrunk = 1 / (self._squares + alpha * self.level)
        if self._dual:
            return (self._axes @ (shrunk[:, None] * (self._axes.T @ own))).T @ self._z
        return (self._axes @ (shrunk[:, None] * (self._rows.T @ own))).T

    def left_out(
        self,
        targets: Float[np.ndarray, "n t"],
        groups: Int[np.ndarray, " n"],
        alpha: float,
    ) -> Float[np.ndarray, "n t"]:
        """Targets less what the fit to all other groups predicts, without refitting.

        For the rows g of a group these are (I - H_gg)⁻¹ (y_g - ŷ_g), H the matrix that takes
        targets to fitted values, intercept included. It equals refits that centre anew; the scale
        of features counts as given.

        Raises:
            ProbeError: one group, which leaves nothing to fit.
        """
        n = len(targets)
        _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        if len(sizes) < 2:
            raise ProbeError(
                "All rows are of one group, so none can be left out; give at least two."
            )
        own = targets - targets.mean(axis=0)
        shrunk = self._rows / (self._squares + alpha * self.level)
        residual = own - shrunk @ (self._rows.T @ own)
        found = np.empty_like(residual)
        order = np.argsort(member, kind="stable")
        starts = np.cumsum(sizes) - sizes
        for size in np.unique(sizes):
            # Groups of one size are solved together.
            index = order[starts[sizes == size][:, None] + np.arange(size)]
            hat = shrunk[index] @ self._rows[index].transpose(0, 2, 1) + 1 / n
            found[index] = np.linalg.solve(np.eye(size) - hat, residual[index])
        return found

    def errors(
        self,
        targets: Float[np.ndarray, "n t"],
        groups: Int[np.ndarray, " n"],
        alphas: Float[np.ndarray, " alphas"] | Sequence[float],
    ) -> Float[np.ndarray, "alphas t"]:
        """Mean square of `left_out` over rows, for each penalty and target.

        Raises:
            ProbeError: as `left_out`.
        """
        return np.stack(
            [np.mean(self.left_out(targets, groups, float(alpha)) ** 2, axis=0) for alpha in alphas]
        )


class RidgeProbe(LinearReadout):
    """Ridge regression to +1 for a row's class and -1 for the others, intercept unpenalised.

    One eigendecomposition serves all penalties, and the penalty is chosen by the squared error of
    predictions for groups left out, exactly and without refitting (`RidgePath.left_out`). The
    choice is made within the rows it is fitted to: fit it inside each training fold, or call
    `ridge_labelings`, and it is nested.

    Scores are not probabilities, so there is no `predict_proba`.

    Args:
        alpha: the penalty, in units of the mean squared norm of the centred and scaled rows; or
            "grouped" to choose it from `alphas`.
        alphas: those to choose from, ascending; 20 from 1e-4 to 1e2 where it is None.
        scale: divide features by their standard deviation over the training rows.

    Attributes:
        coef_: `[classes or 1, d]` in the units of the states. intercept_. classes_.
        center_, scale_: `[d]`. alpha_: the penalty used. alphas_: those compared.
        errors_: `[alphas]`, mean squared error for groups left out, where alpha was chosen.
        n_groups_.
    """

    def __init__(
        self,
        alpha: float | Literal["grouped"] = "grouped",
        *,
        alphas: Sequence[float] | None = None,
        scale: bool = True,
    ) -> None:
        self.alpha: float | str = alpha
        self.alphas = alphas
        self.scale = scale

    def fit(self, X: Any, y: Any, groups: Any = None) -> RidgeProbe:
        """Fits to states `X` `[n, d]`, labels `y` `[n]` and, to choose alpha, `groups` `[n]`.

        Without groups every row is one: right for independent rows only, since a row's twin,
        left in, makes too small a penalty look best.

        Raises:
            ValueError: values that are not finite, one class only, one group only, an alpha that
                is not above 0, or groups that do not match the rows.
        """
        X, code = self._checked(X, y)
        if isinstance(self.alpha, str):
            if self.alpha != "grouped":
                raise ProbeError(f"alpha is {self.alpha!r}; it must be 'grouped' or a number.")
            self.alphas_ = checked_alphas(ALPHAS if self.alphas is None else self.alphas)
        else:
            self.alphas_ = checked_alphas([self.alpha])
        self.center_ = X.mean(axis=0)
        self.scale_ = scales(X) if self.scale else np.ones(X.shape[1])
        targets = signs(code, len(self.classes_))
        path = RidgePath((X - self.center_) / self.scale_)
        member = _members(groups, len(X))
        self.n_groups_ = int(member.max()) + 1
        if isinstance(self.alpha, str):
            self.errors_ = path.errors(targets, member, self.alphas_).mean(axis=1)
            self.alpha_ = float(self.alphas_[self.errors_.argmin()])
        else:
            self.alpha_ = float(self.alphas_[0])
        weights = path.weights(targets, self.alpha_) / self.scale_
        levels = targets.mean(axis=0)
        if len(self.classes_) == 2:
            weights, levels = weights[1:], levels[1:]
        self.coef_ = weights
        self.intercept_ = levels - weights @ self.center_
        return self

    def _provenance(self) -> dict[str, Any]:
        return {"method": "ridge_probe", "alpha": self.alpha_, "groups": self.n_groups_}


@dataclass(frozen=True, eq=False)
class RidgeLabelings:
    """Held-out ridge scores of many labelings of the same rows.

    Attributes:
        classes: in order. codes: `[labelings, n]`, the class number of each row.
        scores: `[labelings, n, classes]`, from the fold that tests the row.
        alphas: `[labelings, folds]`, chosen within the training rows of each fold.
    """

    classes: np.ndarray
    codes: Int[np.ndarray, "labelings n"]
    scores: Float[np.ndarray, "labelings n classes"]
    alphas: Float[np.ndarray, "labelings folds"]

    @property
    def predictions(self) -> np.ndarray:
        """`[labelings, n]`, the class with the highest score."""
        return self.classes[self.scores.argmax(axis=2)]

    @property
    def accuracies(self) -> Float[np.ndarray, " labelings"]:
        """Balanced accuracy of each labelling: the mean over classes of the share found."""
        right = self.scores.argmax(axis=2) == self.codes
        shares = [
            [r[c == k].mean() for k in np.unique(c)] for r, c in zip(right, self.codes, strict=True)
        ]
        return np.array([np.mean(s) for s in shares])


def ridge_labelings(
    x: ArrayLike,
    labelings: ArrayLike,
    groups: ArrayLike,
    *,
    n_folds: int = 5,
    alphas: Sequence[float] | None = None,
    scale: bool = True,
    seed: int,
) -> RidgeLabelings:
    """Nested cross-validation of ridge over groups, for `labelings` `[labelings, n]` at once.

    In each fold states are centred, scaled and decomposed on the training rows alone; there, for
    each labelling, the alpha is chosen that has the least squared error on groups left out, and
    the fold's rows are scored with it. No group crosses a split of either kind. The folds are
    `grouped_folds` of the first labelling.

    Raises:
        ProbeError: values that are not finite, shapes that do not fit, labelings of different
            classes, or as `grouped_folds`.
    """
    rows = states(x)
    table = np.asarray(labelings)
    if table.ndim != 2 or table.shape[0] == 0 or table.shape[1] != len(rows):
        raise ProbeError(
            f"The labelings have shape {table.shape}; give [labelings, {len(rows)}], "
            "a label for each row."
        )
    classes, first = codes(table[0])
    found = [first]
    for labels in table[1:]:
        own, code = codes(labels)
        if not np.array_equal(own, classes):
            raise ProbeError(
                "The labelings have different classes; pass labelings with the same ones."
            )
        found.append(code)
    grid = checked_alphas(ALPHAS if alphas is None else alphas)
    member = _members(groups, len(rows))
    c = len(classes)
    targets = np.hstack([signs(code, c) for code in found])
    scores = np.empty((len(found), len(rows), c))
    folds = grouped_folds(table[0], member, n_folds=n_folds, seed=seed)
    chosen = np.empty((len(found), len(folds)))
    for number, (train, test) in enumerate(folds):
        centre = rows[train].mean(axis=0)
        spread = scales(rows[train]) if scale else np.ones(rows.shape[1])
        path = RidgePath((rows[train] - centre) / spread)
        errors = path.errors(targets[train], member[train], grid)
        best = errors.reshape(len(grid), len(found), c).mean(axis=2).argmin(axis=0)
        chosen[:, number] = grid[best]
        for index in np.unique(best):
            which = np.flatnonzero(best == index)
            own = (
                targets[train].reshape(len(train), len(found), c)[:, which].reshape(len(train), -1)
            )
            held = (rows[test] - centre) / spread @ path.weights(own, float(grid[index])).T
            held += own.mean(axis=0)
            scores[np.ix_(which, test)] = held.reshape(len(test), len(which), c).transpose(1, 0, 2)
    return RidgeLabelings(classes, np.stack(found), scores, chosen)


def signs(code: Int[np.ndarray, " n"], n_classes: int) -> Float[np.ndarray, "n classes"]:
    """+1 in the column of a row's class, -1 in the others."""
    return 2.0 * np.eye(n_classes)[code] - 1.0


def checked_alphas(alphas: Sequence[float] | np.ndarray) -> Float[np.ndarray, " alphas"]:
    """Penalties in ascending order.

    Raises:
        ProbeError: none, or one that is not a finite number above 0.
    """
    try:
        grid = np.sort(np.asarray(alphas, dtype=np.float64).ravel())
    except (TypeError, ValueError):
        grid = np.array([])
    if len(grid) == 0 or not np.isfinite(grid).all() or grid[0] <= 0:
        raise ProbeError(f"The penalties are {alphas!r}; give finite numbers above 0.")
    return grid


def _members(groups: Any, n: int) -> np.ndarray:
    if groups is None:
        return np.arange(n)
    return np.unique(names(groups, what="groups", n=n), return_inverse=True)[1]
