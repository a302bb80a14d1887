"""What states and directions promote in the vocabulary: charts of the frames of a lens."""

from __future__ import annotations

import altair as alt
import pandas as pd

from experiments.figures.look import (
    Figure,
    Palette,
    Theme,
    depth_axis,
    depth_width,
    empty_chart,
    figure,
    finish,
    palette,
    panel_title,
    place,
    rounded,
    steps,
    title,
    with_depth,
)

#: Marks of a word's beginning in tokenizers' names of tokens, and what is drawn for them.
_BEGINNINGS = {"Ġ": "·", "▁": "·", "Ċ": "⏎"}
_LETTERS = 9


def chart_logit_lens(
    frame: pd.DataFrame, theme: Theme = "light", *, text: int | None = None
) -> Figure:
    """The token that the logit lens ranks first, at each depth and position of one text.

    Args:
        frame: what `interventions.logit_lens` gives.
        text: which of its texts; the first where None.
    """
    if not {"rank", "token", "input"} <= {*frame.columns} or frame.empty:
        return empty_chart("This run looked through no lens: no tokens to show.", theme)
    text = int(frame["text"].min()) if text is None else text
    rows = frame[(frame["text"] == text) & (frame["rank"] == 1)]
    if rows.empty:
        return empty_chart(f"This run looked through no lens at text {text}.", theme)
    rows, labels = with_depth(rows, rows)
    rows = rows.assign(
        shown=[_shown(token) for token in rows["token"]],
        column=[_column(p, word) for p, word in zip(rows["position"], rows["input"])],
    )
    columns = list(rows.sort_values("position")["column"].unique())
    step = 66 if len(columns) <= 20 else max(14, 1320 // len(columns))
    p = palette(theme)
    base = alt.Chart(rows).encode(
        x=alt.X(
            "column:N",
            scale=alt.Scale(domain=columns),
            title="position and token read there",
            axis=alt.Axis(labelAngle=0 if step > 40 else -60, labelLimit=90),
        ),
        y=alt.Y(
            "depth:N",
            scale=alt.Scale(domain=labels[::-1]),
            title="after block",
        ),
        tooltip=[
            "site",
            "position",
            "input",
            "token",
            alt.Tooltip("probability", format=".3f"),
            alt.Tooltip("logit", format=".2f"),
        ],
    )
    tiles = base.mark_rect(stroke=p.ground, strokeWidth=1.5).encode(
        color=alt.Color(
            "probability:Q",
            title=["probability of", "the top token"],
            scale=alt.Scale(domain=[0, 0.5, 1], range=list(p.ramp)),
            legend=steps([1, 0.75, 0.5, 0.25, 0], ".2f"),
        )
    )
    layers = [tiles]
    if step > 40:
        layers.append(_tokens(base, p, theme))
    told = _agreement(rows, labels)
    below = "Last norm and unembedding applied to the stream at each depth. · begins a word."
    width = step * len(columns)
    chart = alt.layer(*layers).properties(
        width=width,
        height=30 * len(labels),
        title=title(told, below, width=max(width, 400)),
        description=told,
    )
    return finish(chart, theme)


def chart_promoted_tokens(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """The tokens that each axis of a subspace promotes, to the right, and suppresses, to the left.

    Args:
        frame: what `interventions.promoted_tokens` gives, of one choice of `gain`.
    """
    if not {"axis", "sign", "token"} <= {*frame.columns} or frame.empty:
        return empty_chart("This run looked at no direction: no promoted tokens to show.", theme)
    rows = frame.assign(
        amount=frame["sign"] * frame["logit"],
        side=frame["sign"].map({1: "promoted", -1: "suppressed"}),
        shown=[_shown(token) for token in frame["token"]],
    )
    most = float(rows["amount"].abs().max()) or 1.0
    panels = [
        _panel(own, f"{name}, axis {axis}" if own_axes > 1 else str(name), most, theme)
        for (name, axis), own in rows.groupby(["direction", "axis"], sort=False)
        for own_axes in [rows[rows["direction"] == name]["axis"].nunique()]
    ]
    lines = [alt.hconcat(*panels[i : i + 3]) for i in range(0, len(panels), 3)]
    best = rows.loc[rows["amount"].idxmax()]
    told = f"Most promoted: {_shown(best['token'])} by {best['direction']}"
    how = (
        "far out along it, through the last norm"
        if bool(rows["gain"].iloc[0])
        else "by a step of length 1, without the last norm"
    )
    below = (
        f"Logits that the direction itself gives, {how}. Right: promoted; left: suppressed. "
        "· begins a word."
    )
    width = 320 * min(3, len(panels))
    whole = alt.vconcat(*lines).properties(
        title=title(told, below, width=max(width, 420)), description=told
    )
    return finish(whole, theme)


def chart_lens_divergence(frame: pd.DataFrame, theme: Theme = "light") -> Figure:
    """How far the lens is from the model's own prediction at each depth.

    Args:
        frame: what `interventions.lens_divergence` gives.
    """
    if "tokens" not in frame.columns or "site" not in frame.columns or frame.empty:
        return empty_chart("This run looked through no lens: no divergence to show.", theme)
    rows, labels = with_depth(frame, frame)
    rows = rows.assign(said=[figure(row) for _, row in rows.iterrows()])
    p = palette(theme)
    base = alt.Chart(rows).encode(
        x=depth_axis(labels),
        tooltip=["site", alt.Tooltip("said", title="nats"), "n", "tokens"],
    )
    y = alt.Y("value:Q", title="KL(final || lens), nats per token", scale=alt.Scale(zero=True))
    bars = base.mark_rule(strokeWidth=1.5, color=p.ink).encode(y=alt.Y("low:Q"), y2="high:Q")
    line = base.mark_line(strokeWidth=2.2, color=p.ink).encode(y=y)
    dots = base.mark_point(size=45, filled=True, opacity=1, color=p.ink).encode(y=y)
    first, last = rows.iloc[0], rows.iloc[-1]
    told = (
        f"The lens is {rounded(first['value'])} nats from the model's prediction at "
        f"{place(first['depth'])} and {rounded(last['value'])} at {place(last['depth'])}"
    )
    level = f"{float(rows['level'].iloc[0]):.0%}"
    below = f"Bars: {level} intervals over {int(rows['n'].iloc[0])} groups of texts."
    width = depth_width(labels)
    chart = alt.layer(bars, line, dots).properties(
        width=width, height=240, title=title(told, below, width=width), description=told
    )
    return finish(chart, theme)


def _panel(rows: pd.DataFrame, heading: str, most: float, theme: Theme) -> Figure:
    p = palette(theme)
    rows = rows.sort_values("amount", ascending=False)
    keys = [f"{token}\u2009{i}" for token, i in zip(rows["shown"], range(len(rows)))]
    rows = rows.assign(key=keys)
    y = alt.Y("key:N", sort=keys, title=None, axis=None)
    base = alt.Chart(rows).encode(
        y=y, tooltip=["token", "token_id", "side", alt.Tooltip("logit", format=".3f")]
    )
    x = alt.X("amount:Q", title="logit", scale=alt.Scale(domain=[-1.45 * most, 1.45 * most]))
    bars = base.mark_bar().encode(
        x=x,
        color=alt.Color(
            "side:N",
            legend=None,
            scale=alt.Scale(domain=["promoted", "suppressed"], range=[p.split[2], p.split[0]]),
        ),
    )
    right, left = (
        base.transform_filter(alt.datum.sign == sign)
        .mark_text(align=align, dx=4 * sign, size=11, color=p.ink)  # type: ignore[arg-type]
        .encode(x=x, text="shown:N")
        for sign, align in ((1, "left"), (-1, "right"))
    )
    return alt.layer(bars, right, left).properties(
        width=260, height=15 * len(rows), title=panel_title(heading)
    )


def _tokens(base: alt.Chart, p: Palette, theme: Theme) -> alt.Chart:
    over = "#ffffff" if theme == "light" else "#0e1117"
    return base.mark_text(size=11).encode(
        text="shown:N",
        color=alt.condition(alt.datum.probability > 0.6, alt.value(over), alt.value(p.ink)),
    )


def _agreement(rows: pd.DataFrame, labels: list[str]) -> str:
    """How many positions have the last row's token on top one row before."""
    if len(labels) < 2:
        return f"The token that the lens ranks first at {place(labels[-1])}"
    tops = rows.pivot_table(index="position", columns="depth", values="token_id", aggfunc="first")
    same = float((tops[labels[-1]] == tops[labels[-2]]).mean())
    return (
        f"{same:.0%} of positions have the top token of {place(labels[-1])} on top already at "
        f"{place(labels[-2])}"
    )


def _shown(token: str) -> str:
    for mark, drawn in _BEGINNINGS.items():
        token = token.replace(mark, drawn)
    return token if len(token) <= _LETTERS else f"{token[: _LETTERS - 1]}…"


def _column(position: int, word: str) -> str:
    return f"{position} {_shown(word)}"
