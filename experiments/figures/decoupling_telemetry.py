"""A fine-tune under decoupling, update by update: the subspace, the probe and the losses."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from experiments.figures.look import Figure, Theme, empty_chart, finish, panel_title, title

_PANELS = {
    "inside": "dialect's variance in the standard's subspace",
    "overlap": "overlap with the dialect's leading directions",
    "start_overlap": "overlap with the subspace at step 0",
    "code_nats": "code of the reference, nats a state",
    "probe_accuracy": "probe's accuracy before learning",
    "task_loss": "task loss, nats a token",
}


def chart_decoupling_telemetry(telemetry: pd.DataFrame, theme: Theme = "light") -> Figure:
    """The frame of `Decoupling.telemetry`, a panel for each quantity and a line for each layer."""
    if telemetry.empty:
        return empty_chart("No update was recorded; enter the decoupling and train.", theme)
    panels = [
        _panel(telemetry, name, said)
        for name, said in _PANELS.items()
        if telemetry[name].notna().any()
    ]
    head = "The standard's subspace while the model is tuned"
    below = (
        "Each point is an update of the probe. Dashes: by chance. Layers are blocks' outputs; the "
        "subspace is the followed one, also where a control is decoupled from another."
    )
    pairs = [alt.hconcat(*panels[i : i + 2], spacing=28) for i in range(0, len(panels), 2)]
    chart = alt.vconcat(*pairs, spacing=24).properties(
        title=title(head, below, width=700), description=head
    )
    return finish(chart, theme)


def _panel(telemetry: pd.DataFrame, name: str, said: str) -> Any:
    rows = telemetry[["step", "layer", name]].dropna()
    if name == "task_loss":  # one for all layers
        rows = rows.drop_duplicates("step").assign(layer=rows["layer"].min())
    base = alt.Chart(rows).encode(
        x=alt.X("step:Q", title="optimiser step"),
        y=alt.Y(f"{name}:Q", title=None, scale=alt.Scale(zero=name != "task_loss")),
    )
    if name != "task_loss":
        hue = alt.Color(
            "layer:O",
            title="block",
            scale=alt.Scale(scheme="viridis"),
            legend=alt.Legend(orient="bottom", symbolType="stroke"),
        )
        base = base.encode(color=hue)
    tooltip = ["step", "layer", alt.Tooltip(f"{name}:Q", format=".4f")]
    layers = [base.mark_line(strokeWidth=2), base.mark_point(size=26, filled=True)]
    layers[1] = layers[1].encode(tooltip=tooltip)
    chance = {"overlap": "chance", "code_nats": "uniform_nats"}.get(name)
    if chance is not None and telemetry[chance].notna().any():
        level = pd.DataFrame({"level": [float(telemetry[chance].mean())]})
        layers.append(
            alt.Chart(level).mark_rule(strokeDash=[4, 3], color="#8c8c8c").encode(y="level:Q")
        )
    return alt.layer(*layers).properties(width=330, height=170, title=panel_title(said))
