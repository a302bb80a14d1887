"""What a linear reader finds at each depth, beside what it must beat."""

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
    plain,
    title,
    with_depth,
    with_text,
)

#: In the order of the legend. Rules at one height are drawn as one, under all of their names.
_RULES = {
    "bayes_ceiling": ("best possible reader", [12, 2, 2, 2]),
    "text_ngrams": ("text alone (character n-grams)", [8, 3]),
    "read_token": ("token that is read", [5, 2, 1, 2, 1, 2]),
    "text_length": ("length of the text", [1, 4]),
    "majority": ("commonest class", [10, 6]),
    "chance": ("chance", [2, 3]),
}
_CURVES = {"control_task": "control task", "random_model": "random weights"}
_ASKED = {"variety_probe_accuracy": "Variety", "behaviour_probe_accuracy": "Harmfulness"}


def chart_probe_curve(
    frame: pd.DataFrame,
    theme: Theme = "light",
    *,
    measure: str = "variety_probe_accuracy",
    at: str | None = None,
    pick: str | None = None,
) -> Figure:
    """Balanced accuracy by depth with its interval, and its controls.

    Args:
        measure: `variety_probe_accuracy` or `behaviour_probe_accuracy`.
        at: label of the depth to mark with a rule.
        pick: name of a selection that a click fills with the `depth` nearest to it.
    """
    rows = plain(frame, measure)
    asked = _ASKED.get(measure, measure)
    if rows.empty:
        return empty_chart(f"This run asked no question of {asked.lower()}: no {measure}.", theme)
    rows, labels = with_depth(with_text(rows), frame[frame["measure"] == measure])
    curves = {
        name: with_depth(with_text(control(frame, measure, kind)), frame)[0]
        for kind, name in _CURVES.items()
    }
    curves = {"probe": rows, **{name: part for name, part in curves.items() if len(part)}}
    rules, dash = _rules(frame, measure)
    kinds = [*curves, *rules["line"]]
    width = depth_width(labels)
    p = palette(theme)
    ink = {"probe": p.ink, "control task": p.null, "random weights": p.harmless}
    dash |= {"control task": [5, 3]}
    colour = alt.Color(
        "line:N",
        title=None,
        scale=alt.Scale(domain=kinds, range=[ink.get(k, p.quiet) for k in kinds]),
        legend=alt.Legend(orient="right", symbolType="stroke", symbolSize=300),
    )
    stroke = alt.StrokeDash(
        "line:N",
        title=None,
        scale=alt.Scale(domain=kinds, range=[dash.get(k, [1, 0]) for k in kinds]),
    )
    y = alt.Y("value:Q", title="balanced accuracy", scale=alt.Scale(domain=[0, 1]))
    x = depth_axis(labels)
    tips = ["line", "site", alt.Tooltip("said", title="balanced accuracy"), "n", "p"]
    layers: list[alt.Chart] = []
    if len(rules):
        layers.append(
            alt.Chart(rules)
            .mark_rule(strokeWidth=1.5)
            .encode(y=y, color=colour, strokeDash=stroke, tooltip=["line", "said"])
        )
    if at in labels:
        layers.append(
            alt.Chart(pd.DataFrame({"depth": [at]}))
            .mark_rule(color=p.harmless, strokeWidth=8, opacity=0.25)
            .encode(x=x)
        )
    for name, part in reversed(curves.items()):
        base = alt.Chart(part.assign(line=name))
        band = base.mark_area(opacity=0.18, color=ink[name])
        layers.append(band.encode(x=x, y=alt.Y("low:Q", title="balanced accuracy"), y2="high:Q"))
        line = base.mark_line(strokeWidth=2.5 if name == "probe" else 1.8)
        layers.append(line.encode(x=x, y=y, color=colour, strokeDash=stroke))
        shape = "square" if name == "random weights" else "circle"
        dots = base.mark_point(
            filled=name == "probe", size=60, color=ink[name], opacity=1, shape=shape
        )
        dots = dots.encode(x=x, y=y, tooltip=tips)
        if pick and name == "probe":
            # On points, not on the line: a line mark never reports a click. The nearest along x:
            # a click on a point of the control is one on its depth, too.
            click = alt.selection_point(
                name=pick, encodings=["x"], nearest=True, on="click", empty=False
            )
            dots = dots.add_params(click)
        layers.append(dots)
    best = rows.loc[rows["value"].idxmax()]
    told = f"{asked} is read best at {_place(best['depth'])}: {figure(best)}"
    chance = control(frame, measure, "chance")
    if len(chance):
        told += f", where chance is {chance['value'].iloc[0]:.2f}"
    below = f"Bands: {best['level']:.0%} intervals over {int(best['n'])} groups of sentences."
    chart = alt.layer(*layers).properties(
        width=width, height=280, title=title(told, below, width=width + 160), description=told
    )
    return finish(chart, theme)


def _rules(frame: pd.DataFrame, measure: str) -> tuple[pd.DataFrame, dict[str, list[int]]]:
    """The baselines that have no depth, one row for each height, and their dashes by name."""
    found = with_text(control(frame, measure, *_RULES))
    found = found.assign(order=[list(_RULES).index(c) for c in found["control"]])
    found = found.sort_values("order").assign(height=found["value"].round(2))
    together, dash = [], {}
    for _, same in found.groupby("height", sort=False):
        name = ", ".join(_RULES[c][0] for c in same["control"])
        together.append(same.iloc[-1:].assign(line=name))
        dash[name] = _RULES[same["control"].iloc[-1]][1]
    rules = pd.concat(together) if together else found.assign(line="")
    return rules, dash


def _place(depth: str) -> str:
    return "the embedding" if depth == "embed" else f"block {depth}"
