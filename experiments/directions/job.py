"""Find, choose and verify the direction of refusal, in stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from experiments.directions.settings import DirectionsSettings
from experiments.job import conduct, say
from experiments.runner import Run


def run_directions(
    settings: DirectionsSettings, *, out: str | Path | None = None, progress: bool = True
) -> Run:
    """Select a model's refusal direction, test it on held-out requests, write the run directory.

    Raises:
        CorpusError, ConfigError, ModelError, SiteError, StoreError: bad input, in one sentence.
    """
    from experiments.directions import transfer
    from experiments.directions.report import report
    from experiments.directions.requests import gather

    def prepare(inputs: Any, model: Any) -> tuple[Any, Any]:
        say(progress, "Reading the states of all requests")
        work = gather(settings, inputs, model, progress=progress)
        return work, transfer.open_other(work) if settings.other else None

    return conduct(
        "directions",
        settings,
        out=out,
        progress=progress,
        prepare=prepare,
        measure=lambda both, run: _measure(*both, run, progress=progress),
        report=lambda both, results: report(both[0], results),
    )


def _measure(work: Any, other: Any, run: Run, *, progress: bool) -> list[pd.DataFrame]:
    from experiments.directions import stages, transfer

    say(progress, f"Scoring directions of {len(work.states)} places")
    selected = run.stage("select", lambda: stages.select(work))
    place = stages.chosen_place(selected)
    say(progress, "Testing the chosen direction on held-out requests")
    frames = [selected, run.stage("verify", lambda: stages.verify(work, place))]
    say(progress, "Testing directions of its cone")
    frames.append(run.stage("cone", lambda: stages.cone(work, place)))
    if other is not None:
        say(progress, f"Comparing with {work.settings.other}")
        made = run.stage(
            "transfer", lambda: transfer.compare_models(work, other, place, progress=progress)
        )
        frames.append(made)
    return frames
