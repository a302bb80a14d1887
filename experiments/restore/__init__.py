"""Lost refusals given back by few weights of the aligned model, beside what should not do it."""

from __future__ import annotations

from experiments.restore.job import run_restore
from experiments.restore.settings import RestoreSettings

__all__ = ["RestoreSettings", "run_restore"]
