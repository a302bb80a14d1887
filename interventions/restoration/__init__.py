"""Lost alignment restored: the few weights whose return to the aligned model's values matters."""

from __future__ import annotations

from interventions.restoration.measures import HarmfulRate, ReplyLikelihood
from interventions.restoration.ranking import (
    AT_RANDOM,
    BY_DIFFERENCE,
    BY_GRADIENT,
    SIGN_MATCHED,
    Ranking,
)
from interventions.restoration.recovery import restore
from interventions.restoration.restored import Restoration, save_restored

__all__ = [
    "AT_RANDOM",
    "BY_DIFFERENCE",
    "BY_GRADIENT",
    "SIGN_MATCHED",
    "HarmfulRate",
    "Ranking",
    "ReplyLikelihood",
    "Restoration",
    "restore",
    "save_restored",
]
