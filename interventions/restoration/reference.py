"""The aligned model's weights, read one at a time, so that no second model lies in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from activations import sources
from activations.atomic import file_sha256
from activations.digest import weights_digest
from interventions.errors import EditError
from interventions.restoration.adapters import merged_files

_INDEX, _WEIGHTS = "model.safetensors.index.json", "model.safetensors"
#: What is no weight though some files hold it: tables that follow from the configuration.
_TABLES = ("inv_freq", "masked_bias", "attn.bias", "position_ids")
#: Settings that change what the same weights compute.
_SETTINGS = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "activation_function",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "tie_word_embeddings",
)


class Weights(Protocol):
    """Tensors by name: `shapes` without reading any, `read` for one on the CPU."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every tensor."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU or where it lies."""
        ...

    def digest(self) -> str:
        """What names the weights."""
        ...


class Reference:
    """The aligned model's value of each parameter of another model of the same shape.

    Attributes:
        name: what the aligned model is called.
    """

    def __init__(self, weights: Weights, hf: Any, name: str, label: str) -> None:
        self.name = name
        self._weights = weights
        self._where = _match(weights.shapes, hf, name, label)

    def read(self, name: str, like: Tensor) -> Tensor:
        """Its value of a parameter, on the device and in the dtype of `like`.

        Raises:
            EditError: values that are not finite, in that dtype too.
        """
        found = self._weights.read(self._where[name]).to(like.device)
        if not bool(torch.isfinite(found).all()):
            raise EditError(
                f"The weight {name} of {self.name} holds NaN or infinity: mend that model first."
            )
        cast = found.to(like.dtype)
        if not bool(torch.isfinite(cast).all()):
            raise EditError(
                f"The weight {name} of {self.name} holds values that {like.dtype} does not: open "
                "the model with dtype float32 or bfloat16."
            )
        return cast

    def digest(self) -> str:
        """What names the weights, wherever they lie."""
        return self._weights.digest()


def open_reference(aligned: Any, hf: Any, label: str) -> Reference:
    """The weights of the aligned model, checked against those of the model to be restored.

    Args:
        aligned: an organism, a folder with safetensors (in one file or sharded), a folder of a LoRA
            adapter of PEFT (its base is read and merged, tensor by tensor), a hub id, or a model
            in memory.
        hf: the model to be restored.

    Raises:
        EditError: another shape or other settings, by name of what differs; an adapter of another
            kind than LoRA.
        ModelError: nothing there that is a model.
    """
    module = getattr(aligned, "hf", aligned)
    if isinstance(module, torch.nn.Module):
        name = getattr(aligned, "name", "") or getattr(module, "name_or_path", "")
        name = name or "the aligned model"
        _require_settings(getattr(module, "config", None), hf, name, label)
        return Reference(_InMemory(module), hf, name, label)
    name = str(aligned)
    folder = Path(name).expanduser()
    adapter = folder if (folder / "adapter_config.json").is_file() else None
    base = name if adapter is None else _base_of(adapter)
    source = sources.find(base)
    options = sources.options_for(source, None, False)
    _require_settings(sources.read_config(source, options), hf, name, label)
    files = _folder_of(source)
    weights: Weights
    if files is not None and _fits(files.shapes, hf):
        weights = files
    else:  # names in the files that transformers changes as it loads them
        config = sources.read_config(source, options)
        weights = _InMemory(sources.read_model(source, config, options, "auto", {}))
    if adapter is not None:
        weights = merged_files(weights, adapter)
    return Reference(weights, hf, name, label)


def _base_of(adapter: Path) -> str:
    told = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    base = told.get("base_model_name_or_path")
    if not base:
        raise EditError(f"The adapter {adapter} names no base model: merge it, and give that.")
    return str(base)


class _InMemory:
    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._tensors = {n: p.detach() for n, p in _aliases(module).items()}
        self.shapes = {n: tuple(p.shape) for n, p in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name]

    def digest(self) -> str:
        return weights_digest(self._module)


class _Files:
    """Safetensors files of a folder, mapped into memory and read by the tensor."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        from safetensors import safe_open

        self._stack = ExitStack()
        opened = {
            path: self._stack.enter_context(safe_open(str(path), framework="pt"))
            for path in sorted(set(files.values()))
        }
        self._paths = sorted(opened)
        self._at: dict[str, Any] = {}
        for name, path in files.items():
            self._at[name] = opened[path]
        self.shapes = {
            name: tuple(held.get_slice(name).get_shape()) for name, held in self._at.items()
        }

    def read(self, name: str) -> Tensor:
        return self._at[name].get_tensor(name)

    def digest(self) -> str:
        joined = "\n".join(file_sha256(path) for path in self._paths)
        return hashlib.sha256(joined.encode()).hexdigest()


def _folder_of(source: sources.Source) -> _Files | None:
    """The safetensors files of a source; None for one that has none of its own, such as GGUF."""
    if source.gguf:
        return None
    place = Path(source.place)
    if not source.is_local:
        from huggingface_hub import snapshot_download

        with sources.explained(source):
            place = Path(snapshot_download(source.place, allow_patterns=["*.safetensors*"]))
    if (place / _INDEX).is_file():
        said = json.loads((place / _INDEX).read_text(encoding="utf-8"))
        files = {name: place / file for name, file in said["weight_map"].items()}
        lost = sorted({path.name for path in files.values() if not path.is_file()})
        if lost:
            raise EditError(f"{source.name} lacks {lost[0]}, which its index names: fetch it.")
        return _opened(source, files)
    if (place / _WEIGHTS).is_file():
        return _opened(source, None, place / _WEIGHTS)
    return None


def _opened(
    source: sources.Source, files: Mapping[str, Path] | None, single: Path | None = None
) -> _Files:
    from safetensors import SafetensorError, safe_open

    try:
        if single is not None:
            with safe_open(str(single), framework="pt") as held:
                files = dict.fromkeys(held.keys(), single)
        return _Files(files or {})
    except (SafetensorError, OSError) as error:
        raise EditError(
            f"The weights of {source.name} are broken or cut off ({error}): fetch them again."
        ) from error


def _aliases(hf: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Parameters under every name that they have; tied ones have several."""
    return dict(hf.named_parameters(remove_duplicate=False))


def _places(hf: Any) -> dict[str, list[str]]:
    """By a parameter's first name, the names that a file may have it under."""
    prefix = f"{getattr(hf, 'base_model_prefix', '')}."
    every: dict[int, list[str]] = {}
    for name, one in _aliases(hf).items():
        bare = name.removeprefix(prefix)
        every.setdefault(id(one), []).extend((name, bare, f"{prefix}{bare}"))
    return {name: every[id(one)] for name, one in hf.named_parameters()}


def _fits(shapes: Mapping[str, tuple[int, ...]], hf: Any) -> bool:
    return all(any(n in shapes for n in names) for names in _places(hf).values())


def _match(shapes: Mapping[str, tuple[int, ...]], hf: Any, name: str, label: str) -> dict[str, str]:
    places, where = _places(hf), {}
    for own, one in hf.named_parameters():
        there = next((n for n in places[own] if n in shapes), None)
        if there is None:
            raise EditError(
                f"{name} has no weight {own}, which {label} has: give two models of one shape."
            )
        if shapes[there] != tuple(one.shape):
            raise EditError(
                f"{own} is {list(shapes[there])} in {name} and {list(one.shape)} in {label}: give "
                "two models of one shape."
            )
        where[own] = there
    known = {n for names in places.values() for n in names} | set(hf.state_dict())
    extra = [n for n in shapes if n not in known and not n.endswith(_TABLES)]
    if extra:
        raise EditError(
            f"{name} has a weight {extra[0]}, which {label} lacks: give two models of one shape."
        )
    return where


def _require_settings(config: Any, hf: Any, name: str, label: str) -> None:
    for key in _SETTINGS:
        theirs, own = (getattr(one, key, None) for one in (config, hf.config))
        if theirs != own:
            raise EditError(
                f"{key} is {theirs!r} in {name} and {own!r} in {label}, so that the same weights "
                "compute something else in each: give two models of one shape."
            )
