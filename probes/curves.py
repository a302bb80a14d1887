"""Accuracy by how much a probe learns from, and by how large it may be.

learning_curve(x, labels, groups, seed=0)             # by groups trained on
size_curve(x, labels, groups, seed=0)                 # by principal components that it reads
size_curve(x, labels, groups, by="hidden", seed=0)    # by units in its hidden layer
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from evidence import Estimate, balanced_accuracy_interval
from probes.checks import codes, names, states
from probes.controls import control_labels
from probes.errors import ProbeError
from probes.linear import LinearProbe
from probes.readout import scales
from probes.splits import Fold, grouped_folds

#: From a size and the training rows' labels to guesses for the test rows and the training rows.
_Fit = Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray]]


def learning_curve(
    x: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    sizes: Sequence[int] | None = None,
    draws: int = 5,
    n_folds: int = 5,
    C: float = 1.0,
    seed: int,
) -> pd.DataFrame:
    """Held-out accuracy of a `LinearProbe` by the number of groups that it is trained on.

    In each fold of `grouped_folds` and each draw, the training groups (sorted) are put in the order
    `np.random.default_rng([seed, draw, fold]).permutation`, and the probe is trained on the first
    `size` of them: a larger subset holds the smaller ones, and all are tested on the same rows. A
    curve that still rises at its end says that more texts would be read better. A class that a
    subset lacks is never guessed, which counts as error.

    Args:
        x: states `[n, d]`; labels, groups: `[n]`.
        sizes: numbers of groups; by default all that a fold trains on, and halves of that down
            to 2. A fold with fewer groups than a size trains on all it has.
        draws: subsets of each size. All groups can be drawn in one way only.

    Returns:
        One row for each size, smallest first: `by` (`groups`), `size`, `control` (empty), `value`
        (balanced accuracy, all draws together), `low`, `high`, `level`, `n` (groups tested),
        `unit`, `draws`, `spread` (standard deviation over draws, NaN for one), `seed`. The last
        row of the default sizes is the plain cross-validated accuracy.

    Raises:
        ProbeError: as `grouped_folds`, or sizes or draws below 1.
    """
    z, code, member, folds = _checked(x, labels, groups, n_folds, seed)
    _at_least(draws, 1, "draws")
    own = [np.unique(member[train]) for train, _ in folds]
    most = max(map(len, own))
    rows = []
    for size in _sizes(sizes, [most // 2**i for i in range(max(1, most.bit_length() - 1))]):
        found = np.empty((draws if size < most else 1, len(code)), dtype=code.dtype)
        for draw, guesses in enumerate(found):
            for number, (train, test) in enumerate(folds):
                order = np.random.default_rng([seed, draw, number]).permutation(own[number])
                part = train[np.isin(member[train], order[:size])]
                guesses[test] = _fitted(LinearProbe(C), z[part], code[part], z[test])[0]
        drawn = np.broadcast_to(code, found.shape)
        rows.append(_row("groups", size, "", found, drawn, member, seed))
    return pd.DataFrame(rows)


def size_curve(
    x: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    by: Literal["components", "hidden"] = "components",
    sizes: Sequence[int] | None = None,
    control_draws: int = 3,
    types: ArrayLike | None = None,
    n_folds: int = 5,
    C: float = 1.0,
    seed: int,
) -> pd.DataFrame:
    """Held-out accuracy by the size of the probe, beside its control task (Hewitt & Liang 2019).

    A larger probe reads more, and learns more by heart; the control task tells the two apart.

    `components`: a `LinearProbe` that sees the leading principal components of the centred and
    scaled states, found on the training rows. With all of them it is the plain probe. Where the
    curve levels off is how many leading directions it takes to tell the classes apart; a
    difference along a direction of little variance comes late, however clear it is.

    `hidden`: a perceptron with one hidden layer of so many rectified units on the centred and
    scaled states (`sklearn.neural_network.MLPClassifier`, L-BFGS on all training rows, at most 300
    steps, the penalty 1/C on all weights).

    Args:
        x: states `[n, d]`; labels, groups: `[n]`.
        sizes: by default 1, 2, 4, … and all components (features, or training rows where they are
            fewer); or 2, 4, … 64 units.
        control_draws: labelings of the control task; 0 for none.
        types: `[n]`, what keeps one label throughout the control task, such as the token that is
            read. Types that stand on both sides of a split can be learned, and then `value` less
            that of `control_task` is selectivity as Hewitt & Liang define it. By default a type is
            a group in one class (`control_labels`), which is new in every test: `control_task` is
            then at chance at every size, and `control_task_train` says what is memorised.

    Returns:
        The columns of `learning_curve`, with `by` as asked; for each size, smallest first, rows
        whose `control` is empty, `control_task`, and `control_task_train` (balanced accuracy on
        the training rows of the control task, without an interval).

    Raises:
        ProbeError: as `grouped_folds`; another `by`; sizes below 1, or more components than
            there are.
    """
    z, code, member, folds = _checked(x, labels, groups, n_folds, seed)
    _at_least(control_draws, 0, "control_draws")
    if by not in ("components", "hidden"):
        raise ProbeError(f"`by` is {by!r}; a probe's size is counted by components or hidden.")
    usual = [2, 4, 8, 16, 32, 64]
    if by == "components":
        most = min(z.shape[1], max(len(train) for train, _ in folds))
        usual = [*(2**i for i in range(most.bit_length())), most]
    wanted = _sizes(sizes, usual)
    if by == "components" and wanted[-1] > usual[-1]:
        raise ProbeError(
            f"{wanted[-1]} components are asked for, and there are {usual[-1]}; ask for fewer."
        )
    drawn = np.stack([code, *_control_codes(labels, member, code, types, control_draws, seed)])
    found = np.empty((len(wanted), *drawn.shape), dtype=code.dtype)
    learned = np.empty((len(wanted), len(drawn), len(folds)))
    for number, (train, test) in enumerate(folds):
        fit = (
            _components(z, train, test, C)
            if by == "components"
            else _hidden(z, train, test, C, seed)
        )
        for i, size in enumerate(wanted):
            for j, target in enumerate(drawn):
                found[i, j, test], again = fit(size, target[train])
                learned[i, j, number] = _balanced(again, target[train])
    rows = []
    for i, size in enumerate(wanted):
        rows.append(_row(by, size, "", found[i, :1], drawn[:1], member, seed))
        if control_draws:
            rows.append(_row(by, size, "control_task", found[i, 1:], drawn[1:], member, seed))
            memorised = Estimate(float(learned[i, 1:].mean()), n=rows[-1]["n"])
            spread = _spread(learned[i, 1:].mean(axis=1))
            rows.append(
                rows[-1] | _figures(memorised) | {"control": "control_task_train", "spread": spread}
            )
    return pd.DataFrame(rows)


def _components(z: np.ndarray, train: np.ndarray, test: np.ndarray, C: float) -> _Fit:
    """Fits that see the first components of the training rows, in units of one feature's spread:
    they turn the space and rescale nothing, so all of them together change no fit.
    """
    own, other = _scaled(z, train, test)
    axes = np.linalg.svd(own, full_matrices=False)[2].T
    own, other = own @ axes, other @ axes
    return lambda size, code: _fitted(
        LinearProbe(C, scale=False), own[:, :size], code, other[:, :size]
    )


def _hidden(z: np.ndarray, train: np.ndarray, test: np.ndarray, C: float, seed: int) -> _Fit:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    own, other = _scaled(z, train, test)

    def fit(size: int, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        probe = MLPClassifier((size,), solver="lbfgs", alpha=1 / C, max_iter=300, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # its steps are bounded
            return _fitted(probe, own, code, other)

    return fit


def _scaled(z: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centre, spread = z[train].mean(axis=0), scales(z[train])
    return (z[train] - centre) / spread, (z[test] - centre) / spread


def _fitted(
    probe: Any, own: np.ndarray, code: np.ndarray, other: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Guesses for the rows `other` and for the training rows `own` of one fit."""
    if len(np.unique(code)) < 2:  # a few groups may hold one class
        return np.full(len(other), code[0]), code
    probe.fit(own, code)
    return probe.predict(other), probe.predict(own)


def _control_codes(
    labels: ArrayLike,
    member: np.ndarray,
    code: np.ndarray,
    types: ArrayLike | None,
    draws: int,
    seed: int,
) -> list[np.ndarray]:
    """Labelings of the control task as class numbers `[n]`, one label for each type."""
    seeds = [[seed, draw] for draw in range(draws)]
    if types is None:
        classes = codes(labels)[0]
        return [np.searchsorted(classes, control_labels(labels, member, seed=one)) for one in seeds]
    kinds, which = np.unique(names(types, what="types", n=len(code)), return_inverse=True)
    if len(kinds) < 2:
        raise ProbeError(f"All rows are of the one type {str(kinds[0])!r}; give at least two.")
    return [np.random.default_rng(one).choice(code, len(kinds))[which] for one in seeds]


def _row(
    by: str,
    size: int,
    control: str,
    found: np.ndarray,
    drawn: np.ndarray,
    member: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """A row of a curve from guesses and labels `[draws, n]`."""
    draws = len(found)
    estimate = balanced_accuracy_interval(
        (found == drawn).ravel(), drawn.ravel(), np.tile(member, draws), seed=seed
    )
    spread = _spread([_balanced(guess, code) for guess, code in zip(found, drawn, strict=True)])
    return {
        "by": by, "size": size, "control": control, **_figures(estimate),
        "unit": "balanced accuracy", "draws": draws, "spread": spread, "seed": seed,
    }  # fmt: skip


def _figures(estimate: Estimate) -> dict[str, Any]:
    return {name: getattr(estimate, name) for name in ("value", "low", "high", "level", "n")}


def _balanced(guess: np.ndarray, code: np.ndarray) -> float:
    return float(np.mean([np.mean(guess[code == c] == c) for c in np.unique(code)]))


def _spread(values: Any) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def _sizes(given: Sequence[int] | None, usual: Sequence[int]) -> list[int]:
    wanted = list(usual if given is None else given)
    if not wanted:
        raise ProbeError("There is no size to try; name at least one.")
    for size in wanted:
        _at_least(size, 1, "A size")
    return sorted({int(size) for size in wanted})


def _at_least(number: int, least: int, what: str) -> None:
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
        raise ProbeError(f"{what} is {number!r}; it must be a whole number of at least {least}.")


def _checked(
    x: ArrayLike, labels: ArrayLike, groups: ArrayLike, n_folds: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Fold]]:
    z = states(x)
    code = codes(labels, n=len(z))[1]
    member = names(groups, what="groups", n=len(z))
    return z, code, member, grouped_folds(labels, member, n_folds=n_folds, seed=seed)
