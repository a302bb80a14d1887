"""How behaviour and variety follow the strength of a direction, and what it costs elsewhere."""

from __future__ import annotations

from experiments.steer.job import run_steer
from experiments.steer.settings import SteerSettings

__all__ = ["SteerSettings", "run_steer"]
