"""Two models, or a model and its edit: before and after by depth, and what changed by how much."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from experiments.figures.look import (
    Figure,
    Theme,
    depth_axis,
    empty_chart,
    finish,
    palette,
    panel_title,
    plain,
    title,
    with_depth,
    with_text,
)

_WIDTH = 250
_TALL = 190
_LINES = ["before", "after", "probe of before, states after"]
_PAIRS = {
    "model_direction_cosine": "harmful direction (cosine)",
    "model_subspace_overlap": "variety subspaces (mean overlap)",
    "model_cka texts": "states of texts (CKA)",
    "model_cka requests": "states of requests (CKA)",
}
_BETWEEN = ("model_direction_cosine", "model_subspace_overlap", "model_cka")
_PROBES = {"variety": "variety read from the states", "behaviour": "harmfulness read from them"}


def chart_before_after(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """Above, by depth: probes before and after, and what the two models share; below, changes.

    Takes the results of `isogloss run diff`, or of `before_after`.
    """
    above = [
        _probes(frame, kind, theme)
        for kind in _PROBES
        if len(plain(frame, f"{kind}_probe_accuracy"))
    ]
    if len(plain(frame, *_BETWEEN)):
        above.append(_between(frame, theme))
    below = [
        panel
        for panel in (
            _changes(frame, "refusal_rate_change", "change of the share refused", theme),
            _changes(frame, "loss_change", "change of loss (nats per token)", theme),
            _changes(frame, "text_loss_change", "change of loss (nats per character)", theme),
            _divergence(frame, theme),
        )
        if panel is not None
    ]
    if not (above or below):
        return empty_chart(
            "This run holds no before and after: isogloss run diff makes them.", theme
        )
    edits = [e for e in dict.fromkeys(frame["edit"]) if e]
    told = ": ".join(["Before and after", *edits[:1]])
    said = (
        "Above, by depth: probes in both models, and how much of a thing in the one is in the "
        "other, freed of noise (1: nothing moved). Below, paired changes, and the KL of the next "
        "token. Bands and bars: 95% over groups."
    )
    apart: dict[str, Any] = dict.fromkeys(("color", "strokeDash", "shape"), "independent")
    rows = [
        alt.hconcat(*panels, spacing=26).resolve_scale(**apart)
        for panels in (above, below)
        if panels
    ]
    chart = alt.vconcat(*rows, spacing=24).resolve_scale(**apart)
    over = title(told, said, width=840)
    return finish(chart.properties(title=over, description=told), theme)


def _probes(frame: pd.DataFrame, kind: str, theme: Theme) -> Figure:
    """Accuracy by depth in both models, and of the probe that is carried over."""
    p = palette(theme)
    measure = f"{kind}_probe_accuracy"
    own, carried = plain(frame, measure), plain(frame, f"{kind}_probe_transfer")
    rows = pd.concat(
        [
            own.assign(line=["before" if e == "" else "after" for e in own["edit"]]),
            carried[carried["edit"] != ""].assign(line=_LINES[2]),
        ]
    )
    rows, labels = with_depth(with_text(rows), frame[frame["measure"] == measure])
    colour, dash = _look([p.null, p.ink, p.harmful], _LINES, "line")
    y = alt.Y("value:Q", title="balanced accuracy", scale=alt.Scale(domain=[0, 1]))
    base = alt.Chart(rows).encode(
        x=depth_axis(labels),
        tooltip=["line", "site", alt.Tooltip("said", title="balanced accuracy"), "n"],
    )
    band = base.mark_area(opacity=0.16).encode(
        y=alt.Y("low:Q", title="balanced accuracy"), y2="high:Q", color=colour
    )
    line = base.mark_line(strokeWidth=2).encode(y=y, color=colour, strokeDash=dash)
    dots = base.mark_point(filled=True, size=36, opacity=1).encode(y=y, color=colour)
    chance = frame[(frame["measure"] == measure) & (frame["control"] == "chance")]
    rule = alt.Chart(chance).mark_rule(color=p.quiet, strokeDash=[2, 3]).encode(y="value:Q")
    return alt.layer(rule, band, line, dots).properties(
        width=_WIDTH, height=_TALL, title=panel_title(_PROBES[kind])
    )


def _between(frame: pd.DataFrame, theme: Theme) -> Figure:
    """By depth, what the one model's directions, subspaces and states share with the other's."""
    p = palette(theme)
    rows = plain(frame, *_BETWEEN)
    alike = rows["measure"] == "model_cka"
    rows = rows.assign(thing=rows["measure"].where(~alike, "model_cka " + rows["reference"]))
    mean = rows.groupby(["thing", "site", "layer"], as_index=False).agg(
        value=("value", "mean"),
        low=("low", "min"),
        high=("high", "max"),
        n=("n", "max"),
    )
    # Several varieties stand for one line: their range is no interval of its mean.
    many = mean["thing"] == "model_subspace_overlap"
    mean.loc[many, ["low", "high"]] = float("nan")
    mean = mean.assign(line=mean["thing"].map(_PAIRS)).dropna(subset=["value"])
    mean, labels = with_depth(with_text(mean), frame[frame["measure"] == "model_cka"])
    names = [name for name in _PAIRS.values() if name in set(mean["line"])]
    hues = dict(zip(_PAIRS.values(), [p.harmful, p.harmless, p.null, p.ink], strict=True))
    colour, dash = _look([hues[name] for name in names], names, "line")
    y = alt.Y("value:Q", title="shared by the two models", scale=alt.Scale(domain=[0, 1]))
    base = alt.Chart(mean).encode(
        x=depth_axis(labels),
        tooltip=["line", "site", alt.Tooltip("said", title="shared"), "n"],
    )
    bars = base.mark_rule(strokeWidth=1.4, clip=True).encode(
        y=alt.Y("low:Q", title="shared by the two models"), y2="high:Q", color=colour
    )
    line = base.mark_line(strokeWidth=2, clip=True).encode(y=y, color=colour, strokeDash=dash)
    dots = base.mark_point(filled=True, size=36, opacity=1).encode(y=y, color=colour)
    return alt.layer(bars, line, dots).properties(
        width=_WIDTH, height=_TALL, title=panel_title("what of the one is in the other")
    )


def _look(colours: list[str], names: list[str], column: str) -> tuple[alt.Color, alt.StrokeDash]:
    dashes = [[5, 3], [1, 0], [2, 2], [8, 3, 2, 3]][: len(names)]
    legend = alt.Legend(orient="bottom", columns=1, symbolType="stroke", symbolSize=260)
    return (
        alt.Color(
            f"{column}:N",
            title=None,
            scale=alt.Scale(domain=names, range=colours),
            legend=legend,
        ),
        alt.StrokeDash(
            f"{column}:N",
            title=None,
            scale=alt.Scale(domain=names, range=dashes),
            legend=legend,
        ),
    )


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """With `of`: the variety, the behaviour, or both."""
    named = [
        ", ".join(part for part in (v, b) if part)
        for v, b in zip(rows["variety"], rows["behaviour"], strict=True)
    ]
    return rows.assign(of=named)


def _changes(frame: pd.DataFrame, measure: str, told: str, theme: Theme) -> Figure | None:
    """A measure's changes, one line each, beside zero."""
    p = palette(theme)
    rows = plain(frame, measure)
    if measure == "refusal_rate_change" and (rows["variety"] == "").any():
        # Harmless requests by variety say no more than all of them do.
        rows = rows[(rows["variety"] == "") | (rows["behaviour"] == "harmful")]
    if rows.empty:
        return None
    rows = _named(with_text(rows))
    y = alt.Y("of:N", title=None, sort=list(rows["of"]))
    base = alt.Chart(rows).encode(
        y=y, tooltip=["of", alt.Tooltip("said", title="change"), "n", "p"]
    )
    zero = alt.Chart(pd.DataFrame({"value": [0.0]})).mark_rule(color=p.null, strokeDash=[3, 3])
    layers = (
        zero.encode(x="value:Q"),
        base.mark_rule(strokeWidth=1.6, color=p.ink).encode(
            x=alt.X("low:Q", title=told), x2="high:Q"
        ),
        base.mark_point(filled=True, size=55, opacity=1, color=p.ink).encode(
            x=alt.X("value:Q", title=told, axis=alt.Axis(tickCount=5))
        ),
    )
    return alt.layer(*layers).properties(width=_WIDTH, height=alt.Step(17), title=panel_title(told))


def _divergence(frame: pd.DataFrame, theme: Theme) -> Figure | None:
    """KL of the next token: over all tokens, and for requests where the reply begins."""
    p = palette(theme)
    rows = plain(frame, "next_token_kl")
    rows = rows[(rows["position"] == -1) | (rows["behaviour"] != "")]
    if rows.empty:
        return None
    rows = _named(with_text(rows))
    where = [" (reply)" if at == 0 else "" for at in rows["position"]]
    rows = rows.assign(of=[f"{name}{said}" for name, said in zip(rows["of"], where, strict=True)])
    # KL is small on texts and large where replies begin: a root scale shows both, and zero.
    x = alt.Scale(type="sqrt", zero=True)
    base = alt.Chart(rows).encode(
        y=alt.Y("of:N", title=None, sort=list(rows["of"])),
        tooltip=["of", alt.Tooltip("said", title="KL"), "n"],
    )
    told = "KL of after from before (nats per token)"
    axis = alt.Axis(tickCount=5)
    layers = (
        base.mark_rule(strokeWidth=1.6, color=p.ink).encode(
            x=alt.X("low:Q", title=told, scale=x, axis=axis), x2="high:Q"
        ),
        base.mark_point(filled=True, size=55, opacity=1, color=p.ink).encode(
            x=alt.X("value:Q", title=told, scale=x, axis=axis)
        ),
    )
    return alt.layer(*layers).properties(
        width=_WIDTH, height=alt.Step(17), title=panel_title("KL of the next token, root scale")
    )
