"""How many bits about a label a linear probe can use, on average and for each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from evidence import Estimate, cluster_mean
from probes.batched import fit_folds
from probes.checks import codes, names, states
from probes.nested import CS
from probes.ridge import checked_alphas
from probes.splits import grouped_folds


@dataclass(frozen=True, eq=False)
class UsableInformation:
    """Bits about the label that a probe can use.

    Attributes:
        estimate: their mean over groups, with an interval over groups; `null` is 0, `p` two-sided.
        label_entropy: H(Y | nothing), bits of a label for who knows the classes' shares.
        conditional_entropy: H(Y | X), bits for who has the probe; `estimate` is the difference.
        pointwise: of each row, log2 of its label's probability by the probe over that by the
            shares; in bits, negative where the probe misleads.
        C_by_fold: penalties of the probes.
    """

    estimate: Estimate
    label_entropy: float
    conditional_entropy: float
    pointwise: Float[np.ndarray, " n"] = field(repr=False)
    C_by_fold: Float[np.ndarray, " folds"] = field(repr=False)


def usable_information(
    x: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    Cs: Sequence[float] = CS,
    n_folds: int = 5,
    inner_folds: int = 5,
    level: float = 0.95,
    seed: int,
) -> UsableInformation:
    """I_V(X → Y) = H_V(Y | nothing) - H_V(Y | X), V being `LinearProbe` (Xu et al. 2020).

    Both terms are cross-entropies on held-out rows: of the probe, with C chosen within each
    training fold by log loss over groups, and of the classes' shares in the same training rows, the
    best that V can do without states. It is information for this family of probes, unlike mutual
    information it can grow where states are processed, and it is not symmetric. With finite data it
    is too low by what the probe has not learned and may be below 0; it is given as it is. The
    difference for one row is its pointwise information (Ethayarajh et al. 2022): low where a text
    is hard to tell, or labelled wrongly.

    Each group weighs the same. The interval takes what was fitted as fixed, and so states the
    uncertainty of the evaluation. No group crosses a split, of the outer folds or the inner ones.

    Args:
        x: `[n, d]`. labels, groups: `[n]`.
        Cs: penalties to choose from (as `LinearProbe`); with one, nothing is chosen.

    Raises:
        ProbeError: bad states, labels or groups, no C or one that is not above 0, or too few
            groups for the folds.
    """
    rows = states(x)
    classes, code = codes(labels, n=len(rows))
    member = names(groups, what="groups", n=len(rows))
    grid = checked_alphas(Cs)
    folds = grouped_folds(code, member, n_folds=n_folds, seed=seed)
    blank, told = np.empty((2, len(rows)))
    chosen = np.empty(len(folds))
    for number, (train, test) in enumerate(folds):
        chosen[number] = _best(rows[train], code[train], member[train], grid, inner_folds, seed)
        shares = np.bincount(code[train], minlength=len(classes)) / len(train)
        blank[test] = -np.log2(shares[code[test]])
    for C in np.unique(chosen):
        logits = fit_folds(rows, code[None], folds, C=float(C)).logits[0]
        for number in np.flatnonzero(chosen == C):
            test = folds[number][1]
            told[test] = _bits(logits[test], code[test])
    estimate = cluster_mean(blank - told, member, level=level, unit="bits", null=0.0)
    return UsableInformation(
        replace(estimate, seed=seed),
        cluster_mean(blank, member).value,
        cluster_mean(told, member).value,
        blank - told,
        chosen,
    )


def _best(
    x: np.ndarray, code: np.ndarray, groups: np.ndarray, grid: np.ndarray, n_folds: int, seed: int
) -> float:
    """The penalty with the least log loss over folds of these rows; of equal ones the smallest."""
    if len(grid) == 1:
        return float(grid[0])
    folds = grouped_folds(code, groups, n_folds=n_folds, seed=seed)
    costs = [
        _bits(fit_folds(x, code[None], folds, C=float(C)).logits[0], code).mean() for C in grid
    ]
    return float(grid[int(np.argmin(costs))])


def _bits(logits: np.ndarray, code: np.ndarray) -> np.ndarray:
    """-log2 p of the labels `[n]`, from logits `[n, classes]`, or `[n, 1]` of the second."""
    if logits.shape[1] == 1:
        logits = np.hstack([np.zeros_like(logits), logits])
    own = np.take_along_axis(logits, code[:, None], axis=1)[:, 0]
    return (np.logaddexp.reduce(logits, axis=1) - own) / np.log(2)
