"""Which states carry the difference between two texts: a sweep over layers and positions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from activations import layer_of
from evidence import EvidenceError, cluster_bootstrap
from interventions.alignment import align_tokens
from interventions.edits import Replacement
from interventions.errors import EditError

if TYPE_CHECKING:
    from activations import Model

#: From logits `[B, V]` of runs, and those of the source and base run `[V]`, to a figure `[B]`.
Metric = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

#: Logits of one batch hold at most this many numbers, whatever the vocabulary.
_MOST_LOGITS = 2**26


@dataclass(frozen=True, eq=False)
class PatchSweep:
    """What a sweep found.

    `frame` has one row for each pair × site × segment: `pair`, `site`, `layer`, `position` (tokens
    from the end of the base text to the segment's last token, 0 = the last), `width` (tokens in
    it), `patched` (those of them with a counterpart), `value` (the metric of the patched run),
    `base` and `source` (of the plain runs) and `recovered` = (value - base) / (source - base).

    `summary` has one row for each site × position: `site`, `layer`, `position`, `value` (the ratio
    of sums over pairs, which no single pair with a small gap can blow up), its interval `low`,
    `high` over `n` groups of pairs, and `patched`, the share of tokens that had a counterpart.
    """

    frame: pd.DataFrame
    summary: pd.DataFrame

    def __repr__(self) -> str:
        pairs, sites = self.frame["pair"].nunique(), self.frame["site"].nunique()
        return f"PatchSweep({pairs} pairs, {sites} sites, {len(self.frame)} cells)"


def kl_from_source(logits: torch.Tensor, source: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """KL(source ‖ run) in nats, in f64: 0 where the run predicts as the source run does."""
    p = source.double().log_softmax(-1)
    q = logits.double().log_softmax(-1)
    return torch.where(p.exp() > 0, p.exp() * (p - q), 0.0).sum(-1)


def patch_sweep(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    *,
    sites: str | Sequence[str] = "resid_post",
    layers: Sequence[int] | None = None,
    max_positions: int = 24,
    metric: Literal["kl"] | Metric = "kl",
    groups: Sequence[Any] | None = None,
    token_budget: int = 8192,
    seed: int = 0,
    level: float = 0.95,
    progress: bool = False,
) -> PatchSweep:
    """Put states of a source run into a base run, one layer and position at a time.

    For pairs of texts that mean the same (a dialect's and the standard's), how much of the gap
    between the two next-token distributions at the last token does each state carry? With the
    default metric, recovered = 1 - KL(source ‖ patched) / KL(source ‖ base): 1 where the patched
    run predicts as the source run does, 0 where nothing changed, negative where it went farther
    off. Patching of this direction tests sufficiency (Heimersheim & Nanda 2024).

    Positions count from the end, so that texts of different lengths meet at their last token; they
    are taken in segments of ceil(longest base text / `max_positions`) tokens, patched together.
    Tokens correspond as in `align_tokens`; those without a counterpart are left as they are, and
    counted. Where a segment lies in the opening that both texts share, a causal model has the
    same states there, and no run is needed to know that nothing changes. All segments of one site
    run as one batch, cut by `token_budget`.

    Models with learned positions keep the absolute position in the residual stream, and a state
    that comes from another position brings it along.

    Args:
        pairs: (base text, source text).
        sites: as in `model.resolve_sites`, only at blocks `layers` where given.
        metric: "kl", or a function of logits `[B, V]`, the source's and the base's `[V]`.
        groups: pairs that are not independent share one; each its own where None.
        token_budget: tokens in one batch.
        seed: of the bootstrap.

    Raises:
        EditError: no pairs, fewer groups than pairs, or a count below 1.
    """
    texts = list(pairs)
    names = list(range(len(texts))) if groups is None else list(groups)
    if not texts or len(names) != len(texts):
        raise EditError(
            f"There are {len(texts)} pairs and {len(names)} groups: give at least one pair, and "
            "the group of each."
        )
    if max_positions < 1 or token_budget < 1:
        raise EditError("max_positions and token_budget count things: give at least 1.")
    measure: Metric = kl_from_source if metric == "kl" else metric  # type: ignore[assignment]
    where = model.resolve_sites(sites, layers)
    encoded = [(model.encode(base), model.encode(source)) for base, source in texts]
    width = math.ceil(max(len(base) for base, _ in encoded) / max_positions)
    rows: list[dict[str, Any]] = []
    shown = tqdm(encoded, desc="patch", unit="pair", disable=not progress)
    for number, (base, source) in enumerate(shown):
        for cell in _pair_cells(model, base, source, where, width, measure, token_budget):
            rows.append({"pair": number, **cell})
    frame = pd.DataFrame(rows)
    return PatchSweep(frame, summarise(frame, names, seed=seed, level=level))


def _pair_cells(
    model: Model,
    base: list[int],
    source: list[int],
    sites: Sequence[str],
    width: int,
    measure: Metric,
    token_budget: int,
) -> Iterator[dict[str, Any]]:
    """The rows of one pair, site by site, segments from the end."""
    base_logits = _last_logits(model, base)
    source_logits = _last_logits(model, source)
    ids, mask = model.pad([source])
    states = model.activations(ids, mask, sites)
    plain = float(measure(base_logits[None], source_logits, base_logits)[0])
    goal = float(measure(source_logits[None], source_logits, base_logits)[0])
    gap = goal - plain
    aligned = align_tokens(base, source)
    segments = list(_segments(len(base), width))
    shared = _shared_opening(base, source)
    live = [s for s in segments if _matters(aligned, s, shared)]
    fit = min(token_budget, max(1, _MOST_LOGITS // base_logits.shape[-1]))
    size = max(1, fit // len(base))
    for site in sites:
        values = {}
        for start in range(0, len(live), size):
            batch = live[start : start + size]
            logits = _patched_logits(model, base, batch, aligned, states[site][0], site, width)
            found = measure(logits, source_logits, base_logits)
            values.update(zip(batch, found.double().tolist(), strict=True))
        for segment in segments:
            first, end = segment
            value = values.get(segment, plain)
            yield {
                "site": site,
                "layer": layer_of(site),
                "position": len(base) - end,
                "width": end - first,
                "patched": int((aligned[first:end] >= 0).sum()),
                "value": value,
                "base": plain,
                "source": goal,
                "recovered": (value - plain) / gap if gap else math.nan,
            }


def _segments(length: int, width: int) -> Iterator[tuple[int, int]]:
    """Spans [first, end) that cover all positions, from the end of the text."""
    for end in range(length, 0, -width):
        yield max(0, end - width), end


def _shared_opening(base: Sequence[int], source: Sequence[int]) -> int:
    """How many tokens the two texts share from the start."""
    for n, (a, b) in enumerate(zip(base, source, strict=False)):
        if a != b:
            return n
    return min(len(base), len(source))


def _matters(aligned: np.ndarray, segment: tuple[int, int], shared: int) -> bool:
    """Whether a segment has a counterpart that is not the very same state."""
    positions = np.arange(*segment)
    partners = aligned[positions]
    same = (partners == positions) & (positions < shared)
    return bool(np.any((partners >= 0) & ~same))


def _last_logits(model: Model, ids: list[int]) -> torch.Tensor:
    batch, mask = model.pad([ids])
    return model.logits(batch, mask)[0, -1]


def _patched_logits(
    model: Model,
    base: list[int],
    batch: Sequence[tuple[int, int]],
    aligned: np.ndarray,
    states: torch.Tensor,
    site: str,
    width: int,
) -> torch.Tensor:
    """Logits `[len(batch), V]` at the last token; row i has the states of segment i put in.

    `states` is `[T_source, ...]`, the source run's at the site.
    """
    at = torch.full((len(batch), width), -1, dtype=torch.long)
    take = torch.zeros((len(batch), width), dtype=torch.long)
    for row, (first, end) in enumerate(batch):
        for column, position in enumerate(range(first, end)):
            if aligned[position] >= 0:
                at[row, column] = position
                take[row, column] = int(aligned[position])
    values = states.flatten(1)[take.to(states.device)]
    edit = Replacement(site, values, at, name=f"patch({site})")
    ids, mask = model.pad([base] * len(batch))
    with model.edited(edit):
        return model.logits(ids, mask)[:, -1]


def summarise(
    frame: pd.DataFrame, groups: Sequence[Any], *, seed: int = 0, level: float = 0.95
) -> pd.DataFrame:
    """Ratios of sums over pairs by site and position, with a bootstrap over groups of pairs.

    `groups` is the group of each pair number of `frame`. Where the gap is zero in all pairs, or in
    most resamples, the value or the interval is NaN.
    """
    rows = []
    own = np.asarray(groups, dtype=object).astype(str)
    for (site, layer, position), cell in frame.groupby(["site", "layer", "position"], sort=False):
        _, member = np.unique(own[cell["pair"].to_numpy()], return_inverse=True)
        moved = (cell["value"] - cell["base"]).to_numpy()
        gap = (cell["source"] - cell["base"]).to_numpy()
        sums = np.column_stack([np.bincount(member, weights=w) for w in (moved, gap)])
        value = low = high = math.nan
        if sums[:, 1].sum():
            value = float(sums[:, 0].sum() / sums[:, 1].sum())
            try:
                found = cluster_bootstrap(sums, _ratio, seed=seed, level=level)
                low, high = found.low, found.high
            except EvidenceError:
                pass  # too few groups with a gap for an interval; the value stands without one
        rows.append(
            {
                "site": site,
                "layer": layer,
                "position": position,
                "value": value,
                "low": low,
                "high": high,
                "n": len(sums),
                "patched": float(cell["patched"].sum() / cell["width"].sum()),
            }
        )
    return pd.DataFrame(rows)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]
