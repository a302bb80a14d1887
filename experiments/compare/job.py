"""The main job, from texts to a causal statement; each stage is kept as soon as it is done."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.compare.inputs import read_inputs
from experiments.runner import Run, check_out
from experiments.settings import CompareSettings


def run_compare(
    settings: CompareSettings, *, out: str | Path | None = None, progress: bool = True
) -> Run:
    """Probe, compare and intervene; write the run directory and return it.

    Everything that the user may have got wrong is checked before the directory is made.

    Raises:
        CorpusError, ConfigError, ModelError, SiteError, CaptureError, StoreError: bad input, in
            one sentence.
    """
    inputs = read_inputs(settings)
    if out is not None:
        check_out(Path(out), settings)
    from experiments.compare.bench import open_checked, set_up

    _say(progress, f"Opening {settings.model}")
    model = open_checked(settings)
    _say(progress, f"Capturing {len(inputs.corpus)} texts")
    bench = set_up(settings, inputs, model, progress=progress)

    run = Run.start("compare", settings, out=out)
    began = time.perf_counter()
    try:
        run.write_environment(
            model=model.name,
            model_digest=model.digest,
            corpus=inputs.corpus.name,
            corpus_digest=inputs.corpus.digest,
            standard=inputs.standard,
            device=str(model.device),
            dtype=str(model.dtype),
            sites=bench.sites,
            store=str(bench.store.path),
            left_out=list(inputs.left_out),
        )
        results = run.finish(_stages(run, bench, progress=progress))
        from experiments.compare.projection import write_projection
        from experiments.compare.report import write_figures, write_report

        write_projection(bench, results, run.path)

        _say(progress, "Drawing figures")
        pictures = write_figures(run.path, results)
        write_report(run.path, settings, inputs, model, results, pictures)
        run.log.info("done in %.1f s", time.perf_counter() - began)
        run.clean()
    except Exception:
        run.log.error("failed\n%s", traceback.format_exc())
        raise
    return run


def _stages(run: Run, bench: Any, *, progress: bool) -> list[pd.DataFrame]:
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
        _say(progress, f"Measuring: {name.replace('_', ' ')}")
        frame = run.stage(name, measure)
        if name == "answers":
            bench.answers = {
                int(p): bool(v) for p, v in zip(frame["position"], frame["value"], strict=True)
            }
        else:
            frames.append(frame)
    return frames


def _say(progress: bool, text: str) -> None:
    if progress:
        print(text, file=sys.stderr, flush=True)
