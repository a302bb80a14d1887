"""What restoring weights gives and costs, by rule of choice, and where the weights lie."""

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
    plain,
    steps,
    title,
    with_text,
)

_NONE = "This run restored no weights; isogloss run restore does."
RULES = {
    "": "gradient (the method)",
    "sign_matched_restoration": "random among sign-matched",
    "largest_difference": "largest difference",
    "random_restoration": "random",
}
_HUES = ["#0072B2", "#E69F00", "#CC79A7", "#8c8c8c"]
_DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]
_ENDS = {
    "full_restoration": "the aligned model",
    "blocks_restoration": "all below E",
}


def restoring_points(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each rule and step: harmful rate with interval, share restored, task change.

    Step 0 is the model before, the same for every rule.
    """
    before = frame[(frame["measure"] == "harmful_rate") & (frame["edit"] == "")]
    rows = []
    for control, name in RULES.items():
        own = frame[(frame["edit"] == "curve") & (frame["control"] == control)]
        if own.empty or before.empty:
            continue
        start = before.iloc[0]
        rows.append(_point(start, name, 0, 0.0, 0.0))
        for step, there in own.groupby("position"):
            by = there.set_index("measure")
            rate, share = by.loc["harmful_rate"], by.loc["restored_share", "value"]
            change = by.loc["task_change", "value"]
            rows.append(_point(rate, name, step, share, change))
    return pd.DataFrame(rows)


def _point(rate: pd.Series, rule: str, step: object, share: object, change: object) -> dict:
    kept = {key: rate[key] for key in ("value", "low", "high")}
    return {"rule": rule, "step": step, "share": share, "change": change, **kept}


def chart_restoring(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """The harmful rate against the share restored, and against what the task loses."""
    points = restoring_points(frame)
    if points.empty:
        return empty_chart(_NONE, theme)
    p = palette(theme)
    points = with_text(points)
    names = [n for n in RULES.values() if n in set(points["rule"])]
    order = [list(RULES.values()).index(n) for n in names]
    hue = alt.Color(
        "rule:N",
        title="weights chosen by",
        scale=alt.Scale(domain=names, range=[_HUES[i] for i in order]),
        legend=alt.Legend(orient="bottom", columns=2, symbolType="stroke", symbolSize=300),
    )
    dash = alt.StrokeDash(
        "rule:N",
        scale=alt.Scale(domain=names, range=[_DASHES[i] for i in order]),
        legend=None,
    )
    rate = alt.Y(
        "value:Q",
        title="harmful requests not refused",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format="%"),
    )
    told = [
        alt.Tooltip("rule:N"),
        alt.Tooltip("step:Q"),
        alt.Tooltip("said:N", title="harmful rate"),
        alt.Tooltip("share:Q", format=".2%", title="restored"),
        alt.Tooltip("change:Q", format="+.1%", title="task"),
    ]
    base = alt.Chart(points).encode(color=hue)
    by_share = alt.X("share:Q", title="weights restored, of all", axis=alt.Axis(format="%"))
    left = alt.layer(
        base.mark_errorbar(thickness=1, opacity=0.6).encode(
            x=by_share,
            y=alt.Y("low:Q", title="harmful requests not refused"),
            y2="high:Q",
        ),
        base.mark_line(strokeWidth=2).encode(x=by_share, y=rate, strokeDash=dash),
        base.mark_point(size=34, filled=True).encode(x=by_share, y=rate, tooltip=told),
    ).properties(width=330, height=290, title=panel_title("by share of weights"))
    by_task = alt.X(
        "change:Q",
        title="change of the task's likelihood per token",
        axis=alt.Axis(format="+%", tickCount=6),
        scale=alt.Scale(padding=46),
    )
    layers = [
        base.mark_line(strokeWidth=2).encode(
            x=by_task, y=rate, strokeDash=dash, order=alt.Order("step:Q")
        ),
        base.mark_point(size=34, filled=True).encode(x=by_task, y=rate, tooltip=told),
    ]
    ends = _ends(frame)
    if len(ends):
        marks = alt.Chart(with_text(ends)).encode(x=by_task, y=rate)
        layers += [
            marks.mark_point(size=90, shape="diamond", filled=True, color=p.ink).encode(
                tooltip=[alt.Tooltip("name:N"), alt.Tooltip("said:N")]
            ),
            marks.mark_text(align="center", baseline="bottom", dy=-9, color=p.ink).encode(
                text="name:N"
            ),
        ]
    right = alt.layer(*layers).properties(
        width=390, height=290, title=panel_title("by what the task loses")
    )
    said = (
        "Held-out harmful requests that are not refused, as more weights take the aligned model's "
        "values, by rule of choice. Bars: 95% over groups of requests; lines: means over draws of "
        "prompts. Down and to the right is good: refusals back, the task kept."
    )
    head = "What restoring weights gives back, and what it costs"
    chart = alt.hconcat(left, right, spacing=34).properties(
        title=title(head, said, width=760), description=head
    )
    return finish(chart, theme)


def _ends(frame: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for control, name in _ENDS.items():
        own = frame[(frame["edit"] == "end") & (frame["control"] == control)].set_index("measure")
        if len(own):
            rate = own.loc["harmful_rate"]
            point = _point(rate, name, 0, 1.0, own.loc["task_change", "value"])
            rows.append({**point, "name": name})
    return pd.DataFrame(rows)


def chart_restored_weights(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """What share of each kind of weight in each block was restored."""
    rows = plain(frame, "restored_weights")
    if rows.empty:
        return empty_chart(_NONE, theme)
    p = palette(theme)
    rows = with_text(rows).assign(
        place=["outside blocks" if n < 0 else f"block {n}" for n in rows["layer"]],
        share=[f"{v:.2%}" for v in rows["value"]],
    )
    kinds = list(dict.fromkeys(rows["reference"]))
    places = list(dict.fromkeys(rows.sort_values("layer", kind="stable")["place"].tolist()))
    most = max(float(rows["value"].max()), 1e-9)
    x = alt.X("reference:N", title=None, sort=kinds, axis=alt.Axis(labelAngle=-30))
    y = alt.Y("place:N", title=None, sort=places)
    base = alt.Chart(rows).encode(x=x, y=y)
    cells = base.mark_rect().encode(
        color=alt.Color(
            "value:Q",
            title="share restored",
            scale=alt.Scale(domain=[0, most], range=list(p.ramp)),
            legend=steps([0, most / 2, most], ".1%"),
        ),
        tooltip=[alt.Tooltip("reference:N", title="kind"), "place:N", "share:N"],
    )
    dark, light = (p.ink, p.ground) if theme == "light" else (p.ground, p.ink)
    bright = alt.datum.value > most * 0.6
    numbers = base.mark_text(fontSize=11).encode(
        text="share:N",
        color=alt.condition(bright, alt.value(light), alt.value(dark))
        if theme == "light"
        else alt.condition(bright, alt.value(dark), alt.value(light)),
    )
    below = (
        "Share of the weights of each kind that took the aligned model's values where restoring "
        "stopped; mean over draws of prompts. Norms are never restored."
    )
    head = "Where the restored weights lie"
    width = max(420, 72 * len(kinds))
    chart = (cells + numbers).properties(
        width=width,
        height=max(70, 36 * len(places)),
        title=title(head, below, width=width),
        description=head,
    )
    return finish(chart, theme)
