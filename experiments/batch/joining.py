"""All measurements of a batch in one table, each with the run that it comes from."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from experiments.batch.folder import BatchFolder, State
from experiments.batch.grid import Planned, varying
from experiments.results import as_frame

#: Columns that say whose a row is; settings that vary follow as `setting_NAME`.
RUN_COLUMNS = ("run", "experiment", "model", "corpus")


def join(runs: Sequence[Planned], folder: BatchFolder) -> pd.DataFrame:
    """`results.parquet` of the batch: the tables of all runs that are done, one under the other.

    Columns of `results.parquet` as ever, and before them `run`, `experiment`, `model`, `corpus`
    and `setting_NAME` for each setting that is not the same in all runs of the grid.
    """
    from activations.atomic import write_whole

    told = labels(runs)
    parts = [
        pd.concat([_repeated(told.loc[run.name], len(frame)), frame], axis=1)
        for run in runs
        if folder.state(run) is State.done
        for frame in [pd.read_parquet(folder.results(run))]
    ]
    if parts:
        joined = pd.concat(parts, ignore_index=True)
    else:
        joined = pd.concat([told.iloc[:0].reset_index(drop=True), as_frame([])], axis=1)
    for column in told.columns:  # as they are in the whole grid, whichever runs are done
        joined[column] = joined[column].astype(told[column].dtype)
    written = io.BytesIO()
    joined.to_parquet(written, index=False)
    write_whole(folder.root / "results.parquet", [written.getbuffer()])
    return joined


def labels(runs: Sequence[Planned]) -> pd.DataFrame:
    """One row for each run, by name: the columns that say whose a row is."""
    frame = pd.DataFrame(
        [
            {
                "run": run.name,
                "experiment": run.experiment,
                "model": run.settings.model,
                "corpus": getattr(run.settings, "corpus", ""),
            }
            for run in runs
        ]
    )
    for name in varying(runs):
        frame[f"setting_{name}"] = _column([getattr(run.settings, name, None) for run in runs])
    return frame.set_index("run", drop=False)


def _column(values: list[Any]) -> list[Any]:
    """Figures and words of one kind as they are; else as text, empty where a run has no such."""
    kinds = {type(value) for value in values}
    if len(kinds) == 1 and kinds <= {int, float, str, bool}:
        return values
    return ["" if v is None else v if isinstance(v, str) else json.dumps(v) for v in values]


def _repeated(row: pd.Series, times: int) -> pd.DataFrame:
    return pd.DataFrame({name: [value] * times for name, value in row.items()})
