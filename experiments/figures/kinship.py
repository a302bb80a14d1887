"""The tree of varieties that their subspaces imply, beside the trees that were planted."""

from __future__ import annotations

from typing import Any, NamedTuple

import altair as alt
import numpy as np
import pandas as pd

from experiments.figures.look import (
    Figure,
    Palette,
    Theme,
    chosen_site,
    control,
    depths,
    empty_chart,
    finish,
    palette,
    panel_title,
    place,
    plain,
    title,
)
from geometry import VarietyTree, clades, compare_clades, variety_tree

_MEASURE = "variety_distance"
_PLANS = {"planted_words": "words", "planted_structure": "structure"}
_NONE = "This run measured no distance between varieties: that takes a standard and two others."


class Drawing(NamedTuple):
    """Lines, leaves and inner nodes of a tree, with `x` its heights and `y` the leaves' order."""

    lines: pd.DataFrame
    leaves: pd.DataFrame
    nodes: pd.DataFrame


def chart_dendrogram(
    frame: pd.DataFrame, theme: Theme = "light", *, site: str = "", layer: int | None = None
) -> Figure:
    """The average-linkage tree of the varieties at one site, and the planted trees where known.

    Args:
        site: a site's full name; empty: by `layer`, else the last site of the frame.
    """
    everything = frame[frame["measure"] == _MEASURE]
    measured = plain(everything, _MEASURE)
    if measured.empty:
        return empty_chart(_NONE, theme)
    site = chosen_site(measured, site, layer)
    rows = measured[measured["site"] == site]
    if rows.empty:
        return empty_chart(f"This run measured no distances at {site}.", theme)
    names = sorted({*rows["variety"], *rows["reference"]})
    tree = variety_tree(_square(rows, names))
    plans = {
        word: variety_tree(_square(part, names))
        for kind, word in _PLANS.items()
        if len(part := control(everything, _MEASURE, kind))
    }
    p = palette(theme)
    support = frame[(frame["measure"] == "clade_support") & (frame["site"] == site)]
    drawing = _draw(tree, names, plans, dict(zip(support["reference"], support["value"])))
    nulls = control(rows := everything[everything["site"] == site], _MEASURE, "covariance_null")
    floor = control(rows, _MEASURE, "split_half")["value"].mean()
    height = max(120, 30 * len(names))
    main = _panel(drawing, p, "distance between subspaces (radians)", 380, height)
    main = alt.layer(*_references(nulls, floor, drawing, p), main)
    told = _told(tree, plans, place(depths(measured)[site]))
    below = _below(frame, site, plans, bool(len(nulls)), len(support) > 0)
    panels: list[Any] = [main.properties(title=panel_title("from the states"))]
    for word, planted in plans.items():
        small = _panel(_draw(planted, names, {}, {}), p, "1 - share of features", 120, height)
        panels.append(small.properties(title=panel_title(f"planted: {word}")))
    wide = 380 + 200 * len(plans) + 110
    over = title(told, *below, width=wide)
    if len(panels) == 1:
        return finish(panels[0].properties(title=over, description=told), theme)
    return finish(alt.hconcat(*panels, spacing=24, title=over, description=told), theme)


def _square(rows: pd.DataFrame, names: list[str]) -> np.ndarray:
    place_of = {name: i for i, name in enumerate(names)}
    matrix = np.zeros((len(names), len(names)))
    for r in rows.itertuples():
        i, j = place_of[r.variety], place_of[r.reference]
        matrix[i, j] = matrix[j, i] = r.value
    return matrix


def _draw(
    tree: VarietyTree,
    names: list[str],
    plans: dict[str, VarietyTree],
    support: dict[str, float],
) -> Drawing:
    """Three lines for each merge: both branches, and what joins them."""
    known = {word: clades(plan) for word, plan in plans.items()}
    middle = {int(leaf): float(i) for i, leaf in enumerate(tree.leaves)}
    reach = dict.fromkeys(middle, 0.0)
    under = {leaf: frozenset([leaf]) for leaf in middle}
    lines, nodes = [], []
    for step, (one, two, height, _) in enumerate(tree.linkage):
        a, b, at = int(one), int(two), len(names) + step
        low, high = middle[a], middle[b]
        lines += [
            {"x": reach[a], "x2": height, "y": low, "y2": low},
            {"x": reach[b], "x2": height, "y": high, "y2": high},
            {"x": height, "x2": height, "y": low, "y2": high},
        ]
        middle[at], reach[at], under[at] = (low + high) / 2, height, under[a] | under[b]
        who = "+".join(sorted(names[i] for i in under[at]))
        planted = [word for word, found in known.items() if under[at] in found]
        share = support.get(who, float("nan"))
        if len(under[at]) < len(names):
            nodes.append(
                {
                    "x": height,
                    "y": middle[at],
                    "clade": who.replace("+", ", "),
                    "planted": " and ".join(planted) if planted else "neither",
                    "support": share,
                    "percent": "" if np.isnan(share) else f"{share:.0%}",
                }
            )
    leaves = [{"x": 0.0, "y": middle[int(leaf)], "name": names[int(leaf)]} for leaf in tree.leaves]
    return Drawing(pd.DataFrame(lines), pd.DataFrame(leaves), pd.DataFrame(nodes))


def _y(count: int) -> alt.Y:
    scale = alt.Scale(domain=[-0.6, count - 0.4], nice=False)
    return alt.Y("y:Q", scale=scale, axis=None)


def _panel(drawing: Drawing, p: Palette, x_title: str, width: int, height: int) -> Figure:
    most = float(drawing.lines["x2"].max()) * 1.04 or 1.0
    x = alt.X("x:Q", title=x_title, scale=alt.Scale(domain=[0, most], nice=False))
    y = _y(len(drawing.leaves))
    branches = alt.Chart(drawing.lines).mark_rule(strokeWidth=1.8, color=p.ink, strokeCap="square")
    labels = alt.Chart(drawing.leaves).mark_text(align="right", dx=-6, size=12, color=p.ink)
    layers = [
        branches.encode(x=x, x2="x2:Q", y=y, y2="y2:Q"),
        labels.encode(x=x, y=y, text="name:N"),
    ]
    if len(drawing.nodes) and (drawing.nodes["percent"] != "").any():
        layers += _nodes(drawing.nodes, x, y, p)
    return alt.layer(*layers).properties(width=width, height=height)


def _nodes(nodes: pd.DataFrame, x: alt.X, y: alt.Y, p: Palette) -> list[alt.Chart]:
    """Marks that say whether a clade is planted, and how many resamples have it."""
    kinds = [k for k in ("structure", "words", "words and structure") if k in set(nodes["planted"])]
    kinds.append("neither")
    shapes = {"structure": "circle", "words": "square", "words and structure": "diamond"}
    fills = {"structure": p.harmless, "words": p.harmful, "words and structure": p.ink}
    base = alt.Chart(nodes).encode(
        x=x,
        y=y,
        tooltip=["clade", "planted", alt.Tooltip("support:Q", title="support", format=".0%")],
    )
    marks = base.mark_point(filled=True, size=75, opacity=1, strokeWidth=1.2).encode(
        shape=alt.Shape(
            "planted:N",
            title="group also planted in",
            scale=alt.Scale(domain=kinds, range=[shapes.get(k, "cross") for k in kinds]),
            legend=alt.Legend(orient="bottom", symbolSize=90),
        ),
        color=alt.Color(
            "planted:N",
            title="group also planted in",
            scale=alt.Scale(domain=kinds, range=[fills.get(k, p.quiet) for k in kinds]),
        ),
    )
    numbers = base.mark_text(align="left", dx=8, dy=-8, size=10.5, color=p.ink).encode(
        text="percent:N"
    )
    return [marks, numbers]


def _references(nulls: pd.DataFrame, floor: float, drawing: Drawing, p: Palette) -> list[alt.Chart]:
    """How far subspaces lie apart by chance, and how far a variety from itself."""
    most = float(drawing.lines["x2"].max()) * 1.04
    scale = alt.Scale(domain=[0, most], nice=False)
    layers = []
    if len(nulls):
        band = alt.Chart(nulls.assign(high=nulls["high"].clip(upper=most)))
        layers.append(
            band.mark_rect(color=p.null, opacity=0.22).encode(
                x=alt.X("low:Q", scale=scale), x2="high:Q"
            )
        )
    if not np.isnan(floor):
        mark = alt.Chart(pd.DataFrame({"x": [floor]}))
        layers.append(
            mark.mark_rule(color=p.quiet, strokeDash=[2, 3], strokeWidth=1.6).encode(
                x=alt.X("x:Q", scale=scale)
            )
        )
    return layers


def _told(tree: VarietyTree, plans: dict[str, VarietyTree], where: str) -> str:
    if not plans:
        return f"The tree of {len(tree.leaves)} varieties that their subspaces imply at {where}"
    shared = {word: len(compare_clades(tree, plan).shared) for word, plan in plans.items()}
    order = sorted(plans, key=lambda word: -shared[word])
    parts = [f"{shared[word]} of {len(clades(plans[word]))} by {word}" for word in order]
    return f"Of the planted groups, the tree of varieties at {where} has {' and '.join(parts)}"


def _below(
    frame: pd.DataFrame, site: str, plans: dict[str, Any], null: bool, supported: bool
) -> list[str]:
    said = []
    if null:
        said.append(
            "Grey: where 95% of subspaces drawn from the data's own covariance lie. Dotted: a "
            "variety from itself, from two halves of its sentences."
        )
    if supported:
        said.append("Per cent: resamples of the sentences that have the group.")
    rows = plain(frame, "tree_plan_correlation")
    rows = rows[rows["site"] == site].set_index("reference")
    told = [
        f"{word} {rows.loc[kind, 'value']:.2f} (p = {rows.loc[kind, 'p']:.2g})"
        for kind, word in _PLANS.items()
        if kind in rows.index and word in plans
    ]
    if told:
        said.append(f"Rank correlation with what was planted: {', '.join(told)}.")
    return said
