"""The rows of one fine-tune: what it wrote, what it cost the standard, and how it went inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from experiments.decouple.arms import Arm, main_arms
from experiments.decouple.bench import Bench, spread
from experiments.decouple.judging import (
    Acting,
    example_losses,
    translate,
    translation_scores,
    untouched,
)
from experiments.decouple.pairs import Task
from experiments.decouple.tuning import fine_tune, start
from experiments.results import row

#: What the library tells of each update, and our name for it.
_TELEMETRY = {
    "overlap": "variety_standard_overlap",
    "inside": "energy_inside",
    "start_overlap": "overlap_with_start",
    "code_nats": "probe_code_length",
    "probe_accuracy": "online_probe_accuracy",
}


def untuned(bench: Bench) -> list[dict[str, Any]]:
    """The model as it came, on the same sentences as all fine-tunes."""
    rows = []
    for task in bench.tasks:
        start(bench.model, bench.weights, task, bench.settings)
        rows += _judged(bench, task)
    bench.weights.restore()
    return rows


def fine_tuned(bench: Bench, task: Task, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """One fine-tune and its judgement. The model is as before afterwards."""
    where = {"edit": arm.edit, "control": arm.control, "seed": seed}
    try:
        tuned = fine_tune(bench.model, bench.weights, task, arm, bench.settings, bench.layers, seed)
        with tuned.in_force():
            rows = list(_judged(bench, task, tuned.acting))
        rows += _telemetry(task, tuned.decoupling.telemetry())
        weight = tuned.decoupling.settings.strength
        rows.append(row("decoupling_strength", float(weight or 0.0), variety=task.dialect))
    finally:
        bench.weights.restore()
    return [r | where for r in rows]


def _telemetry(task: Task, told: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for record in told.to_dict("records"):
        layer = int(record["layer"])
        for name, measure in _TELEMETRY.items():
            if name in record and pd.notna(record[name]):
                yield row(
                    measure,
                    float(record[name]),
                    site=f"blocks.{layer}.hook_resid_post",
                    layer=layer,
                    position=int(record["step"]),
                    variety=task.dialect,
                    reference=task.standard[0].variety,
                )


def _judged(bench: Bench, task: Task, acting: Acting = untouched) -> Iterator[dict[str, Any]]:
    settings, hf = bench.settings, bench.model.hf
    about = {"variety": task.dialect, "reference": bench.inputs.standard}
    losses = example_losses(hf, task.test, acting)
    yield row("dialect_loss", losses.mean(), n=len(losses), unit="nats/token", **about)
    cost = example_losses(hf, task.standard)
    yield row("standard_loss", cost.mean(), n=len(cost), unit="nats/token", **about)
    if not settings.generated:
        return
    chosen = spread(task.test, settings.generated)
    said = translate(
        hf, bench.model.tokenizer, chosen, new_tokens=settings.new_tokens, acting=acting
    )
    wanted = [e.text for e in chosen]
    scores = translation_scores(said, wanted)
    exact = sum(s == w for s, w in zip(said, wanted, strict=True)) / len(chosen)
    yield row("chrf", scores.chrf, n=len(chosen), unit="points", **about)
    yield row("bleu", scores.bleu, n=len(chosen), unit="points", **about)
    yield row("exact_share", exact, n=len(chosen), unit="share", **about)


def before_after_rows(bench: Bench) -> list[dict[str, Any]]:
    """The shared table: the model as it came against the first form's fine-tune of one dialect."""
    from experiments.diff import DiffSettings, before_after

    task, arm = bench.tasks[0], main_arms(bench.settings)[0]

    def before() -> Any:
        bench.weights.restore()
        return bench.model

    def after() -> Any:
        fine_tune(
            bench.model, bench.weights, task, arm, bench.settings, bench.layers, bench.settings.seed
        )
        return bench.model

    settings = DiffSettings(model=bench.settings.model, seed=bench.settings.seed)
    try:
        frame = before_after(
            before, after, bench.inputs, settings=settings, label=f"{arm.edit} on {task.dialect}"
        )
    finally:
        bench.weights.restore()
    return [
        {str(key): value for key, value in record.items()} for record in frame.to_dict("records")
    ]
