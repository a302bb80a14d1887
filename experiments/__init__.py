"""One module for each question: typed settings in, a run directory out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.compare import run_compare
    from experiments.registry import EXPERIMENTS, Experiment
    from experiments.results import as_frame
    from experiments.settings import CompareSettings, ConfigError

__all__ = [
    "CompareSettings",
    "ConfigError",
    "EXPERIMENTS",
    "Experiment",
    "as_frame",
    "run_compare",
]

_HOMES = {
    "CompareSettings": "experiments.settings",
    "ConfigError": "experiments.settings",
    "EXPERIMENTS": "experiments.registry",
    "Experiment": "experiments.registry",
    "as_frame": "experiments.results",
    "run_compare": "experiments.compare",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'experiments' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
