"""How figures follow the strength of an edit, and whether they follow it one way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

from evidence import Estimate, cluster_mean, permutation_p
from interventions.errors import EditError

if TYPE_CHECKING:
    from activations import Model
    from activations.edit import Edit


@dataclass(frozen=True, eq=False)
class Outcome:
    """One figure of several items, such as the refusals of requests or the losses of texts.

    Attributes:
        values, groups: `[n]`, one for each item.
        variety, behaviour: of the items.
        bounds: least and greatest value possible, as for `evidence.cluster_mean`.
    """

    measure: str
    values: np.ndarray
    groups: np.ndarray
    unit: str = ""
    variety: str = ""
    behaviour: str = ""
    bounds: tuple[float, float] | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What sets it apart from others that are observed with it."""
        return self.measure, self.variety, self.behaviour

    def estimate(self) -> Estimate:
        """The mean over groups."""
        return cluster_mean(self.values, self.groups, unit=self.unit, bounds=self.bounds)


Observer: TypeAlias = "Callable[[Model, Edit | None], Sequence[Outcome]]"
"""Figures of a model under an edit, or of the plain one where it is None."""


@dataclass(frozen=True, eq=False)
class DoseResponse:
    """What was observed at each strength, and of the plain model."""

    strengths: tuple[float, ...]
    plain: tuple[Outcome, ...]
    at: tuple[tuple[Outcome, ...], ...]
    _index: dict[tuple[str, str, str], int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._index.update({o.key: i for i, o in enumerate(self.plain)})

    def __repr__(self) -> str:
        strengths = ", ".join(f"{strength:g}" for strength in self.strengths)
        return f"DoseResponse({len(self.plain)} figures at strengths {strengths})"

    def _repr_html_(self) -> str:
        """Each figure, of the plain model and at every strength."""
        points = (("plain", self.plain), *zip(self.strengths, self.at, strict=True))
        shown = {
            name if isinstance(name, str) else f"{name:g}": [
                f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]" for e in (o.estimate() for o in there)
            ]
            for name, there in points
        }
        index = [" ".join(part for part in key if part) for key in self.keys]
        return pd.DataFrame(shown, index=index).to_html(border=0)

    @property
    def keys(self) -> tuple[tuple[str, str, str], ...]:
        """(measure, variety, behaviour) of what was observed."""
        return tuple(self._index)

    def outcomes(self, key: tuple[str, str, str]) -> list[Outcome]:
        """One outcome at every strength."""
        return [there[self._index[key]] for there in self.at]

    def values(self, key: tuple[str, str, str]) -> Float[np.ndarray, "strengths n"]:
        """The figure of every item at every strength."""
        return np.stack([o.values for o in self.outcomes(key)])

    def trend(
        self, key: tuple[str, str, str], *, increasing: bool = True, draws: int = 999, seed: int
    ) -> Estimate:
        """`dose_trend` of one figure."""
        groups = self.plain[self._index[key]].groups
        return dose_trend(
            self.values(key), groups, self.strengths, increasing=increasing, draws=draws, seed=seed
        )

    def frame(self) -> pd.DataFrame:
        """One row for each figure and strength, the plain model's with strength NaN."""
        rows = []
        for strength, there in ((np.nan, self.plain), *zip(self.strengths, self.at, strict=True)):
            for o in there:
                told = {"measure": o.measure, "variety": o.variety, "behaviour": o.behaviour}
                rows.append({"strength": strength, **told, **o.estimate().as_row()})
        return pd.DataFrame(rows)


def dose_response(
    model: Model,
    observe: Observer,
    edit_at: Callable[[float], Edit],
    strengths: Sequence[float],
    *,
    plain: Sequence[Outcome] | None = None,
) -> DoseResponse:
    """Observe a model at each strength of an edit.

    Args:
        edit_at: the edit of a strength, such as `lambda c: steer(direction, c)`.
        plain: what `observe` found of the plain model, where it is known already.

    Raises:
        EditError: no strengths, or one twice.
    """
    doses = tuple(float(s) for s in strengths)
    if not doses or len(set(doses)) < len(doses):
        raise EditError(f"The strengths are {list(doses)}: give at least one, each once.")
    doses = tuple(sorted(doses))
    at = tuple(tuple(observe(model, edit_at(dose))) for dose in doses)
    known = tuple(observe(model, None)) if plain is None else tuple(plain)
    return DoseResponse(doses, known, at)


def dose_trend(
    values: Float[np.ndarray, "strengths n"],
    groups: Sequence[object] | np.ndarray,
    strengths: Sequence[float],
    *,
    increasing: bool = True,
    draws: int = 999,
    seed: int,
    level: float = 0.95,
) -> Estimate:
    """Spearman's rho of strength and effect, the effect being the mean over groups: 1 if monotone.

    Where effects tie, as at a ceiling, it stays below 1. The null exchanges the strengths within
    each group by itself, as they could be if no strength did anything; p is one-sided. The
    interval is a percentile bootstrap over groups.

    Args:
        values: the figure of every item at every strength.
        increasing: whether the effect should rise; if it should fall, rho is −1 where it does.

    Raises:
        EditError: fewer than three strengths, or shapes that do not fit.
    """
    table, doses = np.asarray(values, dtype=np.float64), np.asarray(strengths, dtype=np.float64)
    names = np.asarray(groups, dtype=object).astype(str)
    if len(doses) < 3 or table.shape != (len(doses), len(names)) or not len(names):
        raise EditError(
            f"The values have shape {table.shape} for {len(doses)} strengths and {len(names)} "
            "items: give three strengths or more, and one row of values for each."
        )
    _, member = np.unique(names, return_inverse=True)
    sizes = np.bincount(member)
    by_group = np.stack([np.bincount(member, weights=row) for row in table]) / sizes
    rng = np.random.default_rng(seed)
    ranked = rankdata(doses)
    own = _rho(ranked, by_group.mean(axis=1)[None])[0]
    n = by_group.shape[1]
    drawn = by_group[:, rng.integers(n, size=(draws, n))].mean(axis=-1).T
    low, high = np.quantile(_rho(ranked, drawn), [(1 - level) / 2, (1 + level) / 2])
    shuffled = np.stack([rng.permuted(by_group, axis=0).mean(axis=1) for _ in range(draws)])
    side = "greater" if increasing else "less"
    p = permutation_p(float(own), _rho(ranked, shuffled), alternative=side)
    return Estimate(
        float(own),
        float(low),
        float(high),
        level,
        n,
        null=0.0,
        p=p,
        unit="Spearman rho",
        method="percentile bootstrap over groups; strengths exchanged within each group",
        seed=seed,
    )


def reversal(curve: Sequence[float], *, increasing: bool = True) -> float:
    """How far a curve goes back on itself at most: 0 where it is monotone.

    The largest fall from any earlier point to any later one, or rise where it should fall.
    """
    c = np.asarray(curve, dtype=np.float64) * (1 if increasing else -1)
    return float(np.max(np.maximum.accumulate(c) - c)) if len(c) else 0.0


def _rho(
    ranked: Float[np.ndarray, " s"], curves: Float[np.ndarray, "b s"]
) -> Float[np.ndarray, " b"]:
    """Spearman's rho of each curve; 0 for one that is flat, which follows nothing."""
    # Sums of the same figures in another order differ in their last bits, and must tie.
    scale = np.maximum(np.abs(curves).max(axis=1, keepdims=True), 1e-300)
    ranks = rankdata(np.round(curves / scale, 12), axis=1)
    x, y = ranked - ranked.mean(), ranks - ranks.mean(axis=1, keepdims=True)
    size = np.linalg.norm(x) * np.linalg.norm(y, axis=1)
    rho = np.where(size > 0, y @ x / np.where(size > 0, size, 1.0), 0.0)
    return np.clip(rho, -1.0, 1.0)
