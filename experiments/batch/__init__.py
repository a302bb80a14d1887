"""Experiments × models × corpora × settings as one batch, which goes on where it was cut off."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from experiments.batch.folder import BatchFolder, State
from experiments.batch.grid import Grid, Planned, plan, read_grid, share
from experiments.batch.schedule import check_workers, run_batch

if TYPE_CHECKING:
    from experiments.batch.joining import join
    from experiments.batch.report import write_report
    from experiments.batch.summary import summarise

__all__ = [
    "BatchFolder",
    "Grid",
    "Planned",
    "State",
    "check_workers",
    "join",
    "plan",
    "read_grid",
    "run_batch",
    "share",
    "summarise",
    "write_report",
]

_HOMES = {"join": "joining", "summarise": "summary", "write_report": "report"}


def __getattr__(name: str) -> object:
    """Tables load when first asked for: a worker that waits for a run needs none."""
    if name in _HOMES:
        return getattr(import_module(f"experiments.batch.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'experiments.batch' has no attribute {name!r}")
