"""Model organisms: small transformers with known varieties and known alignment planted in them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from organisms.corpus import bundled_corpus
    from organisms.library import NAMES, OrganismError, card, path, truth
    from organisms.planted import Truth

__all__ = ["NAMES", "OrganismError", "Truth", "bundled_corpus", "card", "path", "truth"]

_HOMES = {
    "NAMES": "organisms.library",
    "OrganismError": "organisms.library",
    "Truth": "organisms.planted",
    "bundled_corpus": "organisms.corpus",
    "card": "organisms.library",
    "path": "organisms.library",
    "truth": "organisms.library",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'organisms' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
