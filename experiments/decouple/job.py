"""Fine-tune each dialect in every arm and seed; each fine-tune is a stage of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from experiments.decouple.settings import DecoupleSettings
from experiments.job import conduct, say
from experiments.runner import Run


def run_decouple(
    settings: DecoupleSettings, *, out: str | Path | None = None, progress: bool = True
) -> Run:
    """Fine-tune, plain and decoupled, on each dialect; write the run directory.

    A run that was killed goes on after the last whole fine-tune.

    Raises:
        CorpusError, ConfigError, ModelError, SiteError: bad input, in one sentence.
    """
    from experiments.decouple.bench import set_up
    from experiments.decouple.report import report

    return conduct(
        "decouple",
        settings,
        out=out,
        progress=progress,
        prepare=lambda inputs, model: set_up(settings, inputs, model),
        measure=lambda bench, run: _measure(bench, run, progress=progress),
        report=report,
    )


def _measure(bench: Any, run: Run, *, progress: bool) -> list[pd.DataFrame]:
    from experiments.decouple import cells
    from experiments.decouple.summary import compared

    frames = [run.stage("untuned", lambda: cells.untuned(bench))]
    total = len(bench.tasks) * len(bench.arms) * len(bench.seeds)
    for task in bench.tasks:
        for seed in bench.seeds:
            for arm in bench.arms:
                say(progress, f"Fine-tune {len(frames)} of {total}: {task.dialect}, {arm.slug}")
                frames.append(
                    run.stage(
                        f"{task.dialect}-{seed}-{arm.slug}",
                        lambda t=task, a=arm, s=seed: cells.fine_tuned(bench, t, a, s),
                    )
                )
    frames.append(compared(pd.concat(frames, ignore_index=True)))
    if bench.settings.before_after:
        say(progress, "Comparing the model before and after")
        frames.append(run.stage("before-after", lambda: cells.before_after_rows(bench)))
    return frames
