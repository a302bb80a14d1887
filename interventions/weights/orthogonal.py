"""Take a subspace out of a model's weights, so that they write nothing into it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from activations.atomic import file_sha256
from activations.engines.passes import plain_pass, some_inputs, text_shape
from activations.model import Model
from activations.places import Place
from geometry import GeometryError, Subspace
from interventions.edits.base import digest
from interventions.edits.given import origin, require_origin
from interventions.errors import EditError
from interventions.weights.edited import EditedModel, given, versions
from interventions.weights.writers import Writers, find_writers

#: The largest coordinate that may be left, as a share of the state's length, in f32.
_LEFT = 1e-4
_HALF = (torch.float16, torch.bfloat16)


def orthogonalise(
    model: Model | EditedModel | Any,
    subspace: Subspace | str | Path,
    *,
    to: Literal["mean", "zero"] = "zero",
) -> EditedModel:
    """A copy of a model whose weights write nothing into a subspace of the stream.

    W ← (I - QQᵀ) W for every matrix and bias that writes to the residual stream: the tables of
    embeddings, and the output projections of attention and MLP (Arditi et al. 2024, section 2.4).
    The copy computes what the model computes under `project_out(subspace)` at every site of the
    stream, up to rounding. With `to="mean"` the rows of one table gain QQᵀμ besides, and since
    nothing writes to the subspace after it, every state keeps the coordinates of the mean μ: what
    the model computes under `ablate(subspace)` at every site of the stream, with one μ for all of
    them (ours).

    The weights that write are found by arithmetic, not by name (`interventions.weights.writers`).
    Where a table of words is the unembedding too, the two are parted, and the unembedding stays as
    it was; the copy is larger by that table. All is computed in f32 and rounded to the model's
    dtype at the end, so a copy in f32 lies in memory meanwhile.

    Args:
        model: as `open_model` gives it, or a Hugging Face model; left as it is.
        subspace: of states of the stream, or the file that `Subspace.save` wrote.

    Raises:
        EditError: where no weights equal the projection: a norm after a projection (Gemma 2 and
            3), after the embeddings (Bloom) or on the stream itself (BERT), experts that a router
            chooses, positions that are no table; weights that are quantised or not all here; a
            subspace of another width.
    """
    require_origin(to, "to")
    space, file = _read(subspace)
    plain, tokenizer, name, said = given(model)
    copied = copy.deepcopy(plain).eval()
    restore = _in_f32(copied)
    writers = find_writers(copied, name)
    if space.d != writers.d_model:
        raise EditError(
            f"The subspace has {space.d} dimensions and the stream of {name} has "
            f"{writers.d_model}: fit it on states of this model's stream."
        )
    untied = _part(copied, writers)
    basis, target = torch.tensor(space.basis), torch.tensor(origin(space, to))
    for path in writers.paths:
        _project(copied.get_submodule(path), basis)
    if bool(target.any()):
        _shift(copied, writers, basis, target, name)
    left = _left(copied, writers, basis, target)
    if not left <= _LEFT:
        raise EditError(
            f"The stream of {name} still has {left:.1e} of its length in the subspace, so "
            "something else than its weights writes there: project at run time instead, by "
            "model.edited(project_out(subspace, sites))."
        )
    restore()
    provenance = {
        "format": "isogloss.weight_edit.1",
        "kind": "orthogonalise",
        "to": to,
        "subspace": {
            "k": space.k,
            "d": space.d,
            "site": space.site,
            "digest": digest(space.basis, space.mean, space.singular_values),
            "provenance": dict(space.provenance),
            **file,
        },
        "source": said,
        "weights": list(writers.paths),
        "untied": untied,
        "largest_left": left,
        "versions": versions(),
    }
    return EditedModel(copied, tokenizer, provenance)


def _read(subspace: Any) -> tuple[Subspace, dict[str, str]]:
    """A subspace, and what tells its file apart."""
    if isinstance(subspace, Subspace):
        return subspace, {}
    if not isinstance(subspace, (str, Path)):
        raise EditError(
            f"A {type(subspace).__name__} was given: give a geometry.Subspace or its file."
        )
    try:
        space = Subspace.load(subspace)
    except (FileNotFoundError, GeometryError) as error:
        raise EditError(str(error)) from error
    path = Path(subspace)
    return space, {"file": path.name, "file_sha256": file_sha256(path)}


def _in_f32(model: torch.nn.Module) -> Callable[[], None]:
    """Take weights of half precision to f32 in place; what takes them back.

    Tensor by tensor, since some models keep some of theirs in f32 whatever their dtype is.
    """

    def tensors() -> dict[str, Tensor]:
        named = [*model.named_parameters(remove_duplicate=False)]
        return dict([*named, *model.named_buffers(remove_duplicate=False)])

    was = {name: x.dtype for name, x in tensors().items() if x.dtype in _HALF}
    for name, tensor in tensors().items():
        tensor.data = tensor.data.float() if name in was else tensor.data

    def restore() -> None:
        for name, tensor in tensors().items():
            tensor.data = tensor.data.to(was.get(name, tensor.dtype))

    return restore


def _part(model: Any, writers: Writers) -> list[str]:
    """Give writers a weight of their own where another module has it too; names of the others."""
    holders: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for weight in module._parameters.values():
            if weight is not None:
                holders.setdefault(id(weight), []).append(path)
    parted: list[str] = []
    for path in writers.paths:
        module = model.get_submodule(path)
        others = [one for one in holders[id(module.weight)] if one not in writers.paths]
        if others:
            module.weight = torch.nn.Parameter(
                module.weight.detach().clone(), requires_grad=module.weight.requires_grad
            )
            parted += others
    if parted:
        for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
            config.tie_word_embeddings = False
    return parted


@torch.no_grad()
def _project(module: Any, basis: Tensor) -> None:
    """W ← (I - QQᵀ) W and b ← (I - QQᵀ) b, whichever way round the module keeps W."""
    q = basis.to(module.weight)
    if isinstance(module, torch.nn.Linear):  # [out, in]
        module.weight -= q @ (q.T @ module.weight)
    else:  # a table's rows, and GPT-2's Conv1D [in, out]
        module.weight -= (module.weight @ q) @ q.T
    bias = getattr(module, "bias", None)
    if bias is not None:
        bias -= q @ (q.T @ bias)


@torch.no_grad()
def _shift(model: Any, writers: Writers, basis: Tensor, target: Tensor, name: str) -> None:
    """Give every row of one table what brings the stream to the target coordinates `[k]`."""
    words = model.get_input_embeddings()
    tables = [model.get_submodule(path) for path in writers.embeddings]
    tables = [one for one in tables if isinstance(one, torch.nn.Embedding)]
    table = words if any(one is words for one in tables) else next(iter(tables), None)
    if table is None:
        raise EditError(
            f"No table of {name} writes to the stream, so nothing can hold the mean; use to='zero'."
        )
    step = (basis @ target).to(table.weight)
    table.weight += step
    # A table may be scaled on its way to the stream, by √d as in Gemma.
    start = _stream(model, writers)[0] @ basis
    scale = float((start @ target).mean() / (target @ target))
    table.weight += (1 / scale - 1) * step


def _left(model: Any, writers: Writers, basis: Tensor, target: Tensor) -> float:
    """How far the stream's coordinates are from the target at most, as a share of its length."""
    shares = [(x @ basis - target).norm(dim=-1) / x.norm(dim=-1) for x in _stream(model, writers)]
    return float(torch.stack(shares).max())


def _stream(model: Any, writers: Writers) -> list[Tensor]:
    """States `[batch, pos, d_model]` of a tiny pass before and after each block, in f64."""
    inputs = some_inputs(model)
    wanted = [(block, side) for block in writers.blocks for side in ("in", "out")]
    seen = plain_pass(model, wanted, inputs, "the edited model")
    return [
        Place(path, side).view(seen.raw[path, side], text_shape(inputs)).cpu().double()  # type: ignore[arg-type]
        for path, side in wanted
    ]
