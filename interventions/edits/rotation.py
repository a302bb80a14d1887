"""Turn the states within a subspace, and leave the rest of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from geometry import Subspace
from interventions.edits.base import PositionedEdit, digest, spaces_said
from interventions.edits.given import PerSite, Sites, label, origin, require_origin, subspaces
from interventions.edits.where import Positions, as_heads, as_positions
from interventions.errors import EditError


@dataclass(frozen=True, eq=False)
class Rotation(PositionedEdit):
    """Turns coordinates: h ↦ h + Q(R - I)Qᵀ(h - o), Q the basis, o the subspace's mean or zero.

    `matrix` R is `[k, k]`, orthogonal, and maps coordinates as columns.
    """

    subspaces: Mapping[str, Subspace]
    matrix: np.ndarray
    about: Literal["mean", "zero"] = "mean"

    kind = "rotate"

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that this edit changes."""
        return tuple(self.subspaces)

    def _width(self, site: str) -> int:
        return self.subspaces[site].d

    def _arrays(self, site: str) -> tuple[np.ndarray, ...]:
        space = self.subspaces[site]
        turned = (self.matrix - np.eye(space.k)).T @ space.basis.T
        return space.basis, origin(space, self.about), turned

    def _change(self, x: Tensor, site: str, here: Tensor) -> Tensor:
        basis, start, turned = self._held(site, x)
        return x + (x @ basis - start) @ turned

    def _parameters(self) -> dict[str, Any]:
        told = {"about": self.about, "matrix": digest(self.matrix)}
        return {**told, "subspaces": spaces_said(self.subspaces)}


def rotate(
    subspace: PerSite,
    by: float | ArrayLike,
    sites: Sites | None = None,
    *,
    about: Literal["mean", "zero"] = "mean",
    positions: Positions | None = None,
    heads: int | Sequence[int] | None = None,
    name: str | None = None,
) -> Rotation:
    """Turn the activations within a subspace, about its mean or zero.

    Args:
        by: an angle in radians in a plane, from its first axis towards its second, or an orthogonal
            matrix `[k, k]`, reflections included.
        positions, heads: as for `ablate`.

    Raises:
        EditError: as for `ablate`, an angle in a subspace that is no plane, or a matrix that is not
            orthogonal.
    """
    require_origin(about, "about")
    spaces = subspaces(subspace, sites)
    try:
        matrix = np.asarray(by, dtype=np.float64)
    except (TypeError, ValueError):
        raise EditError(f"{by!r} is neither an angle in radians nor a matrix.") from None
    if not np.isfinite(matrix).all():
        raise EditError("The angle or matrix is not finite: check where it comes from.")
    for site, space in spaces.items():
        if matrix.ndim == 0 and space.k != 2:
            raise EditError(
                f"An angle turns a plane and the subspace for {site} has {space.k} dimensions: "
                f"give an orthogonal matrix [{space.k}, {space.k}]."
            )
        if matrix.ndim and matrix.shape != (space.k, space.k):
            raise EditError(
                f"The matrix has shape {matrix.shape} and the subspace for {site} needs "
                f"({space.k}, {space.k})."
            )
    if matrix.ndim == 0:
        cos, sin = np.cos(matrix), np.sin(matrix)
        matrix = np.array([[cos, -sin], [sin, cos]])
    if np.abs(matrix.T @ matrix - np.eye(len(matrix))).max() > 1e-6:
        raise EditError("The matrix is not orthogonal, so it would also stretch: take its QR.")
    return Rotation(
        spaces,
        matrix,
        about,
        positions=as_positions(positions),
        heads=as_heads(heads),
        name=name or f"rotate({label(spaces)})",
    )
