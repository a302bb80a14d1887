"""The sites of a model that TransformerLens does not know, found by how its modules lie and by
what passes between them in one tiny pass.

The blocks are the longest list of modules that hand one stream `[batch, pos, d_model]` on to each
other. What attention and MLP write is recognised by their names and by arithmetic: before + written
= after.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from activations.engines.engine import Table
from activations.engines.offload import embedding
from activations.engines.passes import (
    Key,
    Seen,
    has_head,
    plain_pass,
    scores,
    sees_only_the_past,
    some_inputs,
    text_shape,
)
from activations.errors import ModelError
from activations.places import Place, Site
from activations.sites import SHORT

_ATTENTION = re.compile(r"attn|attention|self_?att", re.IGNORECASE)
_NORM = re.compile(r"norm|(^|[._])ln(_|$|\d)", re.IGNORECASE)
_MLP = re.compile(r"mlp|ffn|feed_?forward|(^|[._])ff(n|_|$)|moe|expert", re.IGNORECASE)
#: How far rounding takes a sum from its parts, as a share of the sum; and of the part itself.
_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-9}
_HALF_ROUNDING = 5e-3


def structure(hf: Any, label: str) -> Table:
    """What can be told of a model from its modules alone: the stream before and after each block,
    what attention and MLP write, embedding, last norm and logits.

    Raises:
        ModelError: no blocks that hand on a stream.
    """
    inputs = some_inputs(hf)
    shape = text_shape(inputs)
    rows = _rows_of_modules(hf)
    kinds = {path: [_kind(hf.get_submodule(one)) for one in row] for path, row in rows.items()}
    seen = plain_pass(hf, _wanted(hf, rows, kinds), inputs, label)
    blocks = _stream(rows, seen, shape)
    if blocks is None:
        raise ModelError(
            f"Engine nnsight finds no blocks in {label} ({type(hf).__name__}) that hand a stream "
            "[text, position, d_model] on to each other, so it has no sites; its module tree is "
            "too unlike a transformer's."
        )
    view = _View(seen, shape)
    found: dict[str, Key] = {}
    parts: dict[Any, dict[str, Key]] = {}
    for layer, block in enumerate(blocks):
        at, kind = f"blocks.{layer}.", _kind(hf.get_submodule(block))
        found[at + "hook_resid_pre"] = (block, "in")
        found[at + "hook_resid_post"] = (block, "out")
        if kind not in parts:
            parts[kind] = _parts(block, view)
        for name, (path, side) in parts[kind].items():
            found[at + name] = (f"{block}.{path}", side)
    found.update(_ends(hf, blocks, view))
    d_model = int(view[blocks[0], "in"].shape[-1])
    return Table(
        _sites(found, hf, view, d_model),
        {
            name: "the modules of this architecture, which TransformerLens does not know, do not "
            "show where it lies"
            for layer in range(len(blocks))
            for name in (f"blocks.{layer}.{short}" for short in SHORT.values())
            if name not in found
        },
        len(blocks),
        d_model,
        sees_only_the_past(hf, scores(seen.output)),
        has_head(seen.output),
    )


@dataclass(frozen=True)
class _View:
    """Tensors of a pass as `[batch, pos, d]`, by module and side."""

    seen: Seen
    shape: tuple[int, int]

    def __getitem__(self, key: Key) -> Tensor:
        return Place(*key).view(self.seen.raw[key], self.shape)  # type: ignore[arg-type]

    def below(self, block: str, side: str) -> Iterator[tuple[str, Tensor]]:
        """Path within the block and states, in the order of the pass."""
        stream = self[block, "in"].shape
        for path, at in self.seen.raw:
            if path.startswith(f"{block}.") and at == side and self.has((path, at), stream):
                yield path.removeprefix(f"{block}."), self[path, at]

    def has(self, key: Key, shape: Any = None) -> bool:
        """Whether a place was reached once, with states of tokens (of this shape)."""
        raw = self.seen.raw.get(key)
        if raw is None or self.seen.calls[key] != 1 or not raw.is_floating_point():
            return False
        if raw.shape[:2] != self.shape and raw.shape[:1] != (self.shape[0] * self.shape[1],):
            return False
        states = self[key]
        return states.ndim == 3 and shape in (None, states.shape)


def _rows_of_modules(hf: Any) -> dict[str, list[str]]:
    """Lists of modules that lie in no other such list: path of the list, paths of its modules."""
    rows: dict[str, list[str]] = {}
    for path, module in hf.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) > 0:
            outside = all(not path.startswith(f"{other}.") for other in rows)
            if outside:
                rows[path] = [f"{path}.{name}" for name, _ in module.named_children()]
    return rows


def _kind(module: torch.nn.Module) -> tuple[Any, ...]:
    """Blocks of one kind have the same modules under the same names."""
    return (type(module), *((path, type(child)) for path, child in module.named_modules()))


def _wanted(hf: Any, rows: Mapping[str, list[str]], kinds: Mapping[str, list[Any]]) -> list[Key]:
    """Every module outside the rows, every member of a row, and all within one of each kind."""
    paths: list[str] = []
    seen: set[Any] = set()
    for path, _ in hf.named_modules():
        if path and not any(path.startswith(f"{row}.") for row in rows):
            paths.append(path)
    for row, members in rows.items():
        for member, kind in zip(members, kinds[row], strict=True):
            paths.append(member)
            if kind not in seen:
                seen.add(kind)
                below = hf.get_submodule(member).named_modules()
                paths += [f"{member}.{path}" for path, _ in below if path]
    return [(path, side) for path in paths for side in ("in", "out")]


def _stream(rows: Mapping[str, list[str]], seen: Seen, shape: tuple[int, int]) -> list[str] | None:
    """The longest row whose members hand one stream on to each other."""
    view = _View(seen, shape)

    def hands_on(members: list[str]) -> bool:
        if not all(view.has((m, side)) for m in members for side in ("in", "out")):
            return False
        width = {view[m, side].shape for m in members for side in ("in", "out")}
        return len(width) == 1 and all(
            torch.equal(view[after, "in"], view[before, "out"].to(view[after, "in"].device))
            for before, after in pairwise(members)
        )

    found = [members for members in rows.values() if hands_on(members)]
    return max(found, key=len, default=None)


def _parts(block: str, view: _View) -> dict[str, Key]:
    """Where within a block lie `hook_attn_out`, `hook_resid_mid` and `hook_mlp_out`."""
    before, after = view[block, "in"], view[block, "out"]
    outs = sorted(view.below(block, "out"), key=lambda one: one[0].count("."))
    ins = list(view.below(block, "in"))
    attention = [(path, x) for path, x in outs if _ATTENTION.search(path)]
    others = [(path, x) for path, x in outs if not _ATTENTION.search(path)]
    others.sort(key=lambda one: not _MLP.search(one[0]))
    found: dict[str, Key] = {}
    for path, written in attention:
        middle = next((p for p, x in ins if _adds(before, written, x)), None)
        if middle is not None:
            found = {"hook_attn_out": (path, "out"), "hook_resid_mid": (middle, "in")}
            # A block that normalises after adding goes on from what the norm gives.
            states = [before + written, *(x for p, x in outs if p == middle)]
            ends = [after, *(x for _, x in ins)]
            for end in ends:
                for p, w in others:
                    if any(_adds(state, w, end) for state in states):
                        return {**found, "hook_mlp_out": (p, "out")}
            break
    if not found:  # both read the same stream, and both are added at the end
        for path, written in attention:
            for p, w in others:
                if _adds(before + written, w, after) and _adds(before + w, written, after):
                    return {"hook_attn_out": (path, "out"), "hook_mlp_out": (p, "out")}
    for name, pattern in (("hook_attn_out", _ATTENTION), ("hook_mlp_out", _MLP)):
        named = [p for p, _ in outs if "." not in p and pattern.search(p) and not _NORM.search(p)]
        if name not in found and len(named) == 1:  # scaled before it is added
            found[name] = (named[0], "out")
    return found


def _adds(before: Tensor, written: Tensor, after: Tensor) -> bool:
    """Whether before + written = after, with enough written to tell."""
    rounding = _ROUNDING.get(after.dtype, _HALF_ROUNDING)
    before, written, after = (x.detach().cpu().double() for x in (before, written, after))
    change = after - before
    total, size = after.norm(), written.norm()
    if size <= 4 * rounding * total:
        return False
    return bool((change - written).norm() <= rounding * total + 1e-3 * size)


def _ends(hf: Any, blocks: list[str], view: _View) -> dict[str, Key]:
    """Embedding, last norm, logits."""
    paths = {id(module): path for path, module in hf.named_modules()}
    found: dict[str, Key] = {}
    head = hf.get_output_embeddings() if hasattr(hf, "get_output_embeddings") else None
    for name, module in (("hook_embed", embedding(hf)), ("unembed.hook_out", head)):
        key = (paths.get(id(module), ""), "out")
        if view.has(key):
            found[name] = key
    reached = list(view.seen.raw)
    later = reached[reached.index((blocks[-1], "out")) + 1 :]
    norms = [
        (path, side)
        for path, side in later
        if side == "out"
        and view.has((path, side))
        and (
            _NORM.search(path.rsplit(".", 1)[-1]) or "Norm" in type(hf.get_submodule(path)).__name__
        )
    ]
    if norms:
        found["ln_final.hook_out"] = norms[-1]
    return found


def _sites(found: Mapping[str, Key], hf: Any, view: _View, d_model: int) -> dict[str, Site]:
    """Sites in the order of the pass, as far as one block of a kind shows it for all."""
    sites: dict[str, Site] = {}
    for name, (path, side) in found.items():
        row = (int(view[path, side].shape[-1]) if (path, side) in view.seen.raw else d_model,)
        place = Place(path, side)  # type: ignore[arg-type]
        sites[name] = Site(name, row, 1, False, place, name)
    return sites
