"""Change what a model computes, and measure what follows: edits, patching, steering."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interventions.agreement import Agreement
    from interventions.alignment import align_tokens
    from interventions.attribution import AttributionSweep, attribution_sweep
    from interventions.chance import random_directions
    from interventions.das import Alignment, distributed_alignment_search
    from interventions.dose import DoseResponse, Outcome, dose_response, dose_trend
    from interventions.edits import (
        Ablation,
        Addition,
        Clamping,
        Composition,
        Constant,
        Erasure,
        Replacement,
        Resampling,
        Rotation,
        Scaling,
        ablate,
        add,
        clamp,
        compose,
        mean_ablate,
        project_out,
        replace,
        resample,
        rotate,
        scale,
        zero_ablate,
    )
    from interventions.errors import EditError
    from interventions.fluency import Refusals, TextLosses, reply_losses
    from interventions.interchange import interchange
    from interventions.lenses import lens_divergence, lens_logits, logit_lens, promoted_tokens
    from interventions.mediation import Mediation, mediation
    from interventions.metrics import (
        REFUSAL_PHRASES,
        Losses,
        RefusalRate,
        is_refusal,
        losses,
        refusal_rate,
        replies_to,
    )
    from interventions.next_token import refusal_score, refusal_tokens
    from interventions.nodes import OUTPUT, Node, nodes_of
    from interventions.patching import PatchSweep, patch_sweep
    from interventions.paths import PathSweep, path_sweep
    from interventions.readings import (
        AnswerLogProb,
        ContinuationLoss,
        KLFromSource,
        LogitDifference,
        Metric,
    )
    from interventions.restoration import (
        HarmfulRate,
        ReplyLikelihood,
        Restoration,
        restore,
        save_restored,
    )
    from interventions.selection import (
        Candidate,
        Thresholds,
        ablate_everywhere,
        choose_candidate,
        score_candidates,
    )
    from interventions.steering import steer, steering_direction
    from interventions.text_variety import Continuations, TextVarieties
    from interventions.weights import EditedModel, control_vector, orthogonalise, save_edited

__all__ = [
    "EditError",
    "ablate",
    "add",
    "replace",
    "scale",
    "project_out",
    "zero_ablate",
    "mean_ablate",
    "resample",
    "clamp",
    "rotate",
    "compose",
    "Ablation",
    "Addition",
    "Replacement",
    "Scaling",
    "Erasure",
    "Constant",
    "Resampling",
    "Clamping",
    "Rotation",
    "Composition",
    "is_refusal",
    "refusal_rate",
    "replies_to",
    "RefusalRate",
    "REFUSAL_PHRASES",
    "losses",
    "Losses",
    "steering_direction",
    "steer",
    "dose_response",
    "dose_trend",
    "DoseResponse",
    "Outcome",
    "TextLosses",
    "Refusals",
    "reply_losses",
    "TextVarieties",
    "Continuations",
    "random_directions",
    "refusal_score",
    "refusal_tokens",
    "score_candidates",
    "choose_candidate",
    "ablate_everywhere",
    "Candidate",
    "Thresholds",
    "align_tokens",
    "patch_sweep",
    "PatchSweep",
    "attribution_sweep",
    "AttributionSweep",
    "Agreement",
    "Node",
    "OUTPUT",
    "nodes_of",
    "path_sweep",
    "PathSweep",
    "mediation",
    "Mediation",
    "Metric",
    "KLFromSource",
    "LogitDifference",
    "AnswerLogProb",
    "ContinuationLoss",
    "logit_lens",
    "lens_logits",
    "lens_divergence",
    "promoted_tokens",
    "orthogonalise",
    "EditedModel",
    "save_edited",
    "control_vector",
    "interchange",
    "distributed_alignment_search",
    "Alignment",
    "restore",
    "Restoration",
    "save_restored",
    "HarmfulRate",
    "ReplyLikelihood",
]

_HOMES = {
    "EditError": "interventions.errors",
    "ablate": "interventions.edits",
    "add": "interventions.edits",
    "replace": "interventions.edits",
    "Ablation": "interventions.edits",
    "Addition": "interventions.edits",
    "Replacement": "interventions.edits",
    "scale": "interventions.edits",
    "project_out": "interventions.edits",
    "zero_ablate": "interventions.edits",
    "mean_ablate": "interventions.edits",
    "resample": "interventions.edits",
    "clamp": "interventions.edits",
    "rotate": "interventions.edits",
    "compose": "interventions.edits",
    "Scaling": "interventions.edits",
    "Erasure": "interventions.edits",
    "Constant": "interventions.edits",
    "Resampling": "interventions.edits",
    "Clamping": "interventions.edits",
    "Rotation": "interventions.edits",
    "Composition": "interventions.edits",
    "is_refusal": "interventions.metrics",
    "refusal_rate": "interventions.metrics",
    "replies_to": "interventions.metrics",
    "RefusalRate": "interventions.metrics",
    "REFUSAL_PHRASES": "interventions.metrics",
    "losses": "interventions.metrics",
    "Losses": "interventions.metrics",
    "dose_response": "interventions.dose",
    "dose_trend": "interventions.dose",
    "DoseResponse": "interventions.dose",
    "Outcome": "interventions.dose",
    "TextLosses": "interventions.fluency",
    "Refusals": "interventions.fluency",
    "reply_losses": "interventions.fluency",
    "random_directions": "interventions.chance",
    "refusal_score": "interventions.next_token",
    "refusal_tokens": "interventions.next_token",
    "score_candidates": "interventions.selection",
    "choose_candidate": "interventions.selection",
    "ablate_everywhere": "interventions.selection",
    "Candidate": "interventions.selection",
    "Thresholds": "interventions.selection",
    "steering_direction": "interventions.steering",
    "steer": "interventions.steering",
    "TextVarieties": "interventions.text_variety",
    "Continuations": "interventions.text_variety",
    "align_tokens": "interventions.alignment",
    "patch_sweep": "interventions.patching",
    "PatchSweep": "interventions.patching",
    "attribution_sweep": "interventions.attribution",
    "AttributionSweep": "interventions.attribution",
    "Agreement": "interventions.agreement",
    "Node": "interventions.nodes",
    "OUTPUT": "interventions.nodes",
    "nodes_of": "interventions.nodes",
    "path_sweep": "interventions.paths",
    "PathSweep": "interventions.paths",
    "mediation": "interventions.mediation",
    "Mediation": "interventions.mediation",
    "Metric": "interventions.readings",
    "KLFromSource": "interventions.readings",
    "LogitDifference": "interventions.readings",
    "AnswerLogProb": "interventions.readings",
    "ContinuationLoss": "interventions.readings",
    "interchange": "interventions.interchange",
    "distributed_alignment_search": "interventions.das",
    "Alignment": "interventions.das",
    "logit_lens": "interventions.lenses",
    "lens_logits": "interventions.lenses",
    "lens_divergence": "interventions.lenses",
    "promoted_tokens": "interventions.lenses",
    "orthogonalise": "interventions.weights",
    "EditedModel": "interventions.weights",
    "save_edited": "interventions.weights",
    "control_vector": "interventions.weights",
    "restore": "interventions.restoration",
    "Restoration": "interventions.restoration",
    "save_restored": "interventions.restoration",
    "HarmfulRate": "interventions.restoration",
    "ReplyLikelihood": "interventions.restoration",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'interventions' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
