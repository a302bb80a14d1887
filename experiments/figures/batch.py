"""Runs of a batch beside each other: one panel for each measure, one line for each run."""

from __future__ import annotations

import altair as alt
import pandas as pd

from experiments.figures.look import (
    Figure,
    Theme,
    empty_chart,
    finish,
    palette,
    panel_title,
    title,
    with_text,
)


def chart_batch(summary: pd.DataFrame, theme: Theme = "light") -> Figure:
    """Runs × measures with intervals, of what `experiments.batch.summarise` gives.

    Measures of which no run has an interval are left to the table.
    """
    sure = summary[summary["low"].notna() & summary["high"].notna()]
    if sure.empty:
        return empty_chart("No run of this batch has a measure with an interval yet.", theme)
    labels = list(dict.fromkeys(sure["label"]))
    by_measure = sure.groupby("measure", sort=False)
    panels = [_panel(str(measure), rows, labels, theme) for measure, rows in by_measure]
    over = title(
        f"{len(labels)} runs beside each other, by measure",
        "Dot: the middle row of a run's figures; bar: its own interval; dotted: from the least to "
        "the greatest over sites and varieties.",
        width=640,
    )
    pairs = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    lines = [alt.hconcat(*pair, spacing=30) for pair in pairs]
    return finish(alt.vconcat(*lines, title=over, spacing=18), theme)


def _panel(
    measure: str, rows: pd.DataFrame, labels: list[str], theme: Theme
) -> alt.LayerChart | alt.FacetChart:
    p = palette(theme)
    unit = str(rows["unit"].iloc[0])
    base = alt.Chart(with_text(rows)).encode(
        y=alt.Y("label:N", title=None, scale=alt.Scale(domain=labels)),
        tooltip=[
            "label",
            "measure",
            alt.Tooltip("said", title=unit or "value"),
            *("n", "site", "variety", "reference", "edit"),
            alt.Tooltip("least", format=".3f"),
            alt.Tooltip("most", format=".3f"),
            "rows",
        ],
    )
    least, most = rows[["least", "low"]].min().min(), rows[["most", "high"]].max().max()
    if most - least < 1e-6:  # rounding is no difference to be drawn
        least, most = least - 0.05, most + 0.05
    scale = alt.Scale(domain=[float(least), float(most)], nice=True, zero=False)

    def along(column: str) -> alt.X:
        axis = alt.Axis(tickCount=4, title=unit or None)
        return alt.X(f"{column}:Q", scale=scale, axis=axis)

    spread = base.mark_rule(color=p.null, strokeWidth=1.2, strokeDash=[2, 2])
    interval = base.mark_rule(color=p.ink, strokeWidth=2.5)
    point = base.mark_point(filled=True, size=52, color=p.ink, opacity=1)
    named, comma, of = measure.partition(",")
    heading = panel_title(named.replace("_", " ") + comma + of)
    return alt.layer(
        spread.encode(x=along("least"), x2="most:Q"),
        interval.encode(x=along("low"), x2="high:Q"),
        point.encode(x=along("value")),
    ).properties(width=230, height=20 * len(labels), title=heading)
