"""Give a fine-tuned model back the few weights of its aligned parent that its refusals hang on.

After "Alleviating the Fear of Losing Alignment in LLM Fine-tuning" (S&P 2025). The harmful
direction is the mean state of A's last tokens on harmful prompts at layer E. A recovery step takes
the gradient of -cos(mean state of F, that direction); of the weights below E whose return to A's
value lowers it, those with the largest gradient take A's values. Where the task suffers, it begins
anew with rollback: of the weights just restored, those whose return to F's value would most lower
-cos(mean state on the task, F's own mean there) go back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from activations.model import Model
from interventions.errors import EditError
from interventions.restoration.largest import largest
from interventions.restoration.measures import ModelMetric
from interventions.restoration.moves import Moves, forget, make_moves, put, replaced, undo
from interventions.restoration.ranking import BY_GRADIENT, Ranking
from interventions.restoration.record import Record
from interventions.restoration.reference import Reference, open_reference
from interventions.restoration.restored import Restoration
from interventions.restoration.rollback import gone_back
from interventions.restoration.scope import Scope, scope_below
from interventions.restoration.states import cosine, cosine_gradient, mean_state
from interventions.weights.edited import given

Say: TypeAlias = Callable[[dict[str, Any]], None]


def restore(
    model: Model,
    aligned: Any,
    harmful: Sequence[str],
    task: Sequence[str] = (),
    *,
    layer: int | None = None,
    share: float = 0.002,
    steps: int = 20,
    batch: int = 16,
    embeddings: bool = True,
    ranking: Ranking = BY_GRADIENT,
    harmful_metric: ModelMetric | None = None,
    task_metric: ModelMetric | None = None,
    target: float | None = None,
    task_fall: float = 0.05,
    warm_up: int = 5,
    measure_every: int = 1,
    rollback: bool | None = None,
    rollback_share: float = 0.2,
    record: str | Path | None = None,
    seed: int = 0,
    tell: Say | None = None,
) -> Restoration:
    """Find which weights of a fine-tuned model to give its aligned parent's values.

    The model is as it was when this returns; `Restoration.applied` makes the moves and
    `save_restored` writes the model with them. The aligned model's weights are read one at a time
    and never lie beside the model as a whole: its direction is measured by putting them in the
    model's place below layer E. Besides the model, the device holds one f32 copy of the weights
    below E.

    Args:
        model: the fine-tuned F, in memory on this machine.
        aligned: the aligned A, of the same shape: what `open_reference` takes.
        harmful: harmful requests, as a user would write them (256 published).
        task: requests of the fine-tuning's task; without them there is no rollback.
        layer: E; the first third of the layers where None.
        share: of all the model's weights, restored in each step (0.001 to 0.03 published).
        batch: prompts whose mean state is compared at a time; their gradients are summed.
        embeddings: whether tables of embeddings may move, tied ones too.
        ranking: which weights go first; the others are controls.
        harmful_metric: lower is better, such as `HarmfulRate`; needed for `target`.
        task_metric: higher is better, such as `ReplyLikelihood`; needed for rollback.
        target: stop once the harmful metric is at most this.
        task_fall: the largest relative fall of the task metric.
        warm_up: steps before the task metric is judged.
        measure_every: steps between measurements.
        rollback: begin with it on (True), never turn it on (False), or as published (None): begin
            anew with it once the task metric has fallen too far.
        rollback_share: of the weights just restored, those that go back.
        record: a folder to keep the steps in; the same call goes on from there.
        seed: of the controls that draw.
        tell: called with each measurement.

    Returns:
        What moved in each step, with the measurements. With rollback on, and the metric below its
        limit still, it ends at the last measurement within it.

    Raises:
        EditError: two models of different shape, by name of what differs; settings out of range;
            quantised or absent weights; values that are not finite.
    """
    _require(model, harmful, share, steps, batch, measure_every, rollback_share, task_fall)
    if target is not None and harmful_metric is None:
        raise EditError("`target` is a value of `harmful_metric`: give that too.")
    if rollback and not len(task):
        raise EditError("Rollback compares states on the task's requests: give them as `task`.")
    _, _, label, said = given(model)
    for name, one in model.hf.named_parameters():
        if not bool(torch.isfinite(one).all()):
            raise EditError(
                f"The weight {name} of {label} holds NaN or infinity: mend that model first."
            )
    reference = open_reference(aligned, model.hf, label)
    scope = scope_below(model.hf, layer, label, embeddings=embeddings)
    count = round(share * scope.total)
    if count < 1:
        raise EditError(f"`share` {share:g} of {scope.total} weights is none: give a larger one.")
    settings = {
        "model": said["digest"],
        "aligned": reference.digest() if record is not None else reference.name,
        "layer": scope.layer,
        "share": share,
        "batch": batch,
        "embeddings": embeddings,
        "ranking": ranking.name,
        "target": target,
        "task_fall": task_fall,
        "warm_up": warm_up,
        "measure_every": measure_every,
        "steps": steps,
        "rollback": rollback,
        "rollback_share": rollback_share,
        "prompts": hashlib.sha256(repr((list(harmful), list(task))).encode()).hexdigest(),
        "seed": seed,
    }
    course = _Course(
        model=model,
        reference=reference,
        scope=scope,
        harmful=list(harmful),
        task=list(task),
        count=count,
        ranking=ranking,
        batch=batch,
        steps=steps,
        harmful_metric=harmful_metric,
        task_metric=task_metric,
        target=target,
        task_fall=task_fall,
        warm_up=warm_up,
        every=measure_every,
        rollback=rollback,
        rollback_share=rollback_share,
        seed=seed,
        tell=tell,
        record=Record(record, settings) if record is not None else None,
    )
    with model.lock:
        try:
            stopped = course.run()
        finally:
            undo(model.hf, course.moves)
            forget(model)
    return Restoration(
        model=model,
        aligned=reference.name,
        scope=scope,
        moves=tuple(course.moves),
        steps=tuple(course.told),
        stopped=stopped,
        rollback=course.back,
        settings=settings,
        source=said,
    )


@dataclass
class _Course:
    """One restoration under way: the model holds the moves made so far."""

    model: Model
    reference: Reference
    scope: Scope
    harmful: list[str]
    task: list[str]
    count: int
    ranking: Ranking
    batch: int
    steps: int
    harmful_metric: ModelMetric | None
    task_metric: ModelMetric | None
    target: float | None
    task_fall: float
    warm_up: int
    every: int
    rollback: bool | None
    rollback_share: float
    seed: int
    tell: Say | None
    record: Record | None
    moves: list[Moves] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    back: bool = False

    def run(self) -> str:
        """Go on until something stops it; returns what did."""
        self.back = bool(self.rollback)
        with replaced(self.model, self.reference, self.scope.reached):
            direction = mean_state(self.model, self.harmful, self.scope, batch=self.batch)
        own = None
        if self.task:
            own = mean_state(self.model, self.task, self.scope, batch=self.batch)
        stopped = self._resume(direction)
        while not stopped:
            step = len(self.moves) + 1
            if not self._step(step, direction, own):
                stopped = "no candidates"
                break
            due = step % self.every == 0 or step == self.steps
            row = self._measure(step, direction, measured=due)
            if due and step >= self.warm_up and self._fall(row) > self.task_fall:
                if self.rollback is None and not self.back and self.task:
                    self._begin_anew()
                    continue
                self._back_within()
                stopped = "task metric"
            elif due and self.target is not None and row["harmful_metric"] <= self.target:
                stopped = "target"
            elif step == self.steps:
                stopped = "steps"
            self._keep(step, stopped)
        self._keep(0, stopped)
        return stopped

    def _resume(self, direction: Tensor) -> str:
        stopped = ""
        if self.record is not None:
            back, moves, self.told, stopped = self.record.earlier()
            for one in moves:
                put(self.model.hf, one.places, one.after)
                self.moves.append(one)
            self.back = self.back or back
        if not self.told:
            self._measure(0, direction, measured=True)
        forget(self.model)
        return stopped

    def _step(self, step: int, direction: Tensor, own: Tensor | None) -> bool:
        """Restore, and roll back where that is on; False where nothing is left to restore."""
        gradients: dict[str, Tensor] = {}
        if self.ranking.needs_gradient:
            gradients = cosine_gradient(
                self.model, self.harmful, direction, self.scope, batch=self.batch
            )
        chosen = self._choose(gradients, step)
        del gradients
        if not chosen:
            return False
        moves = make_moves(self.model.hf, chosen, self.reference)
        self.moves.append(moves)
        if self.back and own is not None:
            slopes = cosine_gradient(self.model, self.task, own, self.scope, batch=self.batch)
            back = gone_back(moves, slopes, self.rollback_share)
            for name, gone in back.items():
                index, values = moves.places[name][gone], moves.before[name][gone]
                put(self.model.hf, {name: index}, {name: values})
            self.moves[-1] = moves.without(back)
        forget(self.model)
        return True

    def _choose(self, gradients: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        named = dict(self.model.hf.named_parameters())
        scores = {}
        with torch.no_grad():
            for name in self.scope.movable:
                own = named[name].detach()
                aligned = self.reference.read(name, own)
                gradient = gradients.pop(name, None)
                scores[name] = self.ranking.score(gradient, own, aligned, draw)
        return largest(scores, self.count)

    def _measure(self, step: int, direction: Tensor, *, measured: bool) -> dict[str, Any]:
        state = mean_state(self.model, self.harmful, self.scope, batch=self.batch)
        moves = self.moves[-1].count if step else 0
        row: dict[str, Any] = {
            "step": step,
            "restored": moves,
            "cosine": cosine(state, direction),
            "harmful_metric": None,
            "task_metric": None,
        }
        for key in ("harmful_metric", "task_metric"):
            metric = getattr(self, key)
            if measured and metric is not None:
                row[key] = float(metric(self.model))
        self.told.append(row)
        if self.tell is not None:
            self.tell(row)
        return row

    def _fall(self, row: dict[str, Any]) -> float:
        """Relative fall of the task metric since the start; 0 where it was not measured."""
        before, now = self.told[0]["task_metric"], row["task_metric"]
        if before is None or now is None:
            return 0.0
        return (before - now) / abs(before) if before else float(now < before)

    def _begin_anew(self) -> None:
        undo(self.model.hf, self.moves)
        self.moves, self.told, self.back = [], self.told[:1], True
        forget(self.model)
        self._keep(0, "")

    def _back_within(self) -> None:
        """Go back to the last measurement at which the task metric was within its limit."""
        good = max(
            row["step"]
            for row in self.told
            if row["step"] == 0
            or (row["task_metric"] is not None and self._fall(row) <= self.task_fall)
        )
        undo(self.model.hf, self.moves[good:])
        self.moves, self.told = self.moves[:good], self.told[: good + 1]
        forget(self.model)

    def _keep(self, step: int, stopped: str) -> None:
        if self.record is None:
            return
        if step and step <= len(self.moves):
            self.record.add(step, self.moves[step - 1])
        self.record.tell(rollback=self.back, steps=self.told, stopped=stopped)


def _require(
    model: Any,
    harmful: Sequence[str],
    share: float,
    steps: int,
    batch: int,
    every: int,
    back: float,
    fall: float,
) -> None:
    if not isinstance(model, Model):
        raise EditError(
            f"`model` is a {type(model).__name__}: open it by open_model, which gives its "
            "requests their template."
        )
    if not len(harmful):
        raise EditError("There are no harmful requests: give at least one, better 256.")
    for name, value in (("share", share), ("rollback_share", back), ("task_fall", fall)):
        if not 0 < value <= 1:
            raise EditError(f"`{name}` is {value}: give a share above 0, at most 1.")
    for name, count in (("steps", steps), ("batch", batch), ("measure_every", every)):
        if count < 1:
            raise EditError(f"`{name}` is {count}: give at least 1.")
