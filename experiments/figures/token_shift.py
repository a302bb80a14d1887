"""Which tokens a base model would not have written: where, of which class, and where decided."""

from __future__ import annotations

import re
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
    title,
    with_depth,
    with_text,
)

_KINDS = ("unshifted", "marginal", "shifted")
_TITLES = ["unshifted (rank 1)", "marginal (2, 3)", "shifted (above 3)"]
_EXAMPLES = re.compile(r"examples\((?P<kind>\w+), (?P<count>\d+)\)")
_NONE = "This run ranked no answers; isogloss run token-shift does."
_HEIGHT = 190
_SOLID: Any = alt.value([1, 0])


def _colours(theme: Theme) -> list[str]:
    """Grey, blue and vermilion: told apart under every common colour blindness."""
    p = palette(theme)
    return [p.grid if theme == "light" else "#3a4350", p.harmless, p.harmful]


def _main(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the answers themselves: no control, no examples, no site, no one variety."""
    kept = (frame["control"] == "") & (frame["edit"] == "") & (frame["site"] == "")
    return frame[kept & (frame["variety"] == "")]


def _sides(rows: pd.DataFrame) -> list[str]:
    present = [b for b in ("harmful", "harmless") if (rows["behaviour"] == b).any()]
    return present or [""]


def _long(rows: pd.DataFrame) -> pd.DataFrame:
    """The three shares with a `kind` in their order."""
    shares = rows[rows["measure"].isin([f"{k}_share" for k in _KINDS])]
    kinds = shares["measure"].str.removesuffix("_share")
    order = {kind: at for at, kind in enumerate(_KINDS)}
    names = dict(zip(_KINDS, _TITLES, strict=True))
    return with_text(shares.assign(kind=kinds.map(names), order=kinds.map(order)))


def _kind_colour(theme: Theme, first: int = 0) -> alt.Color:
    scale = alt.Scale(domain=_TITLES[first:], range=_colours(theme)[first:])
    return alt.Color("kind:N", title="rank in base", scale=scale, sort=_TITLES[first:])


def chart_shift_positions(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """Shares of unshifted, marginal and shifted tokens by position in the answer."""
    rows = _main(frame)
    rows = rows[(rows["position"] >= 0) & (rows["reference"] == "")]
    shares = _long(rows)
    if shares.empty:
        return empty_chart(_NONE, theme)
    sides = _sides(shares)
    panels = []
    x = alt.X("position:O", title="position in the answer", axis=alt.Axis(labelAngle=0, grid=False))
    for side in sides:
        own = shares[shares["behaviour"] == side]
        bars = (
            alt.Chart(own)
            .mark_bar()
            .encode(
                x=x,
                y=alt.Y("value:Q", title="share of tokens", scale=alt.Scale(domain=[0, 1])),
                color=_kind_colour(theme),
                order=alt.Order("order:Q", sort="descending"),
                tooltip=["position", "kind", alt.Tooltip("said", title="share"), "n"],
            )
        )
        # The interval of what is not unshifted, which is the height of the two upper colours.
        moved = own[own["order"] == 0].assign(
            low_=lambda r: 1 - r["high"], high_=lambda r: 1 - r["low"]
        )
        rule = (
            alt.Chart(moved)
            .mark_rule(color=palette(theme).ink, strokeWidth=1.3)
            .encode(x=x, y="low_:Q", y2="high_:Q")
        )
        width = max(150, min(520, 22 * own["position"].nunique()))
        name = f"{side} requests" if side else "all requests"
        panels.append(
            alt.layer(bars, rule).properties(width=width, height=_HEIGHT, title=panel_title(name))
        )
    told = "Which answer tokens base would not have written, by position"
    said = "Bars: 95% over requests, of the share that is not unshifted."
    chart = alt.hconcat(*panels, spacing=24).properties(title=title(told, said), description=told)
    return finish(chart, theme)


def chart_shift_kl(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """KL(aligned ‖ base) by position, beside base after another request."""
    kl = frame[(frame["measure"] == "shift_kl") & (frame["position"] >= 0) & (frame["edit"] == "")]
    kl = kl[(kl["reference"] == "") & (kl["variety"] == "")]
    kl = with_text(kl[kl["control"].isin(["", "shuffled_prompts"])])
    if kl.empty:
        return empty_chart(_NONE, theme)
    p, sides = palette(theme), _sides(kl)
    own = kl[kl["behaviour"].isin(sides)]
    names = {"": "all requests"} | {s: f"{s} requests" for s in sides if s}
    own = own.assign(
        side=own["behaviour"].map(names),
        seen=own["control"].map({"": "the same request", "shuffled_prompts": "another request"}),
    )
    looks = {"harmful": p.harmful, "harmless": p.harmless, "": p.ink}
    x = alt.X(
        "position:Q", title="position in the answer", axis=alt.Axis(tickMinStep=1, grid=False)
    )
    scale = alt.Scale(type="symlog", constant=0.01, domainMin=0)
    axis = alt.Axis(values=[0, 0.01, 0.1, 1, 10], format="~g")
    base = alt.Chart(own).encode(
        x=x,
        color=alt.Color(
            "side:N",
            title="after",
            scale=alt.Scale(domain=[names[s] for s in sides], range=[looks[s] for s in sides]),
        ),
        strokeDash=alt.StrokeDash(
            "seen:N",
            title="base sees",
            legend=alt.Legend(symbolType="stroke", symbolSize=300, symbolStrokeColor=p.ink),
            scale=alt.Scale(domain=["the same request", "another request"], range=[[1, 0], [3, 3]]),
        ),
        tooltip=["position", "side", "seen", alt.Tooltip("said", title="nats"), "n"],
    )
    y = alt.Y("value:Q", title="KL (nats)", scale=scale, axis=axis)
    layers = alt.layer(
        base.mark_line(strokeWidth=2).encode(y=y),
        base.mark_rule(strokeWidth=1.2).encode(y="low:Q", y2="high:Q", strokeDash=_SOLID),
        base.mark_point(filled=True, size=34, opacity=1).encode(y=y, strokeDash=_SOLID),
    )
    told = "How far the two models lie apart at each token of the aligned model's answers"
    said = (
        "KL of the next token from the aligned model to base, on a scale that is linear near zero. "
        "Bars: 95% over requests."
    )
    chart = layers.properties(width=520, height=240, title=title(told, said), description=told)
    return finish(chart, theme)


def chart_shift_classes(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """Share of marginal and shifted tokens in each class of tokens."""
    rows = _main(frame)
    rows = rows[(rows["reference"] != "") & (rows["position"] < 0) & (rows["behaviour"] == "")]
    shares = _long(rows)
    shares = shares[shares["order"] > 0]
    if shares.empty:
        return empty_chart(_NONE, theme)
    order = shares.groupby("reference")["value"].sum().sort_values(ascending=False).index.tolist()
    base = alt.Chart(shares).encode(
        y=alt.Y("reference:N", title=None, sort=order),
        yOffset=alt.YOffset("kind:N", sort=_TITLES[1:]),
        color=_kind_colour(theme, 1),
        tooltip=["reference", "kind", alt.Tooltip("said", title="share"), "n"],
    )
    x = alt.X("value:Q", title="share of the class's tokens", scale=alt.Scale(domainMin=0))
    layers = alt.layer(
        base.mark_bar(height=12).encode(x=x),
        base.mark_rule(strokeWidth=1.3).encode(
            x="low:Q", x2="high:Q", color=alt.value(palette(theme).ink)
        ),
    )
    told = "Which kind of token base would not have written"
    said = "Bars: 95% over requests."
    height = 44 * len(order) + 10
    chart = layers.properties(width=420, height=height, title=title(told, said), description=told)
    return finish(chart, theme)


def chart_shift_layers(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """From which block on the patched base ranks the token first, beside states of no meaning."""
    rows = frame[frame["measure"].isin(["patched_top_share", "gap_closed", "lens_top_share"])]
    # The shifted tokens, where there are any; else all that base does not rank first.
    shifted = bool((rows["reference"] == _KINDS[-1]).any())
    rows = rows[(rows["behaviour"] == "") & (rows["reference"] == (_KINDS[-1] if shifted else ""))]
    if rows.empty:
        return empty_chart(
            "This run did not ask where tokens are decided; its report says why.", theme
        )
    rows, labels = with_depth(with_text(rows), rows)
    names = {
        "": "the aligned model's state",
        "other_prompt": "its state before another token",
        "random_step": "as far, in a random direction",
    }
    lens = {"": "aligned", "base": "base"}
    patched = rows[rows["measure"] != "lens_top_share"]
    patched = patched.assign(state=patched["control"].map(names))
    read = rows[rows["measure"] == "lens_top_share"]
    read = read.assign(state=read["control"].map(lens))
    shown = [names[c] for c in names if (patched["control"] == c).any()]
    p = palette(theme)
    colours = [p.ink, p.harmful, p.null]
    panels = [
        _depths(
            patched[patched["measure"] == measure],
            labels,
            axis,
            name,
            shown,
            colours,
            "put into base",
        )
        for measure, axis, name in (
            ("patched_top_share", "share of tokens", "base ranks the token first"),
            ("gap_closed", "share of the gap", "gap in log-probability closed"),
        )
    ]
    sides = ["aligned", "base"]
    looks = [p.ink, p.harmless]
    panels.append(
        _depths(
            read, labels, "share of tokens", "logit lens ranks it first", sides, looks, "states of"
        )
    )
    told = f"Where the tokens are decided that are {'shifted' if shifted else 'not unshifted'}"
    said = (
        "One state, that of the last token so far, is put into base at a block's output, and base "
        "goes on from there. Right: what either model's own states say when read at once. Bars: "
        "95% over requests."
    )
    first = alt.hconcat(*panels[:2], spacing=26)
    apart: dict[str, Any] = dict.fromkeys(("color", "shape", "strokeDash"), "independent")
    chart = alt.hconcat(first, panels[2], spacing=26).resolve_scale(**apart)
    chart = chart.properties(title=title(told, said, width=760), description=told)
    return finish(chart, theme)


def _depths(
    rows: pd.DataFrame,
    labels: list[str],
    axis: str,
    name: str,
    shown: list[str],
    colours: list[str],
    legend: str,
) -> Figure:
    # Beside the panels two legends would make the figure wider than a page.
    below = alt.Legend(orient="bottom", direction="vertical")
    base = alt.Chart(rows).encode(
        x=depth_axis(labels).title("block"),
        color=alt.Color(
            "state:N",
            title=legend,
            scale=alt.Scale(domain=shown, range=colours[: len(shown)]),
            legend=below,
        ),
        tooltip=["depth", "state", alt.Tooltip("said", title=axis), "n"],
    )
    shape = alt.Shape("state:N", title=legend, scale=alt.Scale(domain=shown), legend=below)
    y = alt.Y("value:Q", title=axis, scale=alt.Scale(zero=True))
    return alt.layer(
        base.mark_line(strokeWidth=2).encode(y=y),
        base.mark_rule(strokeWidth=1.3).encode(y="low:Q", y2="high:Q"),
        base.mark_point(filled=True, size=50, opacity=1).encode(y=y, shape=shape),
    ).properties(
        width=max(190, min(420, 24 * len(labels))), height=_HEIGHT, title=panel_title(name)
    )


def chart_shift_examples(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """How near base comes to the aligned model by the number of examples that it is shown."""
    told_by = [_EXAMPLES.fullmatch(str(edit)) for edit in frame["edit"]]
    kept = frame[[m is not None for m in told_by]]
    if kept.empty:
        return empty_chart("This run showed base no examples.", theme)
    found = [m for m in told_by if m]
    kept = kept.assign(count=[int(m["count"]) for m in found], style=[m["kind"] for m in found])
    none = kept[kept["count"] == 0].assign(style="plain")
    kept = with_text(pd.concat([kept, none], ignore_index=True))
    kept = kept[kept["position"] < 0]
    p, sides = palette(theme), _sides(kept)
    looks = {"harmful": p.harmful, "harmless": p.harmless, "": p.ink}
    names = {"": "all requests"} | {s: s for s in sides if s}
    panels = []
    for measure, axis, name in (
        ("shift_kl", "KL (nats)", "distance from the aligned model"),
        ("shifted_share", "share of tokens", "tokens shifted"),
        ("refusal_rate", "share of requests", "requests that base refuses"),
    ):
        own = kept[(kept["measure"] == measure) & kept["behaviour"].isin(sides)]
        own = own.assign(side=own["behaviour"].map(names))
        scale = alt.Scale(domain=[0, 1]) if measure == "refusal_rate" else alt.Scale(zero=True)
        base = alt.Chart(own).encode(
            x=alt.X("count:O", title="examples shown", axis=alt.Axis(labelAngle=0, grid=False)),
            color=alt.Color(
                "side:N",
                title="requests",
                scale=alt.Scale(domain=[names[s] for s in sides], range=[looks[s] for s in sides]),
            ),
            tooltip=["count", "style", "side", alt.Tooltip("said", title=axis), "n"],
        )
        dash = alt.StrokeDash(
            "style:N",
            title="examples",
            scale=alt.Scale(domain=["careful", "plain"], range=[[1, 0], [3, 3]]),
        )
        shape = alt.Shape(
            "style:N",
            title="examples",
            scale=alt.Scale(domain=["careful", "plain"], range=["circle", "square"]),
            legend=alt.Legend(symbolFillColor=p.ink, symbolStrokeColor=p.ink),
        )
        y = alt.Y("value:Q", title=axis, scale=scale)
        panels.append(
            alt.layer(
                base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash, detail="style:N"),
                base.mark_rule(strokeWidth=1.3).encode(y="low:Q", y2="high:Q"),
                base.mark_point(filled=True, size=45, opacity=1).encode(y=y, shape=shape),
            ).properties(width=190, height=_HEIGHT, title=panel_title(name))
        )
    told = "What constant examples in its context make of base"
    said = "Solid: careful examples; dotted: plain ones, the control. Bars: 95% over requests."
    chart = alt.hconcat(*panels, spacing=26)
    chart = chart.properties(title=title(told, said, width=700), description=told)
    return finish(chart, theme)
