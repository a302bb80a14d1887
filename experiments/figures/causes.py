"""What follows from an edit: loss, refusals, and the gap that a patch closes."""

from __future__ import annotations

import altair as alt
import pandas as pd

from experiments.figures.look import (
    Figure,
    Palette,
    Theme,
    depths,
    empty_chart,
    figure,
    finish,
    palette,
    plain,
    steps,
    title,
    with_text,
)


def chart_ablation_loss(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """Change of loss on each variety when each variety's subspace is removed, beside a control."""
    rows = frame[frame["measure"] == "loss_change"]
    if rows[rows["control"] == ""].empty:
        return empty_chart("This run removed no variety's subspace: no change of loss.", theme)
    rows = rows.assign(
        removed=rows["edit"].str.replace(r"^ablate\((?:variety:)?(.*)\)$", r"\1", regex=True),
        said=[figure(r, signed=True) for _, r in rows.iterrows()],
    )
    edits, chance = rows[rows["control"] == ""], rows[rows["control"] != ""]
    names = sorted(set(rows["variety"]))
    removed = sorted(set(edits["removed"]))
    columns = [*removed, *(n for n in names if n not in removed)]
    most = max(float(rows["value"].abs().max()), 1e-9)
    own = edits[edits["removed"] == edits["variety"]]
    told = "Removing a variety's subspace changes the loss"
    if len(own):
        told += f" by {own['value'].mean():+.3f} nats a token on that variety"
    if len(chance):
        told += f"; a random subspace by {chance['value'].mean():+.3f}"
    width = 62 * len(columns)
    below = "Above 0: worse at predicting; below: better. Hover for 95% intervals."
    upper = _tiles(edits, columns, removed, "subspace removed", most, theme, axis=chance.empty)
    over = title(told, below, width=min(width + 180, 600))
    upper = upper.properties(width=width, height=40 * len(removed))
    if chance.empty:
        return finish(upper.properties(title=over, description=told), theme)
    chance = chance.assign(removed="random subspace")
    name = ["random subspace"]
    lower = _tiles(chance, columns, name, "control", most, theme, axis=True, legend=False)
    lower = lower.properties(width=width, height=40)
    both = alt.vconcat(upper, lower, spacing=10, title=over, description=told)
    # A legend of the whole would stand beyond the end of the title, far from the tiles.
    return finish(both.resolve_legend(color="independent"), theme)


def _tiles(
    rows: pd.DataFrame,
    columns: list[str],
    order: list[str],
    y_title: str,
    most: float,
    theme: Theme,
    *,
    axis: bool,
    legend: bool = True,
) -> Figure:
    p = palette(theme)
    labels = alt.Axis(labelAngle=-35) if axis else alt.Axis(labels=False, ticks=False)
    base = alt.Chart(rows).encode(
        x=alt.X(
            "variety:N",
            scale=alt.Scale(domain=columns),
            title="loss measured on sentences of" if axis else None,
            axis=labels,
        ),
        y=alt.Y("removed:N", scale=alt.Scale(domain=order), title=y_title),
        tooltip=["edit", "variety", alt.Tooltip("said", title="nats per token"), "n"],
    )
    colour = _split(p, most, ["change of loss", "(nats per token)"], "+.2f", legend=legend)
    tiles = base.mark_rect(stroke=p.ground, strokeWidth=1.5).encode(color=colour)
    return alt.layer(tiles, _numbers(base, p, most, theme, "+.2f", 11))


def _split(
    p: Palette, most: float, name: list[str], form: str, *, legend: bool = True
) -> alt.Color:
    """A diverging scale with a symmetric domain, so that the two signs weigh the same."""
    return alt.Color(
        "value:Q",
        title=name,
        scale=alt.Scale(domain=[-most, most], domainMid=0, range=list(p.split)),
        legend=steps([most, most / 2, 0, -most / 2, -most], form) if legend else None,
    )


def _numbers(
    base: alt.Chart, p: Palette, most: float, theme: Theme, form: str, size: int
) -> alt.Chart:
    edge = most * (0.55 if theme == "light" else 0.72)
    deep = (alt.datum.value > edge) | (alt.datum.value < -edge)
    over = "#ffffff" if theme == "light" else "#0e1117"
    return base.mark_text(size=size).encode(
        text=alt.Text("value:Q", format=form),
        color=alt.condition(deep, alt.value(over), alt.value(p.ink)),
    )


_EDITS = {
    "": "plain model",
    "ablate(refusal)": "direction removed",
    "ablate_to_zero(refusal)": "direction set to zero",
    "add(refusal)": "direction added",
}


def chart_refusal(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """Share of harmful and harmless requests that are refused, by edit, beside random edits."""
    rows = with_text(frame[frame["measure"] == "refusal_rate"])
    if rows.empty:
        return empty_chart("This run asked no requests: no refusals to count.", theme)
    rows = rows.assign(
        change=[
            _EDITS.get(str(e), str(e)).replace(
                "direction", "random direction" if c else "refusal direction"
            )
            + (" (control)" if c else "")
            for e, c in zip(rows["edit"], rows["control"], strict=True)
        ],
        kind=["control" if c else "measurement" for c in rows["control"]],
    )
    order = list(rows.sort_values("edit", key=_edit_order, kind="stable")["change"].unique())
    p = palette(theme)
    sides = [b for b in ("harmful", "harmless") if b in set(rows["behaviour"])]
    colours = [p.harmful if b == "harmful" else p.harmless for b in sides]
    shapes = ["circle" if b == "harmful" else "diamond" for b in sides]
    y = alt.Y("change:N", sort=order, title=None, axis=alt.Axis(grid=True, labelPadding=8))
    base = alt.Chart(rows).encode(
        y=y,
        yOffset=alt.YOffset("behaviour:N", scale=alt.Scale(domain=sides, paddingOuter=0.6)),
        color=alt.Color(
            "behaviour:N", title="requests", scale=alt.Scale(domain=sides, range=colours)
        ),
        opacity=alt.Opacity(
            "kind:N",
            legend=None,
            scale=alt.Scale(domain=["measurement", "control"], range=[1, 0.55]),
        ),
        tooltip=["change", "behaviour", "site", alt.Tooltip("said", title="share refused"), "n"],
    )
    x_title = "share of requests refused"
    scale = alt.Scale(domain=[0, 1])
    bars = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title=x_title, scale=scale), x2="high:Q"
    )
    dots = base.mark_point(size=90, filled=True).encode(
        x=alt.X("value:Q", title=x_title, scale=scale, axis=alt.Axis(format="%")),
        shape=alt.Shape(
            "behaviour:N", title="requests", scale=alt.Scale(domain=sides, range=shapes)
        ),
    )
    told = _refusal_told(rows)
    below = "Bars: 95% intervals over requests. Faint: the same edit along random directions."
    chart = alt.layer(bars, dots).properties(
        width=440, height=48 * len(order), title=title(told, below, width=600), description=told
    )
    return finish(chart, theme)


def _edit_order(edits: pd.Series) -> pd.Series:
    known = {edit: i for i, edit in enumerate(_EDITS)}
    return edits.map(lambda edit: known.get(edit, len(known)))


def _refusal_told(rows: pd.DataFrame) -> str:
    harmful = rows[(rows["behaviour"] == "harmful") & (rows["control"] == "")].set_index("edit")
    if "" not in harmful.index:
        return "Refusals under each edit"
    told = f"The plain model refuses {harmful.loc['', 'value']:.0%} of harmful requests"
    if "ablate(refusal)" in harmful.index:
        told += f"; without the direction {harmful.loc['ablate(refusal)', 'value']:.0%}"
    return told


def chart_patching_map(
    frame: pd.DataFrame, theme: Theme = "light", *, variety: str | None = None
) -> Figure:
    """Share of the gap that a patch closes, by layer and position from the end.

    Args:
        variety: whose runs are patched; None: the mean over all varieties.
    """
    rows = plain(frame, "recovered_fraction")
    if variety is not None:
        rows = rows[rows["variety"] == variety]
    if rows.empty:
        return empty_chart("This run patched no sentences: patch_pairs was 0, or no pairs.", theme)
    whose = sorted(set(rows["variety"]))
    by = ["site", "layer", "position"]
    cells = rows.groupby(by, as_index=False).agg(
        value=("value", "mean"), low=("low", "min"), high=("high", "max"), n=("n", "sum")
    )
    labels = depths(rows)
    cells = cells.assign(depth=cells["site"].map(labels))
    if len(whose) == 1:
        cells = with_text(cells)
    else:
        cells = cells.assign(said=[f"{v:.2f}" for v in cells["value"]])
    columns = sorted(set(cells["position"]), reverse=True)
    p, most = palette(theme), max(float(cells["value"].abs().max()), 1e-9)
    step = 34 if len(columns) <= 26 else max(8, 884 // len(columns))
    base = alt.Chart(cells).encode(
        x=alt.X(
            "position:O",
            scale=alt.Scale(domain=columns),
            title="tokens before the end (0: last token)",
            axis=alt.Axis(labelAngle=0, labelOverlap=True),
        ),
        y=alt.Y(
            "depth:O",
            scale=alt.Scale(domain=list(labels.values())[::-1]),
            title="patched after block",
        ),
        tooltip=[
            "site",
            "position",
            alt.Tooltip("said", title="share of the gap closed"),
            alt.Tooltip("n", title="sentence pairs"),
        ],
    )
    tiles = base.mark_rect(stroke=p.ground, strokeWidth=1).encode(
        color=_split(p, most, ["share of the", "gap closed"], ".2f")
    )
    layers: list[alt.Chart] = [tiles]
    if step >= 30:
        layers.append(_numbers(base, p, most, theme, ".2f", 10))
    best = cells.loc[cells["value"].idxmax()]
    where = (
        "the last token" if not best["position"] else f"{int(best['position'])} tokens before it"
    )
    told = (
        f"Patching closes most of the gap ({best['value']:.0%}) "
        f"after block {best['depth']} at {where}"
    )
    base_of = rows["reference"].iloc[0] or "the standard"
    into = whose[0] if len(whose) == 1 else f"the mean of {len(whose)} varieties"
    below = (
        f"States of {base_of} put into runs of {into}. 1: as {base_of} does; below 0: away from it."
    )
    width = step * len(columns)
    chart = alt.layer(*layers).properties(
        width=width,
        height=34 * len(labels),
        title=title(told, below, width=max(width, 380) + 60),
        description=told,
    )
    return finish(chart, theme)
