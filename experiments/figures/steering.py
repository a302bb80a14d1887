"""What follows from the strength of steering: the effect, its cost, and random directions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

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
    variety_colours,
    with_text,
)

_EDIT = re.compile(r"(add|affine)\((?P<name>.+), (?P<dose>-?[\d.e+-]+)\)")
_SHARES = ("refusal_rate", "variety_probability")
_NAMES = {
    "refusal_rate": "share of requests refused",
    "refusal_score": "log-odds of a refusal",
    "variety_log_odds": "log-odds of its sentences (nats)",
    "variety_probability": "probability that it goes on in it",
}
_KINDS = {"random_subspace": "random, uniform", "covariance_null": "random, in the states' spread"}


def steered(frame: pd.DataFrame) -> list[str]:
    """What a run steered: `refusal`, `variety:NAME`."""
    found = (_EDIT.fullmatch(str(e)) for e in frame["edit"])
    return list(dict.fromkeys(m["name"] for m in found if m))


def doses(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of one thing steered, with a `dose` column."""
    matches = [_EDIT.fullmatch(str(e)) for e in frame["edit"]]
    own = [m is not None and m["name"] == name for m in matches]
    chosen = frame[own]
    return chosen.assign(dose=[float(m["dose"]) for m, o in zip(matches, own) if m and o])


def chart_dose_response(
    frame: pd.DataFrame, theme: Theme = "light", *, name: str | None = None
) -> Figure:
    """Effect against strength, beside random directions, and below it what it costs.

    Args:
        name: what was steered, as `steered` lists it; the first if None.
    """
    names = steered(frame)
    if not names or (name is not None and name not in names):
        return empty_chart("This run steered nothing; isogloss run steer does.", theme)
    name = name or names[0]
    rows = doses(frame, name)
    rows = with_text(rows[~rows["measure"].str.startswith("steering_")])
    target = name.removeprefix("variety:") if name.startswith("variety:") else ""
    effects = ("variety_log_odds", "variety_probability") if target else tuple(_NAMES)[:2]
    above = [
        _effect(rows[rows["measure"] == m], frame, m, theme)
        for m in effects
        if (rows["measure"] == m).any()
    ]
    below = [_cost(rows, frame, target, theme)]
    if (rows["measure"] == "reply_loss").any():
        below.append(_replies(rows, frame, theme))
    if target and (rows["measure"] == "refusal_rate").any():
        below.append(_effect(rows[rows["measure"] == "refusal_rate"], frame, "refusal_rate", theme))
    told = f"What steering towards {target or 'refusal'} does, by strength"
    said = (
        "Above, what should follow the strength; grey: random directions of the same length, from "
        "the least to the most of the draws. Below, what it costs. Dotted: the plain model. "
        "Strength counts differences of means; bars: 95% over groups."
    )
    rows_of = [alt.hconcat(*panels, spacing=26) for panels in (above, below)]
    apart: dict[str, Any] = dict.fromkeys(("color", "shape", "strokeDash"), "independent")
    chart = alt.vconcat(*(r.resolve_scale(**apart) for r in rows_of), spacing=22)
    chart = chart.resolve_scale(**apart).properties(
        title=title(told, said, width=700), description=told
    )
    return finish(chart, theme)


def _x() -> alt.X:
    axis = alt.Axis(grid=False, tickCount=6)
    return alt.X("dose:Q", title="strength", axis=axis, scale=alt.Scale(padding=10, nice=False))


def _effect(rows: pd.DataFrame, frame: pd.DataFrame, measure: str, theme: Theme) -> Figure:
    p = palette(theme)
    own = rows[rows["control"] == ""]
    chance = rows[rows["control"] != ""]
    sides = [b for b in ("harmful", "harmless") if b in set(own["behaviour"])]
    scale = alt.Scale(domain=[0, 1]) if measure in _SHARES else alt.Scale(zero=False)
    y = alt.Y("value:Q", title=_NAMES[measure], scale=scale)
    base = alt.Chart(own).encode(
        x=_x(),
        tooltip=["dose", "behaviour", "variety", alt.Tooltip("said", title=measure), "n"],
    )
    shape: dict[str, Any] = {}
    if sides:
        colours = [p.harmful if b == "harmful" else p.harmless for b in sides]
        shapes = ["circle" if b == "harmful" else "diamond" for b in sides]
        dashes = [[1, 0] if b == "harmful" else [6, 3] for b in sides]
        base = base.encode(
            color=alt.Color(
                "behaviour:N", title="requests", scale=alt.Scale(domain=sides, range=colours)
            ),
            strokeDash=alt.StrokeDash(
                "behaviour:N", title="requests", scale=alt.Scale(domain=sides, range=dashes)
            ),
        )
        shape["shape"] = alt.Shape(
            "behaviour:N", title="requests", scale=alt.Scale(domain=sides, range=shapes)
        )
    else:
        base = base.encode(color=alt.value(p.ink))
    layers: list[alt.Chart] = []
    if len(chance):
        shade = alt.Chart(chance.assign(kind=chance["control"].map(_KINDS)))
        group = ["kind:N", "behaviour:N"]
        tips = ["dose", "kind", "behaviour", alt.Tooltip("said", title="draws"), "n"]
        layers.append(
            shade.mark_area(color=p.null, opacity=0.22).encode(
                x=_x(),
                y=alt.Y("low:Q", title=_NAMES[measure], scale=scale),
                y2="high:Q",
                detail=group,
                tooltip=tips,
            )
        )
        layers.append(
            shade.mark_line(color=p.null, strokeWidth=1.2).encode(
                x=_x(), y=y, detail=group, tooltip=tips
            )
        )
    layers += [
        *_plain(frame, own, measure, theme),
        base.mark_line(strokeWidth=2).encode(y=y),
        base.mark_rule(strokeWidth=1.5).encode(y="low:Q", y2="high:Q", strokeDash=_SOLID),
        base.mark_point(filled=True, size=50, opacity=1).encode(y=y, strokeDash=_SOLID, **shape),
    ]
    return alt.layer(*layers).properties(width=300, height=190, title=panel_title(_NAMES[measure]))


_SOLID: Any = alt.value([1, 0])


def _plain(frame: pd.DataFrame, own: pd.DataFrame, measure: str, theme: Theme) -> list[alt.Chart]:
    """A dotted line at the plain model's figure, for each side that is shown."""
    keys = own[["variety", "behaviour"]].drop_duplicates()
    before = frame[(frame["measure"] == measure) & (frame["edit"] == "")]
    before = before.merge(keys, on=["variety", "behaviour"])
    if before.empty:
        return []
    rule = alt.Chart(before).mark_rule(
        color=palette(theme).quiet, strokeDash=[1, 3], strokeWidth=1.5
    )
    return [rule.encode(y="value:Q")]


def _cost(rows: pd.DataFrame, frame: pd.DataFrame, target: str, theme: Theme) -> Figure:
    """Change of loss by variety, with random directions' mean over varieties."""
    p = palette(theme)
    change = rows[rows["measure"] == "loss_change"]
    own = change[change["control"] == ""]
    hand = variety_colours(frame[~frame["measure"].str.startswith("steering_")])
    shown = [n for n in hand.names if n in set(own["variety"])]
    index = [hand.names.index(n) for n in shown]
    y = alt.Y("value:Q", title="change of loss (nats per token)")
    chance = change[change["control"] != ""].groupby(["control", "dose"], as_index=False)
    base = alt.Chart(own).encode(
        x=_x(),
        tooltip=["variety", "dose", alt.Tooltip("said", title="change of loss"), "n"],
        strokeWidth=alt.condition(alt.datum.variety == target, alt.value(3), alt.value(1.4)),
    )
    layers = [
        alt.Chart(chance.agg(value=("value", "mean")))
        .mark_line(color=p.null, strokeWidth=1.5, strokeDash=[2, 3])
        .encode(x=_x(), y=y, detail="control:N"),
    ]
    if shown:
        base = base.encode(
            color=alt.Color(
                "variety:N",
                title="sentences of",
                scale=alt.Scale(domain=shown, range=[hand.colours[i] for i in index]),
            ),
            strokeDash=alt.StrokeDash(
                "variety:N",
                title="sentences of",
                scale=alt.Scale(domain=shown, range=[hand.dashes[i] for i in index]),
            ),
        )
        layers.append(base.mark_line().encode(y=y))
    else:
        layers.append(base.mark_line(color=p.ink).encode(y=y))
    return alt.layer(*layers).properties(
        width=300, height=190, title=panel_title("cost: loss on sentences (grey: random)")
    )


def _replies(rows: pd.DataFrame, frame: pd.DataFrame, theme: Theme) -> Figure:
    """The plain model's loss on what was written: how natural it still is."""
    p = palette(theme)
    own = rows[(rows["measure"] == "reply_loss") & (rows["control"] == "")]
    own = own.assign(after=[(b and f"{b} requests") or "sentences" for b in own["behaviour"]])
    kinds: Sequence[str] = sorted(set(own["after"]))
    looks = {
        "harmful requests": (p.harmful, [1, 0]),
        "harmless requests": (p.harmless, [6, 3]),
        "sentences": (p.ink, [2, 2]),
    }
    y = alt.Y("value:Q", title="nats per token", scale=alt.Scale(zero=True))
    base = alt.Chart(own).encode(
        x=_x(),
        color=alt.Color(
            "after:N",
            title="written after",
            scale=alt.Scale(domain=kinds, range=[looks[k][0] for k in kinds]),
        ),
        strokeDash=alt.StrokeDash(
            "after:N",
            title="written after",
            scale=alt.Scale(domain=kinds, range=[looks[k][1] for k in kinds]),
        ),
        tooltip=["after", "dose", alt.Tooltip("said", title="loss"), "n"],
    )
    lines = base.mark_line(strokeWidth=2).encode(y=y)
    bars = base.mark_rule(strokeWidth=1.2).encode(y="low:Q", y2="high:Q", strokeDash=_SOLID)
    return alt.layer(*_plain(frame, own, "reply_loss", theme), lines, bars).properties(
        width=300, height=190, title=panel_title("fluency: the plain model's loss on what it wrote")
    )
