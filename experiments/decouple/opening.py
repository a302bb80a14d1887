"""From an arm to the library's decoupling: its reference texts, settings, matched strength."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.decouple.arms import Arm
from experiments.decouple.pairs import Task
from experiments.decouple.settings import DecoupleSettings
from interventions.decoupling import (
    Decoupling,
    DecouplingSettings,
    Reference,
    matched_strength,
)

if TYPE_CHECKING:
    from activations import Model


def open_decoupling(
    model: Model,
    task: Task,
    arm: Arm,
    settings: DecoupleSettings,
    layers: tuple[int, ...],
    seed: int,
) -> Decoupling:
    """What an arm does to the model, whose weights are those that fine-tuning starts from.

    The plain arm watches at strength 0, so that its telemetry stands beside the others'.
    """
    standard = task.standard[0].variety
    reference = reference_texts(task, settings, seed, left_out=_untold(task, settings))
    told = _told(arm, task, settings, layers, seed)
    if arm.control:
        # Matched on the dialect's own states, also where the subspace is estimated without them.
        found = matched_strength(
            model.hf,
            reference_texts(task, settings, seed),
            standard=standard,
            settings=_told(replace(arm, source="estimated"), task, settings, layers, seed),
            control=told,
            dialects=task.dialect,
        )
        told = replace(told, strength=found.strength)
    return Decoupling(model.hf, reference, standard=standard, settings=told)


def reference_texts(
    task: Task, settings: DecoupleSettings, seed: int, *, left_out: str = ""
) -> Reference:
    """The groups that one seed's subspace is estimated from: as many as texts it is tuned on."""
    rng = np.random.default_rng([seed, 2])
    count = min(settings.train_texts, len(task.references))
    rows = rng.choice(len(task.references), count, replace=False)
    examples = [e for row in rows for e in task.references[row] if e.variety != left_out]
    return Reference.of(
        [e.ids for e in examples],
        [e.variety for e in examples],
        starts=[e.start for e in examples],
        groups=[e.group for e in examples],
    )


def _untold(task: Task, settings: DecoupleSettings) -> str:
    """The variety that the subspace is estimated without, if any."""
    return task.dialect if settings.contrast == "others" else ""


def _told(
    arm: Arm, task: Task, settings: DecoupleSettings, layers: tuple[int, ...], seed: int
) -> DecouplingSettings:
    kept: dict[str, Any] = {
        "warmup": settings.warmup,
        "layers": layers,
        "tokens": settings.decoupled,
        "every": settings.every,
        "reference_rows": settings.reference_groups * len(task.references[0]),
        "seed": seed,
    }
    if arm.plain:
        return DecouplingSettings(strength=0.0, k=settings.k[0], **kept)
    if arm.source == "l2":
        return DecouplingSettings(form="l2", strength=arm.strength, **kept)
    return DecouplingSettings(
        form=arm.form,  # type: ignore[arg-type]
        source=arm.source,  # type: ignore[arg-type]
        strength=arm.strength,
        k=arm.k,
        **kept,
    )
