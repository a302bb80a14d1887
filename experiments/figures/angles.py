"""The whole spectrum of angles between varieties' subspaces, beside what chance gives."""

from __future__ import annotations

import altair as alt
import pandas as pd

from experiments.figures.look import (
    Figure,
    Palette,
    Theme,
    chosen_site,
    control,
    depths,
    empty_chart,
    figure,
    finish,
    palette,
    place,
    plain,
    title,
)

_MEASURE = "principal_angle"
_NULLS = {
    "covariance_null": "null: the data's own covariance",
    "random_subspace": "null: uniformly random subspaces",
}
_Y_TITLE = "principal angle (degrees)"


def chart_angle_spectrum(
    frame: pd.DataFrame, theme: Theme = "light", *, site: str = "", layer: int | None = None
) -> Figure:
    """Principal angles of every two varieties at one site, one line a pair, with null bands.

    Args:
        site: a site's full name; empty: by `layer`, else the last site of the frame.
    """
    everything = frame[frame["measure"] == _MEASURE]
    if plain(everything, _MEASURE).empty:
        return empty_chart(
            "This run measured no angles: that takes a standard and two others.", theme
        )
    site = chosen_site(plain(everything, _MEASURE), site, layer)
    here = everything[everything["site"] == site]
    rows = plain(here, _MEASURE)
    if rows.empty:
        return empty_chart(f"This run measured no angles at {site}.", theme)
    rows = rows.assign(
        rank=rows["position"] + 1,
        pair=rows["variety"] + " and " + rows["reference"],
    )
    size = rows.groupby("pair")["value"].apply(lambda v: float((v**2).sum()))
    nearest, farthest = str(size.idxmin()), str(size.idxmax())
    kinds = {nearest: f"nearest pair: {nearest}", farthest: f"farthest pair: {farthest}"}
    if size.size == 1:
        kinds = {nearest: f"the only pair: {nearest}"}
    others = f"thin lines: the other pairs ({size.size - len(kinds)})"
    rows = rows.assign(line=[kinds.get(pair, others) for pair in rows["pair"]])
    nulls = control(here, _MEASURE, *_NULLS)
    nulls = nulls.assign(
        rank=nulls["position"] + 1, line=[_NULLS[c] for c in nulls["control"]], pair=""
    )
    p = palette(theme)
    chart = alt.layer(*_bands(nulls, p), *_lines(rows, nulls, [*kinds.values(), others], p))
    told = _told(rows, nulls, nearest, place(depths(everything)[site]))
    below = "Bands: 95% of draws. Angles below a band are smaller than that null makes them."
    width = 420
    chart = chart.properties(
        width=width, height=300, title=title(told, below, width=width + 60), description=told
    )
    return finish(chart, theme)


def _x() -> alt.X:
    return alt.X(
        "rank:O",
        title="which angle (1: the smallest)",
        axis=alt.Axis(labelAngle=0, grid=False),
    )


def _y(column: str = "value") -> alt.Y:
    scale = alt.Scale(domain=[0, 90])
    axis = alt.Axis(values=[*range(0, 91, 15)])
    return alt.Y(f"{column}:Q", title=_Y_TITLE, scale=scale, axis=axis)


def _bands(nulls: pd.DataFrame, p: Palette) -> list[alt.Chart]:
    layers = []
    for kind, name in _NULLS.items():
        part = nulls[nulls["control"] == kind]
        if part.empty:
            continue
        opacity = 0.22 if kind == "covariance_null" else 0.4
        base = alt.Chart(part).encode(x=_x(), y=_y("low"), y2="high:Q")
        # One angle alone is no area.
        mark = base.mark_area if len(set(part["rank"])) > 1 else base.mark_bar
        layers.append(mark(color=p.null, opacity=opacity).encode(tooltip=alt.value(name)))
    return layers


def _lines(
    rows: pd.DataFrame, nulls: pd.DataFrame, kinds: list[str], p: Palette
) -> list[alt.Chart]:
    told = pd.concat([rows, nulls])
    told = told.assign(said=[figure(r) for _, r in told.iterrows()])
    present = [k for k in [*kinds, *_NULLS.values()] if k in set(told["line"])]
    looks = {
        kinds[0]: (p.harmless, [1, 0]),
        **({kinds[1]: (p.harmful, [7, 3])} if len(kinds) > 2 else {}),
        kinds[-1]: (p.quiet, [1, 0]),
        _NULLS["covariance_null"]: (p.ink, [2, 3]),
        _NULLS["random_subspace"]: (p.ink, [10, 3, 2, 3]),
    }
    colour = alt.Color(
        "line:N",
        title=None,
        scale=alt.Scale(domain=present, range=[looks[k][0] for k in present]),
        legend=alt.Legend(orient="bottom", columns=1, symbolType="stroke", symbolSize=300),
    )
    dash = alt.StrokeDash(
        "line:N", title=None, scale=alt.Scale(domain=present, range=[looks[k][1] for k in present])
    )
    tips = ["line", "pair", "rank", alt.Tooltip("said", title="degrees"), "n"]
    layers = []
    for kind in reversed(present):
        part = told[told["line"] == kind]
        faint = kind == kinds[-1]
        shown = alt.Chart(part).encode(x=_x(), y=_y(), color=colour, tooltip=tips, detail="pair")
        line = shown.mark_line(strokeWidth=1 if faint else 2.4, opacity=0.45 if faint else 1)
        layers.append(line.encode(strokeDash=dash))
        if kind in kinds:
            size, opacity = (12, 0.5) if faint else (45, 1)
            layers.append(shown.mark_point(filled=True, size=size, opacity=opacity))
    return layers


def _told(rows: pd.DataFrame, nulls: pd.DataFrame, nearest: str, where: str) -> str:
    angles = rows[rows["pair"] == nearest]["value"]
    rank = "" if len(set(rows["pair"])) == 1 else " nearest,"
    told = f"At {where}, {nearest} lie{rank} at {_range(angles)}"
    chance = nulls[nulls["control"] == "covariance_null"]["value"]
    if len(chance):
        told += f"; the data's own covariance gives {_range(chance)} on average"
    return told


def _range(angles: pd.Series) -> str:
    low, high = f"{angles.min():.0f}°", f"{angles.max():.0f}°"
    return low if low == high else f"{low} to {high}"
