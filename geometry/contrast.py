"""Rows of several conditions that come in groups: halves, resamples and swapped labels of groups.

A group may have rows in one condition or in more (a request asked in a harmful and in a harmless
wording). All that is drawn here is drawn within groups of one kind, by which conditions they have,
so that no half and no resample is left without a condition that the data have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from geometry.errors import GeometryError


@dataclass(frozen=True, eq=False)
class Grouping:
    """Which of G groups each row of each condition belongs to.

    Attributes:
        members: for each condition `[rows]`, the number of each row's group.
        kinds: `[G]`, equal for groups that have rows in the same conditions.
        counts: `[conditions, G]`, rows of each group in each condition.
    """

    members: tuple[Int[np.ndarray, " rows"], ...]
    kinds: Int[np.ndarray, " g"]
    counts: Float[np.ndarray, "conditions g"]

    @classmethod
    def of(cls, groups: Sequence[ArrayLike], sizes: Sequence[int]) -> Grouping:
        """From the group names of each condition's rows.

        Raises:
            GeometryError: not one array of names for each condition, or another length.
        """
        if isinstance(groups, str) or len(groups) != len(sizes):
            raise GeometryError(
                f"groups has {len(groups)} parts; give one array of names for each of the "
                f"{len(sizes)} sets of rows."
            )
        named = [np.asarray(g).astype(str) for g in groups]
        for part, size in zip(named, sizes, strict=True):
            if part.shape != (size,):
                raise GeometryError(
                    f"There are {size} rows but their groups have shape {part.shape}; "
                    "name the group of each row."
                )
        names, index = np.unique(np.concatenate(named), return_inverse=True)
        members = tuple(np.split(index, np.cumsum(sizes)[:-1]))
        counts = np.stack([np.bincount(m, minlength=len(names)) for m in members]).astype(float)
        kinds = (2 ** np.arange(len(sizes))) @ (counts > 0).astype(int)
        return cls(members, kinds, counts)

    @property
    def n(self) -> int:
        """How many groups there are."""
        return len(self.kinds)

    def require_halves(self) -> None:
        """Check that each half of the groups will have rows of every condition.

        Raises:
            GeometryError: too few groups.
        """
        sizes = {kind: int(np.sum(self.kinds == kind)) for kind in np.unique(self.kinds).tolist()}
        for condition in range(len(self.members)):
            if not any(size >= 2 and kind >> condition & 1 for kind, size in sizes.items()):
                raise GeometryError(
                    f"Some condition has rows in {int(np.sum(self.counts[condition] > 0))} groups, "
                    "which cannot be halved; two disjoint halves need at least 2 groups of a kind: "
                    "with rows in both conditions, or two of each condition."
                )

    def halves(self, draws: int, rng: np.random.Generator) -> Bool[np.ndarray, "draws g"]:
        """Random halves: which groups belong to the first; an odd one out falls by lot."""
        first = np.zeros((draws, self.n), dtype=bool)
        for at, size in self._of_a_kind():
            rank = rng.random((draws, size)).argsort(axis=1).argsort(axis=1)
            cut = size // 2 + (size % 2) * rng.integers(0, 2, size=draws)
            first[:, at] = rank < cut[:, None]
        return first

    def resamples(self, draws: int, rng: np.random.Generator) -> Float[np.ndarray, "draws g"]:
        """How often each group is drawn, with replacement, by as many draws as there are groups."""
        drawn = np.zeros((draws, self.n))
        for at, size in self._of_a_kind():
            drawn[:, at] = rng.multinomial(size, np.full(size, 1 / size), size=draws)
        return drawn

    def swaps(self, draws: int, rng: np.random.Generator) -> Bool[np.ndarray, "draws g"]:
        """Of two conditions, which groups change places under a random relabelling.

        Groups with rows in both exchange them by the toss of a coin; among the others, the labels
        are dealt out anew, so that each condition keeps its number of groups.
        """
        both = self.kinds == 3
        swapped = np.zeros((draws, self.n), dtype=bool)
        swapped[:, both] = rng.random((draws, int(both.sum()))) < 0.5
        alone = self.kinds[~both]
        dealt = alone[rng.random((draws, len(alone))).argsort(axis=1)]
        swapped[:, ~both] = dealt != alone
        return swapped

    def _of_a_kind(self) -> list[tuple[np.ndarray, int]]:
        places = [np.flatnonzero(self.kinds == kind) for kind in np.unique(self.kinds)]
        return [(at, len(at)) for at in places]


def auc(
    scores: Float[np.ndarray, " n"],
    high: Float[np.ndarray, "*draws n"],
    low: Float[np.ndarray, "*draws n"],
) -> Float[np.ndarray, "*draws"]:
    """Area under the ROC curve, where row i counts `high[i]` times as positive, `low[i]` as not.

    The probability that a positive row scores higher than a negative one, ties counted half; NaN
    where one side has no weight.
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    above = np.add.reduceat(high[..., order], starts, axis=-1)
    below = np.add.reduceat(low[..., order], starts, axis=-1)
    lower = np.cumsum(below, axis=-1) - below / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sum(above * lower, axis=-1) / (above.sum(axis=-1) * below.sum(axis=-1))


def shifted_interval(
    value: np.ndarray, drawn: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of draws `[draws, ...]`, moved so that their mean falls on `value` `[...]`.

    Resampling adds noise of its own, which lowers cosines; moving takes that out again. NaN where
    fewer than half of the draws are defined.
    """
    known = np.isfinite(drawn).mean(axis=0) >= 0.5
    safe = np.where(known, drawn, 0.0)
    moved = safe - np.nanmean(safe, axis=0)
    low, high = np.nanquantile(moved, [(1 - level) / 2, (1 + level) / 2], axis=0) + value
    return np.where(known, low, np.nan), np.where(known, high, np.nan)
