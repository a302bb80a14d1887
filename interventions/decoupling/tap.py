"""Hooks at the outputs of blocks: states of a training pass seen, and, if asked for, projected.

With gradient checkpoints a block may run again in the backward pass, hooks and all (transformers
before it checkpointed `forward` alone, or checkpoints of one's own). A state is seen
the first time only; a projection must be made again, and by the same mask, which is found by the
memory that the block's input lies in: checkpoints keep it, so it is no other tensor's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.places import first_argument, first_tensor, with_first
from interventions.errors import EditError


@dataclass(frozen=True)
class Plane:
    """A subspace where the model lies: basis `[d, k]` and μ `[d]` in f32 (f64 for an f64 model)."""

    basis: Float[Tensor, "d k"]
    mean: Float[Tensor, " d"]

    def coordinates(self, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows k"]:
        """Pᵀ(h - μ)."""
        return (states - self.mean) @ self.basis


@dataclass(eq=False)
class Pass:
    """What one forward pass showed.

    Attributes:
        standard: of each row, whether it is the standard's; or of all, if `one_for_all`.
        states: by layer, `[batch, pos, d]`, with their graph; empty where no penalty is wanted.
        dialect: by layer, the dialect's states that count, `[n, d]`, without it.
        tokens: which count, all rows together; set when the first block is reached.
    """

    standard: Bool[Tensor, " batch"]
    one_for_all: bool
    asked: Tensor | Literal["targets", "all"]
    labels: Tensor | None
    attention: Tensor | None
    trains: bool
    states: dict[int, Tensor] = field(default_factory=dict)
    dialect: dict[int, Tensor] = field(default_factory=dict)
    tokens: Bool[Tensor, "batch pos"] | None = None

    def counted(self, shape: tuple[int, int], device: Any) -> Bool[Tensor, "batch pos"]:
        """Which states of `[batch, pos]` count.

        Raises:
            EditError: another number of rows, a mask of another shape, targets without labels.
        """
        if self.tokens is not None and tuple(self.tokens.shape) == shape:
            return self.tokens
        rows, length = shape
        if self.one_for_all:
            self.standard = self.standard.expand(rows)
        if len(self.standard) != rows:
            raise EditError(
                f"`rows` names {len(self.standard)} varieties, and the pass has {rows} rows: name "
                "one for each row."
            )
        if isinstance(self.asked, Tensor):
            found = self.asked.bool()
        elif self.asked == "targets":
            if self.labels is None:
                raise EditError(
                    "`tokens` is 'targets', and the pass has no labels that say which they are: "
                    "give the model labels, or `rows` a mask, or use tokens='all'."
                )
            found = self.labels != -100
        elif self.attention is None:
            found = torch.ones(shape, dtype=torch.bool)
        else:  # with a cache, the mask also covers what came before
            found = self.attention[:, -length:].bool()
        if tuple(found.shape) != shape:
            raise EditError(
                f"The tokens that count have shape {list(found.shape)} and the pass has "
                f"{list(shape)} (rows, positions): give one truth value for each."
            )
        self.tokens = found.to(device)
        self.standard = self.standard.to(device)
        return self.tokens

    def of_dialect(self, tokens: Bool[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """The dialects' tokens that count."""
        return tokens & ~self.standard[:, None]


class Tap:
    """Hooks on a model and its blocks, which act within `within` only.

    Attributes:
        keeps_states: whether passes keep their states for a penalty.
        keeps_dialect: whether they keep the dialect's for a look.
        planes, share: what is taken from the dialect's states in the pass; nothing at 0.
        task_loss: the model's own loss in the last pass, where it gave one.
        unread: passes whose penalty was not asked for.
    """

    def __init__(self, model: Any, blocks: Mapping[int, torch.nn.Module]) -> None:
        self._model, self._blocks = model, blocks
        self._handles: list[Any] = []
        self._armed: tuple[Tensor, Any, bool] | None = None
        self._now: Pass | None = None
        self._again: dict[tuple[int, int], tuple[Tensor, Plane, float]] = {}
        self.keeps_states = self.keeps_dialect = False
        self.planes: dict[int, Plane] = {}
        self.share = 0.0
        self.task_loss: Tensor | None = None
        self.unread: list[Pass] = []
        self.last: Pass | None = None

    def block(self, layer: int) -> torch.nn.Module:
        """The module whose output is this layer's."""
        return self._blocks[layer]

    def hook(self) -> None:
        """Puts the hooks in place."""
        if self._handles:
            raise EditError("This decoupling is entered already: leave it first.")
        try:
            self._handles.append(
                self._model.register_forward_pre_hook(self._begin, with_kwargs=True)
            )
            self._handles.append(self._model.register_forward_hook(self._end))
            for layer, block in self._blocks.items():
                self._handles.append(
                    block.register_forward_hook(
                        lambda _m, args, named, out, layer=layer: self._see(
                            layer, args, named, out
                        ),
                        with_kwargs=True,
                    )
                )
        except BaseException:
            self.unhook()
            raise

    def unhook(self) -> None:
        """Takes all hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.forget()

    def forget(self) -> None:
        """Lets go of all passes."""
        self._now = self.last = self.task_loss = None
        self.unread, self._again = [], {}

    @contextmanager
    def within(
        self,
        standard: Sequence[bool],
        tokens: Tensor | Literal["targets", "all"],
        *,
        one_for_all: bool = False,
    ) -> Iterator[None]:
        """Passes within are of these rows, or all of the one variety that is said."""
        if not self._handles:
            raise EditError("Enter the decoupling (`with Decoupling(...) as d`) before its rows.")
        if self._armed is not None:
            raise EditError("`rows` is entered already: leave it before the next batch's.")
        self._armed = torch.tensor(list(standard), dtype=torch.bool), tokens, one_for_all
        try:
            yield
        except BaseException:
            self.forget()
            raise
        finally:
            self._armed = self._now = None

    def _begin(self, _module: Any, args: Any, named: dict[str, Any]) -> None:
        if self._armed is None:
            self._now = None
            return
        standard, asked, one_for_all = self._armed
        labels, attention = named.get("labels"), named.get("attention_mask")
        trains = torch.is_grad_enabled()
        self._now = Pass(standard, one_for_all, asked, labels, attention, trains)
        self.last = self._now
        if self.keeps_states and trains:
            self.unread.append(self._now)

    def _end(self, _module: Any, _args: Any, output: Any) -> None:
        if self._now is not None:
            loss = getattr(output, "loss", None)
            self.task_loss = loss.detach() if isinstance(loss, Tensor) else None
        self._now = None

    def _see(self, layer: int, args: Any, named: dict[str, Any], output: Any) -> Any:
        if in_backward():
            return self._project_again(layer, first_argument(args, named), output)
        if self._armed is None:
            return None
        now = self._now
        if now is None:
            raise EditError(
                "A pass under `rows` did not go through the model that was given: call that one, "
                "not a part or a wrapper of it."
            )
        if now.trains and not torch.is_grad_enabled():
            raise EditError(
                "The model's gradient checkpoints hide its states from a penalty: use "
                'gradient_checkpointing_enable({"use_reentrant": False}).'
            )
        states = first_tensor(output)
        tokens = now.counted((states.shape[0], states.shape[1]), states.device)
        if self.keeps_states and now.trains:
            now.states[layer] = states
        wanted = now.of_dialect(tokens)
        if self.keeps_dialect:
            now.dialect[layer] = states.detach()[wanted]
        if not self.share or layer not in self.planes:
            return None
        plane, share = self.planes[layer], self.share
        before = first_argument(args, named)
        if now.trains and before is not None:
            self._again[layer, before.data_ptr()] = wanted, plane, share
        return with_first(output, projected(states, wanted, plane, share))

    def _project_again(self, layer: int, before: Tensor | None, output: Any) -> Any:
        found = None if before is None else self._again.get((layer, before.data_ptr()))
        if found is None:
            return None
        return with_first(output, projected(first_tensor(output), *found))


def projected(
    states: Float[Tensor, "batch pos d"],
    wanted: Bool[Tensor, "batch pos"],
    plane: Plane,
    share: float,
) -> Float[Tensor, "batch pos d"]:
    """h - α P Pᵀ(h - μ) where wanted, h elsewhere; in the states' dtype."""
    with torch.autocast(states.device.type, enabled=False):
        taken = share * (plane.coordinates(states.to(plane.basis.dtype)) @ plane.basis.T)
        return states - (taken * wanted[..., None]).to(states.dtype)


def in_backward() -> bool:
    """Whether autograd's engine runs this, as when a checkpoint is computed again."""
    return torch._C._current_graph_task_id() != -1
