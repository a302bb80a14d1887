"""Edits of activations: values that a model applies while `with model.edited(...)` is open.

An edit names its sites, and maps an activation to a new one; it holds no state of a run, so one
edit may serve any number of models, batches and decoding steps. Edits are made in the order given,
those of nested contexts after the outer ones.
"""

from __future__ import annotations

from interventions.edits.ablation import Ablation, ablate
from interventions.edits.addition import Addition, add
from interventions.edits.clamping import Clamping, clamp
from interventions.edits.composition import Composition, compose
from interventions.edits.constant import Constant, mean_ablate, zero_ablate
from interventions.edits.projection import Erasure, project_out
from interventions.edits.replacement import Replacement, replace
from interventions.edits.resampling import Resampling, resample
from interventions.edits.rotation import Rotation, rotate
from interventions.edits.scaling import Scaling, scale

__all__ = [
    "Ablation",
    "Addition",
    "Clamping",
    "Composition",
    "Constant",
    "Erasure",
    "Replacement",
    "Resampling",
    "Rotation",
    "Scaling",
    "ablate",
    "add",
    "clamp",
    "compose",
    "mean_ablate",
    "project_out",
    "replace",
    "resample",
    "rotate",
    "scale",
    "zero_ablate",
]
