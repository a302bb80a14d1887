"""A model with other weights: what was done to it, and the folder that it is saved to."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activations.digest import weights_digest
from activations.model import Model
from activations.sources import Source, quietly
from interventions.errors import EditError

if TYPE_CHECKING:
    import torch

#: Beside the weights: what was done to them.
PROVENANCE = "isogloss_edit.json"


@dataclass(frozen=True, eq=False)
class EditedModel:
    """A Hugging Face model with other weights, and where they come from.

    Attributes:
        hf: the model, in evaluation mode.
        tokenizer: None where only a module was given.
        provenance: what was done to which weights of which model, as JSON can hold it.
    """

    hf: Any
    tokenizer: Any = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def open(self, **options: Any) -> Model:
        """The model ready for capture and intervention; `options` as for `open_model`.

        Raises:
            ModelError: as `open_model`, which needs a tokenizer.
        """
        from activations import open_model

        return open_model(self.hf, **{"tokenizer": self.tokenizer, **options})

    def __repr__(self) -> str:
        return f"EditedModel({type(self.hf).__name__}, {self.provenance.get('kind', 'edited')})"


def save_edited(
    edited: EditedModel,
    folder: str | Path,
    *,
    tokenizer: Any = None,
    beside: Callable[[Path], None] | None = None,
) -> Path:
    """Write an ordinary Hugging Face folder, with `isogloss_edit.json` beside the weights.

    `AutoModelForCausalLM.from_pretrained(folder)` and `open_model(folder)` read it. It is whole or
    not there: it is written under another name and renamed.

    Args:
        folder: new, or empty.
        tokenizer: in place of the one that came with the model.
        beside: writes further files into the folder, before it has its name.

    Raises:
        EditError: no tokenizer, or a folder that holds something.
    """
    reader = edited.tokenizer if tokenizer is None else tokenizer
    if reader is None:
        raise EditError("The edited model has no tokenizer: give the model's as `tokenizer`.")
    path = Path(folder).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise EditError(f"{folder} is there already: give a new folder, or an empty one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with quietly(Source(path.name, str(path.parent))):
            edited.hf.save_pretrained(partial)
            reader.save_pretrained(partial)
        said = json.dumps(dict(edited.provenance), indent=2, sort_keys=True, ensure_ascii=False)
        (partial / PROVENANCE).write_text(said + "\n", encoding="utf-8")
        if beside is not None:
            beside(partial)
        if path.exists():
            path.rmdir()
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return path


def given(model: Any) -> tuple[torch.nn.Module, Any, str, dict[str, Any]]:
    """The Hugging Face model in what a caller gave, its tokenizer, name, and what tells it apart.

    Raises:
        EditError: no model, or one whose weights are not all here as plain numbers.
    """
    hf = getattr(model, "hf", model)
    name = model.name if isinstance(model, Model) and model.origin else ""
    name = name or getattr(hf, "name_or_path", "") or type(hf).__name__
    if not hasattr(hf, "config") or not hasattr(hf, "named_parameters"):
        raise EditError(
            f"A {type(model).__name__} has no weights to edit: give a model as open_model gives "
            "it, or a Hugging Face model."
        )
    if getattr(hf, "hf_quantizer", None) is not None or not all(
        one.is_floating_point() for one in hf.parameters()
    ):
        raise EditError(
            f"The weights of {name} are quantised, and no projection of them has that form: edit "
            "the model that it was quantised from."
        )
    if any(one.is_meta for one in hf.parameters()):
        raise EditError(
            f"The weights of {name} are not all on this machine's devices: open it without "
            "`remote` and `device_map`."
        )
    said: dict[str, Any] = {"model": str(name), "class": type(hf).__name__, "dtype": str(hf.dtype)}
    if isinstance(model, Model):
        said |= {"revision": model.revision, "digest": model.digest}
    else:
        said["digest"] = weights_digest(hf)
    if isinstance(model, EditedModel):
        said["edited"] = dict(model.provenance)
    return hf, getattr(model, "tokenizer", None), str(name), said


def versions() -> dict[str, str]:
    """Of the libraries that edit and write weights."""
    return {name: version(name) for name in ("torch", "transformers", "safetensors")}
