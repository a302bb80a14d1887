"""Rows of shares and divergences, over tokens pooled, with intervals over groups of requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from evidence import Estimate, EvidenceError, cluster_mean, jackknife_estimate
from evidence.estimate import group_index
from experiments.results import row
from experiments.token_shift.shift import KINDS

_UNIT = "share of tokens"
_FEWEST = 2


def pooled(
    amounts: Any,
    groups: Any,
    *,
    weights: Any = None,
    bounds: tuple[float, float] | None = None,
    unit: str = "",
) -> Estimate:
    """Σ amounts / Σ weights over all tokens (weights of 1 unless given), leaving groups out.

    Tokens of one answer are not independent, nor are answers to one request in several varieties.
    Where all of a share's tokens agree, the exact limit for so many groups is the other end.
    """
    y = np.asarray(amounts, dtype=np.float64)
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64)
    if bounds == (0.0, 1.0) and weights is None and len(np.unique(y)) == 1:
        return cluster_mean(y, groups, bounds=bounds, unit=unit)
    member, count = group_index(groups)
    tops, bottoms = (np.bincount(member, weights=x, minlength=count) for x in (y, w))
    if not np.isfinite(y).all() or bottoms.sum() == 0:
        raise EvidenceError(
            "A divergence or a log-probability is not finite: look at both models' logits."
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        without = (tops.sum() - tops) / (bottoms.sum() - bottoms)
    value = float(tops.sum() / bottoms.sum())
    return jackknife_estimate(value, without, bounds=bounds, unit=unit)


def share_rows(frame: pd.DataFrame, **where: Any) -> Iterator[dict[str, Any]]:
    """The three shares and the divergence of some tokens."""
    groups = frame["group"].to_numpy()
    for kind in KINDS:
        flags = (frame["shift"] == kind).to_numpy(np.float64)
        found = pooled(flags, groups, bounds=(0.0, 1.0), unit=_UNIT)
        yield row(f"{kind}_share", found, **where)
    found = pooled(frame["kl"], groups, bounds=(0.0, np.inf), unit="nats")
    yield row("shift_kl", found, **where)


def by_behaviour(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """All tokens, and those of each behaviour where there are several."""
    yield "", frame
    kinds = [b for b in ("harmful", "harmless") if (frame["behaviour"] == b).any()]
    for kind in kinds if len(kinds) > 1 else []:
        yield kind, frame[frame["behaviour"] == kind]


def all_rows(frame: pd.DataFrame, positions: int, **where: Any) -> Iterator[dict[str, Any]]:
    """Shares of all tokens, by behaviour, position, token class, and variety of the request."""
    for behaviour, own in by_behaviour(frame):
        told = where | {"behaviour": behaviour}
        yield from share_rows(own, **told)
        yield from _fall(own, **told)
        yield from position_rows(own, positions, **told)
        for name, part in own.groupby("token_class"):
            yield from share_rows(part, reference=str(name), **told)
    varieties = frame["variety"].unique()
    for variety in sorted(varieties) if len(varieties) > 1 else []:
        yield from share_rows(frame[frame["variety"] == variety], variety=str(variety), **where)


def position_rows(frame: pd.DataFrame, positions: int, **where: Any) -> Iterator[dict[str, Any]]:
    """Shares at each of the first positions that the answers of several groups reach."""
    for position, part in frame[frame["position"] < positions].groupby("position"):
        if part["group"].nunique() >= _FEWEST:
            yield from share_rows(part, position=int(str(position)), **where)


def _fall(frame: pd.DataFrame, **where: Any) -> Iterator[dict[str, Any]]:
    """How much more is shifted, and how much farther apart the models are, in the first halves."""
    lengths = frame.groupby("text")["position"].transform("size")
    long = frame[lengths > 1]
    if long.empty:
        return
    early = (long["position"] < lengths[lengths > 1] / 2).to_numpy()
    moved = (long["shift"] != KINDS[0]).to_numpy(np.float64)
    for name, values, unit in (
        ("shift_fall", moved, _UNIT),
        ("kl_fall", long["kl"].to_numpy(), "nats"),
    ):
        half = pd.DataFrame(
            {"text": long["text"], "group": long["group"], "early": early, "value": values}
        )
        means = half.pivot_table(index=["text", "group"], columns="early", values="value")
        fall = (means[True] - means[False]).to_numpy()
        owners = means.index.get_level_values("group").to_numpy()
        yield row(name, cluster_mean(fall, owners, null=0.0, unit=unit), **where)
