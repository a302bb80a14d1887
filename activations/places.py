"""Where a site lies in the plain Hugging Face model: which module, its input or its output."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from activations.engines.offload import weight

#: What blocks, attention and MLP modules of Hugging Face call their first tensor.
_FIRST = ("hidden_states", "input", "input_ids", "x", "inputs_embeds")


@dataclass(frozen=True)
class Place:
    """A module's input or output, or a part of it, seen as `[batch, pos, ...]`.

    Attributes:
        module: dotted path in the Hugging Face model.
        heads: into how many heads the last axis is split; 0 for not at all.
        part: which third (query, key, value) of a joint projection, and how the thirds lie:
            one after another, or within each head.
    """

    module: str
    side: Literal["in", "out"]
    heads: int = 0
    part: tuple[int, Literal["thirds", "within heads"]] | None = None

    def view(self, raw: Tensor, shape: tuple[int, int]) -> Tensor:
        """The states `[batch, pos, ...]` in the module's tensor, for `shape` = (batch, pos)."""
        # Some models run their MLP on all tokens of the batch as one list.
        x = raw.unflatten(0, shape) if raw.shape[:2] != shape and raw.ndim == 2 else raw
        if self.part is not None:
            number, layout = self.part
            if layout == "within heads":
                return x.unflatten(-1, (self.heads, 3, -1))[..., number, :]
            x = x.unflatten(-1, (3, -1))[..., number, :]  # not `chunk`: its views take no gradient
        return x.unflatten(-1, (self.heads, -1)) if self.heads else x

    def put(self, raw: Tensor, new: Tensor, shape: tuple[int, int]) -> Tensor:
        """The module's tensor with the states replaced, in new memory."""
        if self.part is None:
            return new.reshape(raw.shape)
        out = raw.clone()
        self.view(out, shape).copy_(new)
        return out


def first_tensor(value: Any) -> Tensor:
    """The states in what a module returns: a tensor, a tuple or a model output."""
    if isinstance(value, Tensor):
        return value
    return value[0]


def with_first(value: Any, new: Tensor) -> Any:
    """What a module returned, with other states."""
    if isinstance(value, Tensor):
        return new
    if isinstance(value, tuple):
        return (new, *value[1:])
    value[next(iter(value))] = new
    return value


def first_argument(args: tuple[Any, ...], named: dict[str, Any]) -> Tensor | None:
    """The states that a module was called with."""
    if args and isinstance(args[0], Tensor):
        return args[0]
    return next((named[name] for name in _FIRST if isinstance(named.get(name), Tensor)), None)


def with_first_argument(
    args: tuple[Any, ...], named: dict[str, Any], new: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A module's arguments, with other states."""
    if args and isinstance(args[0], Tensor):
        return (new, *args[1:]), named
    name = next(name for name in _FIRST if isinstance(named.get(name), Tensor))
    return args, {**named, name: new}


@dataclass(frozen=True)
class Site:
    """One readable place in a model, under its TransformerLens name.

    Attributes:
        row: shape of one token's states, such as `(d_model,)` or `(heads, d_head)`.
        axis: which axis counts positions in the states, 1 or (attention) 2.
        over_keys: whether the last axis counts positions too, as in attention patterns.
        place: where it lies in the plain model; None where only the engine can read it.
        hook: the engine's own name for it.
        project: path of attention's output projection, where the states at `place` are z and the
            site holds what each head writes: z times that head's rows of W_O.
    """

    name: str
    row: tuple[int, ...]
    axis: int
    over_keys: bool
    place: Place | None
    hook: str
    project: str = ""

    @property
    def in_place(self) -> bool:
        """Whether a change is written into the tensor that lies here: the norm that reads the
        middle of the stream is given the very tensor that the block goes on with.
        """
        return self.name.endswith("hook_resid_mid")

    def finish(self, states: Tensor, root: torch.nn.Module) -> Tensor:
        """What was read, `[..., *row]`; multiplied out only now that rows were selected, since
        each head's writing is as wide as the stream.
        """
        if not self.project:
            return states
        return per_head(states, output_matrix(root.get_submodule(self.project)))


def written(change: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """The states, with what `change` makes of them written into their own memory."""
    # A copy is changed, so that gradients find what the change was given.
    return states.copy_(change(states.clone()))


def output_matrix(projection: torch.nn.Module) -> Tensor:
    """W_O `[heads * d_head, d_model]` of attention's output projection."""
    matrix = weight(projection)
    # torch's Linear keeps [out, in], GPT-2's Conv1D [in, out].
    return matrix.T if isinstance(projection, torch.nn.Linear) else matrix


def per_head(z: Tensor, matrix: Tensor) -> Tensor:
    """What each head writes, `[..., heads, d_model]`, of z `[..., heads, d_head]` and W_O."""
    return torch.einsum("...hd,hdm->...hm", z, matrix.unflatten(0, z.shape[-2:]).to(z))


def all_native(sites: Iterable[Site], edited: Iterable[Site]) -> bool:
    """Whether the plain model can be read at `sites` and written at `edited`."""
    return all(s.place for s in sites) and all(s.place and not s.project for s in edited)
