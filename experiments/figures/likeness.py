"""How alike the states of any two depths are."""

from __future__ import annotations

import altair as alt
import pandas as pd

from experiments.figures.look import (
    Figure,
    Theme,
    control,
    depths,
    empty_chart,
    finish,
    palette,
    panel_title,
    place,
    plain,
    rounded,
    steps,
    title,
    with_text,
)

_PANELS = {"": "all of the states", "without_top_component": "first principal component taken out"}
_DEPTH = "depth (embedding, then block)"


def chart_cka(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """CKA of every two sites as a map, beside the same without the main component of each."""
    if plain(frame, "cka").empty:
        return empty_chart("This run compared no two sites' states: no cka.", theme)
    everything = frame[frame["measure"] == "cka"]
    labels = depths(everything)
    shown = [kind for kind in _PANELS if len(everything[everything["control"] == kind])]
    least = min(0.0, float(everything[everything["control"].isin(shown)]["value"].min()))
    panels = [
        _panel(everything, kind, labels, least, theme, first=kind == shown[0]) for kind in shown
    ]
    told = _told(everything, labels)
    below = ["1: the same up to rotation and scale; 0: nothing in common."]
    null = control(everything, "cka", "shuffled_groups")
    null = null[null["site"] != null["reference"]]
    if len(null):
        low, high = rounded(null["value"].min()), rounded(null["value"].max())
        span = low if low == high else f"{low} to {high}"
        below.append(
            f"Null: with the groups exchanged at one of two sites, all of the states still give "
            f"{span}: that much is what their labels alone make alike."
        )
    over = title(told, *below, width=len(panels) * (_step(labels) * len(labels) + 60) + 120)
    if len(panels) == 1:
        return finish(panels[0].properties(title=over, description=told), theme)
    both = alt.hconcat(*panels, spacing=28, title=over, description=told)
    return finish(both.resolve_legend(color="shared"), theme)


def _step(labels: dict[str, str]) -> int:
    return 54 if len(labels) <= 8 else max(9, 430 // len(labels))


def _panel(
    rows: pd.DataFrame,
    kind: str,
    labels: dict[str, str],
    least: float,
    theme: Theme,
    *,
    first: bool,
) -> Figure:
    here = rows[rows["control"] == kind]
    turned = here.rename(columns={"site": "reference", "reference": "site"})
    cells = pd.concat([here, turned[here["site"] != here["reference"]]])
    cells = with_text(cells).assign(
        depth=cells["site"].map(labels), other=cells["reference"].map(labels)
    )
    p, order = palette(theme), list(labels.values())
    axis = alt.Axis(labelAngle=0, labelOverlap=True)
    base = alt.Chart(cells).encode(
        x=alt.X("depth:O", scale=alt.Scale(domain=order), title=_DEPTH, axis=axis),
        y=alt.Y(
            "other:O",
            scale=alt.Scale(domain=order[::-1]),
            title=_DEPTH if first else None,
            axis=axis,
        ),
        tooltip=[
            alt.Tooltip("site", title="site"),
            alt.Tooltip("reference", title="and"),
            alt.Tooltip("said", title="CKA"),
            "n",
            "p",
        ],
    )
    middle = (1 + least) / 2
    colour = alt.Color(
        "value:Q",
        title="CKA",
        scale=alt.Scale(domain=[least, middle, 1], range=list(p.ramp), interpolate="lab"),
        legend=steps([1, middle, least], ".2f"),
    )
    tiles = base.mark_rect(stroke=p.ground, strokeWidth=1.5).encode(color=colour)
    layers: list[alt.Chart] = [tiles]
    step = _step(labels)
    if step >= 30:
        over = "#ffffff" if theme == "light" else "#0e1117"
        deep = alt.datum.value > least + 0.7 * (1 - least)
        numbers = base.mark_text(size=12).encode(
            text=alt.Text("value:Q", format=".2f"),
            color=alt.condition(deep, alt.value(over), alt.value(p.ink)),
        )
        layers.append(numbers)
    return alt.layer(*layers).properties(
        width=step * len(order), height=step * len(order), title=panel_title(_PANELS[kind])
    )


def _told(rows: pd.DataFrame, labels: dict[str, str]) -> str:
    pairs = plain(rows, "cka")
    pairs = pairs[pairs["site"] != pairs["reference"]]
    if pairs.empty:
        return "One depth only, so nothing to compare it with"
    least = pairs.loc[pairs["value"].idxmin()]
    one, two = place(labels[least["site"]]), place(labels[least["reference"]])
    told = f"States differ most between {one} and {two}: CKA {rounded(least['value'])}"
    without = control(rows, "cka", "without_top_component")
    same = without[
        (without["site"] == least["site"]) & (without["reference"] == least["reference"])
    ]
    if len(same):
        told += f", and {rounded(same['value'].iloc[0])} without the main component"
    return told
