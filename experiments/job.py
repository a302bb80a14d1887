"""The course that an experiment takes: check, open, measure in stages, draw, report."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from experiments.inputs import Inputs, read_inputs
from experiments.reporting import Report, write_report
from experiments.runner import Run, check_out
from experiments.settings import CorpusSettings

if TYPE_CHECKING:
    from activations import Model

__all__ = ["Report", "conduct", "say"]

W = TypeVar("W")


def conduct(
    name: str,
    settings: CorpusSettings,
    *,
    out: str | Path | None,
    progress: bool,
    prepare: Callable[[Inputs, Model], W],
    measure: Callable[[W, Run], Sequence[pd.DataFrame]],
    report: Callable[[W, pd.DataFrame], Report],
    environment: Callable[[W], Mapping[str, Any]] = lambda _: {},
) -> Run:
    """Carry an experiment out into its run directory, which is made once the input is checked.

    Args:
        prepare: what is measured on, from the checked corpus and the open model; refuses here what
            the user may have got wrong.
        measure: the tables of the stages, each kept by `Run.stage` as soon as it is there.
        environment: what `environment.json` says beyond the model and the corpus.
    """
    inputs = read_inputs(settings)
    if out is not None:
        check_out(Path(out), settings)
    from experiments.compare.bench import open_checked

    say(progress, f"Opening {settings.model}")
    model = open_checked(settings)
    work = prepare(inputs, model)
    run = Run.start(name, settings, out=out)
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
            **environment(work),
        )
        del model  # held on by the work, if that needs it still
        results = run.finish(measure(work, run))
        say(progress, "Drawing figures")
        told = report(work, results)
        told = replace(told, caveats=(*told.caveats, *inputs.caveats))
        write_report(run.path, name, settings, told, results)
        run.log.info("done in %.1f s", time.perf_counter() - began)
        run.clean()
    except Exception:
        run.log.error("failed\n%s", traceback.format_exc())
        raise
    return run


def say(progress: bool, text: str) -> None:
    """Tell the user what is under way, on standard error."""
    if progress:
        print(text, file=sys.stderr, flush=True)
