"""How seconds grow with n, d and layers, drawn from the records of benchmarks.

python -m benchmarks.charts --out FILE.png RECORD.json [RECORD.json ...]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from experiments.figures.look import finish, title

_SIZES = {"n": "rows n", "d": "dimensions d", "layers": "layers"}


def growth_frame(records: list[dict[str, Any]]) -> pd.DataFrame:
    """One row for each measurement: `size`, `value`, `what`, `seconds`."""
    rows = [
        {"size": _SIZES[row["size"]], "value": row["value"], "what": what, "seconds": seconds}
        for record in records
        for row in record.get("growth", [])
        for what, seconds in row.items()
        if what not in ("size", "value")
    ]
    return pd.DataFrame(rows)


def chart_growth(frame: pd.DataFrame, told: str) -> Any:
    """Seconds by size on two logarithmic axes: a slope of 1 is linear growth, of 2 quadratic."""
    most = frame.groupby("what")["seconds"].max().sort_values()
    said = f"{most.index[-1]} takes longest, {most.iloc[-1]:.2g} s at most"
    base = alt.Chart(frame).encode(
        x=alt.X("value:Q", title=None, scale=alt.Scale(type="log"), axis=alt.Axis(format="d")),
        y=alt.Y("seconds:Q", title="seconds", scale=alt.Scale(type="log")),
        color=alt.Color("what:N", title=None),
        strokeDash=alt.StrokeDash("what:N", title=None),
        shape=alt.Shape("what:N", title=None),
    )
    panels = alt.layer(base.mark_line(), base.mark_point(filled=True, size=60))
    chart = panels.properties(width=200, height=220).facet(
        column=alt.Column("size:N", title=None, sort=list(_SIZES.values()))
    )
    chart = chart.resolve_scale(x="independent").properties(
        title=title(f"Growth of the fast paths: {said}", told, width=680)
    )
    return finish(chart, "light")


def main() -> None:
    """Draw; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    records = [json.loads(path.read_text(encoding="utf-8")) for path in options.records]
    frame = growth_frame(records)
    if frame.empty:
        parser.error("None of the records holds a `growth`; run the benchmarks with --json.")
    chart = chart_growth(frame, records[0]["machine"].split(";")[0])
    chart.save(str(options.out), format="png", scale_factor=2)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
