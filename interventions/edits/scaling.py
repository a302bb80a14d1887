"""Multiply what states have in a subspace, or all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from geometry import Subspace
from interventions.edits.base import PositionedEdit, spaces_said
from interventions.edits.given import (
    PerSite,
    Sites,
    as_sites,
    label,
    origin,
    require_finite,
    require_origin,
    subspaces,
)
from interventions.edits.where import Positions, as_heads, as_positions
from interventions.errors import EditError


@dataclass(frozen=True, eq=False)
class Scaling(PositionedEdit):
    """Multiplies coordinates: h ↦ h + (c - 1) P(h - o), with o the subspace's mean or zero.

    Where a site has no subspace (None), h ↦ c h. Factor 1 changes nothing but for rounding; 0 is
    `ablate`; -1 mirrors.
    """

    subspaces: Mapping[str, Subspace | None]
    factor: float = 1.0
    about: Literal["mean", "zero"] = "mean"

    kind = "scale"

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that this edit changes."""
        return tuple(self.subspaces)

    def _width(self, site: str) -> int | None:
        space = self.subspaces[site]
        return None if space is None else space.d

    def _arrays(self, site: str) -> tuple[np.ndarray, ...]:
        space = self.subspaces[site]
        return () if space is None else (space.basis, origin(space, self.about))

    def _change(self, x: Tensor, site: str, here: Tensor) -> Tensor:
        held = self._held(site, x)
        if not held:
            return x * self.factor
        basis, start = held
        return x + (self.factor - 1) * (x @ basis - start) @ basis.T

    def _parameters(self) -> dict[str, Any]:
        spaces = {site: space for site, space in self.subspaces.items() if space is not None}
        about = self.about if spaces else "zero"
        return {"factor": self.factor, "about": about, "subspaces": spaces_said(spaces)}


def scale(
    subspace: PerSite | None,
    factor: float,
    sites: Sites | None = None,
    *,
    about: Literal["mean", "zero"] = "mean",
    positions: Positions | None = None,
    heads: int | Sequence[int] | None = None,
    name: str | None = None,
) -> Scaling:
    """Multiply the coordinates of the activations in a subspace.

    Args:
        subspace: as for `ablate`; None scales whole activations, from zero, at `sites`.
        about: the point of a subspace that stays where it is.
        positions, heads: as for `ablate`.

    Raises:
        EditError: as for `ablate`, or a factor that is not finite.
    """
    require_origin(about, "about")
    amount = require_finite(factor, "factor")
    spaces: dict[str, Subspace | None]
    if subspace is None:
        if sites is None:
            raise EditError("Whole activations are scaled at sites that you name: give `sites`.")
        spaces = dict.fromkeys(as_sites(sites))
    else:
        spaces = dict(subspaces(subspace, sites))
    return Scaling(
        spaces,
        amount,
        about,
        positions=as_positions(positions),
        heads=as_heads(heads),
        name=name or f"scale({label(spaces)})",
    )
