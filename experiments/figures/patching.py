"""Patching by head, and beside patches from other sentences."""

from __future__ import annotations

import altair as alt
import pandas as pd

from experiments.figures.look import (
    Figure,
    Theme,
    depth_axis,
    depth_width,
    empty_chart,
    figure,
    finish,
    palette,
    plain,
    steps,
    title,
    with_depth,
    with_text,
)

_MEASURE = "recovered_fraction_pooled"


def chart_head_map(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """Share of the gap that each attention head closes alone, blocks in rows."""
    rows = plain(frame, "head_recovered_fraction")
    if rows.empty:
        return empty_chart("This run patched no heads: set heads=true.", theme)
    rows = with_text(rows).assign(head=rows["position"], block=rows["layer"])
    p, most = palette(theme), max(float(rows["value"].abs().max()), 1e-9)
    heads = sorted(set(rows["head"]))
    blocks = sorted(set(rows["block"]), reverse=True)
    base = alt.Chart(rows).encode(
        x=alt.X("head:O", scale=alt.Scale(domain=heads), axis=alt.Axis(labelAngle=0)),
        y=alt.Y("block:O", scale=alt.Scale(domain=blocks)),
        tooltip=["site", "head", alt.Tooltip("said", title="share of the gap closed"), "n"],
    )
    tiles = base.mark_rect(stroke=p.ground, strokeWidth=1.5).encode(
        color=alt.Color(
            "value:Q",
            title=["share of the", "gap closed"],
            scale=alt.Scale(domain=[-most, most], domainMid=0, range=list(p.split)),
            legend=steps([most, most / 2, 0, -most / 2, -most], ".2f"),
        )
    )
    step = 44 if len(heads) <= 16 else max(12, 704 // len(heads))
    layers: list[alt.Chart] = [tiles]
    if step >= 30:
        edge = most * (0.55 if theme == "light" else 0.72)
        deep = (alt.datum.value > edge) | (alt.datum.value < -edge)
        over = "#ffffff" if theme == "light" else "#0e1117"
        layers.append(
            base.mark_text(size=10).encode(
                text=alt.Text("value:Q", format=".2f"),
                color=alt.condition(deep, alt.value(over), alt.value(p.ink)),
            )
        )
    best = rows.loc[rows["value"].idxmax()]
    told = (
        f"Head {int(best['head'])} of block {int(best['block'])} alone closes most of the gap "
        f"({best['value']:.0%})"
    )
    below = (
        f"Each head's output patched at all positions: {best['reference']} states in runs of "
        f"{best['variety']}. Positive: towards the source."
    )
    width = step * len(heads)
    chart = alt.layer(*layers).properties(
        width=width,
        height=34 * len(blocks),
        title=title(told, below, width=max(width, 320) + 60),
        description=told,
    )
    return finish(chart, theme)


def chart_patching_control(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """What a patch of the last token closes by depth, beside states of other sentences."""
    rows = frame[(frame["measure"] == _MEASURE) & (frame["position"] == 0)]
    if rows.empty or rows["control"].eq("").all():
        return empty_chart("This run patched from no other sentences: set shuffled=true.", theme)
    rows = rows.assign(
        source=["other sentences" if c else "the same sentence" for c in rows["control"]],
        into=["into " + v for v in rows["variety"]],
        said=[figure(r) for _, r in rows.iterrows()],
    )
    rows, labels = with_depth(rows, rows)
    p = palette(theme)
    kinds = ["the same sentence", "other sentences"]
    base = alt.Chart(rows).encode(
        x=depth_axis(labels),
        color=alt.Color(
            "source:N", title="states of", scale=alt.Scale(domain=kinds, range=[p.ink, p.null])
        ),
        tooltip=["into", "source", "site", alt.Tooltip("said", title="share closed"), "n"],
    )
    y = alt.Y("value:Q", title="share of the gap closed at the last token")
    lines = base.mark_line(strokeWidth=2).encode(
        y=y,
        strokeDash=alt.StrokeDash(
            "source:N", title="states of", scale=alt.Scale(domain=kinds, range=[[1, 0], [5, 3]])
        ),
    )
    bars = base.mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q")
    dots = base.mark_point(filled=True, size=55, opacity=1).encode(
        y=y,
        shape=alt.Shape(
            "source:N",
            title="states of",
            scale=alt.Scale(domain=kinds, range=["circle", "diamond"]),
        ),
    )
    told = "What a patch of the last token closes, by depth"
    below = (
        "Bars: 95% intervals over groups of sentences. 1: the patched run predicts as the source."
    )
    width = max(220, depth_width(labels) // 2 + 40)
    panels = alt.layer(lines, bars, dots).properties(width=width, height=220)
    chart = panels.facet(
        column=alt.Column(
            "into:N", title=None, header=alt.Header(labelFontSize=12, labelColor=p.ink)
        )
    ).properties(title=title(told, below, width=2 * width), description=told)
    return finish(chart, theme)
