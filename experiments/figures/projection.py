"""The texts of a corpus as points on two directions."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import altair as alt
import numpy as np
import pandas as pd

from experiments.figures.look import (
    EMBEDDING_SITE,
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
_NO_VARIETY = "no variety"
_MOST_TEXT = 90
_OF_REQUESTS = ("harmful", "requests", "refusal")


@dataclass(frozen=True)
class Picture:
    """The points of one site on two of its directions, and how they look.

    Attributes:
        rows: x, y, text (cut), variety, kind, part, group, row (its place among the site's
            points).
        names, titles: of the directions x and y, the latter with their scale.
        field: the column of `rows` that gives the colour; `looks` has colour and outline by it.
        shapes: by `kind`.
        why: why nothing can be drawn; empty where something can.
    """

    rows: pd.DataFrame
    names: dict[str, str]
    titles: dict[str, str]
    cosine: float
    field: str
    looks: dict[str, tuple[str, str]]
    shapes: dict[str, str]
    told: str
    below: str
    why: str = ""


def directions_of(axes: pd.DataFrame) -> dict[str, str]:
    """Name of each direction that any site has, by its column; as at the site that has most."""
    if axes.empty:
        return {}
    most = axes["site"].value_counts(sort=False).idxmax()
    ordered = pd.concat([axes[axes["site"] == most], axes]).drop_duplicates("axis")
    return dict(zip(ordered["axis"], ordered["name"], strict=True))


def usual_directions(axes: pd.DataFrame) -> tuple[str, str]:
    """The columns shown where none are chosen: harm and variety, or two of the one question."""
    known = list(directions_of(axes))
    first = [key for key in ("harmful", "variety_1") if key in known]
    x, y = [*first, *(key for key in known if key not in first)][:2]
    return x, y


def no_picture(axes: pd.DataFrame, *, site: str = "", x: str = "", y: str = "") -> str:
    """Why two directions give no picture at a site, in words; empty where they give one."""
    if axes.empty:
        return "This run projected no states: that takes a site with two directions."
    x, y, site = _filled(axes, x, y, site)
    known, where = directions_of(axes), _where(axes, site)
    if x == y:
        return f"Both axes are the {known.get(x, x)}: choose another for one of them."
    here = set(axes[axes["site"] == site]["axis"])
    if not here:
        return (
            f"No texts are projected at {where}: it has no two directions, since nothing differs "
            "there that would give them. Choose another depth."
        )
    for key in (x, y):
        if key not in here:
            return (
                f"There is no {known.get(key, key)} at {where}: nothing differs there that would "
                "give one. Choose another direction, or another depth."
            )
    return ""


def _filled(axes: pd.DataFrame, x: str, y: str, site: str) -> tuple[str, str, str]:
    """What was asked for, and what is usual where nothing was."""
    if axes.empty:
        return x, y, site
    usual = ("", "") if x and y else usual_directions(axes)
    return x or usual[0], y or usual[1], site or list(depths(axes))[-1]


def _where(axes: pd.DataFrame, site: str) -> str:
    labels = {EMBEDDING_SITE: "embed"} | depths(axes)
    return place(labels[site]) if site in labels else site


def picture_of(
    points: pd.DataFrame,
    axes: pd.DataFrame,
    theme: Theme = "light",
    *,
    site: str = "",
    x: str = "",
    y: str = "",
    colour: str = "variety",
) -> Picture:
    """What to draw for `chart_projection`, which says what the arguments are."""
    x, y, site = _filled(axes, x, y, site)
    if why := no_picture(axes, site=site, x=x, y=y):
        return _nothing(why)
    chosen, here = {"x": x, "y": y}, axes[axes["site"] == site]
    p = palette(theme)
    seen = points[points["site"] == site].reset_index(drop=True)
    rows = pd.DataFrame(
        {
            **{c: seen[key].astype(float) for c, key in chosen.items()},
            "text": _cut(seen["text"]),
            "variety": seen["variety"].replace("", _NO_VARIETY),
            "kind": seen["behaviour"].map(_KINDS).fillna(seen["behaviour"]),
            "part": np.where(seen["train"], "train", "held out"),
            "group": seen["group"],
            "row": np.arange(len(seen)),
        }
    )
    own = here[(here["axis"] == chosen["x"]) & (here["other"] == chosen["y"])].iloc[0]
    told = here.drop_duplicates("axis").set_index("axis").loc[list(chosen.values())]
    names = dict(zip("xy", told["name"], strict=True))
    kinds = [k for k in (*_KINDS.values(), *sorted(set(rows["kind"]))) if k in set(rows["kind"])]
    kinds = list(dict.fromkeys(kinds))
    by_variety = len(set(rows["variety"]) - {_NO_VARIETY}) > 1 and colour != "behaviour"
    n, cosine = len(rows), float(own["cosine"])
    of = f" of the run's {own['texts']}, whole groups drawn at random" if n < own["texts"] else ""
    return Picture(
        rows,
        names,
        {c: f"{told['name'].iloc[i]} ({told['scale'].iloc[i]})" for i, c in enumerate("xy")},
        cosine,
        "variety" if by_variety else "kind",
        _variety_looks(rows, p) if by_variety else _behaviour_looks(kinds, p),
        {k: _SHAPES.get(k, "square") for k in kinds},
        _told(rows, _where(axes, site), chosen, names),
        f"{n} texts{of}; the directions come from the train half. Their cosine is "
        f"{rounded(cosine, '+.2f')}, so the picture "
        f"{'hardly distorts distances' if abs(cosine) < 0.1 else 'distorts distances'} in their "
        "plane; all other dimensions are left out.",
    )


def chart_projection(
    points: pd.DataFrame,
    axes: pd.DataFrame,
    theme: Theme = "light",
    *,
    site: str = "",
    x: str = "",
    y: str = "",
    colour: str = "variety",
    join: bool = False,
    box: str | None = None,
) -> Figure:
    """Texts as points: coloured and named by variety or coloured by behaviour, which is the shape.

    Args:
        points: a run's `projection.parquet`, or its rows at `site` alone.
        axes: a run's `projection_axes.parquet`.
        site: where to look; the last one that was projected, if none is named.
        x: the direction that runs to the right, a column of points; see `usual_directions`.
        y: the one that runs upwards.
        colour: `variety`, or `behaviour`; behaviour too where there is but one variety.
        join: draw a line through the texts of a group, which are parallel.
        box: name of a selection that dragging a box fills.
    """
    seen = picture_of(points, axes, theme, site=site, x=x, y=y, colour=colour)
    if seen.why:
        return empty_chart(seen.why, theme)
    p, rows, kinds = palette(theme), seen.rows, list(seen.shapes)
    titles = {c: textwrap.wrap(told, 60) for c, told in seen.titles.items()}
    near = alt.Scale(zero=False)
    across = alt.X("x:Q", title=titles["x"], scale=near, axis=alt.Axis(labelFlush=False))
    up = alt.Y("y:Q", title=titles["y"], scale=near)
    by_variety = seen.field == "variety"
    field, heading = f"{seen.field}:N", "variety" if by_variety else "text"
    legend = alt.Legend()
    if by_variety:  # the shapes' symbols then have no colour of their own
        legend = alt.Legend(symbolFillColor=p.ink, symbolStrokeColor=p.ink)
    fills, edges = (
        alt.Scale(domain=list(seen.looks), range=[look[i] for look in seen.looks.values()])
        for i in (0, 1)
    )
    base = alt.Chart(rows.drop(columns="row")).encode(
        x=across,
        y=up,
        fill=alt.Fill(field, title=heading, scale=fills),
        stroke=alt.Stroke(field, title=heading, scale=edges),
        shape=alt.Shape(
            "kind:N",
            title="text",
            scale=alt.Scale(domain=kinds, range=list(seen.shapes.values())),
            legend=legend if len(kinds) > 1 else None,
        ),
        tooltip=["text", "variety", "kind", "part", "group", "x", "y"],
    )
    dots = base.mark_point(size=46, opacity=0.7, strokeWidth=1)
    if box:
        dots = dots.add_params(alt.selection_interval(name=box))
    layers: list[alt.Chart] = [dots]
    if join:
        parallel = joined(rows)[["x", "y", "group"]]
        lines = alt.Chart(parallel).mark_line(strokeWidth=0.7, opacity=0.35, color=p.quiet)
        layers.insert(0, lines.encode(x=across, y=up, detail="group:N", order="x:Q"))
    if by_variety:
        layers += _names(rows, titles, p)
    chart = alt.layer(*layers).properties(
        width=460, height=380, title=title(seen.told, seen.below, width=600), description=seen.told
    )
    return finish(chart, theme)


def joined(rows: pd.DataFrame) -> pd.DataFrame:
    """The parallel sentences among the rows: those of one group, which are no requests."""
    plain = rows[rows["kind"] == _KINDS[""]]
    return plain[plain["group"].duplicated(keep=False)]


def _nothing(why: str) -> Picture:
    return Picture(pd.DataFrame(), {}, {}, float("nan"), "", {}, {}, "", "", why)


def _cut(texts: pd.Series) -> pd.Series:
    """Texts as short as a tooltip can hold."""
    texts = texts.astype(str)
    return texts.where(texts.str.len() <= _MOST_TEXT, texts.str.slice(0, _MOST_TEXT - 2) + " …")


def _variety_looks(rows: pd.DataFrame, p: Palette) -> dict[str, tuple[str, str]]:
    """Fill and outline by variety. Hues repeat after seven; those of the second turn are edged."""
    told = rows[rows["variety"] != _NO_VARIETY].assign(measure="projection")
    hand = variety_colours(told)
    many = len(set(hand.colours))
    looks = {
        name: (hue, hue if i < many else p.ink)
        for i, (name, hue) in enumerate(zip(hand.names, hand.colours, strict=True))
    }
    return looks | ({_NO_VARIETY: (p.quiet, p.quiet)} if len(told) < len(rows) else {})


def _behaviour_looks(kinds: list[str], p: Palette) -> dict[str, tuple[str, str]]:
    known = {"harmful request": p.harmful, "harmless request": p.harmless}
    return {kind: (known.get(kind, p.quiet), known.get(kind, p.quiet)) for kind in kinds}


def names_beside(rows: pd.DataFrame) -> pd.DataFrame:
    """Where to write each variety's name, so that no colour need be told from another.

    Names that would lie on each other are moved up, and a thin line leads to the points.

    Returns:
        Columns name, x, y (the middle of the variety's points), x2, y2 (where its name begins).
    """
    plain = rows[rows["kind"] == _KINDS[""]]
    named = rows if plain.empty else plain
    centres = named[named["variety"] != _NO_VARIETY].groupby("variety")[["x", "y"]].median()
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
    return pd.DataFrame(table)


def _names(rows: pd.DataFrame, titles: dict[str, list[str]], p: Palette) -> list[alt.Chart]:
    labels = alt.Chart(names_beside(rows))
    across, up = titles["x"], titles["y"]
    leads = labels.mark_rule(color=p.quiet, strokeWidth=0.8).encode(
        x=alt.X("x:Q", title=across), y=alt.Y("y:Q", title=up), x2="x2:Q", y2="y2:Q"
    )
    words = labels.mark_text(align="left", dx=3, size=11.5, color=p.ink).encode(
        x=alt.X("x2:Q", title=across), y=alt.Y("y2:Q", title=up), text="name:N"
    )
    return [leads, words]


def _told(rows: pd.DataFrame, where: str, chosen: dict[str, str], names: dict[str, str]) -> str:
    """What the held-out points show on each direction; all points where nothing was held out."""
    held = rows[rows["part"] == "held out"]
    seen, which = (held, "held-out ") if len(held) else (rows, "")
    requests = seen[seen["kind"].isin([_KINDS["harmful"], _KINDS["harmless"]])]
    plain = seen[(seen["kind"] == _KINDS[""]) & (seen["variety"] != _NO_VARIETY)]
    parts = []
    for c, key in chosen.items():
        sides = requests.groupby("kind")[c].mean()
        means = plain.groupby("variety")[c].mean()
        if key in _OF_REQUESTS and len(sides) == 2:
            parts.append(
                f"{which}harmful requests lie at {rounded(sides[_KINDS['harmful']])} on the "
                f"{names[c]}, harmless ones at {rounded(sides[_KINDS['harmless']])}"
            )
        elif key not in _OF_REQUESTS and len(means) > 1:
            parts.append(
                f"the {names[c]} runs from {means.idxmin()} ({rounded(means.min())}) to "
                f"{means.idxmax()} ({rounded(means.max())})"
            )
    if not parts:
        return f"Texts at {where} on the {names['x']} and the {names['y']}"
    return f"At {where} {'; '.join(parts)}"
