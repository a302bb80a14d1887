"""One behaviour's direction at many places: how sure, how far it turns, how alike between places.

states = {(layer, position): (harmful_states, harmless_states), ...}     # [n, d] and [m, d] each
grid = direction_grid(states, groups=(harmful_groups, harmless_groups), seed=0)
grid.frame()                     # norm, reliability, held-out separation: one row a place
grid.cosines.corrected           # [places, places], free of the noise that rows share
grid.drift([(layer, -1) for layer in range(n_layers)])      # degrees turned from layer to layer

Two directions that are estimated from the same rows share the noise of those rows, so that their
plain cosine says little. Here the two members of a pair come from disjoint halves of the groups,
and what halving costs is undone by Spearman's correction for attenuation (1904).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike

from evidence import Estimate
from geometry.checks import count, finite
from geometry.contrast import Grouping, auc
from geometry.cosines import DirectionCosines, place_index
from geometry.errors import GeometryError
from geometry.estimation import mean_difference
from geometry.subspace import Subspace

_CELLS = 8_000_000  # numbers held at once, 64 MB
_HALVINGS = 4  # of each resample: one alone would add the luck of the halving to the interval
_NULL_DRAWS = 500


@dataclass(frozen=True, eq=False)
class DirectionGrid:
    """The difference in means between two conditions at P places, and what its noise rests on.

    Attributes:
        places: in the order given.
        differences: `[P, d]`, mean of the positive less mean of the negative rows.
        scale: `[P]`, the mean length of a state.
        grouping: of the rows into groups.
        sums: for each condition `[P, G, d]`, summed states of each group, less the place's mean.
        states: as given.
        draws, resamples, level, seed: as given to `direction_grid`.
    """

    places: tuple[Hashable, ...]
    differences: Float[np.ndarray, "p d"]
    scale: Float[np.ndarray, " p"]
    grouping: Grouping
    sums: tuple[Float[np.ndarray, "p g d"], Float[np.ndarray, "p g d"]]
    states: Mapping[Hashable, tuple[ArrayLike, ArrayLike]]
    draws: int
    resamples: int
    level: float
    seed: int

    @property
    def d(self) -> int:
        """Dimensions of the space."""
        return self.differences.shape[1]

    @property
    def norms(self) -> Float[np.ndarray, " p"]:
        """Distance between the two means, in the units of the states."""
        return np.linalg.norm(self.differences, axis=1)

    @property
    def directions(self) -> Float[np.ndarray, "p d"]:
        """Unit vectors, towards the positive condition."""
        return self.differences / self.norms[:, None]

    def direction(self, place: Hashable) -> Subspace:
        """The direction at one place, from all rows, measured from the negative mean.

        Raises:
            GeometryError: no such place.
        """
        positive, negative = self.states[self.places[place_index(self.places, place)]]
        return mean_difference(positive, negative)

    def contrast(
        self, weights: Float[np.ndarray, "b g"], at: slice = slice(None)
    ) -> Float[np.ndarray, "p b d"]:
        """Differences in means at the places `at`, group g counting `weights[b, g]` times.

        NaN where a condition is left without weight.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = [
                weights[:, counts > 0] / (weights @ counts)[:, None]
                for counts in self.grouping.counts
            ]
        return shares[0] @ self.sums[0][at] - shares[1] @ self.sums[1][at]

    @cached_property
    def cosines(self) -> DirectionCosines:
        """Cosine of the directions of every two places: raw, split-half and corrected.

        Holds 500 null draws and `resamples` of `[P, P]` numbers: with hundreds of places, set
        fewer resamples.
        """
        rng = np.random.default_rng([self.seed, 1])
        p = len(self.places)
        whole = np.ones((self.draws, self.grouping.n))
        value = self._between_halves(whole, self.grouping.halves(self.draws, rng)).mean(axis=0)
        weights = np.repeat(self.grouping.resamples(self.resamples, rng), _HALVINGS, axis=0)
        halves = self.grouping.halves(len(weights), rng)
        many = self._between_halves(weights, halves).reshape(self.resamples, _HALVINGS, p, p)
        # A half of a resample may have lost a condition; the other halvings then stand for it.
        known = np.isfinite(many)
        with np.errstate(divide="ignore", invalid="ignore"):
            resampled = np.where(known, many, 0.0).sum(axis=1) / known.sum(axis=1)
        return DirectionCosines.of(
            self.places,
            self.directions @ self.directions.T,
            value,
            resampled,
            self._covariance_null(rng),
            n=self.grouping.n,
            d=self.d,
            level=self.level,
            seed=self.seed,
        )

    @cached_property
    def separation(self) -> list[Estimate]:
        """For each place, how well held-out groups are told apart along the direction, as AUC.

        Each row is scored along the directions of those halves that lack its group, from halfway
        between their means. The interval is a percentile bootstrap over groups with the scores
        fixed, so it states the uncertainty of the evaluation, not of the direction.
        """
        rng = np.random.default_rng([self.seed, 2])
        first = self.grouping.halves(self.draws, rng)
        fitted = np.vstack([first, ~first])
        times = np.vstack([np.ones(self.grouping.n), self.grouping.resamples(self.resamples, rng)])
        member = np.concatenate(self.grouping.members)
        positive = np.arange(len(member)) < len(self.grouping.members[0])
        known = fitted[:, member]
        unseen = (~known).sum(axis=0)
        weight = times[:, member] * (unseen > 0)
        found = []
        for i, place in enumerate(self.places):
            axes = _unit(self.contrast(fitted.astype(float), slice(i, i + 1))[0])
            scores = axes @ np.concatenate(self.states[place]).astype(np.float64).T
            halfway = _mean(scores, known & positive) + _mean(scores, known & ~positive)
            scores = np.where(known, 0.0, scores - halfway[:, None] / 2).sum(axis=0)
            areas = auc(scores / np.maximum(unseen, 1), weight * positive, weight * ~positive)
            low, high = np.nanquantile(areas[1:], [(1 - self.level) / 2, (1 + self.level) / 2])
            found.append(
                Estimate(
                    float(areas[0]),
                    float(low),
                    float(high),
                    self.level,
                    self.grouping.n,
                    null=0.5,
                    unit="AUC",
                    method=f"percentile bootstrap over {self.grouping.n} held-out groups",
                    seed=self.seed,
                )
            )
        return found

    def frame(self) -> pd.DataFrame:
        """One row a place: norm, norm in mean lengths of a state, reliability, separation."""
        own = np.arange(len(self.places))
        near = self.cosines
        return pd.DataFrame(
            {
                "place": pd.Series(list(self.places), dtype=object),
                "norm": self.norms,
                "relative_norm": self.norms / self.scale,
                "reliability": near.split_half[own, own],
                "reliability_low": near.low[own, own],
                "reliability_high": near.high[own, own],
                "separation": [e.value for e in self.separation],
                "separation_low": [e.low for e in self.separation],
                "separation_high": [e.high for e in self.separation],
                "n": self.grouping.n,
            }
        )

    def drift(
        self, places: Sequence[Hashable] | None = None, *, reference: Hashable | None = None
    ) -> pd.DataFrame:
        """How the direction turns and grows along a path of places, from the second place on.

        Cosines are corrected for noise, which by itself would look like turning: `cosine` with the
        place before (`previous`) and `cosine_to_reference`, each with an interval. `degrees` is
        the angle of `cosine`, 0 where noise takes that above 1. `growth` is the ratio of the norm
        in lengths of a state to that at the place before.

        Args:
            places: the path; all places in their order unless given.
            reference: the last place of the path unless given.

        Raises:
            GeometryError: fewer than two places, or one that the grid does not have.
        """
        path = list(self.places if places is None else places)
        if len(path) < 2:
            raise GeometryError(f"The path has {len(path)} places; drift needs at least two.")
        end = path[-1] if reference is None else reference
        near, rows = self.cosines, []
        size = self.norms / self.scale
        for before, here in pairwise(path):
            step, whole = near.estimate(before, here), near.estimate(here, end)
            i, j = place_index(self.places, before), place_index(self.places, here)
            rows.append(
                {
                    "place": here,
                    "previous": before,
                    "cosine": step.value,
                    "low": step.low,
                    "high": step.high,
                    "degrees": _degrees(step.value),
                    "degrees_low": _degrees(step.high),
                    "degrees_high": _degrees(step.low),
                    "p": step.p,
                    "cosine_to_reference": whole.value,
                    "reference_low": whole.low,
                    "reference_high": whole.high,
                    "relative_norm": size[j],
                    "growth": size[j] / size[i],
                    "n": self.grouping.n,
                }
            )
        return pd.DataFrame(rows)

    def _between_halves(
        self, weights: Float[np.ndarray, "b g"], first: np.ndarray
    ) -> Float[np.ndarray, "b p p"]:
        """Cosines between the directions of two halves, the same whichever is named first."""
        most = max(1, _CELLS // (2 * len(self.places) * self.d))
        parts = []
        for start in range(0, len(weights), most):
            w, f = weights[start : start + most], first[start : start + most]
            one = _unit(self.contrast(w * f)).swapaxes(0, 1)
            two = _unit(self.contrast(w * ~f)).swapaxes(0, 1)
            between = one @ two.swapaxes(1, 2)
            parts.append((between + between.swapaxes(1, 2)) / 2)
        return np.concatenate(parts)

    def _covariance_null(self, rng: np.random.Generator) -> Float[np.ndarray, "draws p p"]:
        """Absolute cosines of two directions with the spread of the states at their places.

        A normal combination of centred rows is a draw from N(0, n Σ), so Σ is never formed.
        """
        rows = sum(len(m) for m in self.grouping.members)
        drawn = rng.standard_normal((2, _NULL_DRAWS, rows))
        found = np.empty((_NULL_DRAWS, len(self.places), len(self.places)))
        most = max(1, _CELLS // (2 * len(self.places) * self.d))
        for start in range(0, _NULL_DRAWS, most):
            part = slice(start, start + most)
            sides = []
            for side in drawn[:, part]:
                axes = [_unit(side @ _centred(self.states[place])) for place in self.places]
                sides.append(np.stack(axes, axis=1))
            found[part] = np.abs(sides[0] @ sides[1].swapaxes(1, 2))
        return found


def direction_grid(
    states: Mapping[Hashable, tuple[ArrayLike, ArrayLike]],
    *,
    groups: tuple[ArrayLike, ArrayLike],
    draws: int = 20,
    resamples: int = 200,
    level: float = 0.95,
    seed: int,
) -> DirectionGrid:
    """Directions from the negative to the positive mean at each place, ready to be compared.

    Args:
        states: place to (positive `[n, d]`, negative `[m, d]`), the same rows in the same order at
            every place. A place is any name: a layer, a (layer, position), a site.
        groups: names of the groups of the positive rows `[n]` and of the negative ones `[m]`. A
            name on both sides is one group, which no half and no resample will cut.
        draws: random halves of the groups.
        resamples: of the bootstrap over groups.

    Raises:
        GeometryError: no places, shapes that do not fit, numbers that are not finite, a place where
            the two means coincide, or groups too few to be halved.
    """
    if not states:
        raise GeometryError("states is empty; give at least one place.")
    draws, resamples = count(draws, name="draws"), count(resamples, name="resamples")
    if not 0 < level < 1:
        raise GeometryError(f"level is {level!r}; it must lie between 0 and 1.")
    sizes = _sizes(states)
    grouping = Grouping.of(groups, sizes[:2])
    grouping.require_halves()
    p, d = len(states), sizes[2]
    sums = tuple(np.empty((p, int(np.sum(c > 0)), d)) for c in grouping.counts)
    differences, scale = np.empty((p, d)), np.empty(p)
    for i, (place, parts) in enumerate(states.items()):
        rows = [
            finite(part, name=f"the {side} states at place {place!r}", ndim=2)
            for part, side in zip(parts, ("positive", "negative"), strict=True)
        ]
        scale[i] = np.mean(np.concatenate([np.linalg.norm(r, axis=1) for r in rows]))
        centre = np.concatenate(rows).mean(axis=0)  # taken off first: states lie far from zero
        for own, part, member, counts in zip(
            sums, rows, grouping.members, grouping.counts, strict=True
        ):
            place_of = np.cumsum(counts > 0) - 1
            own[i] = _summed(part - centre, place_of[member], own.shape[1])
        differences[i] = (rows[0] - centre).mean(axis=0) - (rows[1] - centre).mean(axis=0)
        if np.linalg.norm(differences[i]) <= 1e-12 * scale[i]:
            raise GeometryError(
                f"At place {place!r} the two means coincide, so no direction leads from one to "
                "the other; leave the place out, or check the labels."
            )
    return DirectionGrid(
        tuple(states), differences, scale, grouping, (sums[0], sums[1]), dict(states),
        draws, resamples, level, int(seed),
    )  # fmt: skip


def _sizes(states: Mapping[Hashable, tuple[ArrayLike, ArrayLike]]) -> tuple[int, int, int]:
    """n, m and d, the same at every place."""
    found: dict[Hashable, tuple[tuple[int, ...], ...]] = {
        place: tuple(np.shape(part) for part in parts) for place, parts in states.items()
    }
    first = next(iter(found.values()))
    for place, shapes in found.items():
        if [len(shape) for shape in shapes] != [2, 2] or shapes[0][1] != shapes[1][1]:
            raise GeometryError(
                f"At place {place!r} the states have shapes {shapes}; give two arrays, positive "
                "[n, d] and negative [m, d]."
            )
        if shapes != first:
            raise GeometryError(
                f"At place {place!r} the states have shapes {shapes}, at the first place {first}; "
                "give the same rows at every place, of sites that are equally wide."
            )
    return first[0][0], first[1][0], first[0][1]


def _summed(rows: np.ndarray, member: np.ndarray, groups: int) -> Float[np.ndarray, "g d"]:
    order = np.argsort(member, kind="stable")
    starts = np.searchsorted(member[order], np.arange(groups))
    return np.add.reduceat(rows[order], starts, axis=0)


def _centred(parts: tuple[ArrayLike, ArrayLike]) -> Float[np.ndarray, "n d"]:
    rows = np.concatenate(parts).astype(np.float64)
    return rows - rows.mean(axis=0)


def _unit(vectors: Float[np.ndarray, "*b d"]) -> Float[np.ndarray, "*b d"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _mean(scores: Float[np.ndarray, "b n"], of: np.ndarray) -> Float[np.ndarray, " b"]:
    return np.where(of, scores, 0.0).sum(axis=1) / of.sum(axis=1)


def _degrees(cosine: float) -> float:
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
