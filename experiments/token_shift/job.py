"""Answer, rank, and look where it is decided, in stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from experiments.job import conduct, say
from experiments.results import write_frame
from experiments.runner import Run
from experiments.token_shift.settings import TokenShiftSettings

#: The answers' tokens, and the same in context, beside a run's results.
TOKENS = "tokens.parquet"
PAGE = "tokens.html"


def run_token_shift(
    settings: TokenShiftSettings, *, out: str | Path | None = None, progress: bool = True
) -> Run:
    """Rank an aligned model's answers in its base model; write the run directory.

    Raises:
        CorpusError, ConfigError, ModelError, SiteError, CaptureError: bad input, in one sentence.
    """
    from experiments.token_shift.report import report
    from experiments.token_shift.work import gather

    def prepare(inputs: Any, model: Any) -> Any:
        say(progress, "Letting both models answer")
        return gather(settings, inputs, model)

    return conduct(
        "token-shift",
        settings,
        out=out,
        progress=progress,
        prepare=prepare,
        measure=lambda work, run: _measure(work, run, progress=progress),
        report=report,
        environment=lambda work: {
            "base": work.settings.base,
            "base_digest": work.base.model.digest,
        },
    )


def _measure(work: Any, run: Run, *, progress: bool) -> list[pd.DataFrame]:
    from experiments.token_shift import stages
    from experiments.token_shift.deciding import deciding, why_not
    from experiments.token_shift.page import token_shift_page

    say(progress, f"Ranking the tokens of {len(work.own.rows)} answers in {work.settings.base}")
    tokens = stages.main_tokens(work)
    write_frame(tokens, run.path / TOKENS)
    page = token_shift_page(
        tokens,
        title=f"{work.settings.model} in {work.settings.base}",
        most=work.settings.shown,
        model=work.settings.model,
        base=work.settings.base,
    )
    (run.path / PAGE).write_text(page, encoding="utf-8")
    frames = [run.stage("shift", lambda: stages.shift(work, tokens))]
    say(progress, "Ranking answers where the ranks are known")
    frames.append(run.stage("controls", lambda: stages.controls(work)))
    say(progress, "Showing examples to base")
    frames.append(run.stage("examples", lambda: stages.in_context(work)))
    if why_not(work) is None:
        say(progress, "Patching the aligned model's states into base")
        frames.append(run.stage("deciding", lambda: deciding(work, tokens)))
    return frames
