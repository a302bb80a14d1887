"""Charts: whatever rows a run has, they draw, and say what they show or why they show nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import vl_convert

from experiments import figures

from . import made_results

#: Charts of other frames than a run's results: points, prompts, a telemetry; or of one pair.
_OWN_FRAMES = {
    "chart_decoupling_telemetry",
    "chart_pair_by_layer",
    "chart_projection",
    "chart_prompt_doses",
    "chart_prompt_map",
}
CHARTS: dict[str, Callable[..., figures.Figure]] = {
    name: getattr(figures, name)
    for name in figures.__all__
    if name.startswith("chart_") and name not in _OWN_FRAMES
}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return made_results.made_results()


def said(chart: figures.Figure) -> str:
    """Everything that the chart's specification holds, as text."""
    return chart.to_json()


def drawn(chart: figures.Figure) -> list[str]:
    """Every piece of text that the picture shows."""
    svg = vl_convert.vegalite_to_svg(chart.to_json())
    return re.findall(r">([^<>]+)</(?:text|tspan)>", svg)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", CHARTS)
def test_every_chart_is_a_valid_specification(name: str, theme: str, frame: pd.DataFrame) -> None:
    spec = CHARTS[name](frame, theme).to_dict()
    assert spec["config"]["background"] in ("#ffffff", "#0e1117")


@pytest.mark.parametrize("name", CHARTS)
def test_a_frame_without_rows_says_why(name: str, frame: pd.DataFrame) -> None:
    spec = CHARTS[name](frame.head(0)).to_dict()
    assert spec["mark"]["type"] == "text"
    assert spec["description"].startswith("This run")


@pytest.mark.parametrize("name", CHARTS)
def test_controls_alone_are_no_finding(name: str, frame: pd.DataFrame) -> None:
    rows = frame[frame["control"] != ""]
    assert CHARTS[name](rows).to_dict()


@pytest.mark.parametrize("name", CHARTS)
def test_measurements_draw_without_their_controls(name: str, frame: pd.DataFrame) -> None:
    assert CHARTS[name](frame[frame["control"] == ""]).to_dict()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_telemetry_draws_what_was_measured_and_nothing_else(theme: str) -> None:
    steps = pd.DataFrame({"step": [0, 10, 0, 10], "layer": [0, 0, 1, 1], "update": [0, 1, 0, 1]})
    names = (
        "strength", "k", "inside", "overlap", "chance", "start_overlap", "last_overlap",
        "code_nats", "uniform_nats", "probe_accuracy", "task_loss", "decoupling_loss",
    )  # fmt: skip
    telemetry = steps.assign(**dict.fromkeys(names, 0.5)).assign(probe_accuracy=float("nan"))
    shown = drawn(figures.chart_decoupling_telemetry(telemetry, theme))
    assert any("code" in text for text in shown)
    assert not any("accuracy" in text for text in shown)
    assert figures.chart_decoupling_telemetry(telemetry.head(0)).to_dict()["mark"]["type"] == "text"


def test_a_pair_is_drawn_with_its_null_whichever_way_it_is_named(frame: pd.DataFrame) -> None:
    one, other = made_results.VARIETIES[1:3]
    chart = figures.chart_pair_by_layer(frame, (one, other))
    turned = figures.chart_pair_by_layer(frame, (other, one))
    assert [t for t in drawn(chart) if one not in t] == [t for t in drawn(turned) if one not in t]
    assert "covariance" in said(chart)
    nobody = figures.chart_pair_by_layer(frame, (one, "nobody")).to_dict()
    assert nobody["mark"]["type"] == "text"


def test_depths_run_from_the_embedding_upwards(frame: pd.DataFrame) -> None:
    shuffled = frame.sample(frac=1.0, random_state=0)
    assert list(figures.depths(shuffled).values()) == ["embed", *"012345"]


def test_two_kinds_of_site_in_a_block_are_told_apart() -> None:
    sites = ["blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"]
    frame = pd.DataFrame({"site": sites, "layer": [1, 1]})
    assert list(figures.depths(frame).values()) == ["1 mlp_out", "1 resid_post"]


def test_the_curve_names_its_best_layer_and_its_controls(frame: pd.DataFrame) -> None:
    text = said(figures.chart_probe_curve(frame))
    assert "block 3: 0.90 [0.86, 0.94]" in text.replace('",\n      "', " ")
    for control in ("control task", "text alone", "chance", "best possible reader"):
        assert control in text


def test_a_click_is_on_the_nearest_depth_whatever_its_height(frame: pd.DataFrame) -> None:
    spec = figures.chart_probe_curve(frame, pick="pick").to_dict()
    asked = [p["select"] for p in spec["params"] if p["name"] == "pick"]
    assert [(s["encodings"], s["nearest"]) for s in asked] == [(["x"], True)]


def test_the_matrix_is_symmetric_and_says_its_nulls(frame: pd.DataFrame) -> None:
    spec = figures.chart_overlap_matrix(frame, layer=2).to_dict()
    cells = next(iter(spec["datasets"].values()))
    table = pd.DataFrame(cells).set_index(["variety", "reference"])["value"]
    table = table.unstack()  # noqa: PD010
    assert table.shape == (4, 4) and table.notna().all().all()
    pd.testing.assert_frame_equal(table, table.T, check_names=False)
    assert "Nulls" in " ".join(spec["title"]["subtitle"])


@pytest.mark.parametrize("name", ["chart_ablation_loss", "chart_patching_map"])
def test_diverging_scales_weigh_both_signs_alike(name: str, frame: pd.DataFrame) -> None:
    domains: list[list[float]] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            colour = node.get("color")
            scale = colour.get("scale") if isinstance(colour, dict) else None
            if isinstance(scale, dict) and "domainMid" in scale:
                domains.append([*scale["domain"], scale["domainMid"]])
            for part in node.values():
                walk(part)
        elif isinstance(node, list):
            for part in node:
                walk(part)

    walk(CHARTS[name](frame).to_dict())
    assert domains and all(low == -high and mid == 0 for low, high, mid in domains)


def test_a_variety_keeps_its_colour_when_others_have_no_rows(frame: pd.DataFrame) -> None:
    hand = figures.variety_colours(frame)
    assert len({*zip(hand.colours, hand.shapes, strict=True)}) == len(hand.names)
    assert "refusal" not in hand.names


def test_thirty_varieties_differ_in_hue_or_in_shape() -> None:
    frame = pd.DataFrame({"measure": "loss", "variety": [f"v{i:02d}" for i in range(30)]})
    hand = figures.variety_colours(frame)
    assert len({*zip(hand.colours, hand.shapes, strict=True)}) == 30


def test_the_picture_names_the_line_of_every_variety(frame: pd.DataFrame) -> None:
    shown = drawn(figures.chart_direction_cosine(frame))
    assert [name for name in shown if name in made_results.VARIETIES] == made_results.VARIETIES


def test_the_map_of_directions_is_symmetric_and_says_where_it_turns(frame: pd.DataFrame) -> None:
    spec = figures.chart_direction_layers(frame).to_dict()
    cells = pd.DataFrame(next(iter(spec["datasets"].values())))
    table = cells.set_index(["one", "other"])["value"].unstack()  # noqa: PD010
    assert table.shape == (7, 7) and table.notna().all().all()
    pd.testing.assert_frame_equal(table, table.T, check_names=False)
    assert table.loc["3", "3"] == 0.9
    told = " ".join(spec["title"]["text"]).replace("\u00a0", " ")
    assert "from block 2 to block 3: 60° (cosine 0.50 [0.48, 0.52]" in told
    assert "no sure direction" in " ".join(spec["title"]["subtitle"])
    assert "covariance up to 0.40" in " ".join(spec["title"]["subtitle"])


def test_tiles_and_their_control_share_one_legend(frame: pd.DataFrame) -> None:
    assert drawn(figures.chart_ablation_loss(frame)).count("change of loss") == 1


def test_one_variety_can_be_patched_alone(frame: pd.DataFrame) -> None:
    spec = figures.chart_patching_map(frame, variety="hill").to_dict()
    assert "runs of hill" in " ".join(spec["title"]["subtitle"])


def test_a_saved_chart_is_a_picture_and_a_page_without_network(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    stem = tmp_path / "figures" / "v1.5_refusal"
    picture, page = figures.save_chart(figures.chart_refusal(frame), stem)
    assert picture.name == "v1.5_refusal.png" and picture.read_bytes()[:4] == b"\x89PNG"
    text = page.read_text(encoding="utf-8")
    assert "refusal direction removed" in text
    assert '<script src="http' not in text and 'src="//' not in text
