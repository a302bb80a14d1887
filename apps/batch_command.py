"""`isogloss batch`: every run of a grid, again and again until all are done."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from apps.capture_command import WorkerEngine
from apps.options import names

if TYPE_CHECKING:
    from experiments.batch import BatchFolder, Planned


def batch(
    grid: Annotated[str, typer.Argument(metavar="GRID.toml", help="Which runs.")],
    out: Annotated[
        str | None, typer.Option(help="The batch's folder; runs/batch/GRID if left out.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the runs and how far each is; run nothing.")
    ] = False,
    only: Annotated[
        str | None, typer.Option(metavar="I/N", help="This job's share of the runs, as 3/8.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run again what failed before.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Runs at a time; one for each device if left out.")
    ] = None,
    engine: Annotated[
        WorkerEngine, typer.Option(help="Workers on this machine, or on Ray.")
    ] = WorkerEngine.process,
    devices: Annotated[
        str | None, typer.Option(help="Of the runs, one each: cuda:0,cuda:1.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Of each run; its share of the cores if 0.")] = 0,
    ray_address: Annotated[str, typer.Option(help="Of a running Ray cluster.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no summary.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Last line of output: one JSON object.")
    ] = False,
) -> None:
    """Run experiments × models × corpora × settings; a batch that was cut off goes on.

    Exit 0: all runs are done. 1: some failed or were left, each with a sentence. 2: a bad grid.
    """
    began = time.perf_counter()
    from experiments.batch import BatchFolder, State, plan, read_grid, share

    runs = plan(read_grid(grid))
    mine = share(runs, only) if only else runs
    folder = BatchFolder.at(out or Path("runs") / "batch" / Path(grid).stem)
    if dry_run:
        _show(mine, folder)
        return
    from activations import Workers
    from experiments.batch import check_workers, run_batch, write_report

    on = tuple(names(devices) or ())
    crew = Workers(
        max(1, len(on)) if workers is None else workers,
        engine=engine.value,
        devices=on,
        threads=threads,
        address=ray_address,
    )
    check_workers(mine, crew)
    folder.begin(Path(grid).read_text(encoding="utf-8"))

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    states = run_batch(mine, folder, workers=crew, retry=retry, say=say)
    left = {run.name: folder.state(run) for run in runs}
    # Of several jobs the one that ends last joins them all.
    if not only or State.to_do not in left.values():
        write_report(runs, folder)
        say(f"Report:   {folder.root / 'report.md'}\nPage:     {folder.root / 'report.html'}")
        say(f"Results:  {folder.root / 'results.parquet'}")
    count = {state.value: list(states.values()).count(state) for state in State}
    if as_json:
        record = {
            "batch": str(folder.root),
            "results": str(folder.root / "results.parquet"),
            "runs": count,
            "seconds": round(time.perf_counter() - began, 2),
        }
        print(json.dumps(record))
    if count["done"] < len(mine):
        for run in mine:
            error = folder.status(run).get("error")
            if states[run.name] is State.failed:
                print(f"isogloss: {run.name}: {error}", file=sys.stderr)
        print(
            f"isogloss: of {len(mine)} runs {count['done']} are done, {count['failed']} failed and "
            f"{count['to do']} are left; logs are in {folder.root / 'logs'}.",
            file=sys.stderr,
        )
        raise typer.Exit(1)


def _show(runs: Sequence[Planned], folder: BatchFolder) -> None:
    """The table of a dry run."""
    from experiments.batch.joining import labels
    from experiments.batch.summary import run_labels

    said = run_labels(labels(runs)) if runs else {}
    for number, run in enumerate(runs):
        state = folder.state(run)
        error = folder.status(run).get("error", "") if state == "failed" else ""
        print(f"{number:>4}  {state:<7} {run.name}  {said[run.name]}  {error}".rstrip())
    count = [folder.state(run) for run in runs]
    told = ", ".join(f"{count.count(s)} {s}" for s in dict.fromkeys(count))
    print(f"{len(runs)} runs in {folder.root}: {told or 'none'}")
