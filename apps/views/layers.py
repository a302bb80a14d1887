"""Layers: what a linear reader finds at each depth, and the texts at the best one as points."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from apps import session
from apps.showing import numbers, share_run, show, table, theme
from experiments import figures

_LISTED = ["text", "variety", "behaviour", "group"]


def main() -> None:
    """Curves first, the map of texts below."""
    opened = session.opened()
    st.header("Layers")
    share_run(opened.run, "chart_probe_curve")
    frame = opened.frame
    for kind in ("variety", "behaviour"):
        measure = f"{kind}_probe_accuracy"
        if kind == "behaviour" and not (frame["measure"] == measure).any():
            continue
        chart = figures.chart_probe_curve(
            frame, theme(), measure=measure, at=opened.depth, pick="pick"
        )
        key = f"{kind}_curve"
        if (frame["measure"] == measure).any() and len(figures.depths(frame)) > 1:
            show(chart, key, on_select=lambda k=key: session.take_click(k))
        else:
            show(chart, key)
        table(frame, measure)
    _projection(session.points(opened.run))
    show(figures.chart_cka(frame, theme()), "cka")
    table(frame, "cka", "participation_ratio", "intrinsic_dimension", "anisotropy")
    show(figures.chart_reliability(frame, theme()), "reliability")
    table(frame, "reliability", "reliability_confidence", "calibration_error")


def _projection(points: pd.DataFrame) -> None:
    """The texts as points, and those in the box as a list."""
    if points.empty:
        show(figures.chart_projection(points, theme()), "projection")
        return
    joined = st.toggle(
        "Join parallel sentences", key="joined", bind="query-params", help="One group, one line."
    )
    chart = figures.chart_projection(points, theme(), join=joined, box="box")
    picked = show(chart, "projection", on_select="rerun")
    box = picked["selection"].get("box") or {}
    if not {"x", "y"} <= set(box):
        st.caption("Drag a box over points to list their texts.")
        numbers(points, "projection", label="All points")
        return
    inside = points[points["x"].between(*box["x"]) & points["y"].between(*box["y"])]
    mix = ", ".join(f"{n} {v or 'no variety'}" for v, n in inside["variety"].value_counts().items())
    st.caption(f"{len(inside)} of {len(points)} texts in the box: {mix or 'none'}.")
    st.dataframe(inside[_LISTED].reset_index(drop=True), hide_index=True, key="boxed")
    numbers(inside, "box", label="The box's points")


if __name__ == "__main__":
    main()
