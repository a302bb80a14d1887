"""A dialect's states decoupled from the standard's subspace while a model is fine-tuned.

from interventions.decoupling import Decoupling, DecouplingSettings, Reference

reference = Reference.of(ids, varieties, groups=groups)
with Decoupling(model, reference, standard="arden") as decoupling:
    ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interventions.decoupling.decoupling import Decoupling
from interventions.decoupling.matching import MatchedStrength, matched_strength
from interventions.decoupling.reference import Reference
from interventions.decoupling.settings import DecouplingSettings

if TYPE_CHECKING:
    from interventions.decoupling.trainer import DecouplingCallback, VarietyCollator

__all__ = [
    "Decoupling",
    "DecouplingCallback",
    "DecouplingSettings",
    "MatchedStrength",
    "Reference",
    "VarietyCollator",
    "matched_strength",
]


def __getattr__(name: str) -> Any:
    """The names that need transformers' Trainer load when first asked for."""
    if name in ("DecouplingCallback", "VarietyCollator"):
        from interventions.decoupling import trainer

        return getattr(trainer, name)
    raise AttributeError(f"module 'interventions.decoupling' has no attribute {name!r}")
