"""How many directions carry a behaviour: counted one by one, and sampled as a cone.

A difference in means is one direction, however the behaviour comes about, and once it is projected
out the means of the rows it was estimated from coincide exactly. What several directions leave
behind is spread: where each harmful request departs along its own mix of them, harmful requests
scatter more than harmless ones, within the span of the directions, after their mean is gone. The
count here looks for that. It is geometry: whether a model *uses* a direction is told by
intervening on it, and whether all positive combinations work, which makes a span a cone
(Wollschläger et al. 2025, "The Geometry of Refusal in Large Language Models: Concept Cones and
Representational Independence"), by intervening on samples of `cone_sample`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike

from evidence import Estimate, permutation_p
from geometry.checks import count, finite
from geometry.contrast import Grouping, auc
from geometry.errors import GeometryError
from geometry.subspace import Subspace
from geometry.within import ledoit_wolf

_LEAST = 4  # rows of a condition to estimate from, and to test on


class Round(NamedTuple):
    """One direction, and whether held-out groups are told apart along it.

    Attributes:
        direction: `[d]`, unit, orthogonal to those of earlier rounds: what is projected out.
        reading: `[d]`, the weights by which rows are scored.
        separation: AUC on held-out rows, 0.5 where nothing separates, with a percentile bootstrap
            over groups and the p-value of swapped labels.
        null: AUC of the swapped labels, `[permutations]`.
    """

    direction: Float[np.ndarray, " d"]
    reading: Float[np.ndarray, " d"]
    separation: Estimate
    null: Float[np.ndarray, " permutations"]


@dataclass(frozen=True, eq=False)
class DirectionCount:
    """How many directions were found, and every round that was tried, the failed last one too.

    Attributes:
        count: rounds before the first whose p exceeds `alpha`.
        exhausted: whether rounds, rows or dimensions ran out before a round failed, so that
            `count` is only a lower bound.
        rounds: in order. mean: `[d]`, of the negative training rows.
    """

    count: int
    exhausted: bool
    rounds: tuple[Round, ...]
    mean: Float[np.ndarray, " d"]
    alpha: float

    @property
    def basis(self) -> Float[np.ndarray, "d k"]:
        """The counted directions, orthonormal; no columns where there are none."""
        kept = [r.direction for r in self.rounds[: self.count]]
        return np.stack(kept, axis=1) if kept else np.zeros((len(self.mean), 0))

    def subspace(self, *, site: str = "") -> Subspace:
        """The counted directions together, measured from the negative mean.

        Raises:
            GeometryError: none was found.
        """
        if not self.count:
            raise GeometryError("No direction separates held-out groups, so they span nothing.")
        made = {"method": "independent_directions", "whitened": False, "alpha": self.alpha}
        return Subspace(self.basis, self.mean, np.ones(self.count), site=site, provenance=made)

    def frame(self) -> pd.DataFrame:
        """One row a round, `removed` being the number of directions projected out before it."""
        return pd.DataFrame(
            [
                {
                    "removed": i,
                    "separation": r.separation.value,
                    "low": r.separation.low,
                    "high": r.separation.high,
                    "null": r.separation.null,
                    "p": r.separation.p,
                    "n": r.separation.n,
                }
                for i, r in enumerate(self.rounds)
            ]
        )


def independent_directions(
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    groups: tuple[ArrayLike, ArrayLike],
    train: tuple[ArrayLike, ArrayLike] | None = None,
    most: int = 8,
    alpha: float = 0.05,
    permutations: int = 999,
    resamples: int = 200,
    seed: int,
) -> DirectionCount:
    """Count the directions along which held-out groups of two conditions still differ.

    Each round estimates a direction on training rows without what earlier rounds found, tests it
    on held-out rows without the same, and projects it out:

    1. the first direction is the difference in means, read through the inverse of Σ, the covariance
       of the negative rows, so the test is one of location;
    2. every later one is where the positive rows scatter most in excess of the negative ones: with
       u the top eigenvector of Σ^-½ (S₊ - Σ) Σ^-½, the direction is Σ^½u and rows are scored by
       |uᵀΣ^-½x|. Within each condition, rows are residuals of a regression on what earlier rounds
       read, since a projection alone leaves what its estimate misses.

    If positive rows are μ + Va + noise, with a drawn anew for each row and negative rows the noise
    alone, the directions span V. A shift that all positive rows share is one direction.

    The statistic is the held-out AUC and its null swaps the labels of held-out groups, with
    directions fixed: exact in the first round, close to it later (in simulations with few rows or
    many, too many are counted 4 to 10% of the time at alpha = 0.05). The order is fixed beforehand
    and stops at the first p > alpha, so no correction over rounds is needed (fixed-sequence
    testing, a closed procedure). Few rows find few directions. Rows that differ by their overall
    scale differ in every direction, so that their count runs to `most`.

    The procedure is ours; Σ is shrunk by Ledoit and Wolf (2004), in the span of the training rows.

    Args:
        positive, negative: `[n, d]` and `[m, d]`.
        groups: names of the groups of their rows, as in `direction_grid`.
        train: which rows are for estimation, `[n]` and `[m]`, the rest being held out; a random
            half of the groups unless given.
        most: rounds at most.
        permutations: swapped labelings of each test; 1/(permutations + 1) is the least p.
        resamples: behind the interval of each separation.

    Raises:
        GeometryError: shapes that do not fit, numbers that are not finite, a group on both sides of
            `train`, fewer than 4 rows of a condition on a side, training means that coincide.
    """
    high, low = finite(positive, name="positive", ndim=2), finite(negative, name="negative", ndim=2)
    if high.shape[1] != low.shape[1]:
        raise GeometryError(
            f"positive has {high.shape[1]} columns and negative {low.shape[1]}; "
            "take both from one site."
        )
    most, permutations = count(most, name="most"), count(permutations, name="permutations")
    resamples = count(resamples, name="resamples")
    if not 0 < alpha < 1:
        raise GeometryError(f"alpha is {alpha!r}; it must lie between 0 and 1.")
    grouping = Grouping.of(groups, (len(high), len(low)))
    rng = np.random.default_rng(seed)
    known = _training(grouping, train, rng)
    least = min(int(np.sum(side)) for k in known for side in (k, ~k))
    if least < _LEAST:
        raise GeometryError(
            f"Some condition has {least} rows on one side of the split; give at least {_LEAST} for "
            "training and as many held out."
        )
    test = Grouping.of(
        [m[~k] for m, k in zip(grouping.members, known, strict=True)],
        [int(np.sum(~k)) for k in known],
    )
    fit = (high[known[0]], low[known[1]])
    centre = fit[1].mean(axis=0)
    fit = (fit[0] - centre, fit[1] - centre)
    seen = (high[~known[0]] - centre, low[~known[1]] - centre)
    d = high.shape[1]
    removed, readings = np.zeros((d, 0)), np.zeros((d, 0))
    rounds: list[Round] = []
    size = float(np.abs(high).max() + np.abs(low).max())
    while len(rounds) < most:
        enough = min(map(len, fit + seen)) > len(rounds) + _LEAST - 1
        found = _next(fit, removed, readings, size) if enough else None
        if found is None:
            break
        direction, reading = found
        scores = [part @ reading for part in seen]
        if rounds:
            scores = [
                np.abs(_residuals(s[:, None], part @ readings)[:, 0])
                for s, part in zip(scores, seen, strict=True)
            ]
        rounds.append(_tested(direction, reading, scores, test, permutations, resamples, seed, rng))
        if rounds[-1].separation.p > alpha:
            return DirectionCount(len(rounds) - 1, False, tuple(rounds), centre, alpha)
        removed = np.linalg.qr(np.column_stack([removed, direction]))[0]
        readings = np.column_stack([readings, reading])
    return DirectionCount(len(rounds), True, tuple(rounds), centre, alpha)


def cone_sample(basis: ArrayLike, draws: int, *, seed: int) -> Float[np.ndarray, "draws d"]:
    """Unit directions Bλ / ‖Bλ‖ with all λ ≥ 0, from the cone of the columns of `basis` `[d, k]`.

    λ are absolute values of standard normals, which for an orthonormal basis is uniform over the
    directions of the cone; for another basis they gather where columns lie close together. The
    basis vectors themselves are not among the samples: test them beside. The cone is that of
    Wollschläger et al. (2025), whose basis is orthonormal; the sampling is ours.

    Raises:
        GeometryError: other shapes, numbers that are not finite, a column of zeros, or columns
            that cancel in some positive combination, which make no pointed cone.
    """
    columns = finite(basis, name="basis", ndim=2)
    draws = count(draws, name="draws")
    lengths = np.linalg.norm(columns, axis=0)
    if (lengths == 0).any():
        raise GeometryError("basis has a column of zeros, which is no direction; drop it.")
    unit = columns / lengths
    from scipy.optimize import nnls

    # A convex combination that vanishes is a least-squares solution of [U; 1]λ = [0; 1].
    _, miss = nnls(np.vstack([unit, np.ones(unit.shape[1])]), np.append(np.zeros(len(unit)), 1.0))
    if miss < 1e-9:
        raise GeometryError(
            "Some positive combination of the columns of basis is zero, so they make no cone; "
            "turn or drop those that point against one another."
        )
    weights = np.abs(np.random.default_rng(seed).standard_normal((draws, unit.shape[1])))
    made = weights @ unit.T
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def _training(
    grouping: Grouping, train: tuple[ArrayLike, ArrayLike] | None, rng: np.random.Generator
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " m"]]:
    """Which rows of each condition are for estimation."""
    if train is None:
        grouping.require_halves()
        first = grouping.halves(1, rng)[0]
        return first[grouping.members[0]], first[grouping.members[1]]
    masks = [np.asarray(t) for t in train]
    for mask, member in zip(masks, grouping.members, strict=True):
        if mask.dtype != bool or mask.shape != member.shape:
            raise GeometryError(
                f"A part of train has shape {mask.shape} and type {mask.dtype}; give True or False "
                f"for each of {len(member)} rows."
            )
    fitted = {int(g) for m, k in zip(grouping.members, masks, strict=True) for g in m[k]}
    held = {int(g) for m, k in zip(grouping.members, masks, strict=True) for g in m[~k]}
    if fitted & held:
        raise GeometryError(
            f"{len(fitted & held)} groups have rows on both sides of train; keep each on one side."
        )
    return masks[0], masks[1]


def _residuals(
    rows: Float[np.ndarray, "n c"], known: Float[np.ndarray, "n r"]
) -> Float[np.ndarray, "n c"]:
    """What a linear regression on `known` leaves of `rows`, at the scale of errors.

    Projecting out an estimate leaves of the true direction as much as the estimate is off, which
    would pass for a direction of its own; but it moves with what was read along the estimate.
    """
    basis = np.linalg.qr(np.column_stack([np.ones(len(rows)), known]))[0]
    left = rows - basis @ (basis.T @ rows)
    return left * np.sqrt(len(rows) / (len(rows) - basis.shape[1]))


def _next(
    fit: tuple[np.ndarray, np.ndarray],
    removed: Float[np.ndarray, "d r"],
    readings: Float[np.ndarray, "d r"],
    size: float,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Direction and reading of the next round from training rows; None where nothing is left."""
    first = not removed.shape[1]
    high, low = (_residuals(x - (x @ removed) @ removed.T, x @ readings) for x in fit)
    pattern = fit[0].mean(axis=0) - fit[1].mean(axis=0)
    if first and np.linalg.norm(pattern) <= 1e-12 * size:
        raise GeometryError(
            "The two means coincide on the training rows, so there is no first direction; check "
            "the labels, or read another site."
        )
    # All that follows happens in the span of the training rows, which may be far below d.
    rows = np.concatenate([high, low, pattern[None]] if first else [high, low])
    _, values, axes = np.linalg.svd(rows, full_matrices=False)
    axes = axes[values > max(rows.shape) * np.finfo(np.float64).eps * size * np.sqrt(len(rows))]
    high, low = high @ axes.T, low @ axes.T
    level = float(np.mean(low**2)) if len(axes) else 0.0
    if level <= (1e-12 * size) ** 2:
        if first:
            raise GeometryError(
                "The negative training rows do not differ from one another, so there is no spread "
                "to compare with; give more of them."
            )
        return None
    gamma = ledoit_wolf(low)
    values, turn = np.linalg.eigh((1 - gamma) * _moment(low) + gamma * level * np.eye(len(axes)))
    root = np.sqrt(np.clip(values, 1e-10 * values[-1], None))
    if first:
        found = axes @ pattern
        reading = turn @ ((turn.T @ found) / root**2)
    else:
        excess = turn.T @ (_moment(high) - _moment(low)) @ turn
        top = np.linalg.eigh(excess / np.outer(root, root))[1][:, -1]
        found, reading = turn @ (root * top), turn @ (top / root)
    direction = axes.T @ found
    return direction / np.linalg.norm(direction), axes.T @ reading


def _moment(deviations: np.ndarray) -> np.ndarray:
    return deviations.T @ deviations / len(deviations)


def _tested(
    direction: np.ndarray,
    reading: np.ndarray,
    scores: list[np.ndarray],
    test: Grouping,
    permutations: int,
    resamples: int,
    seed: int,
    rng: np.random.Generator,
) -> Round:
    joined, member = np.concatenate(scores), np.concatenate(test.members)
    own = np.arange(len(joined)) < len(scores[0])
    swapped = test.swaps(permutations, rng)[:, member] ^ own
    null = auc(joined, swapped.astype(float), (~swapped).astype(float))
    times = np.vstack([np.ones(test.n), test.resamples(resamples, rng)])[:, member]
    areas = auc(joined, times * own, times * ~own)
    low, high = np.nanquantile(areas[1:], [0.025, 0.975])
    separation = Estimate(
        float(areas[0]),
        float(low),
        float(high),
        n=test.n,
        null=float(null.mean()),
        p=permutation_p(float(areas[0]), null),
        unit="AUC",
        method=f"{test.n} held-out groups; labels of groups swapped {permutations} times",
        seed=seed,
    )
    return Round(direction, reading, separation, null)
