"""How near the harmful direction lies to refusal, to each variety, and to other depths' own."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from experiments.figures.look import (
    DEPTH_TITLE,
    Figure,
    Theme,
    control,
    depth_axis,
    depth_width,
    depths,
    empty_chart,
    figure,
    finish,
    palette,
    place,
    plain,
    steps,
    title,
    variety_colours,
    with_depth,
    with_text,
)

_PANELS = {
    "direction_cosine": "cosine",
    "direction_subspace_cosine": "cosine with the nearest vector of the subspace",
}
# The room for words over one of two charts side by side, however wide the window is.
_BESIDE = 225
_NULLS = {"covariance_null": "the data's own covariance", "random_subspace": "uniformly random"}


def chart_direction_cosine(
    frame: pd.DataFrame,
    theme: Theme = "light",
    *,
    at: str | None = None,
    measure: str | None = None,
    beside: pd.DataFrame | None = None,
) -> Figure:
    """Cosines between directions, and between a direction and each variety, with null bands.

    Args:
        at: the depth that is marked.
        measure: `direction_cosine` or `direction_subspace_cosine` alone; both if left out.
        beside: the results of another run, whose chart stands beside this one: depths, colours,
            dashes and shapes are then those of both.
    """
    asked = [m for m in _PANELS if measure in (None, m)]
    shown = [m for m in asked if len(plain(frame, m))]
    if not shown:
        return empty_chart(
            "This run found no direction to compare: that takes harmful and harmless requests.",
            theme,
        )
    panels = [_panel(frame, name, theme, at, beside) for name in shown]
    if len(panels) == 1:
        return finish(panels[0], theme)
    return finish(
        alt.vconcat(*panels, spacing=28).resolve_scale(
            color="independent", strokeDash="independent", shape="independent"
        ),
        theme,
    )


def chart_direction_layers(
    frame: pd.DataFrame, theme: Theme = "light", *, beside: pd.DataFrame | None = None
) -> Figure:
    """Cosine of the harmful direction at every two depths, and the step at which it turns most.

    The two come from disjoint halves of the requests, so the diagonal is the reliability and less
    than 1. Both triangles show the same figure.

    Args:
        beside: the results of another run, whose chart stands beside this one: depths and colours
            are then those of both.
    """
    pairs, own = plain(frame, "direction_layer_cosine"), plain(frame, "direction_reliability")
    if pairs.empty:
        return empty_chart(
            "This run compared the harmful direction of no two depths: that takes harmful and "
            "harmless requests, and two sites.",
            theme,
        )
    both = _with(frame, beside)
    everything = both[both["measure"].isin(["direction_layer_cosine", "direction_reliability"])]
    labels = depths(everything)
    turned = pairs.rename(columns={"site": "reference", "reference": "site"})
    cells = with_text(pd.concat([pairs, turned, own.assign(reference=own["site"])]))
    cells = cells.assign(one=cells["site"].map(labels), other=cells["reference"].map(labels))
    p, order = palette(theme), list(labels.values())
    step = 54 if len(order) <= 8 else max(9, 430 // len(order))
    axis = alt.Axis(labelAngle=0, labelOverlap=True)
    least = min(0.0, float(everything.loc[everything["control"] == "", "value"].min()))
    middle = (1 + least) / 2
    base = alt.Chart(cells).encode(
        x=alt.X("one:O", scale=alt.Scale(domain=order), title=DEPTH_TITLE, axis=axis),
        y=alt.Y("other:O", scale=alt.Scale(domain=order[::-1]), title=DEPTH_TITLE, axis=axis),
        tooltip=["site", "reference", alt.Tooltip("said", title="cosine"), "n", "p"],
    )
    colour = alt.Color(
        "value:Q",
        title="cosine",
        # One ramp from dark to light, so that a grey print keeps the order.
        scale=alt.Scale(domain=[least, middle, 1], range=list(p.ramp), interpolate="lab"),
        legend=steps([1, middle, least], ".2f"),
    )
    layers: list[alt.Chart] = [
        base.mark_rect(stroke=p.ground, strokeWidth=1.5).encode(color=colour)
    ]
    if step >= 30:
        deep = alt.datum.value > least + 0.7 * (1 - least)
        over = alt.value("#ffffff" if theme == "light" else "#0e1117")
        text = alt.Text("value:Q", format=".2f")
        shade = alt.condition(deep, over, alt.value(p.ink))
        layers.append(base.mark_text(size=12).encode(text=text, color=shade))
    told = _turn(frame, labels)
    below = ["Two disjoint halves of the requests; diagonal: the reliability of the direction."]
    if len(plain(frame, "direction_drift")) < len(order) - 1:
        below.append("A step from or to a depth with no sure direction does not count as a turn.")
    below += _chance(frame)
    width = step * len(order)
    room = _BESIDE if beside is not None else width + 240
    chart = alt.layer(*layers).properties(
        width=width, height=width, title=title(told, *below, width=room), description=told
    )
    return finish(chart, theme)


def _turn(frame: pd.DataFrame, labels: dict[str, str]) -> str:
    """What the map's title says: the largest step between depths that each have a direction."""
    drift = plain(frame, "direction_drift")
    drift = drift[drift["reference"].isin(list(labels)) & drift["site"].isin(list(labels))]
    if drift.empty:
        return "How alike the harmful direction is at every two depths"
    most = drift.loc[drift["value"].idxmin()]
    degrees = np.degrees(np.arccos(np.clip(most["value"], -1, 1)))
    before, here = place(labels[most["reference"]]), place(labels[most["site"]])
    return (
        f"The harmful direction turns most from {before} to {here}: {degrees:.0f}° "
        f"(cosine {figure(most)}, corrected for noise)"
    )


def _chance(frame: pd.DataFrame) -> list[str]:
    said = []
    for name, words in _NULLS.items():
        null = control(frame, "direction_layer_cosine", name)
        if len(null):
            said.append(f"{words} up to {null['high'].max():.2f}")
    return [f"Absolute cosine by chance (95% of draws): {'; '.join(said)}."] if said else []


def _with(frame: pd.DataFrame, beside: pd.DataFrame | None) -> pd.DataFrame:
    return frame if beside is None else pd.concat([frame, beside], ignore_index=True)


def _panel(
    frame: pd.DataFrame, measure: str, theme: Theme, at: str | None, beside: pd.DataFrame | None
) -> Figure:
    both = _with(frame, beside)
    p, everything = palette(theme), both[both["measure"] == measure]
    rows, labels = with_depth(with_text(plain(frame, measure)), everything)
    rows = rows.assign(line=_names(rows, measure))
    signed = measure == "direction_cosine"
    x, y_title = depth_axis(labels), _PANELS[measure]
    y_scale = alt.Scale(domain=[-1, 1] if signed else [0, 1])
    layers: list[alt.Chart] = []
    for name, opacity in (("covariance_null", 0.22), ("random_subspace", 0.4)):
        null, _ = with_depth(with_text(control(frame, measure, name)), everything)
        if len(null):
            null = null.assign(floor=-null["high"] if signed else null["low"], null=_NULLS[name])
            band = (
                alt.Chart(null)
                .mark_area(color=p.null, opacity=opacity)
                .encode(
                    x=x,
                    y=alt.Y("floor:Q", title=y_title, scale=y_scale),
                    y2="high:Q",
                    tooltip=["null", "depth", alt.Tooltip("said", title="absolute cosine")],
                )
            )
            layers.append(band)
    if at in labels:
        mark = alt.Chart(pd.DataFrame({"depth": [at]}))
        layers.append(mark.mark_rule(color=p.harmless, strokeWidth=8, opacity=0.25).encode(x=x))
    names, colours, dashes, shapes = _looks(both, rows, measure, p.ink)
    # Of two charts side by side neither has room for a legend at its right.
    legend: dict[str, Any] = {} if beside is None else {"orient": "bottom", "columns": 2}
    base = alt.Chart(rows).encode(
        x=x,
        y=alt.Y("value:Q", title=y_title, scale=y_scale),
        color=alt.Color(
            "line:N",
            legend=alt.Legend(title=None, symbolStrokeWidth=0, symbolSize=70, **legend),
            scale=alt.Scale(domain=names, range=colours),
        ),
        tooltip=["line", "depth", alt.Tooltip("said", title="cosine"), "n"],
    )
    dash = alt.StrokeDash("line:N", title=None, scale=alt.Scale(domain=names, range=dashes))
    shape = alt.Shape("line:N", title=None, scale=alt.Scale(domain=names, range=shapes))
    if signed:
        layers.append(
            base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title=y_title), y2="high:Q")
        )
    else:
        layers.append(base.mark_rule(strokeWidth=1, opacity=0.55).encode(y="low:Q", y2="high:Q"))
    layers.append(base.mark_line(strokeWidth=2.2).encode(strokeDash=dash))
    layers.append(base.mark_point(size=45, filled=True, opacity=1).encode(shape=shape))
    width = depth_width(labels)
    told, below = _told(rows, measure)
    room = _BESIDE if beside is not None else width + 160
    return alt.layer(*layers).properties(
        width=width, height=240, title=title(told, below, width=room), description=told
    )


def _names(rows: pd.DataFrame, measure: str) -> pd.Series:
    if measure == "direction_cosine":
        return rows["variety"] + " and " + rows["reference"]
    return rows["variety"]


def _looks(
    frame: pd.DataFrame, rows: pd.DataFrame, measure: str, ink: str
) -> tuple[list[str], list[str], list[list[int]], list[str]]:
    hand = variety_colours(frame)
    if measure == "direction_cosine":
        every = list(_names(plain(frame, measure), measure).unique())
        names = [name for name in every if name in set(rows["line"])]
        turns = [every.index(name) % 3 for name in names]
        return (
            names,
            [ink] * len(names),
            [([1, 0], [6, 3], [2, 2])[i] for i in turns],
            [("circle", "square", "diamond")[i] for i in turns],
        )
    at = [i for i, name in enumerate(hand.names) if name in set(rows["variety"])]
    return (
        [hand.names[i] for i in at],
        [hand.colours[i] for i in at],
        [hand.dashes[i] for i in at],
        [hand.shapes[i] for i in at],
    )


def _told(rows: pd.DataFrame, measure: str) -> tuple[str, str]:
    bands = "Grey bands: 95% of draws from the data's own covariance (fainter), uniform (stronger)."
    if measure == "direction_cosine":
        last = rows.iloc[-1]
        told = f"Cosine of the {last['variety']} and the {last['reference']} direction: "
        return f"{told}{figure(last)} at {place(last['depth'])}", bands
    best = rows.loc[rows["value"].idxmax()]
    told = f"Of the varieties, {best['variety']} comes nearest to the {best['reference']} direction"
    return f"{told}: {figure(best)} at {place(best['depth'])}", bands
