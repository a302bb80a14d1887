"""The same points as `chart_projection`, for a chart in which a lasso can be drawn.

Vega has no lasso; ECharts has one. What is made here is an option of ECharts, plain data.
"""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.figures.look import Theme, palette
from experiments.figures.projection import joined, names_beside, picture_of

_SYMBOLS = {"triangle-up": "triangle", "square": "rect"}
_UNSEEN = {"animation": False, "silent": True, "tooltip": {"show": False}}
_FONT = "Helvetica, Arial, sans-serif"
#: Of the whole chart, in pixels; the plot is as large as that of `chart_projection`.
WIDTH = 760
_PLOT_HEIGHT, _LEFT, _RIGHT, _LINE = 400, 70, 200, 16


class Lasso(NamedTuple):
    """`option` for ECharts, its height in pixels, what it shows, and the rows of its series.

    `rows` gives for each series' id the places of its points among the points of the site, in the
    order in which ECharts counts them. `why` says why nothing is drawn, where nothing is.
    """

    option: dict[str, Any]
    height: int
    told: str
    rows: dict[str, np.ndarray]
    why: str = ""


def lasso_projection(
    points: pd.DataFrame,
    axes: pd.DataFrame,
    theme: Theme = "light",
    *,
    site: str = "",
    x: str = "",
    y: str = "",
    colour: str = "variety",
    join: bool = False,
) -> Lasso:
    """The points of `chart_projection`, whose arguments these are."""
    seen = picture_of(points, axes, theme, site=site, x=x, y=y, colour=colour)
    if seen.why:
        return Lasso({}, 0, seen.why, {}, seen.why)
    p = palette(theme)
    datasets, series, places = [], [], {}

    def add(key: str, source: pd.DataFrame, **how: Any) -> None:
        place = {"id": key, "datasetIndex": len(datasets), "encode": {"x": "x", "y": "y"}}
        series.append(place | {"animation": False} | how)
        datasets.append({"source": source.reset_index(drop=True)})

    if join:
        add("lines", _with_gaps(joined(seen.rows)), **_line(p.quiet, 0.35), z=1)
    for name, (fill, edge) in seen.looks.items():
        for kind, shape in seen.shapes.items():
            part = seen.rows[(seen.rows[seen.field] == name) & (seen.rows["kind"] == kind)]
            if part.empty:
                continue
            key = f"{name}, {kind}"
            places[key] = part["row"].to_numpy()
            add(
                key,
                part[["x", "y", "text", "variety", "kind", "part", "group"]],
                **{"type": "scatter", "name": name, "symbol": _SYMBOLS.get(shape, shape)},
                **{"symbolSize": 8, "z": 2},
                itemStyle={
                    **{"color": fill, "opacity": 0.7},
                    **{"borderColor": edge, "borderWidth": int(fill != edge)},
                },
            )
    if seen.field == "variety":
        beside = names_beside(seen.rows)
        ends = beside[["x2", "y2", "name"]].set_axis(["x", "y", "name"], axis=1)
        leads = pd.concat([beside[["x", "y", "name"]], ends]).assign(group=lambda e: e["name"])
        add("leads", _with_gaps(leads), **_line(p.quiet, 1.0), z=3)
        label = {"show": True, "formatter": "{@name}", "position": "right", "distance": 2}
        ink = {"color": p.ink, "fontFamily": _FONT, "fontSize": 11.5}
        add("names", ends, type="scatter", symbolSize=0, label=label | ink, z=4, **_UNSEEN)
    heading = textwrap.wrap(seen.told, 84)
    shapes = "; ".join(f"{shape.removesuffix('-up')}: {k}" for k, shape in seen.shapes.items())
    below = textwrap.wrap(seen.below, 106) + ([f"{shapes}."] if len(seen.shapes) > 1 else [])
    top = 26 + 19 * len(heading) + _LINE * len(below)
    height = top + _PLOT_HEIGHT + 70
    upwards = textwrap.wrap(seen.titles["y"], 64)
    left = _LEFT + 14 * (len(upwards) - 1)
    plain = {"color": p.ink, "fontFamily": _FONT}
    axis = {
        **{
            "type": "value",
            "scale": True,
            "nameLocation": "middle",
            "nameTextStyle": plain | {"lineHeight": 14},
        },
        "axisLabel": plain,
        "axisLine": {"show": True, "onZero": False, "lineStyle": {"color": p.quiet}},
        "splitLine": {"lineStyle": {"color": p.grid}},
    }
    option = {
        "backgroundColor": "transparent",
        "textStyle": plain,
        "title": {
            **{"text": "\n".join(heading), "subtext": "\n".join(below), "left": 8, "top": 4},
            "textStyle": plain | {"fontSize": 14, "lineHeight": 19},
            "subtextStyle": {"color": p.quiet, "fontFamily": _FONT, "lineHeight": _LINE},
        },
        "grid": {"left": left, "right": _RIGHT, "top": top + 30, "height": _PLOT_HEIGHT - 30},
        "legend": {
            **{"orient": "vertical", "left": WIDTH - _RIGHT + 16, "top": top + 30},
            **{"textStyle": plain, "height": _PLOT_HEIGHT - 30},
            **{"data": list(seen.looks), "type": "scroll", "inactiveColor": p.null},
        },
        "tooltip": {
            "formatter": "{@text}<br>{@variety}, {@kind}, {@part}, {@group}",
            **{"backgroundColor": p.ground, "borderColor": p.quiet, "textStyle": plain},
            **{"confine": True, "extraCssText": "max-width: 420px; white-space: normal;"},
        },
        "toolbox": {
            **{"left": left, "top": top - 10, "itemSize": 18, "iconStyle": {"borderColor": p.ink}},
            "feature": {
                "brush": {"title": {"polygon": "Lasso", "rect": "Box", "clear": "Clear"}},
            },
        },
        "brush": {
            **{"toolbox": ["polygon", "rect", "clear"], "xAxisIndex": 0, "yAxisIndex": 0},
            **{"throttleType": "debounce", "throttleDelay": 60, "brushMode": "single"},
            "outOfBrush": {"opacity": 0.15},
        },
        "xAxis": axis | {"name": "\n".join(textwrap.wrap(seen.titles["x"], 70)), "nameGap": 30},
        "yAxis": axis | {"name": "\n".join(upwards), "nameGap": 42},
        "dataset": datasets,
        "series": series,
    }
    return Lasso(option, height, seen.told, places)


def _line(colour: str, opacity: float) -> dict[str, Any]:
    """A thin line through points, which nothing selects; gaps are left open."""
    style = {"width": 0.7, "opacity": opacity, "color": colour}
    return {"type": "line", "lineStyle": style, "showSymbol": False, **_UNSEEN}


def _with_gaps(rows: pd.DataFrame) -> pd.DataFrame:
    """Points group by group from left to right, with a gap after each group."""
    ordered = rows.sort_values(["group", "x"])[["x", "y", "group"]]
    ends = ordered.groupby("group", as_index=False).tail(1).assign(x=np.nan, y=np.nan)
    whole = pd.concat([ordered, ends]).sort_values("group", kind="stable")
    return whole[["x", "y"]].reset_index(drop=True)
