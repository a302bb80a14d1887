"""Logistic probes for many labelings and all folds of the same states at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from probes.checks import states
from probes.errors import ProbeError
from probes.linear import LinearProbe
from probes.matrices import spaced
from probes.newton import solve
from probes.readout import scales
from probes.spaces import Part, Rows
from probes.splits import Fold

#: Largest gradient, per row, at which a fit is done: that of `LinearProbe`.
TOL = 1e-6
#: Below this share of the variance over all rows, a fold's is computed from its own rows.
_NARROW = 0.1
#: Folds share a Gram matrix where there are as many rows for each column of weights. With more
#: columns the Gram matrix is the lesser part, and what sharing it adds to each column the greater.
_ROWS_TO_A_COLUMN = 40
F32 = np.float32


@dataclass(frozen=True, eq=False)
class FoldFits:
    """`LinearProbe` fitted to every labelling in every fold.

    Attributes:
        logits: held out, of row i from the fold that tests i; with two classes the one logit of
            the second.
        train_accuracy: balanced accuracy on the training rows, NaN where they have one class.
        coef: in the units of the states. intercept: -inf for a class that the training rows lack.
        refitted: how many of the fits single precision did not settle, so that they were done in
            double precision or by `LinearProbe`.
    """

    logits: Float[np.ndarray, "labelings n classes"]
    train_accuracy: Float[np.ndarray, "labelings folds"]
    coef: Float[np.ndarray, "labelings folds classes d"]
    intercept: Float[np.ndarray, "labelings folds classes"]
    refitted: int

    @property
    def predictions(self) -> Int[np.ndarray, "labelings n"]:
        """The number of the likeliest class."""
        if self.logits.shape[2] == 1:
            return (self.logits[:, :, 0] > 0).astype(int)
        return self.logits.argmax(axis=2)


def fit_folds(
    x: ArrayLike,
    labelings: ArrayLike,
    folds: Sequence[Fold],
    *,
    n_classes: int | None = None,
    C: float = 1.0,
    tol: float = TOL,
) -> FoldFits:
    """What `LinearProbe(C).fit(x[train], labels[train])` finds, for every labelling and fold.

    Features are scaled by the training rows of each fold, as there; what is shared is the products
    with a Gram matrix among all labelings, and with few labelings that matrix among the folds. See
    `probes.newton` and `probes.spaces`.
    A fit is judged by the gradient at what was found. One that single precision leaves above
    `tol` is done again in double precision, and failing that by `LinearProbe`. One whose training
    rows lack a class goes to `LinearProbe` at once, for the classes that they have.

    Args:
        x: states `[n, d]`.
        labelings: class numbers `[labelings, n]`, from 0.
        folds: training and test rows, as of `grouped_folds`; every row is tested once.
        n_classes: one more than the largest number if None.
        C: as `LinearProbe`.
        tol: largest gradient, per row. At C = 1 weights were off by 2e-4 at most; with C far above
            1 they are less determined by it, so ask for less where weights matter.

    Raises:
        ProbeError: values that are not finite, shapes that do not fit, fewer than two classes, a C
            that is not above 0, or folds that do not test every row once.
    """
    rows = states(x)
    codes = np.asarray(labelings)
    if codes.ndim != 2 or len(codes) == 0 or codes.shape[1] != len(rows) or codes.dtype.kind != "i":
        raise ProbeError(
            f"The labelings are {codes.dtype} of shape {codes.shape}; give class numbers "
            f"[labelings, {len(rows)}], one for each row."
        )
    if not (np.isfinite(C) and C > 0):
        raise ProbeError(f"C is {C}; it must be a finite number above 0.")
    classes = int(codes.max()) + 1 if n_classes is None else n_classes
    if classes < 2 or codes.min() < 0 or codes.max() >= classes:
        raise ProbeError(
            f"Class numbers run from {codes.min()} to {codes.max()}; give them from 0, below "
            f"n_classes, for at least two classes."
        )
    tested = np.concatenate([test for _, test in folds])
    if not np.array_equal(np.sort(tested), np.arange(len(rows))):
        raise ProbeError(
            f"The folds do not test each of {len(rows)} rows once; make them with grouped_folds."
        )
    columns = 1 if classes == 2 else classes
    logits = np.full((*codes.shape, columns), np.nan)
    accuracy = np.full((len(codes), len(folds)), np.nan)
    coef = np.full((len(codes), len(folds), columns, rows.shape[1]), np.nan)
    intercept = np.full((len(codes), len(folds), columns), np.nan)
    refitted = 0
    for number, fold in enumerate(_scaled(rows, folds, len(codes) * columns)):
        own = codes[:, fold.train]
        whole = np.array([len(np.unique(code)) == classes for code in own])
        weights, levels, settled, again = _settled(rows, fold, own[whole], classes, 1 / C, tol)
        refitted += again
        done = np.flatnonzero(whole)[settled]
        coef[done, number] = weights / fold.scale
        intercept[done, number] = levels - coef[done, number] @ fold.centre
        levels = levels[:, None, :]
        trained, held = fold.logits(weights)
        logits[np.ix_(done, fold.test)] = held + levels
        for index, found in zip(done, trained + levels, strict=True):
            accuracy[index, number] = _balanced(found, codes[index, fold.train])
        for index in np.setdiff1d(np.arange(len(codes)), done):
            refitted += 1
            alone = _alone(rows[fold.train], codes[index, fold.train], classes, C)
            coef[index, number], intercept[index, number] = alone
            logits[index, fold.test] = _affine(rows[fold.test], *alone, fold.centre)
            if len(np.unique(codes[index, fold.train])) > 1:
                found = _affine(rows[fold.train], *alone, fold.centre)
                accuracy[index, number] = _balanced(found, codes[index, fold.train])
    return FoldFits(logits, accuracy, coef, intercept, refitted)


@dataclass(frozen=True, eq=False)
class _Scaled:
    """One fold, features centred and scaled, in f32.

    Its training rows are a part of rows that the folds share, centred for all of them, which an
    intercept makes good; or an array, and `held` the test rows.
    """

    train: np.ndarray
    test: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    own: np.ndarray | Part
    held: np.ndarray

    def logits(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of weights `[labelings, classes, d]`, on training and on test rows, classes last."""
        weights = weights.astype(F32)
        if isinstance(self.own, Part):
            every = self.own.logits(weights).transpose(0, 2, 1)
            return every[:, self.train], every[:, self.test]
        turned = weights.transpose(0, 2, 1)
        return self.own @ turned, self.held @ turned


def _scaled(x: np.ndarray, folds: Sequence[Fold], columns: int) -> Iterator[_Scaled]:
    """Each fold in turn, for `columns` of weights; moments of all are sums over the same squares.

    Folds share where that costs less: the inverse and the Gram matrix of all rows, once, are to
    be less than those of every fold.
    """
    middle = x.mean(axis=0)
    moved = x - middle
    unit = np.sqrt(np.einsum("nd,nd->d", moved, moved) / len(x))
    flat = unit <= 1e-9 * np.abs(x).max(axis=0)
    unit[flat] = 1.0
    rows = spaced(len(x), x.shape[1], F32)
    np.multiply(moved, 1 / unit, out=rows, casting="same_kind")
    inside = np.zeros((len(folds), len(x)), F32)
    for row, (train, _) in zip(inside, folds, strict=True):
        row[train] = 1 / len(train)
    means = inside @ rows
    variances = inside @ (rows * rows) - means**2
    constant = np.flatnonzero(flat)
    constant = constant[np.ptp(x[:, constant], axis=0) == 0]
    flat[constant], variances[:, constant] = False, 1.0
    sizes = [len(train) for train, _ in folds]
    sharing = sum(size**3 for size in sizes) > len(x) ** 3 and max(sizes) <= x.shape[1]
    sharing &= _ROWS_TO_A_COLUMN * columns <= len(x)
    shared = None
    for (train, test), mean, variance in zip(folds, means, variances, strict=True):
        # Where a fold hardly varies, the difference of two sums says nothing of how much.
        narrow = np.flatnonzero(flat | (variance < _NARROW))
        spread = np.sqrt(np.maximum(variance, _NARROW))
        scale = unit * spread
        if sharing and len(narrow) == 0:
            shared = shared or Rows(rows)
            part = Part(shared, train, test, 1 / spread)
            yield _Scaled(train, test, middle, scale, part, rows[:0])
            continue
        centre = middle + unit * mean
        own, held = rows[train], rows[test]
        for some in (own, held):
            some -= mean
            some *= 1 / spread
        if len(narrow):
            few = x[:, narrow]
            centre[narrow], scale[narrow] = few[train].mean(axis=0), scales(few[train])
            exact = (few - centre[narrow]) / scale[narrow]
            own[:, narrow], held[:, narrow] = exact[train], exact[test]
        yield _Scaled(train, test, centre, scale, own, held)


def _settled(
    x: np.ndarray, fold: _Scaled, codes: np.ndarray, classes: int, penalty: float, tol: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Weights and levels of the labelings that were settled, which these are, and how many of them
    took double precision.
    """
    targets = np.eye(classes, dtype=F32)[codes].transpose(0, 2, 1)
    targets = np.ascontiguousarray(targets[:, 1:] if classes == 2 else targets)
    weights = np.zeros((*targets.shape[:2], x.shape[1]))
    levels, settled = np.zeros(targets.shape[:2]), np.zeros(len(codes), dtype=bool)
    again = 0
    for real in (F32, np.float64):
        todo = np.flatnonzero(~settled)
        if len(todo) == 0:
            break
        z = fold.own if real is F32 else (x[fold.train] - fold.centre) / fold.scale
        again = 0 if real is F32 else len(todo)
        # What rounding spoils is seen by the gradient, or leaves a matrix that is not positive.
        with np.errstate(all="ignore"), suppress(np.linalg.LinAlgError):
            found = solve(z, targets[todo].astype(real), penalty, tol=tol)
            weights[todo], levels[todo] = found.weights, found.intercepts
            settled[todo] = found.gradient <= tol
    again -= int((~settled).sum())
    return weights[settled], levels[settled], settled, max(again, 0)


def _alone(
    x: np.ndarray, code: np.ndarray, classes: int, C: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and intercepts of the classes that occur, by `LinearProbe`."""
    there = np.unique(code)
    coef, intercept = np.zeros((classes, x.shape[1])), np.full(classes, -np.inf)
    intercept[there] = 0.0
    if len(there) > 1:
        probe = LinearProbe(C).fit(x, code)
        own, level = probe.coef_, probe.intercept_
        if len(there) == 2:
            own, level = np.vstack([-own, own]) / 2, np.append(-level, level) / 2
        coef[there], intercept[there] = own, level
    if classes == 2:
        return coef[1:] - coef[:1], intercept[1:] - intercept[:1]
    return coef, intercept


def _affine(
    x: np.ndarray, coef: np.ndarray, intercept: np.ndarray, centre: np.ndarray
) -> np.ndarray:
    return (x - centre) @ coef.T + (intercept + coef @ centre)


def _balanced(logits: np.ndarray, code: np.ndarray) -> float:
    """Mean over the classes that occur of the share of their rows that is found."""
    found = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(axis=1)
    counts = np.bincount(code)
    right = np.bincount(code, weights=found == code)
    return float(np.mean(right[counts > 0] / counts[counts > 0]))
