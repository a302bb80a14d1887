"""Whole activations set to one value: to zero, or to their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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

_ROWS = 8192


@dataclass(frozen=True, eq=False)
class Constant(PositionedEdit):
    """Puts one value in place of whole activations: h ↦ `values[site]` `[d]`, or 0 where None."""

    values: Mapping[str, np.ndarray | None]
    kind: str = "constant"

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that this edit changes."""
        return tuple(self.values)

    def _width(self, site: str) -> int | None:
        value = self.values[site]
        return None if value is None else len(value)

    def _arrays(self, site: str) -> tuple[np.ndarray, ...]:
        value = self.values[site]
        return () if value is None else (value,)

    def _change(self, x: Tensor, site: str, here: Tensor) -> Tensor:
        held = self._held(site, x)
        return held[0].expand_as(x) if held else torch.zeros_like(x)

    def _parameters(self) -> dict[str, Any]:
        given = {site: value for site, value in self.values.items() if value is not None}
        return {"values": {site: digest(value) for site, value in given.items()}}


def zero_ablate(
    sites: Sites,
    *,
    positions: Positions | None = None,
    heads: int | Sequence[int] | None = None,
    name: str | None = None,
) -> Constant:
    """Set whole activations to zero: `heads` of attn.hook_z at zero write nothing.

    Zero is often far from anything that the model meets, so it damages more than a mean does.

    Raises:
        EditError: no site, a name that is no site, or positions or heads that cannot be.
    """
    values = dict.fromkeys(as_sites(sites))
    return Constant(
        values,
        "zero_ablate",
        positions=as_positions(positions),
        heads=as_heads(heads),
        name=name or f"zero_ablate({label(values)})",
    )


def mean_ablate(
    means: ActivationStore | Mapping[str, Any],
    sites: Sites | None = None,
    *,
    positions: Positions | None = None,
    heads: int | Sequence[int] | None = None,
    name: str | None = None,
) -> Constant:
    """Set whole activations to a mean (Wang et al. 2022).

    Args:
        means: by site `[d]` or `[heads, d_head]`; or a store, whose rows are averaged in f64 at
            `sites`, all of its own where None. Choose rows by `store.select`.
        positions, heads: as for `ablate`.

    Raises:
        EditError: as for `ablate`, means that are not finite, or a store without rows.
    """
    found: dict[str, np.ndarray] = {}
    if isinstance(means, Mapping):
        for site, mean in for_each_site(means, sites, thing="mean").items():
            found[site] = np.array(mean, dtype=np.float64).ravel()
    else:
        require_store(means, "its mean, such as a subspace's `mean`")
        for site in as_sites(means.sites if sites is None else sites):
            found[site] = mean_of(means, site)
    for site, mean in found.items():
        if not np.isfinite(mean).all():
            raise EditError(f"The mean for {site} is not finite: check what it was made from.")
    return Constant(
        found,
        "mean_ablate",
        positions=as_positions(positions),
        heads=as_heads(heads),
        name=name or f"mean_ablate({label(found)})",
    )


def mean_of(store: ActivationStore, site: str) -> np.ndarray:
    """Mean `[d]` over a store's rows at a site, in f64, never all rows in memory.

    Raises:
        EditError: no rows.
    """
    states = store[site]
    if not len(states):
        raise EditError("The store has no rows to average: select some.")
    total = np.zeros(states.shape[1:])
    for start in range(0, len(states), _ROWS):
        total += states[start : start + _ROWS].sum(axis=0, dtype=np.float64)
    return (total / len(states)).ravel()
