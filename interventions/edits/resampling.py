"""Whole activations exchanged for those of other texts, drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interventions.edits.base import PositionedEdit, digest
from interventions.edits.given import Sites, as_sites, for_each_site, label, require_store
from interventions.edits.where import Positions, as_heads, as_positions
from interventions.errors import EditError

if TYPE_CHECKING:
    from activations import ActivationStore


@dataclass(frozen=True, eq=False)
class Resampling(PositionedEdit):
    """Puts another text's states in place of a text's own, position by position.

    Attributes:
        states: by site `[rows, d]`, of all source texts one after another.
        index: `[n, positions]`, which row text number i has at each position; texts from n on
            begin again at 0, and positions past the end take the last.
        seed: of the draw.
    """

    states: Mapping[str, Tensor]
    index: Tensor
    seed: int

    kind = "resample"
    exact = True
    per_head = False

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that this edit changes."""
        return tuple(self.states)

    def _width(self, site: str) -> int:
        return self.states[site].shape[-1]

    def _change(self, x: Tensor, site: str, here: Tensor) -> Tensor:
        numbers = torch.arange(len(x)) if self.texts is None else self.texts.rows
        index = self.index.to(x.device)[numbers.to(x.device) % len(self.index)]
        rows = index.gather(1, here.clamp(max=index.shape[1] - 1))
        states = self.states[site]
        return states[rows.to(states.device)].to(x)

    def _parameters(self) -> dict[str, Any]:
        said = {site: digest(states.double().cpu()) for site, states in self.states.items()}
        return {"seed": self.seed, "source_texts": len(self.index), "states": said}


def resample(
    source: ActivationStore | Mapping[str, Any],
    sites: Sites | None = None,
    *,
    seed: int,
    positions: Positions | None = None,
    heads: int | Sequence[int] | None = None,
    name: str | None = None,
) -> Resampling:
    """Set whole activations to those of another text (resample ablation, Chan et al. 2022).

    Each text has one donor, the same at every site, position and step of decoding: text number i
    of those that run together (in `generate` and `losses` however they are batched; else row i of
    the batch) takes its states from a source text drawn without replacement, never from source
    text i, so that the source may be the very texts that run. At position t it takes the donor's
    state at t or at the nearest position before it that the source has, else the donor's first.

    Args:
        source: by site `[n, d]`, one state for each source text, or `[n, T, d]` or
            `[n, T, heads, d_head]`, one for each position; or a store, at `sites`, all of its own
            where None. Its states are held in memory: choose texts by `store.select`.
        seed: of the draw of donors.
        positions, heads: as for `ablate`.

    Raises:
        EditError: as for `ablate`, fewer than two source texts, sites whose shapes disagree, or
            states that are not finite.
    """
    if isinstance(source, Mapping):
        states, index = _from_arrays(for_each_site(source, sites, thing="array"))
    else:
        require_store(source, "states [n, d]")
        states, index = _from_store(source, as_sites(source.sites if sites is None else sites))
    if len(index) < 2:
        raise EditError(
            f"The source has {len(index)} texts, so there is no other to draw: give two or more."
        )
    for site, rows in states.items():
        if not torch.isfinite(rows).all():
            raise EditError(f"The states of {site} are not all finite: check their source.")
    return Resampling(
        states,
        torch.as_tensor(index[_donors(len(index), seed)]),
        int(seed),
        positions=as_positions(positions),
        heads=as_heads(heads),
        name=name or f"resample({label(states)})",
    )


def _donors(n: int, seed: int) -> np.ndarray:
    """For each of n texts another one, in one random cycle through all."""
    order = np.random.default_rng(seed).permutation(n)
    donors = np.empty(n, dtype=np.int64)
    donors[order] = np.roll(order, 1)
    return donors


def _from_arrays(arrays: Mapping[str, Any]) -> tuple[dict[str, Tensor], np.ndarray]:
    states: dict[str, Tensor] = {}
    first: tuple[int, int] | None = None
    for site, array in arrays.items():
        given = torch.as_tensor(array).detach()
        if given.ndim not in (2, 3, 4):
            raise EditError(
                f"The states of {site} have shape {tuple(given.shape)}: give [n, d], [n, T, d] or "
                "[n, T, heads, d_head]."
            )
        shape = (len(given), given.shape[1] if given.ndim > 2 else 1)
        if first is not None and shape != first:
            raise EditError(
                f"The states of {site} are of {shape[0]} texts with {shape[1]} positions and those "
                f"of {next(iter(arrays))} of {first[0]} with {first[1]}: give the same texts."
            )
        first = shape
        states[site] = given.reshape(shape[0] * shape[1], -1)
    assert first is not None
    return states, np.arange(first[0] * first[1]).reshape(first)


def _from_store(
    store: ActivationStore, sites: Sequence[str]
) -> tuple[dict[str, Tensor], np.ndarray]:
    frame = store.rows
    examples, starts = np.unique(frame["example"].to_numpy(), return_index=True)
    bounds = [*starts.tolist(), len(frame)]
    at = np.maximum(frame["position"].to_numpy(), 0)
    index = np.zeros((len(examples), int(at.max(initial=0)) + 1), dtype=np.int64)
    for text, (start, end) in enumerate(pairwise(bounds)):
        before = np.searchsorted(at[start:end], np.arange(index.shape[1]), side="right") - 1
        index[text] = start + np.maximum(before, 0)
    states = {site: torch.as_tensor(store[site][:]).flatten(1) for site in sites}
    return states, index
