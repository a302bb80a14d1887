"""The course that an experiment takes: check, open, measure in stages, draw, report."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from experiments.inputs import Inputs, read_inputs
from experiments.results import write_frame
from experiments.runner import Run, check_out
from experiments.settings import CorpusSettings

if TYPE_CHECKING:
    from activations import Model

W = TypeVar("W")


@dataclass(frozen=True)
class Report:
    """What `report.md` says.

    Attributes:
        figures: title and chart by the file's stem.
        captions: a sentence above some of them, by the same stem.
        beside: tables that the run directory keeps beside the results, by the file's name
            (Parquet, or CSV by its ending).
        tables: those that the report shows, their cells in words, by their headings.
    """

    title: str
    about: str
    findings: Sequence[str]
    figures: Mapping[str, tuple[str, Any]]
    method: Sequence[str]
    caveats: Sequence[str]
    left_out: Sequence[str] = ()
    captions: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)


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
        _write(run.path, name, settings.seed, report(work, results))
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


def _table(frame: pd.DataFrame) -> list[str]:
    """A frame as a table in Markdown."""
    rows = [list(map(str, frame.columns)), ["---"] * frame.shape[1]]
    rows += [[str(cell).replace("|", "\\|") for cell in line] for line in frame.to_numpy()]
    return [f"| {' | '.join(line)} |" for line in rows]


def _write(path: Path, name: str, seed: int, told: Report) -> None:
    """Tables and figures, and then the report, whose presence says that the run is done."""
    from experiments.figures import save_chart

    for file, frame in told.beside.items():
        write_frame(frame, path / file)
    lines = [f"# {told.title}", "", told.about, "", "## Findings", ""]
    lines += [f"- {sentence}" for sentence in told.findings]
    if told.left_out:
        lines += ["", "## Left out", "", *(f"- {said}" for said in told.left_out)]
    for heading, frame in told.tables.items():
        lines += ["", f"## {heading}", "", *_table(frame)]
    lines += ["", "## Figures", ""]
    for stem, (title, chart) in told.figures.items():
        save_chart(chart, path / "figures" / stem)
        lines += [f"### {title}", ""]
        lines += [told.captions[stem], ""] if stem in told.captions else []
        lines += [f"![{title}](figures/{stem}.png)", ""]
        lines += [f"[interactive](figures/{stem}.html)", ""]
    repeat = (
        f"Seed {seed}. `config.toml` beside this file repeats the run: "
        f"`isogloss run {name} --config config.toml`."
    )
    lines += ["## How it was measured", "", *(f"- {said}" for said in (*told.method, repeat))]
    lines += ["", "## Read with care", "", *(f"- {said}" for said in told.caveats), ""]
    partial = path / "report.partial"
    partial.write_text("\n".join(lines), encoding="utf-8")
    partial.replace(path / "report.md")
