"""The direction that refusal hangs on: found, chosen and verified as published, and as a cone."""

from __future__ import annotations

from experiments.directions.job import run_directions
from experiments.directions.settings import DirectionsSettings

__all__ = ["DirectionsSettings", "run_directions"]
