"""Layers: what a linear reader finds at each depth, and the texts at the chosen one as points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from apps import session
from apps.charts import kept
from apps.showing import numbers, share_run, show, table, theme
from experiments import figures
from experiments.runner import PROJECTION

_LISTED = ["text", "variety", "behaviour", "group"]
_PROBES = ("variety", "behaviour")
_LASSO = "The same points in a chart that has a lasso."


def main() -> None:
    """Curves first, the map of texts below."""
    opened = session.opened()
    st.header("Layers")
    share_run(opened.run, "chart_probe_curve")
    sites = session.sites_of(opened.frame, opened.kind)
    for name in _PROBES:
        measure = f"{name}_probe_accuracy"
        rows = figures.of_kind(opened.frame, opened.kind)
        asked = (rows["measure"] == measure).any()
        if name == "behaviour" and not asked:
            continue
        at = sites.get(opened.site)
        chart = kept(opened.table, _curve, opened.kind, theme(), measure=measure, at=at)
        key = f"{name}_curve"
        if asked and len(sites) > 1:
            show(chart, key, on_select=lambda k=key: session.take_click(k))
        else:
            show(chart, key)
        table(rows, measure)
    st.fragment(_projection)(opened)
    show(kept(opened.table, _alike, opened.kind, theme()), "cka")
    rows = figures.of_kind(opened.frame, opened.kind)
    table(rows, "cka", "participation_ratio", "intrinsic_dimension", "anisotropy")
    show(kept(opened.table, figures.chart_reliability, theme()), "reliability")
    table(opened.frame, "reliability", "reliability_confidence", "calibration_error")


def _curve(frame: pd.DataFrame, kind: str, *args: Any, **kwargs: Any) -> figures.Figure:
    """What is read at each depth, by sites of one kind."""
    return figures.chart_probe_curve(figures.of_kind(frame, kind), *args, **kwargs, pick="pick")


def _alike(frame: pd.DataFrame, kind: str, *args: Any) -> figures.Figure:
    """How alike the depths are, by sites of one kind."""
    return figures.chart_cka(figures.of_kind(frame, kind), *args)


def _projection(opened: session.Opened) -> None:
    """The texts as points on two directions, and those in the box or the lasso as a list."""
    axes = session.directions(opened.run)
    site = opened.site or ("" if axes.empty else axes["site"].iloc[-1])
    points = session.points(opened.run, site)
    if axes.empty or (points.empty and site in set(axes["site"])):
        show(figures.chart_projection(points, axes.head(0), theme()), "projection")
        return
    across, up, hue = st.columns(3)
    keys = {name: key for key, name in figures.directions_of(axes).items()}
    chosen = {
        c: keys[place.selectbox(label, list(keys), list(keys.values()).index(usual), **_linked(c))]
        for c, place, label, usual in zip(
            "xy", (across, up), ("To the right", "Upwards"), figures.usual_directions(axes)
        )
    }
    hues = [h for h, key in zip(_PROBES, ("variety_1", "harmful")) if key in keys.values()]
    colour = hue.selectbox("Colour by", hues, **_linked("colour"))
    line, lasso, _ = st.columns(3)
    join = line.toggle("Join parallel sentences", help="One group, one line.", **_linked("joined"))
    look = {"site": site, "colour": colour, "join": join, **chosen}
    # Another view is another chart: a box drawn in one says nothing about the next.
    view = "_".join(("projection", site.replace(".", "_"), *chosen.values()))
    if figures.no_picture(axes, site=site, **chosen):
        show(figures.chart_projection(points, axes, theme(), **look), view)
        return
    seen = (session.state_of(opened.run / PROJECTION), points, axes, theme(), tuple(look.items()))
    # Streamlit has charts with a lasso from 1.67 on.
    if hasattr(st, "echarts_chart") and lasso.toggle("Lasso", help=_LASSO, **_linked("lasso")):
        inside = _in_lasso(_lasso(*seen), view)
        _list(points, inside, "lasso", "Press the lasso below the title, then draw round points.")
    else:
        box = show(_map(*seen), view, on_select="rerun")["selection"].get("box") or {}
        inside = np.zeros(len(points), dtype=bool)
        if {"x", "y"} <= set(box):
            inside = np.logical_and(*(points[chosen[c]].between(*box[c]) for c in "xy"))
        _list(points, inside if box else None, "box", "Drag a box over points to list their texts.")
    numbers(points, "projection", label="All points")


@st.cache_resource(max_entries=40, show_spinner=False)
def _map(
    state: tuple[str, int, int],
    _points: pd.DataFrame,
    _axes: pd.DataFrame,
    theme: figures.Theme,
    look: tuple[tuple[str, Any], ...],
) -> figures.Figure:
    """The chart of the file in that state, made once: a box drawn in it changes nothing of it."""
    return figures.chart_projection(_points, _axes, theme, **dict(look), box="box")


@st.cache_resource(max_entries=40, show_spinner=False)
def _lasso(
    state: tuple[str, int, int],
    _points: pd.DataFrame,
    _axes: pd.DataFrame,
    theme: figures.Theme,
    look: tuple[tuple[str, Any], ...],
) -> figures.Lasso:
    """As `_map`, with a lasso."""
    return figures.lasso_projection(_points, _axes, theme, **dict(look))


def _linked(key: str) -> dict[str, Any]:
    """A widget whose state the address holds."""
    return {"key": key, "bind": "query-params"}


def _in_lasso(lasso: figures.Lasso, view: str) -> np.ndarray | None:
    """Which of the points lie in what was drawn; None where nothing was."""
    picked = st.echarts_chart(
        lasso.option,
        key=f"lasso_{view}",
        width=figures.LASSO_WIDTH,
        height=lasso.height,
        theme=None,
        alt=lasso.told,
        on_select="rerun",
    )["selection"]
    if not picked["areas"] and not picked["selected"]:
        return None
    inside = np.zeros(sum(map(len, lasso.rows.values())), dtype=bool)
    for found in picked["selected"]:
        rows = lasso.rows.get(found["series_id"], np.zeros(0, dtype=int))
        inside[rows[[i for i in found["data_indices"] if i < len(rows)]]] = True
    return inside


def _list(points: pd.DataFrame, inside: np.ndarray | None, what: str, how: str) -> None:
    """The texts that were selected, how many of how many, and of which varieties."""
    if inside is None:
        st.caption(how)
        return
    kept = points[inside]
    mix = ", ".join(f"{n} {v or 'no variety'}" for v, n in kept["variety"].value_counts().items())
    st.caption(f"{len(kept)} of {len(points)} texts in the {what}: {mix or 'none'}.")
    st.dataframe(kept[_LISTED].reset_index(drop=True), hide_index=True, key=f"{what}_texts")
    numbers(kept, what, label=f"The {what}'s points")


if __name__ == "__main__":
    main()
