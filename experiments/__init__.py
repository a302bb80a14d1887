"""One module for each question: typed settings in, a run directory out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from experiments.results import as_frame
from experiments.settings import CompareSettings, ConfigError

if TYPE_CHECKING:
    from experiments.compare import run_compare

__all__ = ["CompareSettings", "ConfigError", "as_frame", "run_compare"]


def __getattr__(name: str) -> object:
    if name == "run_compare":
        from experiments.compare import run_compare

        return run_compare
    raise AttributeError(f"module 'experiments' has no attribute {name!r}")
