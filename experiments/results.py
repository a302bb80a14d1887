"""The tidy table that every run ends in: one row per measurement, in fixed columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from evidence import Estimate

#: Column and the value it has where it does not apply. Figures are NaN there, never zero.
DEFAULTS: dict[str, Any] = {
    "measure": "",
    "site": "",
    "layer": -1,
    "position": -1,
    "variety": "",
    "reference": "",
    "behaviour": "",
    "edit": "",
    "control": "",
    "value": float("nan"),
    "low": float("nan"),
    "high": float("nan"),
    "level": 0.95,
    "n": 0,
    "p": float("nan"),
    "unit": "",
    "seed": -1,
}
_TYPES = {
    **dict.fromkeys(("layer", "position", "n", "seed"), "int64"),
    **dict.fromkeys(("value", "low", "high", "level", "p"), "float64"),
}


def row(measure: str, estimate: Estimate | float, **where: Any) -> dict[str, Any]:
    """One measurement as a row of `results.parquet`.

    `estimate` is an `Estimate`, or a bare figure whose interval has no meaning. `where` are any
    of the columns of `DEFAULTS`.
    """
    unknown = set(where) - set(DEFAULTS)
    if unknown:
        raise KeyError(f"no such column in the results: {sorted(unknown)}")
    record = {**DEFAULTS, "measure": measure}
    if isinstance(estimate, Estimate):
        given = {
            name: getattr(estimate, name) for name in ("value", "low", "high", "level", "n", "p")
        }
        record |= given | {"unit": estimate.unit}
        if estimate.seed is not None:
            record["seed"] = estimate.seed
    else:
        record["value"] = float(estimate)
    return record | where


def as_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a frame with every column present and typed."""
    frame = pd.DataFrame(list(rows), columns=list(DEFAULTS))
    for name, default in DEFAULTS.items():
        kind = _TYPES.get(name)
        frame[name] = frame[name].astype(kind) if kind else frame[name].fillna(default).astype(str)
    return frame


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write whole, then rename, so that a killed run leaves no half-written table.

    Parquet, unless the name ends in `.csv`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    if path.suffix == ".csv":
        frame.to_csv(partial, index=False)
    else:
        frame.to_parquet(partial, index=False)
    partial.replace(path)
