"""A model opened once; its sites; what passes there, captured to a store."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from activations.errors import CaptureError, ModelError, SiteError, StoreError
from activations.sites import layer_of

if TYPE_CHECKING:
    from activations.capturing import capture
    from activations.exporting import export
    from activations.loading import open_model, random_like
    from activations.merging import merge
    from activations.model import Edit, Model
    from activations.planning import CapturePlan
    from activations.store import ActivationStore
    from activations.workers import Workers

__all__ = [
    "ActivationStore",
    "CaptureError",
    "CapturePlan",
    "Edit",
    "Model",
    "ModelError",
    "SiteError",
    "StoreError",
    "Workers",
    "capture",
    "export",
    "layer_of",
    "merge",
    "open_model",
    "random_like",
]

_HOMES = {
    "ActivationStore": "store",
    "CapturePlan": "planning",
    "Edit": "model",
    "Model": "model",
    "Workers": "workers",
    "capture": "capturing",
    "export": "exporting",
    "merge": "merging",
    "open_model": "loading",
    "random_like": "loading",
}


def __getattr__(name: str) -> object:
    """Names that need torch load when first asked for."""
    if name in _HOMES:
        found = getattr(import_module(f"activations.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'activations' has no attribute {name!r}")
