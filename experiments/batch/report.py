"""The report of a batch: its runs, what failed, and the runs beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from experiments.batch.folder import BatchFolder, State
from experiments.batch.grid import Planned
from experiments.batch.joining import join, labels
from experiments.batch.summary import run_labels, summarise
from experiments.reporting import picture_of, write_pages

_FIGURE = "runs_by_measure"


def write_report(runs: Sequence[Planned], folder: BatchFolder) -> pd.DataFrame:
    """Join what is done and write the report, with its figure; returns the joined table."""
    from experiments.figures import save_chart
    from experiments.figures.batch import chart_batch

    joined = join(runs, folder)
    names = run_labels(labels(runs))
    summary = summarise(joined).assign(label=lambda rows: rows["run"].map(names))
    states = {run.name: folder.state(run) for run in runs}
    count = {state: sum(s is state for s in states.values()) for state in State}
    lines = [
        f"# {len(runs)} runs",
        "",
        ", ".join(f"{n} {state}" for state, n in count.items() if n) + ". Every measurement is in "
        "`results.parquet`, with the run that it comes from.",
        "",
    ]
    failed = [run for run in runs if states[run.name] is State.failed]
    if failed:
        lines += ["## Failed", ""]
        for run in failed:
            said = folder.status(run).get("error", "")
            lines.append(f"- {names[run.name]}: {said} ([log](logs/{run.name}.log))")
        lines += ["", "`--retry` runs them again.", ""]
    pictures = {}
    if len(summary):
        spec = chart_batch(summary).to_dict()
        save_chart(spec, folder.root / "figures" / _FIGURE)
        pictures[f"figures/{_FIGURE}.png"] = picture_of(spec, "Runs by measure")
        lines += [
            "## The runs beside each other",
            "",
            "A measure has many rows in a run, one for each site or variety. Shown is the middle "
            "one, with its own interval, and the span of all of them: the greatest alone would be "
            "biased upwards by the choice of it, the more so the more layers a model has. Controls "
            "are left out; each run's own report has them.",
            "",
            f"![Runs by measure](figures/{_FIGURE}.png)",
            "",
            f"[interactive](figures/{_FIGURE}.html)",
            "",
            *_table(summary),
            "",
        ]
    lines += ["## Runs", "", "| run | state | seconds | report |", "|---|---|---|---|"]
    for run in runs:
        seconds = folder.status(run).get("seconds")
        took = f"{seconds:.0f}" if seconds else ""
        done = states[run.name] is State.done
        link = f"[report](runs/{run.name}/report.md)" if done else ""
        lines.append(f"| {names[run.name]} | {states[run.name]} | {took} | {link} |")
    write_pages(folder.root, lines, pictures)
    return joined


def _table(summary: pd.DataFrame) -> list[str]:
    """Measures in rows, runs in columns."""
    runs = list(dict.fromkeys(summary["label"]))
    lines = ["| measure | unit | " + " | ".join(runs) + " |", "|---" * (len(runs) + 2) + "|"]
    for measure, rows in summary.groupby("measure", sort=False):
        cells = rows.set_index("label")
        shown = [_cell(cells.loc[run]) if run in cells.index else "" for run in runs]
        lines.append(f"| {measure} | {rows['unit'].iloc[0]} | " + " | ".join(shown) + " |")
    return lines


def _cell(row: pd.Series) -> str:
    from experiments.figures.look import figure

    return f"{figure(row)}, {row['least']:.2f} to {row['most']:.2f} over {row['rows']}"
