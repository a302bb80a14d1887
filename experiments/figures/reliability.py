"""How often a probe is right, against how sure it says it is."""

from __future__ import annotations

import altair as alt
import pandas as pd

from experiments.figures.look import (
    Figure,
    Theme,
    depths,
    empty_chart,
    figure,
    finish,
    palette,
    place,
    plain,
    title,
)

_FEW = 5  # groups below which a point is not joined to the curve
_ALPHA = 0.05
_KEYS = ["site", "reference", "position"]


def chart_reliability(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """Share right by confidence for each question's best site, beside the diagonal."""
    seen = plain(frame, "reliability")
    if seen.empty:
        return empty_chart("This run kept no probabilities of a probe: no reliability.", theme)
    claimed = plain(frame, "reliability_confidence")[[*_KEYS, "value"]]
    rows = seen.merge(claimed.rename(columns={"value": "confidence"}), on=_KEYS)
    labels = depths(frame)
    names = {
        q: f"{q} at {place(labels[s])}"
        for q, s in rows.drop_duplicates("reference")[["reference", "site"]].itertuples(index=False)
    }
    rows = rows.assign(
        line=rows["reference"].map(names), said=[figure(r) for _, r in rows.iterrows()]
    ).sort_values(["line", "confidence"])
    p = palette(theme)
    kinds = list(names.values())
    looks = [(p.harmless, [1, 0], "circle"), (p.harmful, [6, 3], "diamond")][: len(kinds)]
    colour = alt.Color(
        "line:N",
        title="probe of",
        scale=alt.Scale(domain=kinds, range=[look[0] for look in looks]),
        legend=alt.Legend(orient="bottom", symbolSize=120, symbolStrokeWidth=0),
    )
    dash = alt.StrokeDash(
        "line:N",
        legend=None,
        scale=alt.Scale(domain=kinds, range=[look[1] for look in looks]),
    )
    shape = alt.Shape(
        "line:N",
        title="probe of",
        scale=alt.Scale(domain=kinds, range=[look[2] for look in looks]),
    )
    x = alt.X(
        "confidence:Q",
        title="confidence: probability that the probe gives to its answer",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(labelFlush=False),
    )
    y_title = "share of answers that are right"
    y = alt.Y("value:Q", title=y_title, scale=alt.Scale(domain=[0, 1]))
    ideal = pd.DataFrame({"confidence": [0.0, 1.0], "value": [0.0, 1.0]})
    diagonal = alt.Chart(ideal).mark_line(color=p.null, strokeDash=[2, 3], strokeWidth=1.6)
    word = pd.DataFrame({"confidence": [0.06], "value": [0.06], "text": ["as sure as right"]})
    noted = alt.Chart(word).mark_text(color=p.quiet, align="left", dx=10, size=11)
    base = alt.Chart(rows)
    band = base.mark_area(opacity=0.15).encode(
        x=x, y=alt.Y("low:Q", title=y_title), y2="high:Q", color=colour
    )
    bars = base.mark_rule(strokeWidth=1.2).encode(
        x=x, y=alt.Y("low:Q", title=y_title), y2="high:Q", color=colour
    )
    line = base.mark_line(strokeWidth=2.2).encode(x=x, y=y, color=colour, strokeDash=dash)
    tips = [
        "line",
        alt.Tooltip("confidence:Q", title="mean confidence", format=".2f"),
        alt.Tooltip("said", title="share right"),
        alt.Tooltip("n", title="groups"),
    ]
    told = {"x": x, "y": y, "color": colour, "shape": shape, "tooltip": tips}
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(**told)
    few = base.mark_point(filled=False, size=50, opacity=0.8).encode(**told)
    enough = f"isValid(datum.low) && datum.n >= {_FEW}"
    chart = alt.layer(
        diagonal.encode(x=x, y=y),
        noted.encode(x=x, y=y, text="text"),
        band.transform_filter(enough),
        bars.transform_filter(enough),
        line.transform_filter(enough),
        dots.transform_filter(enough),
        few.transform_filter(f"!({enough})"),
    )
    found = _told(frame, rows, list(names))
    below = ["Bands: 95% intervals over groups."]
    if (rows["n"] < _FEW).any():
        below.append(f"Hollow: rests on fewer than {_FEW} groups, and is not joined.")
    over = title(found, *below, width=470)
    return finish(chart.properties(width=380, height=380, title=over, description=found), theme)


def _told(frame: pd.DataFrame, rows: pd.DataFrame, questions: list[str]) -> str:
    parts = []
    for question in questions:
        here = rows[rows["reference"] == question]
        gap = float(((here["value"] - here["confidence"]) * here["n"]).sum())
        said = "right more often than it claims" if gap > 0 else "right less often than it claims"
        error = plain(frame, "calibration_error")
        error = error[error["reference"] == question]
        beside = ""
        if len(error):
            found = error.iloc[0]
            if not found["p"] < _ALPHA:
                said = "right as often as it claims, as far as can be told"
            elif found["value"] < 0.005:
                said = "right nearly as often as it claims"
            beside = f" (calibration error {figure(found)})"
        parts.append(f"the {question} probe is {said}{beside}")
    told = "; ".join(parts)
    return told[0].upper() + told[1:]
