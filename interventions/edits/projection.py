"""Project the states off a subspace: at right angles, or as a fitted eraser does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from geometry import LeaceEraser, Subspace
from interventions.edits.ablation import Ablation
from interventions.edits.base import PositionedEdit, digest
from interventions.edits.given import Sites, for_each_site, label, subspaces
from interventions.edits.where import Positions, as_heads, as_positions
from interventions.errors import EditError


@dataclass(frozen=True, eq=False)
class Erasure(PositionedEdit):
    """An eraser's map: h ↦ h - L R (h - μ), for LEACE an oblique one (Belrose et al. 2023).

    Attributes:
        maps: by site L `[d, r]`, R `[r, d]` and μ `[d]`.
        fits: by site what the eraser was fitted on: method, n, shrinkage.
    """

    maps: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
    fits: Mapping[str, Mapping[str, Any]]

    kind = "project_out"

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that this edit changes."""
        return tuple(self.maps)

    def _width(self, site: str) -> int:
        return len(self.maps[site][2])

    def _arrays(self, site: str) -> tuple[np.ndarray, ...]:
        left, right, mean = self.maps[site]
        return left, right, right @ mean

    def _change(self, x: Tensor, site: str, here: Tensor) -> Tensor:
        left, right, start = self._held(site, x)
        return x - (x @ right.T - start) @ left.T

    def _parameters(self) -> dict[str, Any]:
        said = {
            site: {**self.fits[site], "rank": left.shape[1], "digest": digest(left, right, mean)}
            for site, (left, right, mean) in self.maps.items()
        }
        return {"erasers": said}


def project_out(
    what: Subspace | LeaceEraser | Mapping[str, Subspace] | Mapping[str, LeaceEraser],
    sites: Sites | None = None,
    *,
    positions: Positions | None = None,
    heads: int | Sequence[int] | None = None,
    name: str | None = None,
) -> Ablation | Erasure:
    """Project the activations off a subspace, or erase a concept from them.

    Args:
        what: one for all `sites`, or one for each site. Off a Subspace the projection is orthogonal
            and linear, h - P h, which is `ablate(to="zero")`; a LeaceEraser does what it was fitted
            to do: for LEACE an oblique and affine projection, which takes out no more than it must.
        positions, heads: as for `ablate`.

    Raises:
        EditError: as for `ablate`, or both kinds at once.
    """
    things = for_each_site(what, sites)
    erasers = {s: t for s, t in things.items() if isinstance(t, LeaceEraser)}
    where: dict[str, Any] = {"positions": as_positions(positions), "heads": as_heads(heads)}
    name = name or f"project_out({label(things)})"
    if not erasers:
        return Ablation(subspaces(things, None), "zero", **where, name=name)  # type: ignore[arg-type]
    other = next((site for site in things if site not in erasers), None)
    if other is not None:
        raise EditError(
            f"An eraser was given for {next(iter(erasers))} and a {type(things[other]).__name__} "
            f"for {other}: give one kind, and compose two edits for both."
        )
    maps, fits = {}, {}
    for site, eraser in erasers.items():
        parts = (eraser.left, eraser.right, eraser.mean)
        if not all(np.isfinite(part).all() for part in parts):
            raise EditError(f"The eraser for {site} holds values that are not finite: fit it anew.")
        maps[site] = parts
        fits[site] = {"method": eraser.method, "n": eraser.n, "shrinkage": eraser.shrinkage}
    return Erasure(maps, fits, **where, name=name)
