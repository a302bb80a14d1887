"""Edits of activations: values that a model applies while `with model.edited(...)` is open.

An edit names its sites, and maps an activation to a new one; it holds no state of a run, so one
edit may serve any number of models, batches and decoding steps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from geometry import Subspace
from interventions.errors import EditError

_SITE = re.compile(
    r"(blocks\.\d+\.[\w.]+|embed|hook_embed|hook_pos_embed|ln_final[\w.]*|unembed[\w.]*)"
)

PerSite = Subspace | Mapping[str, Subspace]


@dataclass(frozen=True, eq=False)
class Ablation:
    """Sets the coordinates of an activation in a subspace to the mean's, or to zero.

    `to="mean"`: h ↦ h - P(h - μ), the affine removal (Marshall, Scherlis & Belrose 2024), which
    leaves the model near where it usually is. `to="zero"`: h ↦ h - P h (Arditi et al. 2024).
    Positions other than `positions` (all where None) stay as they are.
    """

    subspaces: Mapping[str, Subspace]
    to: Literal["mean", "zero"] = "mean"
    positions: tuple[int, ...] | None = None
    name: str = "ablate"
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that this edit changes."""
        return tuple(self.subspaces)

    def __call__(
        self, activation: torch.Tensor, site: str, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The edited activation `[B, T, d]` (or `[B, T, heads, d_head]` with d = both)."""
        flat = _flat(activation, self.subspaces[site].d, site, self.name)
        key = (site, flat.device, flat.dtype)
        if key not in self._cache:
            space = self.subspaces[site]
            target = space.mean @ space.basis if self.to == "mean" else np.zeros(space.k)
            self._cache[key] = (_tensor(space.basis, flat), _tensor(target, flat))
        basis, target = self._cache[key]
        edited = flat - (flat @ basis - target) @ basis.T
        return _back(_only_at(flat, edited, self.positions, positions), activation)


@dataclass(frozen=True, eq=False)
class Addition:
    """Adds `scale` times a vector; with a mean difference, scale 1 moves one mean to the other.

    Activation addition (Turner et al. 2023; Rimsky et al. 2024). `vectors` are `[d]` per site.
    """

    vectors: Mapping[str, np.ndarray]
    scale: float = 1.0
    positions: tuple[int, ...] | None = None
    name: str = "add"
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that this edit changes."""
        return tuple(self.vectors)

    def __call__(
        self, activation: torch.Tensor, site: str, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The edited activation, of the shape given."""
        flat = _flat(activation, len(self.vectors[site]), site, self.name)
        key = (site, flat.device, flat.dtype)
        if key not in self._cache:
            self._cache[key] = _tensor(self.scale * self.vectors[site], flat)
        edited = flat + self._cache[key]
        return _back(_only_at(flat, edited, self.positions, positions), activation)


@dataclass(frozen=True, eq=False)
class Replacement:
    """Puts given states at given positions of one site.

    `values` is `[P, d]`, the same for each row of the batch, or `[B, P, d]`; `positions` is `[P]`
    or `[B, P]`, the position that each value goes to, -1 for none.
    """

    site: str
    values: torch.Tensor
    positions: torch.Tensor
    name: str = "replace"

    @property
    def sites(self) -> tuple[str, ...]:
        """The one site that this edit changes."""
        return (self.site,)

    def __call__(
        self, activation: torch.Tensor, site: str, positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The activation `[B, T, d]` with the values in place."""
        flat = _flat(activation, self.values.shape[-1], site, self.name, exact=True)
        rows = flat.shape[0]
        if self.values.shape[0] not in (1, rows):
            raise EditError(
                f"`{self.name}` holds values for {self.values.shape[0]} rows and the batch has "
                f"{rows}: give as many, or values [P, d] for all of them."
            )
        values = self.values.to(flat).expand(rows, -1, -1)
        at = self.positions.to(flat.device).expand(rows, -1)
        here = _positions(flat, positions)[:, :, None] == at[:, None, :]
        which = here.to(torch.int8).argmax(dim=-1)
        new = torch.take_along_dim(values, which[..., None], dim=1)
        return _back(torch.where(here.any(dim=-1)[..., None], new, flat), activation)


def ablate(
    subspace: PerSite,
    sites: str | Sequence[str] | None = None,
    *,
    to: Literal["mean", "zero"] = "mean",
    positions: Sequence[int] | None = None,
    name: str | None = None,
) -> Ablation:
    """Take a subspace out of the activations at some sites.

    Args:
        subspace: one for all `sites` (its own site where none are given), or one for each site.
        to: "mean" sets the coordinates to those of the subspace's mean, "zero" to zero.
        positions: token positions from 0; all where None.

    Raises:
        EditError: no site, a name that is no site, other `to`, or a subspace that is not finite.
    """
    if to not in ("mean", "zero"):
        raise EditError(f"`to` is {to!r}: give 'mean' or 'zero'.")
    spaces = _per_site(subspace, sites)
    return Ablation(spaces, to, _as_positions(positions), name or f"ablate({_label(spaces)})")


def add(
    direction: PerSite,
    sites: str | Sequence[str] | None = None,
    *,
    scale: float = 1.0,
    positions: Sequence[int] | None = None,
    name: str | None = None,
) -> Addition:
    """Add `scale` times a direction (its unit vector times its singular value) at some sites.

    Raises:
        EditError: as for `ablate`, a subspace of more than one dimension, or a scale that is not
            finite.
    """
    if not np.isfinite(scale):
        raise EditError(f"The scale is {scale}: give a finite number.")
    spaces = _per_site(direction, sites)
    vectors = {}
    for site, space in spaces.items():
        if space.k != 1:
            raise EditError(
                f"The subspace for {site} has {space.k} dimensions and has no one direction to "
                "add: give a direction (k = 1), as geometry.mean_difference makes."
            )
        vectors[site] = space.basis[:, 0] * float(np.asarray(space.singular_values)[0])
    label = name or f"add({_label(spaces)})"
    return Addition(vectors, float(scale), _as_positions(positions), label)


def replace(
    site: str,
    values: Any,
    positions: Any,
    *,
    name: str | None = None,
) -> Replacement:
    """Put `values` at `positions` of `site`.

    Args:
        values: `[d]` for every position, `[P, d]`, or `[B, P, d]` with one set per row.
        positions: `[P]`, or `[B, P]` with one set per row; -1 for no position.

    Raises:
        EditError: a name that is no site, shapes that do not fit, or values that are not finite.
    """
    _require_site(site)
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
    return Replacement(site, states, at, name or f"replace({site})")


def _per_site(subspace: PerSite, sites: str | Sequence[str] | None) -> dict[str, Subspace]:
    if isinstance(subspace, Mapping):
        spaces = dict(subspace)
        if sites is not None:
            wanted = [sites] if isinstance(sites, str) else list(sites)
            missing = [site for site in wanted if site not in spaces]
            if missing:
                raise EditError(
                    f"No subspace was given for {missing[0]}: give one for each of the sites."
                )
            spaces = {site: spaces[site] for site in wanted}
    else:
        named = [sites] if isinstance(sites, str) else list(sites or ())
        if sites is None and subspace.site:
            named = [subspace.site]
        spaces = dict.fromkeys(named, subspace)
    if not spaces:
        raise EditError(
            "The edit has no site: name the sites, as in sites='blocks.3.hook_resid_post', or "
            "give a subspace that knows its own."
        )
    for site, space in spaces.items():
        _require_site(site)
        parts = (space.basis, space.mean, space.singular_values)
        if not all(np.isfinite(np.asarray(part)).all() for part in parts):
            raise EditError(
                f"The subspace for {site} holds values that are not finite: fit it on finite "
                "activations."
            )
    return spaces


def _require_site(site: str) -> None:
    if not _SITE.fullmatch(site):
        raise EditError(
            f"{site!r} is no full name of a site: give names such as 'blocks.3.hook_resid_post'; "
            "model.resolve_sites('resid_post') lists them."
        )


def _as_positions(positions: Sequence[int] | None) -> tuple[int, ...] | None:
    if positions is None:
        return None
    chosen = tuple(int(position) for position in positions)
    if any(position < 0 for position in chosen):
        raise EditError(
            f"Position {min(chosen)} is negative: count token positions from 0, since a text that "
            "is being generated has no last one yet."
        )
    return chosen


def _label(spaces: Mapping[str, Subspace]) -> str:
    first = next(iter(spaces.values()))
    named = str((first.provenance or {}).get("name", ""))
    sites = list(spaces)
    return named or (sites[0] if len(sites) == 1 else f"{len(sites)} sites")


def _tensor(values: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(np.asarray(values, dtype=np.float64)).to(like)


def _flat(
    activation: torch.Tensor, d: int, site: str, name: str, *, exact: bool = False
) -> torch.Tensor:
    """As `[B, T, d]`, in at least single precision unless the values are to be kept bit for bit."""
    flat = activation.flatten(2) if activation.ndim > 3 else activation
    if flat.shape[-1] != d:
        raise EditError(
            f"`{name}` was made for {d} dimensions and {site} has {flat.shape[-1]}: fit it on "
            "activations of this model and site."
        )
    if not exact and flat.dtype not in (torch.float32, torch.float64):
        return flat.float()
    return flat


def _back(edited: torch.Tensor, activation: torch.Tensor) -> torch.Tensor:
    return edited.to(activation.dtype).reshape(activation.shape)


def _positions(flat: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """Position ids `[B, T]` of the tokens in this forward pass."""
    if positions is None:
        positions = torch.arange(flat.shape[1], device=flat.device)
    return positions.to(flat.device).expand(flat.shape[0], flat.shape[1])


def _only_at(
    plain: torch.Tensor,
    edited: torch.Tensor,
    chosen: tuple[int, ...] | None,
    positions: torch.Tensor | None,
) -> torch.Tensor:
    if chosen is None:
        return edited
    here = _positions(plain, positions)
    wanted = torch.isin(here, torch.tensor(chosen, device=here.device))
    return torch.where(wanted[..., None], edited, plain)
