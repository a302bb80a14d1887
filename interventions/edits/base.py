"""What all edits share: how they see states, where they put new ones, how they add and are told."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import replace as with_fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interventions.edits.where import Chosen, at_heads, at_positions, positions_said
from interventions.errors import EditError

if TYPE_CHECKING:
    from activations.edit import Edit, Texts
    from interventions.edits.composition import Composition

#: Sites whose states are `[batch, heads, query, key]`, by the end of their name.
_HEADS_FIRST = ("hook_pattern", "hook_attn_scores")


@dataclass(frozen=True, eq=False, kw_only=True)
class SiteEdit:
    """A change to whole rows of states, of which those at some heads are kept.

    A kind of edit gives `sites`, `_width` and `_change`. It keeps no state of a run, changes no
    tensor that it is given, and is differentiable in it.
    """

    heads: tuple[int, ...] | None = None
    name: str = "edit"
    texts: Texts | None = field(default=None, repr=False)
    _cache: dict[Any, Any] = field(default_factory=dict, repr=False)

    #: What makes such an edit.
    kind = "edit"
    #: Whether states stay in their own precision; if not, half precision is left for the change.
    exact = False
    #: Whether what was made for one head's width serves each of the heads.
    per_head = True

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that this edit changes."""
        raise NotImplementedError

    def for_texts(self, texts: Texts) -> SiteEdit:
        """The edit of a pass over these texts."""
        return with_fields(self, texts=texts)

    def __add__(self, other: Edit) -> Composition:
        """This edit, and then the other."""
        from interventions.edits.composition import compose

        return compose(self, other)

    def __call__(self, activation: Tensor, site: str, positions: Tensor | None = None) -> Tensor:
        """The edited activation, in its shape and dtype.

        Args:
            activation: `[B, T, d]`, `[B, T, heads, d_head]`, or attention `[B, heads, T, keys]`.
            positions: position ids `[B, T]` or `[T]`; from 0 where None.

        Raises:
            EditError: states of another width, or heads that the site does not have.
        """
        rows = activation.transpose(1, 2) if site.endswith(_HEADS_FIRST) else activation
        half = rows.dtype not in (torch.float32, torch.float64)
        x = rows.float() if half and not self.exact else rows
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device)
        here = positions.to(x.device).expand(x.shape[:2])
        seen = x.flatten(2) if self._is_whole(x, site) else x
        new = self._change(seen, site, here).reshape(x.shape)
        kept = self._where(x, here, site)
        new = (new if kept is None else torch.where(kept, new, x)).to(activation.dtype)
        return new.transpose(1, 2) if site.endswith(_HEADS_FIRST) else new

    def describe(self) -> dict[str, Any]:
        """What the edit is, as JSON can hold it; large arrays by SHA-256."""
        return {
            "kind": self.kind,
            "name": self.name,
            "sites": list(self.sites),
            "positions": positions_said(self._chosen()),
            "heads": None if self.heads is None else list(self.heads),
            **self._parameters(),
        }

    def _width(self, site: str) -> int | None:
        """How wide the rows must be; None for any."""
        raise NotImplementedError

    def _change(self, x: Tensor, site: str, here: Tensor) -> Tensor:
        """New states `[..., width]` for all of `x`; `here` `[B, T]` are position ids."""
        raise NotImplementedError

    def _parameters(self) -> dict[str, Any]:
        """What sets this edit apart from others of its kind, as JSON can hold it."""
        raise NotImplementedError

    def _chosen(self) -> Chosen:
        return "all"

    def _where(self, x: Tensor, here: Tensor, site: str) -> Tensor | None:
        """Which of `x` takes new values; None for all of it."""
        given = None if self.texts is None else self.texts.given
        tokens = at_positions(self._chosen(), here, given)
        if tokens is not None:
            tokens = tokens[(..., *[None] * (x.ndim - 2))]
        if self.heads is None:
            return tokens
        if x.ndim < 4:
            raise EditError(
                f"`{self.name}` is for heads {list(self.heads)} and {site} has none: leave out "
                "`heads`, or edit a site of heads, such as attn.hook_z."
            )
        if max(self.heads) >= x.shape[2]:
            raise EditError(
                f"`{self.name}` is for head {max(self.heads)} and {site} has heads 0 to "
                f"{x.shape[2] - 1}."
            )
        heads = at_heads(self.heads, x.shape[2], x.device)
        assert heads is not None
        return heads[:, None] if tokens is None else tokens & heads[:, None]

    def _is_whole(self, x: Tensor, site: str) -> bool:
        """Whether the edit is made for the values of several heads as one row.

        Raises:
            EditError: the rows are of another width.
        """
        width, own = self._width(site), x.shape[-1]
        whole = own * x.shape[2] if x.ndim > 3 else own
        if width == whole:
            return x.ndim > 3
        if width is None or (self.per_head and width == own):
            return False
        has = f"{x.shape[2]} heads of {own} ({whole} together)" if x.ndim > 3 else f"{own}"
        raise EditError(
            f"`{self.name}` was made for {width} dimensions and {site} has {has}: fit it on "
            "activations of this model and site."
        )

    def _held(self, site: str, like: Tensor) -> tuple[Tensor, ...]:
        """The arrays of `_arrays` as tensors beside `like`, made once."""
        key = (site, like.device, like.dtype)
        if key not in self._cache:
            # One made in inference mode could not serve a later pass with gradients.
            with torch.inference_mode(False):
                self._cache[key] = tuple(
                    torch.tensor(np.asarray(array, dtype=np.float64)).to(like)
                    for array in self._arrays(site)
                )
        return self._cache[key]

    def _arrays(self, site: str) -> tuple[np.ndarray, ...]:
        """What the change at a site is made with."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, kw_only=True)
class PositionedEdit(SiteEdit):
    """An edit whose positions are chosen by number or by rule (`interventions.edits.where`)."""

    positions: Chosen | None = None

    def _chosen(self) -> Chosen:
        return "all" if self.positions is None else self.positions


def digest(*arrays: Any) -> str:
    """SHA-256 of arrays: their shapes, and their values in f64."""
    summed = hashlib.sha256()
    for array in arrays:
        values = np.ascontiguousarray(np.asarray(array, dtype=np.float64))
        summed.update(str(values.shape).encode())
        summed.update(values.tobytes())
    return summed.hexdigest()


def spaces_said(spaces: Mapping[str, Any]) -> dict[str, Any]:
    """Subspaces in a description: by site their size, digest and provenance."""
    return {
        site: {
            "k": space.k,
            "digest": digest(space.basis, space.mean, space.singular_values),
            "provenance": dict(space.provenance),
        }
        for site, space in spaces.items()
    }
