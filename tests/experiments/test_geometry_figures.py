"""Charts of the geometry stage: what they say is in the rows, and nothing is told by hue alone."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert

from experiments import figures
from experiments.compare import geometry_findings
from experiments.compare.projection import Projection

from . import made_results

SITE = made_results.SITES[4]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return made_results.made_results()


@pytest.fixture(scope="module")
def points() -> pd.DataFrame:
    """Of one site."""
    points = made_results.made_points()
    return points[points["site"] == SITE].reset_index(drop=True)


@pytest.fixture(scope="module")
def axes() -> pd.DataFrame:
    return made_results.made_axes()


def heading(chart: figures.Figure, part: str = "text") -> str:
    """The title, or with `subtitle` what stands below it, in one line."""
    return " ".join(chart.to_dict()["title"][part]).replace("\u00a0", " ")


def drawn(chart: figures.Figure) -> list[str]:
    """Every piece of text that the picture shows."""
    svg = vl_convert.vegalite_to_svg(chart.to_json())
    return re.findall(r">([^<>]+)</(?:text|tspan)>", svg)


def encodings(node: Any, name: str) -> list[dict[str, Any]]:
    """Every encoding of one channel in a specification."""
    if isinstance(node, list):
        return [found for part in node for found in encodings(part, name)]
    if not isinstance(node, dict):
        return []
    own = [node["encoding"][name]] if name in node.get("encoding", {}) else []
    return own + [f for k, v in node.items() if k != "datasets" for f in encodings(v, name)]


def test_the_spectrum_names_the_nearest_pair_and_its_null(frame: pd.DataFrame) -> None:
    chart = figures.chart_angle_spectrum(frame, site=SITE)
    said = heading(chart)
    assert said.startswith("At block 3, hill and island lie nearest, at 2° to 25°")
    assert said.endswith("gives 15° to 45° on average")
    shown = drawn(chart)
    assert "nearest pair: hill and island" in shown
    assert "thin lines: the other pairs (4)" in shown


def test_one_pair_with_one_angle_is_a_chart_too(frame: pd.DataFrame) -> None:
    rows = frame[(frame["measure"] == "principal_angle") & (frame["position"] == 0)]
    alone = rows[(rows["variety"] == "hill") & (rows["reference"] == "island")]
    nulls = rows[rows["control"] != ""]
    chart = figures.chart_angle_spectrum(pd.concat([alone, nulls]), site=SITE)
    assert "hill and island lie at 2°;" in heading(chart)
    assert "the only pair: hill and island" in drawn(chart)


def test_the_tree_counts_the_planted_groups_that_it_has(frame: pd.DataFrame) -> None:
    chart = figures.chart_dendrogram(frame, site=SITE)
    assert heading(chart).endswith("at block 3 has 2 of 2 by words and 0 of 2 by structure")
    below = heading(chart, "subtitle")
    assert "words 0.90 (p = 0.01), structure -0.20 (p = 0.7)" in below
    shown = drawn(chart)
    assert shown.count("87%") == 2 and "words" in shown
    for variety in made_results.VARIETIES:
        assert shown.count(variety) == 3  # in the tree and in both planted ones


def test_leaves_of_a_planted_tree_stand_by_their_planted_sisters(frame: pd.DataFrame) -> None:
    panel = figures.chart_dendrogram(frame, site=SITE).to_dict()
    tables = [
        {row["name"]: row["y"] for row in rows}
        for rows in panel["datasets"].values()
        if rows and set(rows[0]) == {"x", "y", "name"}
    ]
    apart = [sorted([abs(t["hill"] - t["island"]), abs(t["hill"] - t["river"])]) for t in tables]
    # The states' own tree has the leaves of the one by words, so they are one table.
    assert len(tables) == 2 and all(near == 1 < far for near, far in apart)


def test_a_tree_without_a_plan_or_null_is_drawn_alone(frame: pd.DataFrame) -> None:
    rows = frame[(frame["measure"] == "variety_distance") & (frame["control"] == "")]
    two = rows[(rows["variety"] == "hill") & (rows["reference"] == "island")]
    for part, count in ((rows, 4), (two, 2)):
        chart = figures.chart_dendrogram(part, site=SITE)
        assert f"The tree of {count} varieties" in heading(chart)
        assert {"hill", "island"} <= set(drawn(chart))


def test_the_map_of_layers_is_symmetric_with_one_scale_for_both_panels(
    frame: pd.DataFrame,
) -> None:
    chart = figures.chart_cka(frame)
    spec = chart.to_dict()
    assert "between block 0 and block 5: CKA 0.50, and 0.25 without" in heading(chart)
    assert "still give 0.30" in heading(chart, "subtitle")
    scales = [c["scale"]["domain"] for c in encodings(spec, "color") if "scale" in c]
    assert len(scales) == 2 and scales[0] == scales[1] == [0, 0.5, 1]
    for cells in spec["datasets"].values():
        table = pd.DataFrame(cells).set_index(["depth", "other"])["value"].unstack()  # noqa: PD010
        assert table.shape == (6, 6) and table.notna().all().all()
        pd.testing.assert_frame_equal(table, table.T, check_names=False)


def test_the_curve_says_which_probe_is_off_and_joins_no_thin_bin(frame: pd.DataFrame) -> None:
    chart = figures.chart_reliability(frame)
    said = heading(chart)
    assert "The variety probe is right more often than it claims (calibration error 0.08" in said
    assert "the behaviour probe is right as often as it claims, as far as can be told" in said
    assert "fewer than 5 groups" in heading(chart, "subtitle")
    assert {"variety at block 3", "behaviour at block 1"} <= set(drawn(chart))


def test_points_have_names_and_shapes_beside_colours(
    points: pd.DataFrame, axes: pd.DataFrame
) -> None:
    chart = figures.chart_projection(points, axes)
    shown = drawn(chart)
    # Once in the legend, once beside the points.
    assert shown.count("hill") == shown.count("island") == 2
    assert {"harmful request", "harmless request", "no request"} <= set(shown)
    (shapes,) = [e["scale"]["range"] for e in encodings(chart.to_dict(), "shape")]
    assert len(set(shapes)) == 3
    held = points[~points["train"]].groupby("behaviour")["harmful"].mean()
    assert f"held-out harmful requests lie at {held['harmful']:.2f}" in heading(chart)
    assert "cosine is +0.04" in heading(chart, "subtitle")
    assert max(len(r["text"]) for r in next(iter(chart.to_dict()["datasets"].values()))) <= 90


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kept", ["all", "requests", "sentences", "one text"])
def test_points_of_any_kind_are_drawn(
    kept: str, theme: Any, points: pd.DataFrame, axes: pd.DataFrame
) -> None:
    part = {
        "all": points,
        "requests": points[points["behaviour"] != ""].assign(variety=""),
        "sentences": points[points["behaviour"] == ""],
        "one text": points.head(1),
    }[kept]
    assert drawn(figures.chart_projection(part, axes, theme))


def test_no_points_say_why() -> None:
    spec = figures.chart_projection(pd.DataFrame(), pd.DataFrame()).to_dict()
    assert spec["description"].startswith("This run projected no states")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"site": made_results.SITES[0]}, "No texts are projected at the embedding"),
        ({"site": made_results.SITES[2], "x": "shift_hill"}, "no mean shift of hill at block 1"),
        ({"x": "harmful", "y": "harmful"}, "Both axes are the harmful direction"),
    ],
)
def test_directions_that_give_no_picture_are_told(
    asked: dict[str, str], said: str, axes: pd.DataFrame
) -> None:
    made = made_results.made_points()
    assert said in figures.no_picture(axes, **asked)
    assert said in figures.chart_projection(made, axes, **asked).to_dict()["description"]
    assert said in figures.lasso_projection(made, axes, **asked).why
    assert not figures.no_picture(axes)


def test_the_chosen_directions_are_the_axes_and_the_colours(axes: pd.DataFrame) -> None:
    made = made_results.made_points()
    chosen = {"site": SITE, "x": "shift_hill", "y": "harmful", "colour": "behaviour"}
    chart = figures.chart_projection(made.assign(train=True), axes, **chosen)
    here = made[made["site"] == SITE]
    means = here[here["behaviour"] == ""].groupby("variety")["shift_hill"].mean()
    ends = [f"{v} ({means[v]:.2f})" for v in made_results.VARIETIES[:2]]
    assert f"the mean shift of hill runs from {' to '.join(ends)}" in heading(chart)
    assert "held-out" not in heading(chart)
    rows = next(iter(chart.to_dict()["datasets"].values()))
    assert [row["x"] for row in rows] == here["shift_hill"].tolist()
    assert [row["y"] for row in rows] == here["harmful"].tolist()
    (fills,) = encodings(chart.to_dict(), "fill")
    assert fills["field"] == "kind" and len(set(fills["scale"]["range"])) == 3
    fewer = figures.chart_projection(made, axes.assign(texts=500), **chosen)
    assert "80 texts of the run's 500, whole groups drawn" in heading(fewer, "subtitle")


def test_lines_join_the_sentences_of_a_group_and_nothing_else(
    points: pd.DataFrame, axes: pd.DataFrame
) -> None:
    spec = figures.chart_projection(points, axes, join=True).to_dict()
    (lines,) = [part for part in spec["layer"] if part["mark"]["type"] == "line"]
    plain = points[points["behaviour"] == ""]
    shared = plain["group"].value_counts()
    ends = pd.DataFrame(spec["datasets"][lines["data"]["name"]])
    assert ends["group"].value_counts().to_dict() == shared[shared > 1].to_dict()
    option = figures.lasso_projection(points, axes, join=True).option
    drawn_as = option["dataset"][option["series"][0]["datasetIndex"]]["source"]
    assert drawn_as["x"].isna().sum() == ends["group"].nunique()
    assert sorted(drawn_as["x"].dropna()) == sorted(ends["x"])


@pytest.mark.parametrize("colour", ["variety", "behaviour"])
def test_the_lasso_has_the_points_of_the_chart_each_once(
    colour: str, points: pd.DataFrame, axes: pd.DataFrame
) -> None:
    lasso = figures.lasso_projection(points, axes, colour=colour)
    assert sorted(np.concatenate(list(lasso.rows.values()))) == list(range(len(points)))
    drawn_as = {series["id"]: series for series in lasso.option["series"]}
    assert ("names" in drawn_as) == (colour == "variety")
    for series in map(drawn_as.__getitem__, lasso.rows):
        shown = lasso.option["dataset"][series["datasetIndex"]]["source"]
        own = points.iloc[lasso.rows[series["id"]]]
        assert shown["x"].tolist() == own["harmful"].tolist()
        assert shown["group"].tolist() == own["group"].tolist()
    without = {k: v for k, v in lasso.option.items() if k != "dataset"}
    assert json.loads(json.dumps(without, allow_nan=False)) == without


def test_names_of_varieties_in_one_place_do_not_lie_on_each_other(
    points: pd.DataFrame, axes: pd.DataFrame
) -> None:
    close = points[points["behaviour"] == ""].reset_index(drop=True)
    close["variety"] = [made_results.VARIETIES[i % 4] for i in range(len(close))]
    close["variety_1"] = [1.0 if i < 4 else 0.0 for i in range(len(close))]
    spec = figures.chart_projection(close, axes).to_dict()
    (labels,) = [r for r in spec["datasets"].values() if "x2" in r[0]]
    heights = sorted(row["y2"] for row in labels)
    assert min(b - a for a, b in pairwise(heights)) > 0.04


def test_every_sentence_has_the_figures_of_its_rows(
    frame: pd.DataFrame, points: pd.DataFrame, axes: pd.DataFrame
) -> None:
    told = " ".join(geometry_findings.sentences(frame))
    assert "follows planted words (Spearman 0.90" in told
    assert "does not follow planted structure (Spearman -0.20" in told
    assert "The variety probe at `blocks.3.hook_resid_post` is off" in told
    assert "behaviour probe at `blocks.1.hook_resid_post` cannot be told from" in told
    assert "1.00 [0.50, 1.50] dimensions are shared by most varieties' subspaces" in told
    assert "a variety has 2.5 on average" in told and "have 1.5 (up to 1.9)" in told
    assert "60% have their parallel in standard" in told and "chance is 1.7%" in told
    assert "participation ratio of 3.00 [2.60, 3.40], an intrinsic dimension of 5.00," in told
    captions = geometry_findings.captions(frame, Projection(points, axes))
    assert set(captions) == {"angle_spectrum", "dendrogram", "cka", "reliability", "projection"}
    assert "2 of 6 pairs" in captions["angle_spectrum"]
    assert "hill and island lie nearest (0.60 [0.50, 0.70] radians)" in captions["dendrogram"]
    assert all(said.endswith(".") and "nan" not in said for said in captions.values())


def test_rows_of_controls_alone_make_no_sentence(frame: pd.DataFrame) -> None:
    controls = frame[frame["control"] != ""]
    assert geometry_findings.sentences(controls) == []
    assert geometry_findings.captions(controls) == {}
