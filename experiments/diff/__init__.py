"""What differs between two models, or between a model and the same under an edit."""

from __future__ import annotations

from experiments.diff.changes import before_after, wide
from experiments.diff.settings import DiffSettings

__all__ = ["DiffSettings", "before_after", "wide"]
