"""Directions: refusal and harm over depth, their angle, each against each variety, in two runs."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from apps import session
from apps.showing import numbers, share_run, show, theme
from experiments import figures

_ALONE = "no other run"


def main() -> None:
    """The open run, and another beside it if one is chosen."""
    opened = session.opened()
    st.header("Directions")
    share_run(opened.run, "chart_direction_cosine")
    others = [name for name in session.offered() if name != opened.name]
    beside = _ALONE
    if others:
        beside = st.selectbox(
            "Beside it",
            [_ALONE, *others],
            key="beside",
            bind="query-params",
            help="As a base model's run beside its aligned model's.",
        )
    _directions(opened.frame, opened.depth, "")
    if beside != _ALONE:
        st.subheader(beside)
        _directions(session.results(session.offered()[beside]), opened.depth, "_beside")


def _directions(frame: pd.DataFrame, depth: str | None, suffix: str) -> None:
    show(figures.chart_direction_cosine(frame, theme(), at=depth), f"directions{suffix}")
    rows = frame[frame["measure"].isin(["direction_cosine", "direction_subspace_cosine"])]
    numbers(rows, f"direction_cosine{suffix}")
    show(figures.chart_direction_layers(frame, theme()), f"direction_layers{suffix}")
    rows = frame[frame["measure"].isin(["direction_layer_cosine", "direction_reliability"])]
    numbers(rows, f"direction_layers{suffix}")


if __name__ == "__main__":
    main()
