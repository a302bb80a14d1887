"""An optimiser's update, less what of it writes into a subspace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interventions.decoupling.reading import as_in_use
from interventions.decoupling.tap import Plane
from interventions.errors import EditError
from interventions.weights.writers import find_writers

_ALTERNATIVE = "use the form penalty or projection instead"


@dataclass(frozen=True)
class Written:
    """A trained parameter that writes to the stream: which axis is the stream's, and the layer
    whose subspace it is held out of.
    """

    parameter: torch.nn.Parameter
    axis: int
    layer: int


def trained_writers(model: Any, layers: tuple[int, ...]) -> list[Written]:
    """Trained matrices and biases that write to the stream up to the last of the layers.

    `nn.Linear` keeps `[out, in]`, GPT-2's `Conv1D` `[in, out]` and tables `[words, d]`. Of LoRA's
    change s B A it is B that writes. A writer is held out of the subspace of the first layer at or
    after its block; embeddings, of that of the first.

    Raises:
        EditError: weights of half precision, what writes is not told by arithmetic, none trained.
    """
    half = next((n for n, p in model.named_parameters() if p.dtype.itemsize < 4), None)
    if half is not None:
        raise EditError(
            f"{half} is kept in half precision, whose rounding writes into every subspace: keep "
            f"the weights in float32 and compute under autocast, or {_ALTERNATIVE}."
        )
    with as_in_use(model):
        try:
            writers = find_writers(model, type(model).__name__)
        except EditError as error:
            why = str(error).split("; project at run time")[0]
            raise EditError(f"{why}; {_ALTERNATIVE}.") from error
    found: dict[int, Written] = {}
    for path in writers.paths:
        block = next((b for b, at in enumerate(writers.blocks) if path.startswith(f"{at}.")), 0)
        later = [layer for layer in layers if layer >= block]
        if later:
            for parameter, axis in _parameters(model, path):
                if parameter.requires_grad:
                    found.setdefault(id(parameter), Written(parameter, axis, min(later)))
    if not found:
        raise EditError(
            f"No weight that writes to the stream up to block {max(layers)} is trained, so no "
            f"update writes into its subspace; train some (attention output, MLP down), or "
            f"{_ALTERNATIVE}."
        )
    return list(found.values())


def _parameters(model: Any, path: str) -> Iterator[tuple[torch.nn.Parameter, int]]:
    """The parameters of a writer, and of LoRA's layer around it, each with the stream's axis."""
    module: Any = model.get_submodule(path)
    transposed = not isinstance(module, torch.nn.Linear)  # Conv1D and tables
    yield module.weight, 1 if transposed else 0
    bias = getattr(module, "bias", None)
    if bias is not None:
        yield bias, 0
    around, _, name = path.rpartition(".")
    if name == "base_layer":
        adapted: Any = model.get_submodule(around)
        for up in adapted.lora_B.values():
            yield up.weight, 0
            if up.bias is not None:
                yield up.bias, 0
        for table in getattr(adapted, "lora_embedding_B", {}).values():
            yield table, 0


class UpdateProjector:
    """Remembers writers before an optimiser's step, and takes back a share of their change."""

    def __init__(self, written: list[Written]) -> None:
        self._written = written
        self._before: list[Tensor] = []

    @torch.no_grad()
    def begin(self) -> None:
        """Before the step."""
        self._before = [one.parameter.detach().clone() for one in self._written]

    @torch.no_grad()
    def end(self, planes: Mapping[int, Plane], share: float) -> None:
        """After it: W ← W₀ + Δ - α Q Qᵀ Δ, in f64, rounded once."""
        for one, before in zip(self._written, self._before, strict=True):
            basis = planes[one.layer].basis.double()
            change = one.parameter.double() - before.double()
            across = change if one.axis == 0 else change.T
            kept = across - share * (basis @ (basis.T @ across))
            kept = kept if one.axis == 0 else kept.T
            one.parameter.copy_(before.double() + kept)
        self._before = []
