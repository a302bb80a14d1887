"""One pair of varieties over depth, beside what chance and noise would give."""

from __future__ import annotations

import altair as alt
import pandas as pd

from experiments.figures.look import (
    Figure,
    Theme,
    control,
    depth_axis,
    depth_width,
    empty_chart,
    figure,
    finish,
    palette,
    place,
    plain,
    title,
    with_depth,
    with_text,
)

_MEASURE = "subspace_overlap"
_NULL = "95% of subspaces in the data's own spread"


def pairs_of(frame: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """The pairs of varieties whose subspaces were compared, by name, as `hill and valley`."""
    rows = plain(frame, _MEASURE)
    rows = rows[(rows["variety"] != "") & (rows["variety"] != rows["reference"])]
    found = sorted({tuple(sorted(pair)) for pair in zip(rows["variety"], rows["reference"])})
    return {f"{one} and {other}": (one, other) for one, other in found}


def chart_pair_by_layer(
    frame: pd.DataFrame,
    pair: tuple[str, str],
    theme: Theme = "light",
    *,
    at: str | None = None,
) -> Figure:
    """Overlap of one pair's subspaces by depth, with its interval and the covariance null.

    Args:
        at: label of the depth to mark.
    """
    one, other = pair
    everything = frame[frame["measure"] == _MEASURE]
    rows = plain(everything, _MEASURE)
    sides = [rows["variety"].eq(a) & rows["reference"].eq(b) for a, b in (pair, pair[::-1])]
    rows, labels = with_depth(with_text(rows[sides[0] | sides[1]]), everything)
    if rows.empty:
        return empty_chart(f"This run did not compare {one} and {other}.", theme)
    p = palette(theme)
    x, told_y = depth_axis(labels), "overlap (mean squared cosine)"
    null, _ = with_depth(control(everything, _MEASURE, "covariance_null"), everything)
    base = alt.Chart(rows)
    layers: list[alt.Chart] = []
    if at in labels:
        mark = alt.Chart(pd.DataFrame({"depth": [at]}))
        layers.append(mark.mark_rule(color=p.harmless, strokeWidth=8, opacity=0.25).encode(x=x))
    if len(null):
        band = alt.Chart(null.assign(line=_NULL)).mark_area(opacity=0.3, color=p.null)
        layers.append(band.encode(x=x, y=alt.Y("low:Q", title=told_y), y2="high:Q"))
    layers += [
        base.mark_rule(strokeWidth=1.5, color=p.ink).encode(
            x=x, y=alt.Y("low:Q", title=told_y), y2="high:Q"
        ),
        base.mark_line(strokeWidth=2, color=p.ink).encode(x=x, y=alt.Y("value:Q", title=told_y)),
        base.mark_point(filled=True, size=55, opacity=1, color=p.ink).encode(
            x=x,
            y=alt.Y("value:Q", title=told_y),
            tooltip=["depth", alt.Tooltip("said", title="overlap"), "n"],
        ),
    ]
    best = rows.loc[rows["value"].idxmax()]
    told = f"{one} and {other} share most at {place(best['depth'])}: {figure(best)}"
    below = f"Bars: intervals over groups of sentences. Grey: {_NULL}." if len(null) else ""
    width = depth_width(labels)
    chart = alt.layer(*layers).properties(
        width=width, height=240, title=title(told, below, width=width), description=told
    )
    return finish(chart, theme)
