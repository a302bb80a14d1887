"""What decoupling gains a dialect, beside its controls, its cost and its strength."""

from __future__ import annotations

import re

import altair as alt
import pandas as pd

from experiments.figures.look import (
    Figure,
    Theme,
    empty_chart,
    figure,
    finish,
    palette,
    panel_title,
    title,
)

_NONE = "This run fine-tuned no model; isogloss run decouple does."
_EDIT = re.compile(r"tune\+(?P<form>\w+)\(k=(?P<k>\d+), (?P<strength>[^)]+)\)")
_HUES = {"paper": "#CC79A7", "penalty": "#0072B2", "projection": "#D55E00", "gradient": "#009E73"}
_SHAPES = {"paper": "cross", "penalty": "circle", "projection": "square", "gradient": "triangle-up"}
_DASHED = [4, 3]


def changes(frame: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Rows of a change against plain fine-tuning, with the parts of their edit in columns."""
    rows = frame[frame["measure"] == f"{measure}_change"]
    parts = rows["edit"].str.extract(_EDIT)
    rows = rows.assign(
        form=parts["form"],
        k=parts["k"].astype(float),
        strength=parts["strength"].astype(float),
        said=[figure(r, signed=True) for _, r in rows.iterrows()],
    )
    return rows.dropna(subset=["form"])


def _label(r: pd.Series) -> str:
    own = f"{r['form']}, k = {r['k']:g}, {r['strength']:g}"
    return f"{r['control'].replace('_', ' ')} for {own}" if r["control"] else own


def chart_decoupling_gain(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """Change of the dialect's held-out loss in every arm, with intervals, a panel a dialect."""
    rows = changes(frame, "dialect_loss")
    if rows.empty:
        return empty_chart(_NONE, theme)
    p = palette(theme)
    rows = rows.assign(
        label=[_label(r) for _, r in rows.iterrows()],
        kind=["control" if c else "decoupled" for c in rows["control"]],
    )
    order = list(dict.fromkeys(rows.sort_values(["control", "form", "k", "strength"])["label"]))
    colour = alt.Color(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=["decoupled", "control"], range=[p.ink, p.null]),
        legend=alt.Legend(orient="top"),
    )
    panels = []
    for number, dialect in enumerate(sorted(set(rows["variety"]))):
        base = alt.Chart(rows[rows["variety"] == dialect]).encode(
            y=alt.Y(
                "label:N",
                sort=order,
                scale=alt.Scale(domain=order),
                title=None,
                axis=alt.Axis(grid=True, labels=number == 0, ticks=number == 0, labelLimit=340),
            ),
            color=colour,
            tooltip=["label", alt.Tooltip("said", title="change of loss"), "n", "p"],
        )
        wide = "change of held-out loss (nats a token)"
        bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=wide), x2="high:Q")
        dots = base.mark_point(filled=True, size=65, opacity=1).encode(
            x="value:Q",
            shape=alt.Shape(
                "kind:N",
                title=None,
                scale=alt.Scale(domain=["decoupled", "control"], range=["circle", "diamond"]),
            ),
        )
        panels.append(
            alt.layer(_at_zero("x", theme), bars, dots).properties(
                width=230, height=max(90, 22 * len(order)), title=panel_title(dialect)
            )
        )
    told = "What each way of decoupling changes in the dialect's loss"
    below = (
        "Left of the dashed line is a gain over plain fine-tuning. Bars: 95%, paired over "
        f"{int(rows['n'].max())} seeds. A control penalises as much energy as what it stands for."
    )
    width = 230 * len(panels) + 260
    chart = alt.hconcat(*panels, spacing=18).properties(
        title=title(told, below, width=width), description=told
    )
    return finish(chart, theme)


def chart_decoupling_pareto(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """The dialect's gain against the standard's cost, both against plain fine-tuning."""
    gain, cost = changes(frame, "dialect_loss"), changes(frame, "standard_loss")
    if gain.empty or cost.empty:
        return empty_chart(_NONE, theme)
    keys = ["variety", "edit", "control"]
    ends = ["value", "low", "high", "said"]
    rows = gain.merge(cost[[*keys, *ends]], on=keys, suffixes=("", "_cost"))
    rows = rows.assign(
        gain=-rows["value"],
        gain_low=-rows["high"],
        gain_high=-rows["low"],
        label=[_label(r) for _, r in rows.iterrows()],
        kind=["control" if c else f for c, f in zip(rows["control"], rows["form"], strict=True)],
    )
    p = palette(theme)
    kinds = [k for k in _HUES if k in set(rows["kind"])] + ["control"]
    colour = alt.Color(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=kinds, range=[_HUES.get(k, p.null) for k in kinds]),
    )
    shapes = alt.Scale(
        domain=kinds, range=["diamond" if k == "control" else _SHAPES[k] for k in kinds]
    )
    across, up = "the standard's loss, change (nats a token)", "the dialect's gain (nats a token)"
    panels = []
    for dialect in sorted(set(rows["variety"])):
        base = alt.Chart(rows[rows["variety"] == dialect]).encode(
            color=colour,
            tooltip=[
                "label",
                alt.Tooltip("said", title="dialect"),
                alt.Tooltip("said_cost", title="standard"),
            ],
        )
        up_bars = base.mark_rule(opacity=0.5).encode(
            x=alt.X("value_cost:Q", title=across), y=alt.Y("gain_low:Q", title=up), y2="gain_high:Q"
        )
        across_bars = base.mark_rule(opacity=0.5).encode(
            x=alt.X("low_cost:Q", title=across), x2="high_cost:Q", y="gain:Q"
        )
        dots = base.mark_point(filled=True, size=75, opacity=1).encode(
            x="value_cost:Q", y="gain:Q", shape=alt.Shape("kind:N", title=None, scale=shapes)
        )
        panels.append(
            alt.layer(
                _at_zero("x", theme), _at_zero("y", theme), up_bars, across_bars, dots
            ).properties(width=270, height=250, title=panel_title(dialect))
        )
    told = "What the dialect gains and what the standard pays"
    below = (
        "Against plain fine-tuning, which lies where the dashed lines cross. Up is a gain for the "
        "dialect, to the right a cost to the standard. Bars: 95%, paired over seeds."
    )
    chart = alt.hconcat(*panels, spacing=24).properties(
        title=title(told, below, width=330 * len(panels)), description=told
    )
    return finish(chart, theme)


def chart_decoupling_strength(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """The change of the dialect's and the standard's loss along the strength, a column a form."""
    both = [
        changes(frame, measure).assign(whose=whose)
        for measure, whose in (("dialect_loss", "dialect"), ("standard_loss", "standard"))
    ]
    rows = pd.concat(both, ignore_index=True)
    rows = rows[rows["control"] == ""]
    tried = rows.groupby("form")["strength"].nunique() if len(rows) else pd.Series(dtype=int)
    forms = [f for f in _HUES if tried.get(f, 0) > 1]
    if not forms:
        return empty_chart("This run tried one strength of each form: give `strengths`.", theme)
    p = palette(theme)
    colours = alt.Scale(domain=["dialect", "standard"], range=[p.harmless, p.harmful])
    shapes = alt.Scale(domain=["dialect", "standard"], range=["circle", "square"])
    lines = []
    for dialect in sorted(set(rows["variety"])):
        panels = []
        for form in forms:
            own = rows[(rows["variety"] == dialect) & (rows["form"] == form)]
            own = own[own["k"] == own["k"].min()]
            wide = "loss against plain (nats a token)"
            base = alt.Chart(own).encode(
                x=alt.X(
                    "strength:Q",
                    scale=alt.Scale(type="symlog", constant=float(own["strength"].min())),
                    title="strength",
                    axis=alt.Axis(values=sorted(set(own["strength"])), grid=False, format="~g"),
                ),
                color=alt.Color("whose:N", title=None, scale=colours),
                tooltip=["whose", "strength", alt.Tooltip("said", title="change"), "n"],
            )
            band = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(
                y=alt.Y("low:Q", title=wide), y2="high:Q"
            )
            line = base.mark_line(strokeWidth=2).encode(y="value:Q")
            dots = base.mark_point(filled=True, size=55, opacity=1).encode(
                y="value:Q", shape=alt.Shape("whose:N", title=None, scale=shapes)
            )
            panels.append(
                alt.layer(_at_zero("y", theme), band, line, dots).properties(
                    width=220, height=190, title=panel_title(f"{dialect}: {form}")
                )
            )
        lines.append(alt.hconcat(*panels, spacing=20))
    told = "How gain and cost follow the strength"
    below = "Below the dashed line is better than plain fine-tuning. Bars: 95%, paired over seeds."
    chart = alt.vconcat(*lines, spacing=20).properties(
        title=title(told, below, width=280 * len(forms) + 60), description=told
    )
    return finish(chart, theme)


def _at_zero(axis: str, theme: Theme) -> alt.Chart:
    place = alt.X("zero:Q") if axis == "x" else alt.Y("zero:Q")
    return (
        alt.Chart(pd.DataFrame({"zero": [0.0]}))
        .mark_rule(color=palette(theme).quiet, strokeDash=_DASHED)
        .encode(place)
    )
