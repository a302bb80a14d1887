"""The main job, from texts to a causal statement; each stage is kept as soon as it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.inputs import Inputs
from experiments.job import conduct, say
from experiments.runner import Run
from experiments.settings import CompareSettings

if TYPE_CHECKING:
    from activations import Model
    from experiments.compare.bench import Bench


def run_compare(
    settings: CompareSettings, *, out: str | Path | None = None, progress: bool = True
) -> Run:
    """Probe, compare and intervene; write the run directory and return it.

    Everything that the user may have got wrong is checked before the directory is made.

    Raises:
        CorpusError, ConfigError, ModelError, SiteError, CaptureError, StoreError: bad input, in
            one sentence.
    """
    from experiments.compare.report import report

    return conduct(
        "compare",
        settings,
        out=out,
        progress=progress,
        prepare=lambda inputs, model: _prepare(settings, inputs, model, progress=progress),
        measure=lambda bench, run: _stages(run, bench, progress=progress),
        report=report,
        environment=lambda bench: {
            "sites": bench.sites,
            "store": str(bench.store.path),
            "left_out": list(bench.inputs.left_out),
        },
    )


def _prepare(settings: CompareSettings, inputs: Inputs, model: Model, *, progress: bool) -> Bench:
    from experiments.compare.bench import set_up

    say(progress, f"Capturing {len(inputs.corpus)} texts")
    return set_up(settings, inputs, model, progress=progress)


def _stages(run: Run, bench: Bench, *, progress: bool) -> list[pd.DataFrame]:
    from experiments.compare import causes, directions, probing, representation, subspaces

    frames: list[pd.DataFrame] = []
    stages: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "probe": lambda: probing.probe(bench, progress=progress),
        "subspaces": lambda: subspaces.compare_subspaces(bench),
        "answers": lambda: causes.answer(bench),
        "directions": lambda: directions.compare_directions(bench),
        "representation": lambda: representation.compare_representation(bench, frames[0]),
        "remove_varieties": lambda: causes.remove_varieties(bench, progress=progress),
        "refusal": lambda: causes.remove_and_add_refusal(bench, progress=progress),
        "patch": lambda: causes.patch(bench, progress=progress),
    }
    for name, measure in stages.items():
        say(progress, f"Measuring: {name.replace('_', ' ')}")
        frame = run.stage(name, measure)
        if name == "answers":
            bench.answers = {
                int(p): bool(v) for p, v in zip(frame["position"], frame["value"], strict=True)
            }
        else:
            frames.append(frame)
    return frames
