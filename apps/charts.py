"""Charts of tables on disk, each made once for all readers of a server.

Most of what a page with charts takes is making them; a reader who comes back to one, or moves the
layer's slider, waits only for what is new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import pandas as pd
import streamlit as st

from apps.session import read_table, state_of
from experiments import figures

P = ParamSpec("P")


@dataclass(frozen=True, eq=False)
class Drawn:
    """A chart, and what the browser is sent of it."""

    figure: figures.Figure
    spec: dict[str, Any]


def kept(
    table: Path,
    make: Callable[Concatenate[pd.DataFrame, P], figures.Figure],
    *args: P.args,
    **kwargs: P.kwargs,
) -> Drawn:
    """`make` of the table at that path, from before if the file has not changed since."""
    return _made(state_of(table), _name(make), args, kwargs, make)


def sized(figure: figures.Figure) -> figures.Figure:
    """The chart as a page has it: Streamlit would squeeze the plot to make room for its title."""
    return figure.properties(autosize="pad", background="transparent")


def _name(make: Callable[..., Any]) -> str:
    return f"{make.__module__}.{make.__qualname__}"


@st.cache_resource(max_entries=200, show_spinner=False)
def _made(
    state: tuple[str, int, int],
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    _make: Callable[..., figures.Figure],
) -> Drawn:
    figure = _make(read_table(Path(state[0])), *args, **kwargs)
    return Drawn(figure, sized(figure).to_dict())
