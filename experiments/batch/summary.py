"""A batch in one figure for each run and measure: its middle row, with that row's own interval."""

from __future__ import annotations

import re

import pandas as pd

from experiments.batch.joining import RUN_COLUMNS

_OF = ["measure", "behaviour", "edit"]


def summarise(joined: pd.DataFrame) -> pd.DataFrame:
    """Of the rows of each run and measure (controls left out) the one in the middle.

    A measure has many rows in a run, one for each site or variety. The greatest of them is biased
    upwards by the choice, the more so the more sites a model has; the middle one (of an even number
    the lower of the two) is a row that was measured, with an interval that was meant for it.
    Behaviours and kinds of edits are never mixed: each is a measure of its own.

    Returns:
        One row for each run and measure, in the order of the runs: `label` (what sets the run
        apart), `measure` (with behaviour and edit), `unit`, `value`, `low`, `high`, `n`, `site`,
        `variety`, `reference` and `edit` of the middle row, `least` and `most` of all rows, and
        `rows`, how many.
    """
    kept = joined[(joined["control"] == "") & joined["value"].notna()]
    kept = kept.assign(measure=[_measure(*of) for of in kept[_OF].itertuples(index=False)])
    names = run_labels(joined)
    found = []
    for (run, measure), rows in kept.groupby(["run", "measure"], sort=False):
        ordered = rows.sort_values("value", kind="stable")
        middle = ordered.iloc[(len(ordered) - 1) // 2]
        kept_of_it = ("unit", "value", "low", "high", "n", "site", "variety", "reference", "edit")
        found.append(
            {
                "run": run,
                "label": names[str(run)],
                "measure": measure,
                **{name: middle[name] for name in kept_of_it},
                "least": ordered["value"].iloc[0],
                "most": ordered["value"].iloc[-1],
                "rows": len(ordered),
            }
        )
    columns = ["run", "label", "measure", "unit", "value", "low", "high", "n", "site", "variety",
               "reference", "edit", "least", "most", "rows"]  # fmt: skip
    return pd.DataFrame(found, columns=columns)


def _measure(measure: str, behaviour: str, edit: str) -> str:
    """With what it is of; edits that differ in a variety alone are of one kind."""
    kind = re.sub(r"^patch\(.*\)$", "patch", re.sub(r":[^)+]*", "", edit))
    return ", ".join(filter(None, (measure, behaviour, kind)))


def run_labels(told: pd.DataFrame) -> dict[str, str]:
    """Short names of runs: the model, and whatever else is not the same in all of them.

    `told` has the columns that say whose a row is, as `join` gives them.
    """
    settings = [c for c in told.columns if str(c).startswith("setting_")]
    runs = told[[*RUN_COLUMNS, *settings]].drop_duplicates("run")
    several = [c for c in ("experiment", "corpus", *settings) if len(set(runs[c].astype(str))) > 1]
    labels = {}
    for _, run in runs.iterrows():
        parts = [str(run["model"]).rstrip("/")]
        for column in several:
            value = str(run[column])
            if column == "corpus":
                parts.append(value.rsplit("/", 1)[-1] or "bundled corpus")
            elif column == "experiment":
                parts.append(value)
            elif value not in ("", "[]"):  # the default choice
                parts.append(f"{column.removeprefix('setting_')} {value}")
        labels[str(run["run"])] = " · ".join(parts)
    return labels
