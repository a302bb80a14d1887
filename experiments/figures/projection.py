"""The texts of a corpus as points on two directions."""

from __future__ import annotations

import textwrap

import altair as alt
import numpy as np
import pandas as pd

from experiments.figures.look import (
    Figure,
    Palette,
    Theme,
    depths,
    empty_chart,
    finish,
    palette,
    place,
    rounded,
    title,
    variety_colours,
)

_KINDS = {"": "no request", "harmless": "harmless request", "harmful": "harmful request"}
_SHAPES = dict(zip(_KINDS.values(), ("circle", "diamond", "triangle-up"), strict=True))
_MOST_TEXT = 90


def chart_projection(
    points: pd.DataFrame, theme: Theme = "light", *, join: bool = False, box: str | None = None
) -> Figure:
    """Points of `projection.parquet`: coloured and named by variety, shaped by behaviour.

    Args:
        points: columns x, y, x_axis, y_axis, cosine, site, layer, variety, behaviour, group, train,
            text.
        join: draw a line through the texts of a group, which are parallel.
        box: name of a selection that dragging a box fills.
    """
    if points.empty:
        return empty_chart(
            "This run projected no states: that takes a best site and two directions.", theme
        )
    p = palette(theme)
    rows = points.assign(
        kind=points["behaviour"].map(lambda b: _KINDS.get(b, str(b))),
        part=np.where(points["train"], "train", "held out"),
        text=points["text"].map(lambda t: textwrap.shorten(str(t), _MOST_TEXT, placeholder=" …")),
    )
    kinds = [k for k in _KINDS.values() if k in set(rows["kind"])]
    by_variety = len(set(rows["variety"])) > 1
    if by_variety:
        hand = variety_colours(rows.assign(measure="projection"))
        names, colours = hand.names, hand.colours
    else:
        names, colours = kinds, _behaviour_colours(kinds, p)
    titles = [textwrap.wrap(str(rows[f"{c}_axis"].iloc[0]), 60) for c in "xy"]
    near = alt.Scale(zero=False)
    flat = alt.Axis(labelFlush=False)
    x = alt.X("x:Q", title=titles[0], scale=near, axis=flat)
    y = alt.Y("y:Q", title=titles[1], scale=near)
    field, heading = ("variety:N", "variety") if by_variety else ("kind:N", "text")
    # Hues repeat after seven varieties; those of the second turn have an outline.
    edges = [c if i < len(set(colours)) else p.ink for i, c in enumerate(colours)]
    legend = alt.Legend()
    if by_variety:  # the shapes' symbols then have no colour of their own
        legend = alt.Legend(symbolFillColor=p.ink, symbolStrokeColor=p.ink)
    base = alt.Chart(rows).encode(
        x=x,
        y=y,
        fill=alt.Fill(field, title=heading, scale=alt.Scale(domain=names, range=colours)),
        stroke=alt.Stroke(field, title=heading, scale=alt.Scale(domain=names, range=edges)),
        shape=alt.Shape(
            "kind:N",
            title="text",
            scale=alt.Scale(domain=kinds, range=[_SHAPES[k] for k in kinds]),
            legend=legend if len(kinds) > 1 else None,
        ),
        tooltip=[
            "text",
            "variety",
            "kind",
            "part",
            *(["group"] if "group" in rows else []),
            "x",
            "y",
        ],
    )
    dots = base.mark_point(size=46, opacity=0.7, strokeWidth=1)
    if box:
        dots = dots.add_params(alt.selection_interval(name=box))
    layers: list[alt.Chart] = [dots]
    if join and "group" in rows:
        lines = alt.Chart(rows[rows["behaviour"] == ""]).mark_line(
            strokeWidth=0.7, opacity=0.35, color=p.quiet
        )
        layers.insert(0, lines.encode(x=x, y=y, detail="group:N", order="x:Q"))
    if by_variety:
        layers += _names(rows, titles, p)
    told = _told(rows, by_variety)
    cosine = float(rows["cosine"].iloc[0])
    below = (
        f"{len(rows)} texts; the directions come from the train half. Their cosine is "
        f"{rounded(cosine, '+.2f')}, so the picture "
        f"{'hardly distorts distances' if abs(cosine) < 0.1 else 'distorts distances'} in their "
        "plane; all other dimensions are left out."
    )
    chart = alt.layer(*layers).properties(
        width=460, height=380, title=title(told, below, width=600), description=told
    )
    return finish(chart, theme)


def _behaviour_colours(kinds: list[str], p: Palette) -> list[str]:
    known = {"harmful request": p.harmful, "harmless request": p.harmless}
    return [known.get(kind, p.quiet) for kind in kinds]


def _names(rows: pd.DataFrame, titles: list[list[str]], p: Palette) -> list[alt.Chart]:
    """Each variety's name beside its points, so that no colour need be told from another.

    Names that would lie on each other are moved up, and a thin line leads to the points.
    """
    plain = rows[rows["behaviour"] == ""]
    centres = (rows if plain.empty else plain).groupby("variety")[["x", "y"]].median()
    wide, tall = (max(float(np.ptp(rows[c])), 1e-9) for c in "xy")
    placed: list[tuple[float, float]] = []
    table = []
    for name, at in centres.sort_values("y").iterrows():
        label_x, label_y = float(at["x"]) + 0.07 * wide, float(at["y"])
        for other_x, other_y in placed:  # from below upwards
            if abs(other_x - label_x) < 0.16 * wide and label_y < other_y + 0.048 * tall:
                label_y = other_y + 0.048 * tall
        placed.append((label_x, label_y))
        placed.sort(key=lambda where: where[1])
        table.append(
            {"x": float(at["x"]), "y": float(at["y"]), "x2": label_x, "y2": label_y, "name": name}
        )
    labels = alt.Chart(pd.DataFrame(table))
    leads = labels.mark_rule(color=p.quiet, strokeWidth=0.8).encode(
        x=alt.X("x:Q", title=titles[0]), y=alt.Y("y:Q", title=titles[1]), x2="x2:Q", y2="y2:Q"
    )
    words = labels.mark_text(align="left", dx=3, size=11.5, color=p.ink).encode(
        x=alt.X("x2:Q", title=titles[0]), y=alt.Y("y2:Q", title=titles[1]), text="name:N"
    )
    return [leads, words]


def _told(rows: pd.DataFrame, by_variety: bool) -> str:
    """What the held-out points show; all points where nothing was held out."""
    held = rows[~rows["train"].astype(bool)]
    seen = held if len(held) else rows
    where = place(depths(rows)[rows["site"].iloc[0]])
    parts = []
    sides = seen.groupby("behaviour")["x"].mean()
    if {"harmful", "harmless"} <= set(sides.index):
        parts.append(
            f"held-out harmful requests lie at {rounded(sides['harmful'])} on the harmful "
            f"direction, harmless ones at {rounded(sides['harmless'])}"
        )
    if by_variety:
        column = "y" if parts else "x"
        plain = seen[seen["behaviour"] == ""]
        means = (seen if plain.empty else plain).groupby("variety")[column].mean()
        parts.append(
            f"the first variety direction runs from {means.idxmin()} ({rounded(means.min())}) to "
            f"{means.idxmax()} ({rounded(means.max())})"
        )
    return f"At {where} {'; '.join(parts)}"
