"""Experiments × models × corpora × settings as one batch, which goes on where it was cut off."""

from __future__ import annotations

from experiments.batch.folder import BatchFolder, State
from experiments.batch.grid import Planned, plan, read_grid, share
from experiments.batch.join import join
from experiments.batch.report import write_report
from experiments.batch.schedule import run_batch
from experiments.batch.summary import summarise

__all__ = [
    "BatchFolder",
    "Planned",
    "State",
    "join",
    "plan",
    "read_grid",
    "run_batch",
    "share",
    "summarise",
    "write_report",
]
