"""Weights that do not lie in the module: with accelerate's offloading, a module holds its weights
only while it runs, and otherwise an empty (meta) tensor in their place.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from activations.errors import ModelError


def embedding(model: Any) -> torch.nn.Module | None:
    """The table of a model's input embeddings, None where it does not say which that is."""
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def home(model: Any) -> torch.device:
    """Where a model takes its token ids: the device of its embeddings."""
    for module in (embedding(model) or model, model):
        for parameter in module.parameters():
            if parameter.device.type != "meta":
                return parameter.device
        for hook in _hooks(module):
            if hook.execution_device is not None:
                where = hook.execution_device
                return (
                    torch.device("cuda", where) if isinstance(where, int) else torch.device(where)
                )
    return torch.device("cpu")


def weight(module: torch.nn.Module, name: str = "weight") -> Tensor:
    """A module's own weight, fetched from where it was offloaded to if need be.

    Raises:
        ModelError: the module has no values for it anywhere.
    """
    tensor = getattr(module, name)
    if tensor.device.type != "meta":
        return tensor
    stored = _stored(name, {"": module})
    if stored is None:
        raise ModelError(f"The {name} of a {type(module).__name__} has no values on this machine.")
    return stored


def tensors(model: torch.nn.Module) -> dict[str, Callable[[], Tensor]]:
    """By name, what fetches each of a model's parameters and persistent buffers."""
    modules = dict(model.named_modules())

    def fetch(name: str, tensor: Tensor) -> Tensor:
        if tensor.device.type != "meta":
            return tensor
        stored = _stored(name, modules)
        if stored is None:
            raise ModelError(f"The weight {name} has no values on this machine.")
        return stored

    return {
        name: lambda name=name, tensor=tensor: fetch(name, tensor)
        for name, tensor in model.state_dict().items()
    }


def sharing_copy(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of the modules with the very same parameters, buffers and offloaded weights."""
    shared: list[Any] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        for hook in _hooks(module):
            shared += [hook.weights_map, hook.tied_params_map]
    return copy.deepcopy(model, {id(one): one for one in shared})


def _stored(name: str, modules: Mapping[str, torch.nn.Module]) -> Tensor | None:
    """An offloaded tensor by its dotted name, from the nearest module that knows where it lies."""
    parts = name.split(".")
    for at in range(len(parts) - 1, -1, -1):
        module = modules.get(".".join(parts[:at]))
        for hook in _hooks(module):
            if hook.weights_map is not None:
                try:
                    return hook.weights_map[".".join(parts[at:])]
                except KeyError:
                    continue
    return None


def _hooks(module: torch.nn.Module | None) -> Iterator[Any]:
    """Accelerate's hooks on a module that know of devices; they may be chained."""
    hook: Any = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", [hook]):
        if hasattr(one, "weights_map"):
            yield one
