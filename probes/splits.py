"""Folds that keep every group whole."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import ArrayLike
from sklearn.model_selection import StratifiedGroupKFold

from probes.checks import codes, names
from probes.errors import ProbeError

Fold = tuple[np.ndarray, np.ndarray]


def grouped_folds(
    labels: ArrayLike, groups: ArrayLike, *, n_folds: int = 5, seed: int
) -> list[Fold]:
    """(train, test) row numbers of each fold: no group on both sides, classes spread evenly.

    Every row is tested once.

    Raises:
        ProbeError: one class, fewer groups than folds, or a class that some fold cannot train on.
    """
    classes, code = codes(labels)
    member = names(groups, what="groups", n=len(code))
    n_groups = len(np.unique(member))
    if isinstance(n_folds, bool) or not isinstance(n_folds, int | np.integer) or n_folds < 2:
        raise ProbeError(f"n_folds is {n_folds!r}; it must be a whole number of at least 2.")
    if n_groups < n_folds:
        raise ProbeError(
            f"There {'is 1 group' if n_groups == 1 else f'are {n_groups} groups'} for {n_folds} "
            "folds, and no group may be on both sides; give more groups or ask for fewer folds."
        )
    splitter = StratifiedGroupKFold(int(n_folds), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer members than folds is judged below, by what each fold can train on.
        warnings.simplefilter("ignore", UserWarning)
        try:
            folds = list(splitter.split(np.zeros(len(code)), code, member))
        except ValueError as error:
            raise ProbeError(
                f"These rows cannot be cut into {n_folds} folds ({error}); ask for fewer folds."
            ) from error
    for train, test in folds:
        check_no_leak(member, train, test)
        lacking = np.setdiff1d(np.arange(len(classes)), code[train])
        if len(lacking):
            raise ProbeError(
                f"The class {str(classes[lacking[0]])!r} lies in too few groups to be in every "
                "training fold; give it more groups, or leave it out."
            )
    return folds


def check_no_leak(groups: ArrayLike, train: ArrayLike, test: ArrayLike) -> None:
    """Refuses a split that has a group on both sides.

    Raises:
        ProbeError: naming such a group.
    """
    member = np.asarray(groups)
    both = np.intersect1d(member[np.asarray(train)], member[np.asarray(test)])
    if len(both):
        raise ProbeError(
            f"{len(both)} groups are on both sides of a split, such as {str(both[0])!r}; "
            "split by group."
        )
