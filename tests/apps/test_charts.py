"""Charts that are made once for all readers of a server."""

from __future__ import annotations

import os
from pathlib import Path

import altair as alt
import pandas as pd

from apps.background import Job
from apps.charts import kept

MADE: list[float] = []


def chart_of_first(frame: pd.DataFrame, colour: str = "black", *, size: int = 10) -> alt.Chart:
    MADE.append(float(frame["x"].iloc[0]))
    return alt.Chart(frame).mark_point(color=colour, size=size).encode(x="x:Q")


def test_a_chart_is_made_once_and_anew_for_another_file_or_other_options(tmp_path: Path) -> None:
    MADE.clear()
    path = tmp_path / "table.parquet"
    pd.DataFrame({"x": [1.0, 2.0]}).to_parquet(path)
    one = kept(path, chart_of_first, "red", size=3)
    assert kept(path, chart_of_first, "red", size=3) is one
    assert MADE == [1.0]
    assert kept(path, chart_of_first, "blue", size=3) is not one
    assert one.spec["mark"] == {"type": "point", "color": "red", "size": 3}
    assert MADE == [1.0, 1.0]
    pd.DataFrame({"x": [7.0, 2.0]}).to_parquet(path)
    os.utime(path, ns=(1, 1))  # written within a clock tick, yet another time
    changed = kept(path, chart_of_first, "red", size=3)
    assert MADE == [1.0, 1.0, 7.0]
    rows = changed.spec["datasets"][changed.spec["data"]["name"]]
    assert [r["x"] for r in rows] == [7.0, 2.0]


def test_what_a_job_has_is_drawn_once_for_each_stage_of_it() -> None:
    job = Job(iter([]), 0)
    made = [job.latest(stage, lambda: object()) for stage in (1, 1, 2)]
    assert made[0] is made[1] and made[1] is not made[2]
