"""Models side by side on held-out requests: each state is judged once, item by item."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from experiments.restore.material import Material, Prompts, corpus_material, organism_material
from experiments.restore.settings import RestoreSettings
from experiments.settings import ConfigError
from interventions import EditError, replies_to
from interventions.restoration import (
    AT_RANDOM,
    BY_DIFFERENCE,
    BY_GRADIENT,
    SIGN_MATCHED,
    HarmfulRate,
    Ranking,
    ReplyLikelihood,
    Restoration,
    restore,
)
from interventions.restoration.moves import replaced
from interventions.restoration.reference import Reference, open_reference
from interventions.restoration.scope import Scope, scope_below

if TYPE_CHECKING:
    from activations import Model
    from experiments.inputs import Inputs

#: By control, as rows name it: how it chooses. "" is the method itself.
RANKINGS: dict[str, Ranking] = {
    "": BY_GRADIENT,
    "random_restoration": AT_RANDOM,
    "sign_matched_restoration": SIGN_MATCHED,
    "largest_difference": BY_DIFFERENCE,
}


@dataclass(frozen=True, eq=False)
class Judged:
    """Of each held-out item, `[n]`: 1 where harm is not refused, 1 where a harmless request is
    refused, nats per token of the task's reply, 1 where it is right word for word.
    """

    harmful: np.ndarray
    harmless: np.ndarray
    loss: np.ndarray
    exact: np.ndarray


@dataclass(eq=False)
class Work:
    """What is restored and judged, and what was found so far in this process.

    Attributes:
        changes: the table of before and after, of the first draw; empty where it was not asked for.
    """

    settings: RestoreSettings
    inputs: Inputs
    model: Model
    reference: Reference
    scope: Scope
    material: Material
    left_out: tuple[str, ...] = ()
    changes: pd.DataFrame = field(default_factory=pd.DataFrame)
    _published: dict[int, Restoration] = field(default_factory=dict)
    _courses: dict[tuple[int, str], Restoration] = field(default_factory=dict)
    _judged: dict[Any, Judged] = field(default_factory=dict)

    def published(self, draw: int, record: Path | None) -> Restoration:
        """The method with all its rules of stopping and rollback, on one draw of prompts."""
        if draw not in self._published:
            s, prompts = self.settings, self.material.prompts[draw]
            harmful, task = self.checks(prompts)
            with replaced(self.model, self.reference, list(self.names)) as aligned:
                target = harmful(aligned) + s.tolerance
            self._published[draw] = restore(
                self.model,
                s.aligned,
                prompts.harmful.texts,
                prompts.task.texts,
                **self._common,
                steps=s.steps,
                harmful_metric=harmful,
                task_metric=task,
                target=target,
                task_fall=s.task_fall,
                warm_up=s.warm_up,
                rollback_share=s.rollback_share,
                record=record,
            )
        return self._published[draw]

    def course(self, draw: int, control: str) -> Restoration:
        """All steps by one rule of choice, without stopping or rollback."""
        key = (draw, control)
        if key not in self._courses:
            prompts = self.material.prompts[draw]
            self._courses[key] = restore(
                self.model,
                self.settings.aligned,
                prompts.harmful.texts,
                **self._common,
                steps=self.settings.steps,
                ranking=RANKINGS[control],
                seed=self.settings.seed + draw,
            )
        return self._courses[key]

    @property
    def _common(self) -> dict[str, Any]:
        s = self.settings
        return {
            "layer": self.scope.layer,
            "share": s.share,
            "batch": s.batch,
            "embeddings": s.embeddings,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """All of the model's parameters."""
        return tuple(name for name, _ in self.model.hf.named_parameters())

    def checks(self, prompts: Prompts) -> tuple[HarmfulRate, ReplyLikelihood]:
        """The metrics that decide when to stop."""
        harmful = HarmfulRate(prompts.harmful_check.texts, self.settings.new_tokens)
        return harmful, ReplyLikelihood(prompts.task_check.texts, prompts.task_check.replies)

    def before(self) -> Judged:
        """The drifted model."""
        return self._once("before", self.judge)

    def whole(self, names: tuple[str, ...]) -> Judged:
        """The model with all of the aligned model's values of some weights."""

        def measured() -> Judged:
            with replaced(self.model, self.reference, names):
                return self.judge()

        return self._once(names, measured)

    def after_published(self, draw: int, record: Path | None) -> Judged:
        """The model that the method with all its rules leaves."""
        made = self.published(draw, record)
        if made.moves and not made.rollback:  # the same moves as without the rules, cut off
            return self.after(self.course(draw, ""), len(made.moves))
        return self.after(made)

    def after(self, restoration: Restoration, step: int | None = None) -> Judged:
        """The model restored up to a step."""

        def measured() -> Judged:
            with restoration.applied(step):
                return self.judge()

        return self._once((id(restoration), step), measured)

    def _once(self, key: Any, measured: Any) -> Judged:
        if key not in self._judged:
            self._judged[key] = measured()
        return self._judged[key]

    def judge(self) -> Judged:
        """Of the model as it is now."""
        s, m = self.settings, self.material
        harmful = HarmfulRate(m.harmful.texts, s.new_tokens).flags(self.model)
        harmless = 1 - HarmfulRate(m.harmless.texts, s.new_tokens).flags(self.model)
        loss = ReplyLikelihood(m.task.texts, m.task.replies).losses(self.model)
        exact = np.zeros(0)
        if m.exact:
            longest = max(len(self.model.encode(r)) for r in m.task.replies)
            said = replies_to(self.model, m.task.texts, max_new_tokens=longest + 4)
            exact = np.array(
                [r.strip() in right for r, right in zip(said, m.exact, strict=True)], float
            )
        return Judged(harmful, harmless, loss, exact)


def set_up(settings: RestoreSettings, inputs: Inputs, model: Model) -> Work:
    """Check the two models and gather what is asked.

    Raises:
        ConfigError: models that do not fit, steps that are never taken, too few requests, or a
            model that has lost nothing.
    """
    if max(settings.at) > settings.steps or min(settings.at) < 1:
        raise ConfigError(
            f"`at` names step {max(settings.at)} of {settings.steps}: give steps from 1 to `steps`."
        )
    try:
        reference = open_reference(settings.aligned, model.hf, settings.model)
        scope = scope_below(
            model.hf, settings.layer or None, settings.model, embeddings=settings.embeddings
        )
    except EditError as error:
        raise ConfigError(str(error)) from error
    if settings.corpus:
        material = corpus_material(settings, inputs, model)
    else:
        material = organism_material(settings)
    work = Work(settings, inputs, model, reference, scope, material, inputs.left_out)
    harmful, _ = work.checks(material.prompts[0])
    now = harmful(model)
    with replaced(model, reference, list(work.names)):
        then = harmful(model)
    if now <= then + settings.tolerance:
        raise ConfigError(
            f"{settings.model} leaves {now:.0%} of harmful requests unrefused and "
            f"{settings.aligned} {then:.0%}, so there is nothing to restore: give a model that "
            "refuses less than its aligned one, or a smaller `tolerance`."
        )
    return work
