"""The page Layers: the projection of the chosen depth, what is selected in it, kinds of site."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from ..experiments import made_results as made

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "apps" / "explorer.py"

SITE = made.SITES[4]
VIEW = f"projection_{SITE.replace('.', '_')}_harmful_variety_1"
OTHER_KIND = {site: site.replace("resid_post", "mlp_out") for site in made.SITES[1:]}


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    """What the probes read; the page's other figures have tests of their own."""
    frame = made.made_results()
    return frame[frame["measure"].str.endswith("_probe_accuracy")]


@pytest.fixture
def run(tmp_path: Path, results: pd.DataFrame) -> Path:
    write(tmp_path / "run", results, made.made_points(), made.made_axes())
    return tmp_path / "run"


def write(run: Path, results: pd.DataFrame, points: pd.DataFrame, axes: pd.DataFrame) -> None:
    run.mkdir(exist_ok=True)
    (run / "config.toml").write_text('model = "made"\n')
    results.to_parquet(run / "results.parquet")
    points.to_parquet(run / "projection.parquet")
    axes.to_parquet(run / "projection_axes.parquet")


def open_at(run: Path, monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(run)])
    at = AppTest.from_file(str(SCRIPT), default_timeout=60)
    for name, value in query.items():
        at.query_params[name] = value
    at.run()
    assert not at.exception and not at.error
    return at


def titles(at: AppTest) -> list[str]:
    """What each chart of the page is called."""
    told = []
    for chart in at.get("vega_lite_chart"):
        proto: Any = chart.proto
        spec = json.loads(proto.spec)
        title = spec.get("title", {}).get("text", spec.get("description", ""))
        told.append(" ".join(title) if isinstance(title, list) else title)
    return [text.replace("\u00a0", " ") for text in told]


def mapped(at: AppTest) -> str:
    """The title of the projection, which is the third chart of a run with both questions."""
    return titles(at)[2]


def listed(at: AppTest) -> list[str]:
    return sorted(next(t.value for t in at.dataframe if list(t.value)[:1] == ["text"])["text"])


def said(at: AppTest, words: str) -> bool:
    return any(words in caption.value for caption in at.caption)


def at_best() -> pd.DataFrame:
    points = made.made_points()
    return points[points["site"] == SITE].reset_index(drop=True)


# Depth and directions


def test_the_projection_is_of_the_depth_that_is_chosen(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = open_at(run, monkeypatch)
    assert mapped(at).startswith("At block 3 held-out harmful requests lie at 1.01 on")
    at.select_slider(key="layer").set_value("1").run()
    assert mapped(at).startswith("At block 1 held-out harmful requests lie at -1.01 on")
    at.select_slider(key="layer").set_value("embed").run()
    assert not at.exception and "No texts are projected at the embedding" in mapped(at)
    assert at.selectbox(key="x").value == "harmful direction"


def test_the_address_names_the_directions_and_the_colour(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"x": "mean shift of hill", "y": "harmful direction", "colour": "behaviour"}
    at = open_at(run, monkeypatch, **told)
    assert {key: at.selectbox(key=key).value for key in told} == told
    assert "on the harmful direction" in mapped(at)
    at.select_slider(key="layer").set_value("1").run()
    assert not at.exception and "There is no mean shift of hill at block 1" in mapped(at)
    at.selectbox(key="x").set_value("harmful direction").run()
    assert not at.exception and "Both axes are the harmful direction" in mapped(at)


def test_an_unknown_direction_or_colour_in_the_address_falls_back(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = open_at(run, monkeypatch, x="nowhere", y="", colour="size", lasso="maybe", kind="none")
    assert at.selectbox(key="x").value == "harmful direction"
    assert at.selectbox(key="y").value == "first variety direction"
    assert at.selectbox(key="colour").value == "variety"


# Box and lasso


def test_a_box_lists_the_texts_inside_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = at_best()
    middle = points[["harmful", "variety_1"]].quantile([0.2, 0.6])
    spans = {c: middle[c].tolist() for c in middle}
    inside = points[np.logical_and(*(points[c].between(*span) for c, span in spans.items()))]
    at = open_at(run, monkeypatch)
    assert said(at, "Drag a box")
    box = dict(zip("xy", spans.values(), strict=True))
    at.session_state[VIEW] = {"selection": {"box": box}}
    at.run()
    assert 0 < len(inside) < len(points)
    assert listed(at) == sorted(inside["text"])
    assert said(at, f"{len(inside)} of 80 texts in the box")
    at.select_slider(key="layer").set_value("1").run()
    assert said(at, "Drag a box")  # a box says nothing about another view


def test_a_lasso_lists_the_texts_that_it_holds(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments import figures

    points = at_best()
    at = open_at(run, monkeypatch, lasso="true")
    assert at.toggle(key="lasso").value and len(at.get("echarts_chart")) == 1
    assert said(at, "Press the lasso")
    rows = figures.lasso_projection(points, made.made_axes(), site=SITE).rows
    one, other = list(rows)[:2]
    found = [
        {"series_id": one, "data_indices": [0, 2]},
        {"series_id": other, "data_indices": [1, 999]},  # the last is of points that are gone
        {"series_id": "lines", "data_indices": [0, 1, 2]},
    ]
    at.session_state[f"lasso_{VIEW}"] = {"selection": {"selected": found, "areas": [{}]}}
    at.run()
    assert not at.exception
    inside = points.iloc[[*rows[one][[0, 2]], rows[other][1]]]
    assert listed(at) == sorted(inside["text"])
    assert said(at, "3 of 80 texts in the lasso")
    at.session_state[f"lasso_{VIEW}"] = {"selection": {"selected": [], "areas": [{}]}}
    at.run()
    assert not at.exception and said(at, "0 of 80 texts in the lasso: none.")


def test_a_streamlit_without_a_lasso_offers_none(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(st, "echarts_chart", raising=False)
    at = open_at(run, monkeypatch, lasso="true")
    assert "Lasso" not in [toggle.label for toggle in at.toggle]
    assert mapped(at).startswith("At block 3")


# Other runs


@pytest.mark.parametrize("gone", ["both", "points", "axes", "old form"])
def test_a_run_whose_projection_is_not_there_says_so(
    run: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    if gone in ("both", "points"):
        (run / "projection.parquet").unlink()
    if gone in ("both", "axes", "old form"):
        (run / "projection_axes.parquet").unlink()
    if gone == "old form":
        old = at_best()[["site", "text"]].assign(x=0.0, y=0.0, cosine=0.0)
        old.to_parquet(run / "projection.parquet")
    assert mapped(open_at(run, monkeypatch)).startswith("This run projected no")


@pytest.mark.parametrize("kept", ["variety", "behaviour"])
def test_a_run_with_one_question_has_its_directions_and_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: pd.DataFrame, kept: str
) -> None:
    points, axes = made.made_points(), made.made_axes()
    keys = ["variety_1", "shift_hill"] if kept == "variety" else ["harmful", "requests"]
    axes = axes.replace({"variety_1": "requests"} if kept == "behaviour" else {})
    axes = axes[axes["axis"].isin(keys) & axes["other"].isin(keys)]
    points = points.rename(columns={"variety_1": "requests"} if kept == "behaviour" else {})
    points = points[(points["behaviour"] == "") == (kept == "variety")]
    if kept == "behaviour":
        points = points.assign(variety="")
    other = "behaviour" if kept == "variety" else "variety"
    measured = results[results["measure"] != f"{other}_probe_accuracy"]
    write(tmp_path / "run", measured, points, axes)
    at = open_at(tmp_path / "run", monkeypatch)
    assert at.selectbox(key="colour").options == [kept]
    at.select_slider(key="layer").set_value("3").run()
    assert not at.exception and any("at block 3 " in title.lower() for title in titles(at))


def test_a_run_of_one_site_is_shown_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: pd.DataFrame
) -> None:
    one = results[results["site"].isin([SITE, ""])]
    write(tmp_path / "run", one, at_best(), made.made_axes()[lambda a: a["site"] == SITE])
    at = open_at(tmp_path / "run", monkeypatch)
    assert not at.select_slider and mapped(at).startswith("At block 3")


def test_each_kind_of_site_has_a_curve_and_a_projection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: pd.DataFrame
) -> None:
    """What blocks' MLPs write is here read 0.2 worse than the stream, and harm is turned round."""
    second = results[results["site"] != made.SITES[0]]
    second = second.assign(
        site=second["site"].replace(OTHER_KIND),
        reference=second["reference"].replace(OTHER_KIND),
        value=second["value"] - 0.2,
    )
    points, axes = made.made_points(), made.made_axes()
    turned = points.assign(site=points["site"].replace(OTHER_KIND), harmful=-points["harmful"])
    write(
        tmp_path / "run",
        pd.concat([results, second[second["site"] != ""]], ignore_index=True),
        pd.concat([points, turned], ignore_index=True),
        pd.concat([axes, axes.assign(site=axes["site"].replace(OTHER_KIND))], ignore_index=True),
    )
    at = open_at(tmp_path / "run", monkeypatch)
    assert at.selectbox(key="kind").options == ["mlp_out", "resid_post"]
    assert at.selectbox(key="kind").value == "resid_post"
    depths = ["embed", *map(str, range(6))]
    assert at.select_slider(key="layer").options == depths
    assert "read best at block 3: 0.90" in titles(at)[0]
    assert "lie at 1.01 on the harmful" in mapped(at)
    at.selectbox(key="kind").set_value("mlp_out").run()
    assert not at.exception
    assert at.select_slider(key="layer").options == depths[1:]
    assert at.select_slider(key="layer").value == "3"  # the depth stays
    assert "read best at block 3: 0.70" in titles(at)[0]
    assert "lie at -1.01 on the harmful" in mapped(at)
    linked = open_at(tmp_path / "run", monkeypatch, kind="mlp_out", layer="1")
    assert "lie at 1.01 on the harmful" in mapped(linked)
    other = open_at(tmp_path / "run", monkeypatch, layer="embed")
    other.selectbox(key="kind").set_value("mlp_out").run()
    assert not other.exception and other.select_slider(key="layer").value == "3"


def test_rows_of_one_kind_hold_no_site_of_another() -> None:
    from experiments import figures

    results = made.made_results()
    second = results.assign(
        site=results["site"].replace(OTHER_KIND), reference=results["reference"].replace(OTHER_KIND)
    )
    whole = pd.concat([results, second], ignore_index=True).drop_duplicates()
    kept = figures.of_kind(whole, "resid_post")
    pd.testing.assert_frame_equal(
        kept.reset_index(drop=True), results.drop_duplicates().reset_index(drop=True)
    )
    own = figures.of_kind(whole, "mlp_out")
    assert made.SITES[0] not in {*own["site"], *own["reference"]}
    assert figures.kinds_of(results) == ["resid_post"]
    assert figures.kinds_of(results[results["site"] == ""]) == []
