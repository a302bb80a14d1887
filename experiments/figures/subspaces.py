"""What the subspaces of two varieties share, at one depth and over all of them."""

from __future__ import annotations

import altair as alt
import pandas as pd

from experiments.figures.look import (
    Figure,
    Theme,
    chosen_site,
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
    with_depth,
    with_text,
)

_MEASURE = "subspace_overlap"
_NULLS = {
    "covariance_null": "null: subspaces drawn from the data's own covariance",
    "random_subspace": "null: uniformly random subspaces",
}
_NONE = "This run compared no two varieties' subspaces: that takes a standard and two others."


def chart_overlap_matrix(
    frame: pd.DataFrame,
    theme: Theme = "light",
    *,
    site: str = "",
    layer: int | None = None,
    pick: str | None = None,
) -> Figure:
    """Mean squared cosine between every two varieties' subspaces at one site.

    Both triangles show the same figure. The diagonal is one variety's subspace against itself
    from the other half of its sentences: the most that two noisy estimates can share.

    Args:
        site: a site's full name; empty: by `layer`, else the last site of the frame.
        pick: name of a selection that a click fills with the cell's two varieties.
    """
    everything = frame[frame["measure"] == _MEASURE]
    if plain(everything, _MEASURE).empty:
        return empty_chart(_NONE, theme)
    site = chosen_site(everything, site, layer)
    here = everything[everything["site"] == site]
    rows = here[here["control"].isin(["", "split_half"]) & (here["variety"] != "")]
    if rows.empty:
        return empty_chart(f"This run compared no varieties at {site}.", theme)
    turned = rows.rename(columns={"variety": "reference", "reference": "variety"})
    cells = with_text(pd.concat([rows, turned[rows["variety"] != rows["reference"]]]))
    names = sorted({*cells["variety"], *cells["reference"]})
    p, most = palette(theme), float(cells["value"].max())
    step = 58 if len(names) <= 10 else 42
    order = alt.Scale(domain=names)
    base = alt.Chart(cells).encode(
        x=alt.X("variety:N", scale=order, title=None, axis=alt.Axis(labelAngle=-35)),
        y=alt.Y("reference:N", scale=order, title=None),
        tooltip=[
            "variety",
            "reference",
            alt.Tooltip("said", title="mean squared cosine"),
            "n",
            "control",
        ],
    )
    tiles = base.mark_rect(stroke=p.ground, strokeWidth=1.5).encode(
        color=alt.Color(
            "value:Q",
            title=["mean squared", "cosine"],
            scale=alt.Scale(domain=[0, most / 2, most], range=list(p.ramp), interpolate="lab"),
            legend=steps([most, most / 2, 0], ".2f"),
        )
    )
    if pick:
        fields = ["variety", "reference"]
        tiles = tiles.add_params(
            alt.selection_point(name=pick, fields=fields, on="click", empty=False)
        )
    shift = alt.datum.value > 0.7 * most
    numbers = base.mark_text(size=12 if step > 50 else 10).encode(
        text=alt.Text("value:Q", format=".2f"),
        color=alt.condition(
            shift, alt.value("#ffffff" if theme == "light" else "#0e1117"), alt.value(p.ink)
        ),
    )
    width = step * len(names)
    pairs = rows[rows["control"] == ""]
    top = pairs.loc[pairs["value"].idxmax()]
    told = (
        f"At {place(depths(everything)[site])}, {top['variety']} and {top['reference']} "
        f"share most: "
        f"{figure(top)}"
    )
    below = ["Diagonal: the same variety from two halves of its sentences."]
    nulls = here[here["control"].isin(list(_NULLS))]
    if len(nulls):
        said = "; ".join(f"{_NULLS[r['control']][6:]} {figure(r)}" for _, r in nulls.iterrows())
        below.append(f"Nulls: {said}.")
    chart = alt.layer(tiles, numbers).properties(
        width=width,
        height=step * len(names),
        title=title(told, *below, width=width + 200),
        description=told,
    )
    return finish(chart, theme)


def chart_overlap_by_layer(
    frame: pd.DataFrame, theme: Theme = "light", *, at: str | None = None
) -> Figure:
    """Mean overlap of all pairs by depth, beside both nulls and the split-half ceiling."""
    everything = frame[frame["measure"] == _MEASURE]
    rows, labels = with_depth(plain(everything, _MEASURE), everything)
    if rows.empty:
        return empty_chart(_NONE, theme)
    pairs = _over_pairs(rows, "mean of all pairs (band: lowest to highest pair)")
    halves, _ = with_depth(control(everything, _MEASURE, "split_half"), everything)
    lines = [pairs]
    if len(halves):
        same = _over_pairs(halves, "a variety with itself, from two halves")
        lines.append(same.assign(low=float("nan"), high=float("nan")))
    for name, said in _NULLS.items():
        null, _ = with_depth(control(everything, _MEASURE, name), everything)
        lines.append(null.assign(line=said)[["depth", "value", "low", "high", "line"]])
    table = pd.concat([part for part in lines if len(part)])
    kinds = list(table["line"].unique())
    p = palette(theme)
    looks = dict(
        zip(
            [pairs["line"].iloc[0], "a variety with itself, from two halves", *_NULLS.values()],
            [(p.ink, [1, 0]), (p.harmless, [2, 2]), (p.harmful, [6, 3]), (p.null, [10, 3, 2, 3])],
        )
    )
    colour = alt.Color(
        "line:N",
        title=None,
        scale=alt.Scale(domain=kinds, range=[looks[k][0] for k in kinds]),
        legend=alt.Legend(orient="bottom", columns=1, symbolType="stroke", symbolSize=300),
    )
    dash = alt.StrokeDash(
        "line:N", title=None, scale=alt.Scale(domain=kinds, range=[looks[k][1] for k in kinds])
    )
    x, y_title = depth_axis(labels), "overlap (mean squared cosine)"
    scale = alt.Scale(domain=[0, min(1.0, float(table[["value", "high"]].max().max()) * 1.08)])
    y = alt.Y("value:Q", title=y_title, scale=scale)
    base = alt.Chart(with_text(table))
    bands = base.mark_area(opacity=0.16).encode(
        x=x, y=alt.Y("low:Q", title=y_title, scale=scale), y2="high:Q", color=colour
    )
    curve = base.mark_line(strokeWidth=2.2, point=alt.OverlayMarkDef(size=30, filled=True)).encode(
        x=x, y=y, color=colour, strokeDash=dash, tooltip=["line", "depth", "said"]
    )
    layers = [bands.transform_filter("isValid(datum.low)"), curve]
    if at in labels:
        mark = alt.Chart(pd.DataFrame({"depth": [at]}))
        layers.insert(0, mark.mark_rule(color=p.harmless, strokeWidth=8, opacity=0.25).encode(x=x))
    width = depth_width(labels)
    top = pairs.loc[pairs["value"].idxmax()]
    told = f"Varieties share most at {place(top['depth'])}: {top['value']:.2f} on average"
    below = "Bands of the nulls: 95% of draws. Overlap is read beside them, never alone."
    chart = alt.layer(*layers).properties(
        width=width, height=280, title=title(told, below, width=width), description=told
    )
    return finish(chart, theme)


def _over_pairs(rows: pd.DataFrame, line: str) -> pd.DataFrame:
    grouped = rows.groupby("depth")["value"]
    table = pd.DataFrame({"value": grouped.mean(), "low": grouped.min(), "high": grouped.max()})
    return table.reset_index().assign(line=line)
