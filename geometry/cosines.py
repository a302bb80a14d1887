"""Cosines of one behaviour's directions between places, with what noise and chance do to them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float

from evidence import Estimate
from geometry.contrast import shifted_interval
from geometry.errors import GeometryError

Kind = Literal["split_half", "corrected"]


@dataclass(frozen=True, eq=False)
class DirectionCosines:
    """Cosines between the directions at P places, all `[P, P]` and symmetric.

    Attributes:
        raw: both directions from all rows. They share the rows' noise, which alone can bring
            them near to one another, so there is no interval.
        split_half: the two from disjoint halves of the groups, averaged over halvings. The diagonal
            is the reliability of a direction that is estimated from half of the groups.
        corrected: `split_half[p, q]` / √(`split_half[p, p]` `split_half[q, q]`), the cosine that
            directions without noise would have (Spearman 1904). An estimate, so it may exceed 1;
            NaN where the interval of a reliability reaches zero, as there is nothing to correct.
        low, high: interval of `split_half`. corrected_low, corrected_high: of `corrected`.
        null: mean absolute cosine of two directions drawn independently from N(0, Σ_p) and
            N(0, Σ_q), Σ the covariance of all states at a place. null_high: its `level` quantile.
        p: probability of so large an absolute `split_half` then.
        n: groups. d: dimensions.
    """

    places: tuple[Hashable, ...]
    raw: Float[np.ndarray, "p p"]
    split_half: Float[np.ndarray, "p p"]
    corrected: Float[np.ndarray, "p p"]
    low: Float[np.ndarray, "p p"]
    high: Float[np.ndarray, "p p"]
    corrected_low: Float[np.ndarray, "p p"]
    corrected_high: Float[np.ndarray, "p p"]
    null: Float[np.ndarray, "p p"]
    null_high: Float[np.ndarray, "p p"]
    p: Float[np.ndarray, "p p"]
    n: int
    d: int
    level: float
    seed: int

    @classmethod
    def of(
        cls,
        places: Sequence[Hashable],
        raw: Float[np.ndarray, "p p"],
        split_half: Float[np.ndarray, "p p"],
        resampled: Float[np.ndarray, "resamples p p"],
        null: Float[np.ndarray, "draws p p"],
        *,
        n: int,
        d: int,
        level: float,
        seed: int,
    ) -> DirectionCosines:
        """From split-half cosines, those of resampled groups, and absolute cosines of the null."""
        low, high = shifted_interval(split_half, resampled, level)
        sure = np.diag(low) > 0
        corrected = np.where(sure & sure[:, None], disattenuated(split_half), np.nan)
        ends = shifted_interval(corrected, disattenuated(resampled), level)
        extreme = np.sum(null >= np.abs(split_half) - 1e-12, axis=0)
        return cls(
            tuple(places),
            raw,
            split_half,
            corrected,
            np.clip(low, -1.0, 1.0),
            np.clip(high, -1.0, 1.0),
            *ends,
            null.mean(axis=0),
            np.quantile(null, level, axis=0),
            (1 + extreme) / (1 + len(null)),
            n=n,
            d=d,
            level=level,
            seed=seed,
        )

    def estimate(self, one: Hashable, two: Hashable, *, kind: Kind = "corrected") -> Estimate:
        """The cosine of two places; of one place with itself and `"split_half"`, its reliability.

        `null` is the mean absolute cosine under the covariance null, and `p` is by that null.

        Raises:
            GeometryError: no such place, or no such kind.
        """
        if kind not in get_args(Kind):
            raise GeometryError(f"kind is {kind!r}; choose from {', '.join(get_args(Kind))}.")
        at = place_index(self.places, one), place_index(self.places, two)
        if kind == "corrected":
            value, low, high = self.corrected, self.corrected_low, self.corrected_high
        else:
            value, low, high = self.split_half, self.low, self.high
        return Estimate(
            float(value[at]),
            float(low[at]),
            float(high[at]),
            self.level,
            self.n,
            null=float(self.null[at]),
            p=float(self.p[at]),
            unit="cosine",
            method=f"disjoint halves of {self.n} groups, {kind.replace('_', '-')}; "
            "bootstrap over groups",
            seed=self.seed,
        )

    def frame(self) -> pd.DataFrame:
        """One row for each two places, and for each place with itself (its reliability)."""
        first, second = np.triu_indices(len(self.places))
        columns = (
            "raw",
            "split_half",
            "low",
            "high",
            "corrected",
            "corrected_low",
            "corrected_high",
            "null",
            "null_high",
            "p",
        )
        return pd.DataFrame(
            {
                "place": pd.Series([self.places[i] for i in first], dtype=object),
                "other": pd.Series([self.places[j] for j in second], dtype=object),
                **{name: getattr(self, name)[first, second] for name in columns},
                "n": self.n,
            }
        )


def disattenuated(split_half: Float[np.ndarray, "*draws p p"]) -> Float[np.ndarray, "*draws p p"]:
    """Cosines over the root of both reliabilities; NaN where one is not above zero."""
    own = np.einsum("...pp->...p", split_half)
    root = np.sqrt(np.where(own > 0, own, np.nan))
    return split_half / (root[..., :, None] * root[..., None, :])


def place_index(places: Sequence[Hashable], place: Hashable) -> int:
    """Which of `places` it is.

    Raises:
        GeometryError: none of them.
    """
    if place not in places:
        raise GeometryError(
            f"There is no place {place!r}; the places are {', '.join(map(repr, places[:8]))}"
            f"{' ...' if len(places) > 8 else ''}."
        )
    return list(places).index(place)
