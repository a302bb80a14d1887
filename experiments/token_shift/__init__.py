"""Which tokens of an aligned model's answers its base model would not have written."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from experiments.token_shift.job import run_token_shift
from experiments.token_shift.settings import TokenShiftSettings

if TYPE_CHECKING:
    from experiments.token_shift.page import token_shift_html
    from experiments.token_shift.shift import Speaker, answer_shifts, shift_scores
    from experiments.token_shift.words import word_classes

__all__ = [
    "Speaker",
    "TokenShiftSettings",
    "answer_shifts",
    "run_token_shift",
    "shift_scores",
    "token_shift_html",
    "word_classes",
]

# What needs torch loads when first asked for.
_HOMES = {
    "Speaker": "shift",
    "answer_shifts": "shift",
    "shift_scores": "shift",
    "token_shift_html": "page",
    "word_classes": "words",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'experiments.token_shift' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"experiments.token_shift.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
