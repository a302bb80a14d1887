"""How far an approximation of patching is from the runs that it stands for, on a sample of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from evidence import Estimate, EvidenceError, cluster_bootstrap


@dataclass(frozen=True, eq=False)
class Agreement:
    """Estimated against exact effects (value less base) of cells that were drawn at random.

    Only cells whose states differ between the two runs are drawn, as many from each layer as there
    are; the others are exact. Intervals are over `groups` of pairs.

    Attributes:
        frame: the drawn cells, with `effect`, `exact` and `score`, in the metric's unit.
        pearson, spearman: correlation of `effect` with `exact`.
        ranking: Spearman correlation of `score` with the size of `exact`.
        relative: √(Σ (effect - exact)² / Σ exact²): 0 where all are right, 1 is no better than
            saying that nothing has an effect.
        cells: how many there were to draw from.
    """

    frame: pd.DataFrame
    pearson: Estimate
    spearman: Estimate
    ranking: Estimate
    relative: float
    cells: int

    def __str__(self) -> str:
        return (
            f"{len(self.frame)} of {self.cells} cells run: Pearson {self.pearson.value:.2f}, "
            f"Spearman {self.spearman.value:.2f}, relative error {self.relative:.2g}"
        )

    def worst(self, count: int = 5) -> pd.DataFrame:
        """The drawn cells whose effect was missed by most, with `miss` = effect - exact."""
        frame = self.frame.assign(miss=self.frame["effect"] - self.frame["exact"])
        order = np.argsort(-frame["miss"].abs().to_numpy(), kind="stable")
        return frame.iloc[order[:count]].reset_index(drop=True)


def agreement(
    frame: pd.DataFrame, groups: Sequence[Any], cells: int, *, seed: int, level: float
) -> Agreement:
    """Of the drawn cells in `frame`; `groups` is the group of each of its pair numbers."""
    own = np.asarray(groups, dtype=object).astype(str)
    member = np.unique(own[frame["pair"].to_numpy(dtype=int)], return_inverse=True)[1]
    effect, exact = frame["effect"].to_numpy(), frame["exact"].to_numpy()
    size = float((exact**2).sum())
    options = {"seed": seed, "level": level}
    return Agreement(
        frame,
        _correlation(effect, exact, member, **options),
        _correlation(rankdata(effect), rankdata(exact), member, **options),
        _correlation(rankdata(frame["score"]), rankdata(np.abs(exact)), member, **options),
        math.sqrt(float(((effect - exact) ** 2).sum()) / size) if size else math.nan,
        cells,
    )


def drawn(layers: Sequence[int], count: int, seed: int) -> np.ndarray:
    """Which of some cells to run, in their order: as many of each layer, and the rest of any."""
    rng = np.random.default_rng(seed)
    layer = np.asarray(layers)
    turn = np.empty(len(layer), dtype=np.int64)
    for one in np.unique(layer):
        own = np.flatnonzero(layer == one)
        turn[own] = rng.permutation(len(own))
    # First one of each layer, then a second of each, and so on; ties in random order.
    order = np.lexsort((rng.random(len(layer)), turn))
    return np.sort(order[:count])


def _correlation(
    x: np.ndarray, y: np.ndarray, member: np.ndarray, *, seed: int, level: float
) -> Estimate:
    if not len(x):
        return Estimate(math.nan, level=level)
    x, y = x - x.mean(), y - y.mean()
    columns = [np.ones_like(x), x, y, x * x, y * y, x * y]
    sums = np.column_stack([np.bincount(member, weights=column) for column in columns])
    value = float(_pearson(sums.sum(0)))
    if not math.isfinite(value):
        return Estimate(math.nan, level=level, n=len(sums))
    try:
        found = cluster_bootstrap(sums, _pearson, seed=seed, level=level)
    except EvidenceError:  # without one of the groups nothing varies
        return Estimate(value, level=level, n=len(sums))
    low, high = (float(np.clip(end, -1, 1)) for end in (found.low, found.high))
    return Estimate(value, low, high, level, len(sums), method=found.method, seed=seed)


def _pearson(sums: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = (xx - x * x / n) * (yy - y * y / n)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, (xy - x * y / n) / np.sqrt(np.maximum(spread, 0)), np.nan)
