"""Before and after as a run: the second model is checked first, and only one is held at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.diff.settings import DiffSettings
from experiments.inputs import Inputs
from experiments.job import conduct, say
from experiments.runner import Run

if TYPE_CHECKING:
    from activations import Model


@dataclass
class Work:
    """What a run measures on, and what its report says of the models once they are gone."""

    settings: DiffSettings
    inputs: Inputs
    model: Model | None
    shape: str
    left_out: list[str] = field(default_factory=list)

    def take(self) -> Model:
        """The model before, which is no longer held here."""
        model, self.model = self.model, None
        assert model is not None
        return model


def run_diff(
    settings: DiffSettings, *, out: str | Path | None = None, progress: bool = True
) -> Run:
    """Compare `settings.model` with `settings.after`, write the run directory and return it.

    The second model is opened, checked and let go before the first is opened.

    Raises:
        CorpusError, ConfigError, ModelError, SiteError, CaptureError, StoreError: bad input, in
            one sentence.
    """
    from experiments.compare.bench import open_checked
    from experiments.diff.report import report

    theirs = settings.model_copy(update={"model": settings.after})
    say(progress, f"Opening {settings.after}")
    after_digest = open_checked(theirs).digest

    def prepare(inputs: Inputs, model: Model) -> Work:
        return Work(settings, inputs, model, f"{model.n_layers} layers, {model.d_model} dimensions")

    return conduct(
        "diff",
        settings,
        out=out,
        progress=progress,
        prepare=prepare,
        measure=lambda work, run: _measure(work, run, lambda: open_checked(theirs), progress),
        report=report,
        environment=lambda _: {"after": settings.after, "after_digest": after_digest},
    )


def _measure(
    work: Work, run: Run, open_after: Callable[[], Any], progress: bool
) -> list[pd.DataFrame]:
    from experiments.diff.changes import stages
    from experiments.diff.observing import Texts
    from experiments.diff.running import left_out, run_both

    settings, inputs = work.settings, work.inputs
    texts = Texts.of(inputs, settings)
    say(progress, "Running both models")
    with TemporaryDirectory() as folder:
        before, after, label = run_both(
            work.take, open_after, inputs, texts, settings, folder=folder, keep=True,
            progress=progress,
        )  # fmt: skip
    work.left_out = left_out(before, after, inputs)
    frames = []
    for name, measure in stages(before, after, inputs, texts, settings, label).items():
        say(progress, f"Measuring: {name}")
        frames.append(run.stage(name, measure))
    return frames
