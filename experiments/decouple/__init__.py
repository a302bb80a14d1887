"""Whether fine-tuning on a dialect gains from decoupling it from the standard, beside controls."""

from __future__ import annotations

from experiments.decouple.job import run_decouple
from experiments.decouple.settings import DecoupleSettings

__all__ = ["DecoupleSettings", "run_decouple"]
