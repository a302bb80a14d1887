"""The main job: where a model keeps its varieties and its alignment, and what follows from each."""

from __future__ import annotations

from experiments.compare.job import run_compare

__all__ = ["run_compare"]
