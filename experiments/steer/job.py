"""Steer a model, question by question, each in two stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from experiments.job import conduct, say
from experiments.runner import Run
from experiments.steer.settings import SteerSettings


def run_steer(
    settings: SteerSettings, *, out: str | Path | None = None, progress: bool = True
) -> Run:
    """Steer refusal and varieties by strength; write the run directory.

    Raises:
        CorpusError, ConfigError, ModelError, SiteError: bad input, in one sentence.
    """
    from experiments.steer.questions import ask
    from experiments.steer.report import report

    return conduct(
        "steer",
        settings,
        out=out,
        progress=progress,
        prepare=lambda inputs, model: ask(settings, inputs, model, progress=progress),
        measure=lambda work, run: _measure(work, run, progress=progress),
        report=report,
    )


def _measure(work: Any, run: Run, *, progress: bool) -> list[pd.DataFrame]:
    from experiments.steer import stages

    frames: list[pd.DataFrame] = []
    for number, question in enumerate(work.questions):
        say(progress, f"Choosing where to steer {question.name}")
        searched = run.stage(f"{number}-choose", lambda q=question: stages.choose(work, q))
        sites = stages.chosen_sites(question, searched)
        say(progress, f"Steering {question.name}")
        made = run.stage(
            f"{number}-respond", lambda q=question, s=sites: stages.respond(work, q, s)
        )
        frames += [searched, _new(made, frames)]
    return frames


def _new(frame: pd.DataFrame, before: list[pd.DataFrame]) -> pd.DataFrame:
    """Without rows of the plain model that an earlier question gave already."""
    if not before:
        return frame
    columns = ["measure", "variety", "behaviour"]
    earlier = pd.concat(before)
    known = set(map(tuple, earlier[earlier["edit"] == ""][columns].to_numpy()))
    again = [
        not r["edit"] and (r["measure"], r["variety"], r["behaviour"]) in known
        for _, r in frame.iterrows()
    ]
    return frame[[not a for a in again]]
