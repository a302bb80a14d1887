"""Restore a model draw by draw, beside controls, in stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from experiments.job import conduct, say
from experiments.restore.settings import RestoreSettings
from experiments.runner import Run


def run_restore(
    settings: RestoreSettings, *, out: str | Path | None = None, progress: bool = True
) -> Run:
    """Give a drifted model the weights back that its refusals hang on; write the run directory.

    Raises:
        CorpusError, ConfigError, ModelError, EditError: bad input, in one sentence.
    """
    from experiments.restore.report import report
    from experiments.restore.work import set_up

    return conduct(
        "restore",
        settings,
        out=out,
        progress=progress,
        prepare=lambda inputs, model: set_up(settings, inputs, model),
        measure=lambda work, run: _measure(work, run, progress=progress),
        report=report,
        environment=lambda work: {"aligned": settings.aligned, "layer": work.scope.layer},
    )


def _measure(work: Any, run: Run, *, progress: bool) -> list[pd.DataFrame]:
    from experiments.restore import stages
    from experiments.restore.work import RANKINGS
    from interventions.restoration import save_restored

    kept = run.path / "stages"
    say(progress, "Judging the model and its aligned one")
    frames = [run.stage("ends", lambda: stages.ends(work))]
    say(progress, f"Restoring from {work.settings.draws} draws of prompts")
    frames.append(run.stage("restored", lambda: stages.restored(work, kept)))
    frames.append(run.stage("where", lambda: stages.where(work, kept)))
    for control in RANKINGS:
        say(progress, f"Following {control.replace('_', ' ') or 'the method'} step by step")
        name = f"curve-{control or 'gradient'}"
        frames.append(run.stage(name, lambda c=control: stages.curve(work, c)))
    if work.settings.save and not (run.path / "model").exists():
        save_restored(stages.first(work, kept), run.path / "model")
    if work.settings.diff:
        say(progress, "Comparing before and after")
        work.changes = run.stage("diff", lambda: stages.changes(work, kept))
    return frames
