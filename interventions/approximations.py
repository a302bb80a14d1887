"""What putting states in would change, from gradients: one number for each cell, none of them run.

With m the figure of a run, h the base run's state, h' the source's, and gradients at the run that
is modified:

- attribution patching (Nanda 2023): (h' - h) · ∂m/∂h, exact where m is linear in h;
- integrated gradients (Sundararajan, Taly & Yan 2017): the mean of that gradient over midpoints of
  a straight path. On the path of a site's own states, all of them moved together, what its cells
  get adds up to what moving them all does (completeness). On the path of the inputs, one set of
  runs serves all sites (EAP-IG's path; Hanna, Pezzelle & Belinkov 2024);
- AtP* (Kramár et al. 2024): the change of attention itself is computed exactly for queries and
  keys (`interventions.query_key`), and effects that cancel between paths are found again by
  leaving out each block in turn (GradDrop).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activations import layer_of
from interventions.cells import Case
from interventions.edits import Replacement, replace
from interventions.gradient_runs import Piece, Row
from interventions.query_key import QueryKey, is_query_or_key

#: Places in the stream itself, which no block's writing lies behind.
_STREAM = re.compile(r"^blocks\.\d+\.hook_(resid_\w+|in|out)$|^hook_")


@dataclass(frozen=True, eq=False)
class Guess:
    """What was estimated for the cells of one case at one site, `[segments, heads or 1]` each.

    Attributes:
        effect: change of the figure.
        score: its size, never negative, by which cells are ranked.
        changed: whether the cell's states differ between the two runs at all.
    """

    effect: np.ndarray
    score: np.ndarray
    changed: np.ndarray


Guesses = dict[tuple[int, str], Guess]
"""By case (its id) and site."""


def attributed(piece: Piece, sites: Sequence[str]) -> Guesses:
    """Attribution patching, of all cells at once: one differentiated run for each case."""
    return {
        (id(row.case), site): _guess(piece, row.case, site, found[site])
        for row, _, found in piece.rows([Row(case) for case in piece.cases], sites, None, None)
        for site in sites
    }


def integrated(
    piece: Piece, sites: Sequence[str], steps: int, path: str, ends: Mapping[int, list[float]]
) -> tuple[Guesses, list[dict[str, Any]]]:
    """Integrated gradients, and how far they are from complete at each cut.

    Args:
        path: "site" moves the states of one site after another, "inputs" the embeddings.
        ends: by case, the figures of the base and the source run.
    """
    guesses: Guesses = {}
    sums: list[dict[str, Any]] = []
    start = piece.model.embedding_site
    for moved in sites if path == "site" else [start]:
        wanted = [moved] if path == "site" else list(dict.fromkeys([*sites, start]))
        shares = [*((i + 0.5) / steps for i in range(steps)), 1.0]
        rows = [Row(case, share) for case in piece.cases for share in shares]
        slopes: dict[tuple[int, str], Tensor] = {}
        whole: dict[int, float] = {}
        runs = piece.rows(rows, wanted, lambda part, m=moved: [_moved(piece, part, m)], None)
        for row, figure, found in runs:
            if row.share == 1.0:
                whole[id(row.case)] = figure
                continue
            for site in wanted:
                # Batches are padded to different lengths.
                key, slope = (id(row.case), site), found[site][: row.case.length].double() / steps
                slopes[key] = slopes[key] + slope if key in slopes else slope
        for case in piece.cases:
            for site in wanted:
                guesses[id(case), site] = _guess(piece, case, site, slopes[id(case), site])
            sums.append(
                {
                    "pair": case.pair,
                    "way": case.way,
                    "site": moved,
                    "attributed": float(guesses[id(case), moved].effect.sum()),
                    "exact": whole[id(case)] - ends[id(case)][0],
                }
            )
    return guesses, sums


def starred(piece: Piece, sites: Sequence[str]) -> Guesses:
    """AtP*: one differentiated run for each case, and one more for each of the model's blocks.

    The effect is that of the run with nothing dropped. The score is Σ |effect with block l dropped|
    over the blocks, divided by the number of those that do not hold the site, which drop nothing of
    its own (L - 1; Kramár et al. 2024, section 3.1.2). For sites of the stream, which the paper
    does not have, all L count: ours.
    """
    layers = piece.model.n_layers
    fixed = [site for site in sites if is_query_or_key(site)]
    plain = [site for site in sites if site not in fixed]
    exact = {id(case): QueryKey(piece, case, fixed) for case in piece.cases} if fixed else {}
    patterns = list(dict.fromkeys(QueryKey.pattern(site) for site in fixed))
    drops = [-1, *(range(layers) if layers > 1 else ())]
    rows = [Row(case, dropped=block) for case in piece.cases for block in drops]
    writes = piece.model.resolve_sites(["attn_out", "mlp_out"])
    effects: dict[tuple[int, str], np.ndarray] = {}
    scores: dict[tuple[int, str], np.ndarray] = {}
    changed: dict[tuple[int, str], np.ndarray] = {}
    for row, _, found in piece.rows(
        rows, [*plain, *patterns], None, lambda part: [_Dropped(writes, part)]
    ):
        for site in sites:
            key = (id(row.case), site)
            if site in plain:
                guess = _guess(piece, row.case, site, found[site])
            else:
                moved = _moved_at_all(piece, row.case, site)
                effect = exact[id(row.case)].effect(site, found[QueryKey.pattern(site)])
                effect = np.where(moved, effect, 0.0)
                guess = Guess(effect, np.abs(effect), moved)
            if row.dropped < 0:
                effects[key], changed[key] = guess.effect, guess.changed
            else:
                count = layers if _STREAM.search(site) else layers - 1
                scores[key] = scores.get(key, 0.0) + guess.score / count
    return {
        key: Guess(effect, scores.get(key, np.abs(effect)), changed[key])
        for key, effect in effects.items()
    }


def _guess(piece: Piece, case: Case, site: str, slope: Tensor) -> Guess:
    """Of the cells at a site, from the figure's slope `[pos, *row]` there."""
    change = piece.change(case, site)
    effect = _by_segment(piece, case, site, change * slope[: case.length].double())
    return Guess(effect, np.abs(effect), _moved_at_all(piece, case, site))


def _moved_at_all(piece: Piece, case: Case, site: str) -> np.ndarray:
    return _by_segment(piece, case, site, piece.change(case, site).abs()) > 0


def _by_segment(piece: Piece, case: Case, site: str, values: Tensor) -> np.ndarray:
    """Sums over the values `[length, *row]` of each cell, `[segments, heads or 1]`."""
    apart = piece.apart(site)
    each = values.sum(-1) if apart else values.flatten(1).sum(-1, keepdim=True)
    return torch.stack([each[a:b].sum(0) for a, b in piece.spans(case)]).cpu().numpy()


def _moved(piece: Piece, rows: Sequence[Row], site: str) -> Replacement:
    """All states of a site that have a counterpart, each row's by its share."""
    longest = max(row.case.length for row in rows)
    values, at = [], torch.full((len(rows), longest), -1, dtype=torch.long)
    for i, row in enumerate(rows):
        n = row.case.length
        base = piece.states.both(row.case, site)[0]
        new = base[:n].double() + row.share * piece.change(row.case, site)
        values.append(torch.nn.functional.pad(new.flatten(1), (0, 0, 0, longest - n)).to(base))
        at[i, :n] = torch.where(torch.as_tensor(row.case.aligned) >= 0, torch.arange(n), -1)
    return replace(site, torch.stack(values), at)


class _Dropped:
    """Lets what one block of each run writes into the stream pass, and no gradient through it."""

    name = "drop"

    def __init__(self, sites: Sequence[str], rows: Sequence[Row]) -> None:
        self.sites = tuple(sites)
        self._dropped = torch.tensor([row.dropped for row in rows])

    def __call__(self, activation: Tensor, site: str, positions: Tensor | None) -> Tensor:
        own = (self._dropped == layer_of(site)).to(activation.device)
        return torch.where(own[:, None, None], activation.detach(), activation)
