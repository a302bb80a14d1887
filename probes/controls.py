"""What a probe's accuracy is set against: random labels and permuted labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from probes.checks import codes, names
from probes.errors import ProbeError
from probes.readout import scales
from probes.splits import Fold


def control_labels(labels: ArrayLike, groups: ArrayLike, *, seed: int | Sequence[int]) -> Any:
    """Random labels of the same kind (control task; Hewitt & Liang 2019).

    Each type, a group in one class, keeps one label throughout, drawn by shuffling the labels over
    all types. A group is on one side of every split, so held-out labels cannot be guessed:
    accuracy on them is chance unless the evaluation leaks, and accuracy on the training rows says
    how much the probe can memorise.
    """
    classes, code = codes(labels)
    _, member = np.unique(names(groups, what="groups", n=len(code)), return_inverse=True)
    types, which = np.unique(member * len(classes) + code, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(types % len(classes))
    return classes[shuffled[which]]


def permuted_codes(
    code: np.ndarray[Any, Any], groups: ArrayLike, *, draws: int, seed: int
) -> np.ndarray[Any, Any]:
    """`[draws, n]` permutations of the class numbers `[n]` that respect groups.

    Groups of equal size exchange their labels, and labels are shuffled within each group: all that
    rows of a group share stays shared, as it must where rows are not independent.
    """
    _, member, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    size = sizes[member]
    found = np.empty((draws, len(code)), dtype=np.int64)
    by_size = [np.flatnonzero(sizes == s) for s in np.unique(sizes)]
    # Rows in order of (size, group) stand in blocks that can be exchanged whole.
    target = np.lexsort((member, size))
    for draw in range(draws):
        place = np.empty(len(sizes))
        for same in by_size:
            place[same] = rng.permutation(same)
        source = np.lexsort((rng.random(len(code)), place[member], size))
        found[draw, target] = code[source]
    return found


def ridge_reader(x: np.ndarray[Any, Any], folds: Sequence[Fold]) -> np.ndarray[Any, Any]:
    """`[n, n]` matrix that takes one-hot labels to cross-validated ridge scores.

    Ridge regression is linear in its targets, so that one matrix serves every labelling: row i
    weighs the training rows of the fold that tests i, after centring and scaling on those rows.
    The penalty is the mean squared norm of the training rows.
    """
    n, d = x.shape
    reader = np.zeros((n, n))
    for train, test in folds:
        centre = x[train].mean(axis=0)
        spread = scales(x[train])
        own, other = (x[train] - centre) / spread, (x[test] - centre) / spread
        m = len(train)
        gram = own @ own.T if m <= d else own.T @ own
        penalty = np.trace(gram) / m or 1.0
        gram.flat[:: len(gram) + 1] += penalty
        if m <= d:
            weights = np.linalg.solve(gram, own @ other.T).T
        else:
            weights = np.linalg.solve(gram, other.T).T @ own.T
        # Targets are centred too, which is linear as well.
        weights += (1.0 - weights.sum(axis=1, keepdims=True)) / m
        reader[np.ix_(test, train)] = weights
    return reader


def reader_accuracies(
    reader: np.ndarray[Any, Any], labelings: np.ndarray[Any, Any], n_classes: int
) -> np.ndarray[Any, Any]:
    """Balanced accuracy `[B]` of a `ridge_reader` for each of `labelings` `[B, n]`.

    One product serves all labelings of a batch.

    Raises:
        ProbeError: a labelling that lacks a class.
    """
    if any(len(np.unique(code)) != n_classes for code in labelings[:1]):
        raise ProbeError("A labelling lacks a class; pass permutations of one labelling.")
    parts = []
    for start in range(0, len(labelings), 64):
        code = labelings[start : start + 64].T
        wanted = np.eye(n_classes)[code]
        scores = (reader @ wanted.reshape(len(code), -1)).reshape(wanted.shape)
        right = scores.argmax(axis=2) == code
        shares = np.einsum("nbc,nb->bc", wanted, right) / wanted.sum(axis=0)
        parts.append(shares.mean(axis=1))
    return np.concatenate(parts)
