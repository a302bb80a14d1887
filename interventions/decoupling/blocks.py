"""The blocks of a plain Hugging Face model, wrapped by peft or not."""

from __future__ import annotations

from typing import Any

import torch

from activations.engines.fork_plan import block_paths
from activations.engines.packing import CannotPack
from activations.engines.structure import structure
from activations.errors import ModelError
from interventions.decoupling.reading import as_in_use
from interventions.errors import EditError


def blocks_of(model: Any) -> list[torch.nn.Module]:
    """In the order of the pass.

    Raises:
        EditError: no model that can be trained, or one whose blocks are not found.
    """
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise EditError(
            f"A {type(model).__name__} was given: give the Hugging Face model itself (of a model "
            "from open_model, its .hf)."
        )
    with as_in_use(model):
        try:
            table = structure(model, type(model).__name__)
            paths = block_paths(table.sites, table.n_layers)
        except (ModelError, CannotPack) as error:
            raise EditError(
                f"The blocks of {type(model).__name__} are not found: {error}"
            ) from error
    return [model.get_submodule(path) for path in paths]
