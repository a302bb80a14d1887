"""Put given states at given positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interventions.edits.base import SiteEdit, digest
from interventions.edits.given import require_site
from interventions.edits.where import as_heads
from interventions.errors import EditError


@dataclass(frozen=True, eq=False)
class Replacement(SiteEdit):
    """Puts given states at given positions of one site, bit for bit.

    `values` is `[P, d]`, the same for each text, or `[B, P, d]`; `positions` is `[P]` or `[B, P]`,
    the position that each value goes to, -1 for none.
    """

    site: str
    values: Tensor
    positions: Tensor
    name: str = field(default="replace", kw_only=True)

    kind = "replace"
    exact = True

    @property
    def sites(self) -> tuple[str, ...]:
        """The one site that this edit changes."""
        return (self.site,)

    def _width(self, site: str) -> int:
        return self.values.shape[-1]

    def _change(self, x: Tensor, site: str, here: Tensor) -> Tensor:
        values = self._of_texts(self.values, 3, x).to(x)
        at = self._of_texts(self.positions, 2, x)
        found = here[:, :, None] == at[:, None, :]
        which = found.to(torch.int8).argmax(dim=-1)
        new = torch.take_along_dim(values, which[..., None], dim=1)
        there = found.any(dim=-1)[..., None]
        if x.ndim > 3:  # the same value for each head
            new, there = new[:, :, None], there[..., None]
        return torch.where(there, new, x)

    def _of_texts(self, held: Tensor, ndim: int, x: Tensor) -> Tensor:
        """The rows of `held` that belong to the texts of this pass."""
        held = held if held.ndim == ndim else held[None]
        count = len(x) if self.texts is None else self.texts.count
        if len(held) not in (1, count):
            raise EditError(
                f"`{self.name}` holds values for {len(held)} rows and the batch has {count}: give "
                "as many, or values [P, d] for all of them."
            )
        held = held.to(x.device)
        if len(held) > 1 and self.texts is not None:
            held = held[self.texts.rows.to(x.device)]
        return held.expand(len(x), *held.shape[1:])

    def _parameters(self) -> dict[str, Any]:
        values = digest(self.values.detach().double().cpu())
        return {"positions": self.positions.tolist(), "values": values}


def replace(
    site: str,
    values: Any,
    positions: Any,
    *,
    heads: int | Sequence[int] | None = None,
    name: str | None = None,
) -> Replacement:
    """Put `values` at `positions` of `site`.

    Args:
        values: `[d]` for every position, `[P, d]`, or `[B, P, d]` with one set for each text. At a
            site of heads d is all heads' width, of which the chosen `heads` are put, or one head's.
        positions: `[P]`, or `[B, P]` with one set for each text; -1 for no position.

    Raises:
        EditError: a name that is no site, shapes that do not fit, or values that are not finite.
    """
    require_site(site)
    states = torch.as_tensor(values)
    at = torch.as_tensor(positions, dtype=torch.long)
    at = at.reshape(1, -1) if at.ndim < 2 else at
    if states.ndim == 1:
        states = states.expand(at.shape[-1], -1)
    states = states[None] if states.ndim == 2 else states
    rows = (1, max(len(states), len(at)))
    fits = states.ndim == 3 and at.ndim == 2 and states.shape[1] == at.shape[1]
    if not fits or len(states) not in rows or len(at) not in rows:
        raise EditError(
            f"The values have shape {tuple(states.shape)} and the positions {tuple(at.shape)}: "
            "give one value for each position, [P, d] and [P], or [B, P, d] and [B, P]."
        )
    if not torch.isfinite(states).all():
        raise EditError(f"The values to put at {site} are not all finite: check their source.")
    return Replacement(site, states, at, heads=as_heads(heads), name=name or f"replace({site})")
