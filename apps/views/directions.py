"""Directions: refusal and harm over depth, their angle, each against each variety, in two runs."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from apps import session
from apps.charts import kept
from apps.showing import differences, numbers, share_run, show, table, theme
from experiments import figures
from experiments.differences import compare_results

_ALONE = "no other run"
_COSINES = ("direction_cosine", "direction_subspace_cosine")
_LAYERS = ("direction_layer_cosine", "direction_reliability")


def main() -> None:
    """The open run, and another beside it if one is chosen."""
    opened = session.opened()
    st.header("Directions")
    share_run(opened.run, "chart_direction_cosine")
    runs = session.offered()
    others = [name for name in session.finished() if name != opened.name]
    beside = _ALONE
    if others:
        beside = st.selectbox(
            "Beside it",
            [_ALONE, *others],
            key="beside",
            bind="query-params",
            help="As a base model's run beside its aligned model's.",
        )
    if beside == _ALONE:
        _alone(opened)
        return
    run = runs[beside]
    _both(opened, replace(opened, name=beside, run=run, frame=session.results(run)))


def _alone(opened: session.Opened) -> None:
    show(kept(opened.table, figures.chart_direction_cosine, theme(), at=opened.depth), "directions")
    table(opened.frame, *_COSINES)
    show(kept(opened.table, figures.chart_direction_layers, theme()), "direction_layers")
    table(opened.frame, *_LAYERS)


def _both(one: session.Opened, other: session.Opened) -> None:
    """The two runs' charts in two columns, on the same axes, and what differs below."""
    pairs = ((one, other), (other, one))
    for (run, _), column in zip(pairs, st.columns(2), strict=True):
        column.subheader(run.model or run.name)
        column.caption(f"Run {run.name}")
    known = set(one.frame["measure"]) | set(other.frame["measure"])
    # A row of columns for each kind of chart, so that the two stand level.
    for measure in [m for m in _COSINES if m in known] or _COSINES[:1]:
        for i, ((run, beside), column) in enumerate(zip(pairs, st.columns(2), strict=True)):
            chart = kept(
                run.table,
                figures.chart_direction_cosine,
                theme(),
                at=run.depth,
                measure=measure,
                beside=beside.frame,
            )
            with column:
                show(chart, f"{measure}_{i}", fluid=True)
    for i, ((run, beside), column) in enumerate(zip(pairs, st.columns(2), strict=True)):
        chart = kept(run.table, figures.chart_direction_layers, theme(), beside=beside.frame)
        with column:
            show(chart, f"direction_layers_{i}", fluid=True)
    st.subheader("Differences")
    found = compare_results(one.frame, other.frame)
    found = found[found["measure"].isin([*_COSINES, *_LAYERS]) & found["control"].eq("")]
    if found.empty:
        st.info("The two runs measured no direction at a site that both have.")
        return
    # Short, so that both runs are seen at once: all are of harm, and a depth says which site.
    labels = figures.depths(found)
    listed = found.drop(columns="behaviour").replace({"site": labels, "reference": labels})
    key = "direction_differences"
    differences(listed, key, this=one.name, other=other.name, site="depth")
    numbers(found, "direction_differences_all", label="The same, to take along")


if __name__ == "__main__":
    main()
