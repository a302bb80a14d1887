"""Take a subspace out of the states: its coordinates are set to the mean's, or to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor

from geometry import Subspace
from interventions.edits.base import PositionedEdit, spaces_said
from interventions.edits.given import PerSite, Sites, label, origin, require_origin, subspaces
from interventions.edits.where import Positions, as_heads, as_positions


@dataclass(frozen=True, eq=False)
class Ablation(PositionedEdit):
    """Sets the coordinates of an activation in a subspace to the mean's, or to zero.

    `to="mean"`: h ↦ h - P(h - μ), the affine removal (Marshall, Scherlis & Belrose 2024), which
    leaves the model near where it usually is. `to="zero"`: h ↦ h - P h (Arditi et al. 2024).
    """

    subspaces: Mapping[str, Subspace]
    to: Literal["mean", "zero"] = "mean"
    name: str = field(default="ablate", kw_only=True)

    kind = "ablate"

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that this edit changes."""
        return tuple(self.subspaces)

    def _width(self, site: str) -> int:
        return self.subspaces[site].d

    def _arrays(self, site: str) -> tuple[np.ndarray, ...]:
        space = self.subspaces[site]
        return space.basis, origin(space, self.to)

    def _change(self, x: Tensor, site: str, here: Tensor) -> Tensor:
        basis, target = self._held(site, x)
        return x - (x @ basis - target) @ basis.T

    def _parameters(self) -> dict[str, Any]:
        return {"to": self.to, "subspaces": spaces_said(self.subspaces)}


def ablate(
    subspace: PerSite,
    sites: Sites | None = None,
    *,
    to: Literal["mean", "zero"] = "mean",
    positions: Positions | None = None,
    heads: int | Sequence[int] | None = None,
    name: str | None = None,
) -> Ablation:
    """Take a subspace out of the activations at some sites.

    Args:
        subspace: one for all `sites` (its own site where none are given), or one for each site.
        to: "mean" sets the coordinates to those of the subspace's mean, "zero" to zero.
        positions: token positions from 0, a slice or a rule; all where None.
        heads: of a site of heads; all where None.

    Raises:
        EditError: no site, a name that is no site, other `to`, or a subspace that is not finite.
    """
    require_origin(to, "to")
    spaces = subspaces(subspace, sites)
    return Ablation(
        spaces,
        to,
        positions=as_positions(positions),
        heads=as_heads(heads),
        name=name or f"ablate({label(spaces)})",
    )
