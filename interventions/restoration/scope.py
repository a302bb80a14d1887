"""Which weights lie below a layer, and what kind each is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from activations.engines.fork_plan import block_paths
from activations.engines.packing import CannotPack
from activations.engines.passes import some_inputs
from activations.engines.structure import structure
from activations.errors import ModelError
from interventions.block_outputs import block_outputs
from interventions.errors import EditError

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_?forward|moe|expert|(^|\.)fc\d", re.IGNORECASE)
_NORM = re.compile(r"norm|(^|[._])ln(_|$|\.|\d)", re.IGNORECASE)


@dataclass(frozen=True)
class Scope:
    """The weights that the state before block E follows from.

    Attributes:
        layer: E; the state is what block E - 1 gives, counted from 0.
        block: path of block E - 1.
        reached: names of all parameters that the state follows from, in the model's order.
        movable: those of them that may move: norms left out, and embeddings where asked.
        layers: by name the block that a parameter lies in, -1 for none.
        kinds: by name its kind, such as `embedding`, `attention q` or `mlp down`.
        total: how many weights the whole model has, tied ones counted once.
    """

    layer: int
    block: str
    reached: tuple[str, ...]
    movable: tuple[str, ...]
    layers: Mapping[str, int]
    kinds: Mapping[str, str]
    total: int


def first_third(n_layers: int) -> int:
    """The layer E that closes the first third of the layers: at least 1.

    >>> [first_third(n) for n in (1, 4, 12, 32)]
    [1, 1, 4, 11]
    """
    return max(1, round(n_layers / 3))


def scope_below(hf: Any, layer: int | None, label: str, *, embeddings: bool = True) -> Scope:
    """Find the weights below layer E by what the state there follows from, not by name.

    Args:
        layer: E, from 1 to the number of blocks; the first third where None.
        embeddings: whether tables of embeddings may move. One that is the unembedding too changes
            that with it.

    Raises:
        EditError: no blocks, no such layer, or nothing below it that may move.
    """
    try:
        table = structure(hf, label)
        blocks = block_paths(table.sites, table.n_layers)
    except (ModelError, CannotPack) as error:
        raise EditError(f"Nothing tells the blocks of {label}: {error}") from error
    at = first_third(len(blocks)) if layer is None else layer
    if not 1 <= at <= len(blocks):
        raise EditError(
            f"`layer` is {layer} and {label} has {len(blocks)} blocks: give one from 1 to "
            f"{len(blocks)}."
        )
    named = dict(hf.named_parameters())
    leaves = _leaves(hf, blocks[at - 1])
    reached = tuple(name for name, one in named.items() if id(one) in leaves)
    modules = dict(hf.named_modules())
    layers, kinds = {}, {}
    for name in named:
        owner, _, _ = name.rpartition(".")
        layers[name] = next((i for i, b in enumerate(blocks) if name.startswith(f"{b}.")), -1)
        inside = name.removeprefix(f"{blocks[layers[name]]}.") if layers[name] >= 0 else name
        kinds[name] = _kind(inside, modules[owner], in_block=layers[name] >= 0)
    movable = tuple(
        name
        for name in reached
        if kinds[name] != "norm" and (embeddings or kinds[name] != "embedding")
    )
    if not movable:
        raise EditError(f"No weight of {label} below layer {at} may move: give a later `layer`.")
    total = sum(one.numel() for one in named.values())
    return Scope(at, blocks[at - 1], reached, movable, layers, kinds, total)


def state_after(hf: Any, block: str, inputs: Mapping[str, Any]) -> Tensor:
    """What a block gives, `[batch, pos, d]`, with its gradient where that is on.

    Raises:
        EditError: the pass never reaches the block.
    """
    found = block_outputs(hf, {block: hf.get_submodule(block)}, inputs)
    if not found:
        raise EditError(f"The pass never reaches {block}.")
    return found[block]


def _leaves(hf: Any, block: str) -> set[int]:
    """Identities of the parameters that the state after a block follows from."""
    flags = {one: one.requires_grad for one in hf.parameters()}
    try:
        for one in flags:
            one.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad():
            ends: list[Any] = [state_after(hf, block, some_inputs(hf)).grad_fn]
    finally:
        for one, flag in flags.items():
            one.requires_grad_(flag)
    found, seen = set(), set()
    while ends:
        node = ends.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        ends += [following for following, _ in node.next_functions]
    return found


def _kind(inside: str, owner: torch.nn.Module, *, in_block: bool) -> str:
    path, _, _ = inside.rpartition(".")
    if "norm" in type(owner).__name__.lower() or _NORM.search(path):
        return "norm"
    if not in_block:
        return "embedding" if isinstance(owner, torch.nn.Embedding) else "other"
    leaf = path.rsplit(".", 1)[-1].removesuffix("_proj")
    for part, pattern in (("attention", _ATTENTION), ("mlp", _MLP)):
        if pattern.search(path):
            return f"{part} {leaf}"
    return leaf or "other"
