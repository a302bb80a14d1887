"""Prompts of one's own: the map of two, and what steering one does by strength."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt
import pandas as pd

from experiments.figures.look import (
    Figure,
    Theme,
    empty_chart,
    finish,
    palette,
    panel_title,
    place,
    steps,
    title,
)


def chart_prompt_map(
    cells: pd.DataFrame,
    tokens: pd.DataFrame,
    depths: Sequence[str],
    theme: Theme = "light",
    *,
    pick: str | None = None,
    at: tuple[str, int] | None = None,
) -> Figure:
    """Share of the gap between two prompts that each state closes, also while it is being found.

    Axes and colours stay as they are while cells come in: grey is not yet known, and colours reach
    from -1 to 1, beyond which they do not change.

    Args:
        cells: `depth`, `position`, `recovered`, as far as known.
        tokens: as `experiments.prompt_pair.token_columns` gives them.
        depths: labels of all depths, the first computed first.
        pick: name of a selection that a click fills with `depth` and `position`.
        at: depth and position of the cell that is framed.
    """
    p = palette(theme)
    words = [
        f"{position} {word.strip() or '␣'}"
        for position, word in zip(tokens["position"], tokens["base"], strict=True)
    ]
    names = dict(zip(tokens["position"], words, strict=True))
    ground = pd.DataFrame(
        [(d, int(q), w) for d in depths for q, w in names.items()],
        columns=["depth", "position", "word"],
    )
    if len(cells):
        ground = ground.merge(cells[["depth", "position", "recovered"]], how="left")
    else:
        ground["recovered"] = float("nan")
    base = alt.Chart(ground).encode(
        x=alt.X(
            "word:N",
            title="token of the base prompt, and its place from the end",
            scale=alt.Scale(domain=words),
            sort=words,
            axis=alt.Axis(labelAngle=-50),
        ),
        y=alt.Y("depth:N", title="after block", scale=alt.Scale(domain=list(depths)[::-1])),
        tooltip=["depth", "word", alt.Tooltip("recovered", format=".3f")],
    )
    blank = base.mark_rect(stroke=p.ground, strokeWidth=1, color=p.grid)
    if pick:
        blank = blank.add_params(
            alt.selection_point(name=pick, fields=["depth", "position"], on="click", empty=False)
        )
    colour = alt.Color(
        "recovered:Q",
        title=["share of the", "gap closed"],
        scale=alt.Scale(domain=[-1, 1], domainMid=0, range=list(p.split), clamp=True),
        legend=steps([1, 0.5, 0, -0.5, -1], ".1f"),
    )
    tiles = base.mark_rect(stroke=p.ground, strokeWidth=1).encode(color=colour)
    tiles = tiles.transform_filter("isValid(datum.recovered)")
    found = ground.dropna(subset=["recovered"])
    told = "Nothing is known yet"
    if len(found):
        best = found.loc[found["recovered"].idxmax()]
        told = (
            f"The state at {place(str(best['depth']))} of {best['word'].partition(' ')[2]!r} "
            f"closes {best['recovered']:.0%} of the gap, the most"
        )
    below = "1: the base prompt then predicts as the source prompt does. 0: nothing changed."
    step = 44 if len(words) <= 16 else max(18, 704 // len(words))
    width = step * len(words)
    layers: list[alt.Chart] = [blank, tiles]
    if at is not None:
        framed = ground[ground["depth"].eq(at[0]) & ground["position"].eq(at[1])]
        # One mark for the cell alone: a frame drawn by its neighbours would be half hidden.
        frame = alt.Chart(framed).mark_rect(filled=False, stroke=p.ink, strokeWidth=2.5)
        layers.append(frame.encode(x=base.encoding.x, y=base.encoding.y))
    chart = alt.layer(*layers).properties(
        width=width,
        height=max(120, 26 * len(depths)),
        title=title(told, below, width=max(width, 380) + 60),
        description=told,
    )
    return finish(chart, theme)


_LINES = {"steered": "steered", "random": "random direction, as long"}
_PANELS = {
    "kl": ("what changes in the first token", "KL from the plain model (nats)"),
    "loss": ("how odd the plain model finds the reply", "loss (nats a token)"),
}


def chart_prompt_doses(rows: pd.DataFrame, theme: Theme = "light") -> Figure:
    """One prompt by strength of steering: what changes, and how odd the reply becomes.

    Args:
        rows: `strength`, `kind` (plain, steered, random), `kl`, `loss`, `reply`.
    """
    if rows.empty or not rows["kind"].isin(list(_LINES)).any():
        return empty_chart("Nothing is steered yet.", theme)
    p = palette(theme)
    plain = rows[rows["kind"] == "plain"]
    # At strength 0 either line is the plain model.
    starts = [plain.assign(kind=kind) for kind in _LINES]
    rows = pd.concat([*starts, rows[rows["kind"] != "plain"]])
    rows = rows.assign(line=rows["kind"].map(_LINES))
    names = list(_LINES.values())
    panels = []
    for column, (heading, axis) in _PANELS.items():
        base = alt.Chart(rows).encode(
            x=alt.X("strength:Q", title="strength (differences of means)"),
            y=alt.Y(f"{column}:Q", title=axis),
            color=alt.Color(
                "line:N", title=None, scale=alt.Scale(domain=names, range=[p.ink, p.null])
            ),
            tooltip=["line", "strength", alt.Tooltip(column, format=".3f"), "reply"],
        )
        dash = alt.StrokeDash(
            "line:N", title=None, scale=alt.Scale(domain=names, range=[[1, 0], [5, 3]])
        )
        shape = alt.Shape(
            "line:N", title=None, scale=alt.Scale(domain=names, range=["circle", "diamond"])
        )
        layers = [
            base.mark_line(strokeWidth=2).encode(strokeDash=dash),
            base.mark_point(filled=True, size=55, opacity=1).encode(shape=shape),
        ]
        if column == "loss" and len(plain):
            rule = alt.Chart(plain).mark_rule(color=p.quiet, strokeDash=[2, 3])
            layers.insert(0, rule.encode(y=f"{column}:Q"))
        panels.append(
            alt.layer(*layers).properties(width=270, height=200, title=panel_title(heading))
        )
    told = "What steering does to this prompt, by strength"
    below = "One prompt, so no intervals. Dotted: the plain model's own reply."
    chart = alt.hconcat(*panels, spacing=26).properties(
        title=title(told, below, width=620), description=told
    )
    return finish(chart, theme)
