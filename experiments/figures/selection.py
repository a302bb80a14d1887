"""The scores by which a direction is chosen, its cone, and the directions of two models."""

from __future__ import annotations

import altair as alt
import numpy as np
import pandas as pd

from experiments.figures.look import (
    Figure,
    Theme,
    control,
    empty_chart,
    finish,
    palette,
    panel_title,
    plain,
    title,
    with_text,
)

_NONE = "This run scored no directions; isogloss run directions does."
_PANELS = {
    "bypass_score": "bypass: refusal when it is ablated",
    "induce_score": "induce: refusal when it is added",
    "selection_kl": "KL on harmless requests (nats)",
}


def chart_selection(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """Scores of every place's direction, layers in rows and tokens in columns, a panel a score."""
    chosen = plain(frame, "chosen_direction")
    if chosen.empty:
        return empty_chart(_NONE, theme)
    best = chosen.iloc[0]
    state = plain(frame, "candidate_discarded")
    why = {(r["layer"], r["position"]): r["reference"] or "kept" for _, r in state.iterrows()}
    panels = [
        _panel(plain(frame, measure), measure, why, best, theme, first=not i)
        for i, measure in enumerate(_PANELS)
    ]
    block = f"the input of block {best['layer']}"
    told = (
        f"Chosen is {block}"
        if best["value"]
        else f"No direction passes all thresholds; {block} comes nearest"
    )
    below = (
        "Directions from the input of each block. The outlined one is chosen, × marks a discarded "
        "one; hover for the reason and 95% intervals. Refusal is in log-odds of a first token: "
        "above 0 it is likelier than not."
    )
    chart = alt.hconcat(*panels, spacing=28).resolve_scale(color="independent")
    chart = chart.properties(title=title(told, below, width=720), description=told)
    return finish(chart, theme)


def _panel(
    rows: pd.DataFrame, measure: str, why: dict, best: pd.Series, theme: Theme, *, first: bool
) -> Figure:
    p = palette(theme)
    rows = with_text(rows)
    keys = list(zip(rows["layer"], rows["position"], strict=True))
    place = (best["layer"], best["position"])
    rows = rows.assign(
        fate=[why.get(k, "") for k in keys],
        mark=["×" if why.get(k) != "kept" else "" for k in keys],
        chosen=[k == place for k in keys],
    )
    columns = sorted(set(rows["position"]), reverse=True)
    layers = sorted(set(rows["layer"]), reverse=True)
    most = max(float(rows["value"].abs().max()), 1e-9)
    signed = measure != "selection_kl"
    scale = (
        alt.Scale(domain=[-most, most], domainMid=0, range=list(p.split))
        if signed
        else alt.Scale(domain=[0, most], range=list(p.ramp))
    )
    base = alt.Chart(rows).encode(
        x=alt.X(
            "position:O",
            scale=alt.Scale(domain=columns),
            title="tokens before the end",
            axis=alt.Axis(labelAngle=0),
        ),
        y=alt.Y(
            "layer:O",
            scale=alt.Scale(domain=layers),
            title="block" if first else None,
        ),
        tooltip=["site", "position", alt.Tooltip("said", title=measure), "fate", "n"],
    )
    tiles = base.mark_rect(stroke=p.ground, strokeWidth=1.5).encode(
        color=alt.Color("value:Q", scale=scale, legend=None)
    )
    ring = base.transform_filter(alt.datum.chosen).mark_rect(
        filled=False, fillOpacity=0, stroke=p.ink, strokeWidth=2.5
    )
    edge = most * (0.55 if theme == "light" else 0.72)
    deep = (alt.datum.value > edge) | (alt.datum.value < -edge if signed else False)
    over = "#ffffff" if theme == "light" else "#0e1117"
    ink = alt.condition(deep, alt.value(over), alt.value(p.ink))
    drawn: list[alt.Chart] = [tiles, ring]
    wide = 60 if len(columns) <= 4 else max(16, 240 // len(columns))
    if wide >= 44:
        drawn.append(
            base.mark_text(size=11).encode(text=alt.Text("value:Q", format=".2f"), color=ink)
        )
        drawn.append(
            base.mark_text(size=12, dx=wide / 2 - 9, dy=-8).encode(text="mark:N", color=ink)
        )
    width = max(170, wide * len(columns))
    return alt.layer(*drawn).properties(
        width=width, height=30 * len(layers), title=panel_title(_PANELS[measure])
    )


def chart_cone(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """Refusal scores with each sampled direction of the cone ablated, beside axes and chance."""
    rows = with_text(frame[frame["measure"] == "cone_score"])
    if rows.empty:
        return empty_chart(_NONE, theme)
    p = palette(theme)
    harmful = frame[(frame["measure"] == "refusal_score") & (frame["behaviour"] == "harmful")]
    plain_model = harmful[(harmful["edit"] == "") & (harmful["control"] == "")]
    chance = harmful[harmful["control"] == "random_subspace"]
    chance = chance[chance["edit"] == "ablate(refusal)"]
    kinds = {"basis": "axis", "": "sample of the cone"}
    rows = rows.assign(
        kind=[kinds[c] for c in rows["control"]],
        label=[
            f"axis {int(n) + 1}" if c else "samples of the cone"
            for c, n in zip(rows["control"], rows["position"], strict=True)
        ],
    )
    beside = pd.concat(
        [
            plain_model.assign(label="plain model", kind="no edit"),
            chance.assign(label="random directions", kind="control"),
        ]
    )
    rows = pd.concat([with_text(beside), rows], ignore_index=True)
    order = ["plain model", "random directions"]
    order += sorted({label for label in rows["label"] if label.startswith("axis")})
    order += ["samples of the cone"]
    shapes = {"no edit": "square", "control": "diamond", "axis": "circle"}
    shapes["sample of the cone"] = "circle"
    colours = [p.quiet, p.null, p.ink, p.harmless]
    base = alt.Chart(rows).encode(
        y=alt.Y("label:N", sort=order, title=None, axis=alt.Axis(grid=True)),
        tooltip=["label", alt.Tooltip("said", title="refusal score"), "n"],
    )
    colour = alt.Color("kind:N", legend=None, scale=alt.Scale(domain=list(shapes), range=colours))
    x = alt.X("value:Q", title="log-odds of a refusal on harmful requests")
    single = base.transform_filter(alt.datum.kind != "sample of the cone")
    bars = single.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="log-odds of a refusal on harmful requests"),
        x2="high:Q",
        color=colour,
    )
    dots = base.mark_point(filled=True, size=70, opacity=0.85).encode(
        x=x,
        color=colour,
        shape=alt.Shape(
            "kind:N",
            legend=None,
            scale=alt.Scale(domain=list(shapes), range=list(shapes.values())),
        ),
    )
    zero = (
        alt.Chart(pd.DataFrame({"value": [0.0]}))
        .mark_rule(color=p.quiet, strokeDash=[4, 3])
        .encode(x="value:Q")
    )
    share = plain(frame, "cone_share")
    told = "Refusal with directions of the cone ablated, each alone"
    if len(share):
        told = (
            f"Ablating {share.iloc[0]['value']:.0%} of the cone's sampled directions makes a "
            "reply likelier than a refusal"
        )
    below = "Left of the dashed line a reply is likelier. Bars: 95%; of random ones, of the draws."
    chart = alt.layer(zero, bars, dots).properties(
        width=440, height=34 * len(order), title=title(told, below), description=told
    )
    return finish(chart, theme)


def chart_model_cosine(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """Cosine of two models' directions by depth, one line for each token, beside chance."""
    rows = with_text(plain(frame, "model_direction_cosine"))
    if rows.empty:
        return empty_chart("This run compared no second model: set other=MODEL.", theme)
    p = palette(theme)
    rows = rows.assign(token=[f"{int(n)} before the end" for n in rows["position"]])
    tokens = list(dict.fromkeys(rows.sort_values("position")["token"]))
    null = control(frame, "model_direction_cosine", "random_subspace").iloc[0]
    band = pd.DataFrame({"low": [null["low"]], "high": [null["high"]]})
    base = alt.Chart(rows).encode(
        x=alt.X("layer:O", title="at the input of block", axis=alt.Axis(labelAngle=0)),
        detail="token:N",
        tooltip=["site", "token", alt.Tooltip("said", title="cosine"), "n"],
    )
    y = alt.Y("value:Q", title="cosine", scale=alt.Scale(domain=[min(-0.2, rows["low"].min()), 1]))
    dash = alt.StrokeDash(
        "token:N", title="token", legend=alt.Legend() if len(tokens) > 1 else None
    )
    shade = alt.Chart(band).mark_rect(color=p.null, opacity=0.25).encode(y="low:Q", y2="high:Q")
    lines = base.mark_line(color=p.ink).encode(y=y, strokeDash=dash)
    bars = base.mark_rule(color=p.ink).encode(y="low:Q", y2="high:Q")
    dots = base.mark_point(color=p.ink, filled=True, size=60, opacity=1).encode(y=y)
    other = rows["reference"].iloc[0]
    last = rows[rows["position"] == rows["position"].min()].sort_values("layer")
    told = f"The two models' directions have cosine {last['value'].iloc[-1]:.2f} at the last block"
    below = f"The same requests in this model and in {other}. Bars: 95%; shade: random vectors."
    chart = alt.layer(shade, lines, bars, dots).properties(
        width=max(260, min(640, 60 * int(np.ptp(rows["layer"]) + 1))),
        height=220,
        title=title(told, below),
        description=told,
    )
    return finish(chart, theme)
