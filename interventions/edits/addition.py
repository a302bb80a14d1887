"""Add a multiple of a direction to the states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from interventions.edits.base import PositionedEdit, digest
from interventions.edits.given import PerSite, Sites, directions, label, require_finite
from interventions.edits.where import Positions, as_heads, as_positions


@dataclass(frozen=True, eq=False)
class Addition(PositionedEdit):
    """Adds `scale` times a vector; with a mean difference, scale 1 moves one mean to the other.

    h ↦ h + c v. Activation addition (Turner et al. 2023; Rimsky et al. 2024). `vectors` are `[d]`
    per site.
    """

    vectors: Mapping[str, np.ndarray]
    scale: float = 1.0
    name: str = field(default="add", kw_only=True)

    kind = "add"

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that this edit changes."""
        return tuple(self.vectors)

    def _width(self, site: str) -> int:
        return len(self.vectors[site])

    def _arrays(self, site: str) -> tuple[np.ndarray, ...]:
        return (self.scale * self.vectors[site],)

    def _change(self, x: Tensor, site: str, here: Tensor) -> Tensor:
        return x + self._held(site, x)[0]

    def _parameters(self) -> dict[str, Any]:
        said = {
            site: {"norm": float(np.linalg.norm(vector)), "digest": digest(vector)}
            for site, vector in self.vectors.items()
        }
        return {"scale": self.scale, "vectors": said}


def add(
    direction: PerSite,
    sites: Sites | None = None,
    *,
    scale: float = 1.0,
    positions: Positions | None = None,
    heads: int | Sequence[int] | None = None,
    name: str | None = None,
) -> Addition:
    """Add `scale` times a direction (its unit vector times its singular value) at some sites.

    Args:
        positions, heads: as for `ablate`.

    Raises:
        EditError: as for `ablate`, a subspace of more than one dimension, or a scale that is not
            finite.
    """
    amount = require_finite(scale, "scale")
    spaces = directions(direction, sites, "add")
    vectors = {
        site: space.basis[:, 0] * float(np.asarray(space.singular_values)[0])
        for site, space in spaces.items()
    }
    return Addition(
        vectors,
        amount,
        positions=as_positions(positions),
        heads=as_heads(heads),
        name=name or f"add({label(spaces)})",
    )
