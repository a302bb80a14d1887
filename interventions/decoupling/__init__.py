"""A dialect's states decoupled from the standard's subspace while a model is fine-tuned.

from interventions.decoupling import Decoupling, DecouplingSettings, Reference

reference = Reference.of(ids, varieties, groups=groups)
with Decoupling(model, reference, standard="arden") as decoupling:
    ...
"""

from __future__ import annotations

from interventions.decoupling.decoupling import Decoupling
from interventions.decoupling.matching import MatchedStrength, matched_strength
from interventions.decoupling.reference import Reference
from interventions.decoupling.settings import DecouplingSettings

__all__ = [
    "Decoupling",
    "DecouplingSettings",
    "MatchedStrength",
    "Reference",
    "matched_strength",
]
