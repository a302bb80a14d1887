"""Which weights write to the residual stream, found by arithmetic in one tiny pass.

The state before the first block is a sum of what tables of embeddings give, and each block adds to
the stream a sum of what linear layers give, each at a fixed scale:

    h_0 = Σ_e c_e e(ids),    h_after - h_before = Σ_j c_j (W_j x_j + b_j)

So the scales are a least-squares fit over tokens and dimensions, and the layers with a scale are
those that write. Names of modules and order of a block play no part, and a block whose addition is
no such sum (a norm after the projection, experts that a router chooses) shows itself by what is
left over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from activations.engines.fork_plan import block_paths
from activations.engines.packing import CannotPack
from activations.engines.passes import Seen, plain_pass, some_inputs, text_shape
from activations.engines.structure import structure
from activations.errors import ModelError
from activations.places import Place
from interventions.errors import EditError

#: What of a state, as a share of its length, rounding in f32 may leave unexplained.
_ROUNDING = 3e-6

_AT_RUN_TIME = "project at run time instead: model.edited(project_out(subspace, sites))."


@dataclass(frozen=True)
class Writers:
    """Paths of the modules whose weights write to the stream, in the order of the pass.

    Attributes:
        embeddings: before the first block.
        projections: in the blocks.
        blocks: paths of the blocks themselves.
        d_model: width of the stream.
    """

    embeddings: tuple[str, ...]
    projections: tuple[str, ...]
    blocks: tuple[str, ...]
    d_model: int

    @property
    def paths(self) -> tuple[str, ...]:
        """Of all that write."""
        return (*self.embeddings, *self.projections)


def find_writers(hf: Any, label: str) -> Writers:
    """The writers of a Hugging Face model in f32 or f64.

    Raises:
        EditError: something that is no sum of such weights writes to the stream.
    """
    try:
        table = structure(hf, label)
        blocks = block_paths(table.sites, table.n_layers)
    except (ModelError, CannotPack) as error:
        raise EditError(f"Nothing tells which weights of {label} write: {error}") from error
    inputs = some_inputs(hf)
    ends = {(block, side) for block in blocks for side in ("in", "out")}
    outs = [
        (path, "out")
        for path, module in hf.named_modules()
        if _is_linear(module) or _is_norm(module)
    ]
    seen = plain_pass(hf, [*ends, *outs], inputs, label)
    view = _View(hf, seen, text_shape(inputs), table.d_model)
    first = view.state(blocks[0], "in")
    given = {
        path: out
        for path, out in view.linear().items()
        if not any(path.startswith(f"{block}.") for block in blocks)
    }
    start = _summands(first, torch.zeros_like(first), given)
    if start is None:
        raise EditError(_why_no_start(label, view, blocks, first))
    kinds: dict[Any, set[str]] = {}
    for number, block in enumerate(blocks):
        before, after = view.state(block, "in"), view.state(block, "out")
        within = {p: out for p, out in view.linear().items() if p.startswith(f"{block}.")}
        found = _summands(after, before, within)
        if found is None:
            raise EditError(_why_no_sum(label, view, number, block))
        kinds.setdefault(_kind(hf, block), set()).update(p.removeprefix(block) for p in found)
    # One that adds too little in a block to be told from rounding shows in others of its kind.
    projections = [
        f"{block}.{path}"
        for block in blocks
        for path, _ in hf.get_submodule(block).named_modules()
        if f".{path}" in kinds[_kind(hf, block)]
    ]
    return Writers(tuple(start), tuple(projections), tuple(blocks), table.d_model)


@dataclass(frozen=True)
class _View:
    """States `[batch, pos, d_model]` of a pass."""

    hf: Any
    seen: Seen
    shape: tuple[int, int]
    d_model: int

    def state(self, path: str, side: str) -> Tensor:
        raw = self.seen.raw[path, side]
        return Place(path, side).view(raw, self.shape).cpu().double()  # type: ignore[arg-type]

    def linear(self) -> dict[str, Tensor]:
        """What each linear layer or table gives to the stream's width, if it ran once."""
        return self._outs(_is_linear)

    def norms(self) -> dict[str, Tensor]:
        """What each norm of the stream's width gives."""
        return self._outs(_is_norm)

    def _outs(self, wanted: Any) -> dict[str, Tensor]:
        batch, length = self.shape
        found = {}
        for (path, side), raw in self.seen.raw.items():
            if side != "out" or self.seen.calls[path, side] > 1:
                continue
            if not raw.is_floating_point() or raw.shape[-1] != self.d_model:
                continue
            if not wanted(self.hf.get_submodule(path)):
                continue
            # Positions alone have one row for all texts, or no axis of texts at all.
            if raw.shape[:-1] == (batch * length,):
                raw = raw.unflatten(0, self.shape)
            if raw.shape[:-1] in {(batch, length), (1, length), (length,)}:
                found[path] = raw.cpu().double().expand(batch, length, -1)
        return found


def _kind(hf: Any, block: str) -> tuple[Any, ...]:
    """Blocks of one kind have the same modules under the same names."""
    return tuple((path, type(child)) for path, child in hf.get_submodule(block).named_modules())


def _is_linear(module: torch.nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (torch.nn.Linear, torch.nn.Embedding, Conv1D))


def _is_norm(module: torch.nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _summands(after: Tensor, before: Tensor, given: Mapping[str, Tensor]) -> list[str] | None:
    """The fewest of `given` whose sum, each at a scale of its own, is after - before.

    In the order of the pass; None where no sum is.
    """
    # Each token weighs the same, or one with a huge state would hide what others get.
    length = after.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    target = ((after - before) / length).flatten()
    columns = {path: (out / length).flatten() for path, out in given.items()}
    rounding = _ROUNDING * length.numel() ** 0.5
    scales = _scales(target, list(columns.values()))[0]
    sizes = {p: float(abs(s) * x.norm()) for (p, x), s in zip(columns.items(), scales)}
    chosen: list[str] = []
    for path in sorted(columns, key=lambda p: -sizes[p]):
        if _scales(target, [columns[p] for p in chosen])[1] <= rounding:
            break
        chosen.append(path)
    if _scales(target, [columns[p] for p in chosen])[1] > rounding:
        return None
    return [path for path in given if path in chosen]


def _scales(target: Tensor, columns: list[Tensor]) -> tuple[Tensor, float]:
    """The scales of least squares, and the length of what they leave."""
    if not columns:
        return target.new_zeros(0), float(target.norm())
    matrix = torch.stack(columns, dim=1)
    scales = torch.linalg.lstsq(matrix, target[:, None], driver="gelsd").solution[:, 0]
    return scales, float((target - matrix @ scales).norm())


def _why_no_start(label: str, view: _View, blocks: list[str], first: Tensor) -> str:
    norm = next((p for p, x in view.norms().items() if _alike(x, first)), None)
    what = (
        f"a norm ({norm}) makes the stream that enters the first block"
        if norm
        else "the stream that enters the first block is no sum of tables of embeddings"
    )
    return f"No weights of {label} equal a projection of the stream: {what}; {_AT_RUN_TIME}"


def _why_no_sum(label: str, view: _View, number: int, block: str) -> str:
    before, after = view.state(block, "in"), view.state(block, "out")
    norms = {p: x for p, x in view.norms().items() if p.startswith(f"{block}.")}
    within = {p: x for p, x in view.linear().items() if p.startswith(f"{block}.")}
    last = next((p for p, x in norms.items() if _alike(x, after)), None)
    through = _summands(after, before, {**norms, **within})
    if last:
        what = f"block {number} puts the stream itself through a norm ({last})"
    elif through and any(path in norms for path in through):
        path = next(path for path in through if path in norms)
        what = (
            f"block {number} puts what it writes through a norm ({path}), which acts after the "
            "weights"
        )
    else:
        what = (
            f"block {number} adds something else than linear layers give at a fixed scale (experts "
            "that a router chooses, adapters, a scale for each dimension)"
        )
    return f"No weights of {label} equal a projection of the stream: {what}; {_AT_RUN_TIME}"


def _alike(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).norm() <= 1e-4 * b.norm())
