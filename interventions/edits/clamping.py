"""Set a coordinate along a direction, or keep it within bounds."""

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
    directions,
    label,
    origin,
    require_finite,
    require_origin,
)
from interventions.edits.where import Positions, as_heads, as_positions
from interventions.errors import EditError

Unit = Literal["unit", "difference"]


@dataclass(frozen=True, eq=False)
class Clamping(PositionedEdit):
    """Moves states along a direction u until their coordinate lies within [low, high].

    With c = uᵀ(h - o), o the direction's mean or zero: h ↦ h + (min(max(c, low), high) - c) u.
    Bounds are in `unit`: "unit", those of the states along the unit vector, or "difference", the
    direction's own length, so that 0 and 1 are the two means of a mean difference about its mean.
    """

    directions: Mapping[str, Subspace]
    low: float
    high: float
    unit: Unit = "unit"
    about: Literal["mean", "zero"] = "mean"

    kind = "clamp"

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that this edit changes."""
        return tuple(self.directions)

    def _width(self, site: str) -> int:
        return self.directions[site].d

    def _arrays(self, site: str) -> tuple[np.ndarray, ...]:
        line = self.directions[site]
        length = float(line.singular_values[0]) if self.unit == "difference" else 1.0
        bounds = length * np.array([self.low, self.high])
        return line.basis[:, 0], origin(line, self.about)[0] + bounds

    def _change(self, x: Tensor, site: str, here: Tensor) -> Tensor:
        direction, bounds = self._held(site, x)
        along = x @ direction
        moved = along.clamp(bounds[0], bounds[1]) - along
        return x + moved[..., None] * direction

    def _parameters(self) -> dict[str, Any]:
        bounds = [b if np.isfinite(b) else None for b in (self.low, self.high)]
        told = {"low": bounds[0], "high": bounds[1], "unit": self.unit, "about": self.about}
        return {**told, "subspaces": spaces_said(self.directions)}


def clamp(
    direction: PerSite,
    value: float | tuple[float | None, float | None],
    sites: Sites | None = None,
    *,
    unit: Unit = "unit",
    about: Literal["mean", "zero"] = "mean",
    positions: Positions | None = None,
    heads: int | Sequence[int] | None = None,
    name: str | None = None,
) -> Clamping:
    """Set the coordinate of the activations along a direction to a value.

    Args:
        value: what the coordinate is set to, or the bounds (low, high) that it is kept within,
            None for no bound.
        unit: of the value: "unit" for the states' own, or "difference" for the direction's length.
        about: where the coordinate is zero.
        positions, heads: as for `ablate`.

    Raises:
        EditError: as for `add`, a value that is not finite, or bounds the wrong way round.
    """
    require_origin(about, "about")
    if unit not in ("unit", "difference"):
        raise EditError(f"`unit` is {unit!r}: give 'unit' or 'difference'.")
    if isinstance(value, tuple):
        if len(value) != 2 or value == (None, None):
            raise EditError(f"`value` is {value!r}: give one number, or bounds (low, high).")
        low = -np.inf if value[0] is None else require_finite(value[0], "lower bound")
        high = np.inf if value[1] is None else require_finite(value[1], "upper bound")
        if low > high:
            raise EditError(f"The lower bound {low} is above the upper one {high}: exchange them.")
    else:
        low = high = require_finite(value, "value")
    lines = directions(direction, sites, "clamp")
    return Clamping(
        lines,
        low,
        high,
        unit,
        about,
        positions=as_positions(positions),
        heads=as_heads(heads),
        name=name or f"clamp({label(lines)})",
    )
