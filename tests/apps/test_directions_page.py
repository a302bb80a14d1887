"""The page Directions with two runs: side by side, on the same axes, and what differs between."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from experiments import figures
from experiments.differences import compare_results, readable

from ..experiments import made_results

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "apps" / "explorer.py"
MEASURES = ("direction_cosine", "direction_subspace_cosine")


@pytest.fixture(scope="module")
def before() -> pd.DataFrame:
    return made_results.made_results()


@pytest.fixture(scope="module")
def after(before: pd.DataFrame) -> pd.DataFrame:
    """Another run: one variety less, figures lower, one depth less."""
    kept = before[before["variety"].ne("hill") & before["layer"].ne(5)]
    lower = {c: kept[c] - 0.125 for c in ("value", "low", "high")}
    return kept.assign(**lower)


@pytest.fixture
def page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: pd.DataFrame, after: pd.DataFrame
) -> AppTest:
    for name, frame in (("after", after), ("before", before)):
        run = tmp_path / "compare" / name
        run.mkdir(parents=True)
        frame.to_parquet(run / "results.parquet")
        (run / "config.toml").write_text(f'model = "model {name}"\n')
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path)])
    at = AppTest.from_file(str(SCRIPT), default_timeout=60)
    at.query_params["run"], at.query_params["beside"] = "compare/before", "compare/after"
    return at.run().switch_page("views/directions.py").run()


def scales(spec: dict[str, Any], channel: str) -> list[dict[str, Any]]:
    """The scales of one channel in all layers of a chart."""
    layers = [layer["encoding"] for layer in spec["layer"] if channel in layer["encoding"]]
    return [
        e[channel]["scale"]
        for e in layers
        if isinstance(e[channel], dict) and "scale" in e[channel]
    ]


def test_two_runs_stand_in_two_columns_under_their_models(page: AppTest) -> None:
    assert not page.exception and not page.error
    first, second = page.columns[:2]
    assert (first.subheader[0].value, second.subheader[0].value) == ("model before", "model after")
    assert first.caption[0].value == "Run compare/before"
    charts = [len(column.get("vega_lite_chart")) for column in page.columns[2:]]
    assert charts == [1] * 6


def test_charts_beside_each_other_are_as_wide_as_their_column(page: AppTest) -> None:
    specs = [json.loads(c.proto.spec) for c in page.get("vega_lite_chart")]
    assert [s["width"] for s in specs] == ["container"] * 6
    assert all(s["autosize"]["type"] == "fit-x" for s in specs)


def test_differences_are_of_what_both_runs_measured(
    page: AppTest, before: pd.DataFrame, after: pd.DataFrame
) -> None:
    shown = next(t.value for t in page.dataframe if "difference" in t.value)
    asked = [*MEASURES, "direction_layer_cosine", "direction_reliability"]
    plain = after[after["measure"].isin(asked) & after["control"].eq("")]
    assert len(shown) == len(plain) > 0
    assert shown["difference"].round(9).eq(-0.125).all()
    row = before[before["measure"].eq(MEASURES[0]) & before["control"].eq("")].iloc[0]
    depth = figures.depths(before)[row["site"]]
    own = shown[shown["measure"].eq(MEASURES[0]) & shown["site"].eq(depth)]
    assert own["this"].item() == f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def test_a_run_without_directions_beside_one_that_has_them_is_told(
    page: AppTest, tmp_path: Path, before: pd.DataFrame
) -> None:
    only = before[before["measure"].eq("variety_probe_accuracy")]
    only.to_parquet(tmp_path / "compare" / "after" / "results.parquet")
    page.run()
    assert not page.exception and not page.error
    assert "no direction at a site that both have" in page.info[0].value


@pytest.mark.parametrize("measure", MEASURES)
def test_axes_and_looks_are_those_of_both_runs(
    before: pd.DataFrame, after: pd.DataFrame, measure: str
) -> None:
    one = figures.chart_direction_cosine(before, measure=measure, beside=after).to_dict()
    other = figures.chart_direction_cosine(after, measure=measure, beside=before).to_dict()
    for channel in "xy":
        assert scales(one, channel)[0]["domain"] == scales(other, channel)[0]["domain"]
    for channel in ("color", "strokeDash", "shape"):
        looks = [scales(spec, channel)[0] for spec in (one, other)]
        first, second = (dict(zip(x["domain"], map(str, x["range"]))) for x in looks)
        assert second and second.items() <= first.items()
        if measure == MEASURES[1]:
            assert "hill" in first and "hill" not in second


def test_without_another_run_a_variety_may_look_otherwise(
    before: pd.DataFrame, after: pd.DataFrame
) -> None:
    # What `beside` is for: a run that lacks a variety hands its colour to the next.
    alone = figures.chart_direction_cosine(after, measure=MEASURES[1]).to_dict()
    beside = figures.chart_direction_cosine(after, measure=MEASURES[1], beside=before).to_dict()
    assert scales(alone, "color")[0]["range"] != scales(beside, "color")[0]["range"]


def test_the_map_of_depths_has_the_colours_of_both(
    before: pd.DataFrame, after: pd.DataFrame
) -> None:
    maps = [
        figures.chart_direction_layers(a, beside=b).to_dict()
        for a, b in ((before, after), (after, before))
    ]
    for channel in ("x", "y", "color"):
        domains = [scales(spec, channel)[0]["domain"] for spec in maps]
        assert domains[0] == domains[1], channel
    lowest = after.loc[after["measure"].eq("direction_layer_cosine"), "value"].min()
    assert scales(maps[0], "color")[0]["domain"][0] <= min(0, lowest)


def test_readable_sorts_by_depth_and_leaves_out_what_says_nothing(before: pd.DataFrame) -> None:
    rows = before[before["measure"].eq(MEASURES[0]) & before["control"].eq("")].head(2)
    rows = rows.assign(site=["blocks.10.x", "blocks.9.x"], layer=[10, 9], low=float("nan"))
    told = readable(compare_results(rows, rows))
    assert list(told["site"]) == ["blocks.9.x", "blocks.10.x"]
    assert not {"layer", "edit", "control"} & set(told)
    assert told["this"].str.fullmatch(r"-?\d\.\d{3}").all()
    assert readable(compare_results(rows, rows.head(0))).empty
