"""Charts of lenses show the frame that they are given, and say what is in it."""

from __future__ import annotations

import html
import re
from itertools import pairwise

import pandas as pd
import pytest
import vl_convert

from experiments import figures

SITES = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
#: By site, the token that is first at each of three positions.
TOPS = [["Ġthe", "Ġmill", "er"], ["Ġold", "er", "Ġsold"], ["Ġold", "Ġwheel", "Ġsold"]]


def drawn(chart: figures.Figure) -> list[str]:
    """Every piece of text that the picture shows."""
    svg = vl_convert.vegalite_to_svg(chart.to_json())
    return [html.unescape(text) for text in re.findall(r">([^<>]+)</(?:text|tspan)>", svg)]


@pytest.fixture
def lens() -> pd.DataFrame:
    rows = [
        (text, site, int(site[7]), position, word, rank, token, len(token) + rank, 1.5, 0.4 / rank)
        for text in (0, 1)
        for site, tops in zip(SITES, TOPS)
        for position, (word, first) in enumerate(zip(["<s>", "Ġthe", "Ġmill"], tops))
        for rank, token in ((1, first if text == 0 else "Ġother"), (2, "Ġsecond"))
    ]
    return pd.DataFrame(rows, columns=["text", "site", "layer", "position", "input", "rank",
                                       "token", "token_id", "logit", "probability"])  # fmt: skip


@pytest.fixture
def promoted() -> pd.DataFrame:
    rows = [
        ("refusal", "", -1, axis, sign, rank, f"Ġ{way}{axis}{rank}", rank, 3.0 - rank, 0.1, True)
        for axis in (0, 1)
        for sign, way in ((1, "yes"), (-1, "no"))
        for rank in (1, 2)
    ]
    columns = ["direction", "site", "layer", "axis", "sign", "rank", "token", "token_id"]
    return pd.DataFrame(rows, columns=[*columns, "logit", "probability", "gain"])


def test_each_cell_holds_the_first_token_of_the_text_that_is_asked_for(lens: pd.DataFrame) -> None:
    chart = figures.chart_logit_lens(lens)
    shown = drawn(chart)
    assert sorted(t for t in shown if t in {"·old", "·wheel", "·sold", "·mill", "er"}) == sorted(
        ["·mill", "er", "·old", "er", "·sold", "·old", "·wheel", "·sold"]
    )
    assert "·second" not in shown and "·other" not in shown
    assert {"0 <s>", "1 ·the", "2 ·mill"} <= set(shown)
    assert drawn(figures.chart_logit_lens(lens, text=1)).count("·other") == 9


def test_the_title_counts_where_the_last_token_stood_one_row_before(lens: pd.DataFrame) -> None:
    # Of three positions, "old" and "sold" were first after block 0 already; "wheel" was not.
    described = figures.chart_logit_lens(lens).to_dict()["description"]
    assert described.startswith("67% of positions have the top token of block 1 on top already at")


def test_more_probable_tokens_have_a_darker_or_lighter_shade_throughout(lens: pd.DataFrame) -> None:
    for theme, sign in (("light", -1), ("dark", 1)):
        spec = figures.chart_logit_lens(lens, theme).to_dict()
        ramp = spec["layer"][0]["encoding"]["color"]["scale"]["range"]
        grey = [
            0.2126 * int(c[1:3], 16) + 0.7152 * int(c[3:5], 16) + 0.0722 * int(c[5:7], 16)
            for c in ramp
        ]
        assert sorted(grey, reverse=sign < 0) == grey
        assert min(abs(a - b) for a, b in pairwise(grey)) > 30


def test_a_long_text_is_drawn_without_words_in_its_cells(lens: pd.DataFrame) -> None:
    one = lens[(lens["text"] == 0) & (lens["rank"] == 1) & (lens["position"] == 0)]
    many = pd.concat([one.assign(position=n) for n in range(60)], ignore_index=True)
    chart = figures.chart_logit_lens(many)
    assert len(chart.to_dict()["layer"]) == 1 and chart.to_dict()["width"] < 1400


def test_promoted_tokens_stand_right_and_suppressed_ones_left(promoted: pd.DataFrame) -> None:
    chart = figures.chart_promoted_tokens(promoted)
    shown = drawn(chart)
    assert {"refusal, axis 0", "refusal, axis 1", "·yes01", "·no12"} <= set(shown)
    rows = [row for rows in chart.to_dict()["datasets"].values() for row in rows]
    assert {r["side"] for r in rows if r["amount"] > 0} == {"promoted"}
    assert {r["amount"] for r in rows if r["side"] == "suppressed"} == {-2.0, -1.0}


def test_the_divergence_names_its_ends_and_its_groups() -> None:
    frame = pd.DataFrame(
        {"site": SITES, "layer": [0, 0, 1], "value": [5.0, 2.0, 0.0], "low": [4.0, 1.0, 0.0],
         "high": [6.0, 3.0, 0.0], "level": 0.95, "n": 7, "tokens": 50, "unit": "nats"}
    )  # fmt: skip
    chart = figures.chart_lens_divergence(frame)
    assert chart.to_dict()["description"].startswith(
        "The lens is 5.00 nats from the model's prediction at the embedding and 0.00 at block 1"
    )
    assert any("95% intervals over 7 groups" in text for text in drawn(chart))


@pytest.mark.parametrize(
    "name", ["chart_logit_lens", "chart_promoted_tokens", "chart_lens_divergence"]
)
def test_a_frame_of_something_else_says_why_nothing_is_shown(name: str) -> None:
    spec = getattr(figures, name)(pd.DataFrame({"measure": ["loss"]})).to_dict()
    assert spec["mark"]["type"] == "text" and spec["description"].startswith("This run")
