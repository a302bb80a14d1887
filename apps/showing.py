"""How every page shows a chart, its numbers, and the ways to take both along."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlencode, urlsplit, urlunsplit

import pandas as pd
import streamlit as st

from apps.charts import Drawn, sized
from experiments import figures
from experiments.differences import readable

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

_FLUID = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
_KINDS: dict[Literal["svg", "pdf"], str] = {"svg": "image/svg+xml", "pdf": "application/pdf"}

#: Keys of the widgets that pages bind to the address.
_LINKED = (
    *("run", "kind", "layer", "x", "y", "colour", "joined", "lasso"),
    *("pair", "beside", "against", "measure", "answers"),
    *("model", "base", "source", "states", "cell_block", "cell_token", "patched"),
    *("towards", "block", "strength", "prompt"),
)


def theme() -> figures.Theme:
    """What the reader's browser has chosen."""
    return "dark" if st.context.theme.type == "dark" else "light"


def show(chart: figures.Figure | Drawn, key: str, **options: Any) -> Any:
    """Draw a chart, with its downloads below; what was selected in it is returned."""
    picked = draw(chart, key, **options)
    st.fragment(_pictures)(chart.figure if isinstance(chart, Drawn) else chart, key)
    return picked


def _pictures(chart: figures.Figure, key: str) -> None:
    """What is closed is not drawn: a reader waits for nothing that nobody has asked for."""
    asked = st.popover(
        "Download the figure", type="tertiary", key=f"figure_{key}", on_change="rerun"
    )
    if not asked.open:
        return
    for kind, mime in _KINDS.items():
        asked.download_button(
            kind.upper(),
            _picture(chart, kind),
            file_name=f"{key}.{kind}",
            mime=mime,
            key=f"{kind}_{key}",
            on_click="ignore",
        )


def draw(chart: figures.Figure | Drawn, key: str, *, fluid: bool = False, **options: Any) -> Any:
    """Draw a chart alone, as while it fills; a kept one may be fluid, as wide as its column."""
    options |= {"key": key, "theme": None, "width": "stretch" if fluid else "content"}
    if isinstance(chart, Drawn):
        return st.vega_lite_chart(chart.spec | (_FLUID if fluid else {}), **options)
    return st.altair_chart(sized(chart), **options)


def _picture(chart: figures.Figure, kind: Literal["svg", "pdf"]) -> Callable[[], bytes]:
    """The chart as a file, drawn only when it is asked for."""

    def save() -> bytes:
        file = io.BytesIO()
        chart.save(file, format=kind)
        return file.getvalue()

    return save


def table(frame: pd.DataFrame, *measures: str) -> None:
    """The figures behind a chart, for reading and for taking along."""
    numbers(frame[frame["measure"].isin(measures)], measures[0])


def numbers(rows: pd.DataFrame, key: str, *, label: str = "Table") -> None:
    """Rows that can be opened, and taken along as CSV; columns that say nothing are left out."""
    if not rows.empty:
        st.fragment(_numbers)(rows, key, label)


def _numbers(rows: pd.DataFrame, key: str, label: str) -> None:
    """A table that is closed costs its reader nothing."""
    asked = st.expander(f"{label}: {len(rows)} rows", key=f"open_{key}", on_change="rerun")
    if not asked.open:
        return
    used = [c for c in rows.columns if not (rows[c].isna() | rows[c].isin(["", -1])).all()]
    rows = rows[used].reset_index(drop=True)
    with asked:
        st.dataframe(rows, hide_index=True, key=f"table_{key}")
        st.download_button(
            "Download CSV",
            rows.to_csv(index=False).encode(),
            file_name=f"{key}.csv",
            mime="text/csv",
            key=f"csv_{key}",
            on_click="ignore",
        )


def differences(found: pd.DataFrame, key: str, *, this: str, other: str, **headings: str) -> None:
    """Figures of the two runs of these names, each with its interval, and the difference."""
    st.dataframe(
        readable(found),
        hide_index=True,
        key=key,
        column_config=headings
        | {
            "this": this,
            "other": other,
            "difference": st.column_config.NumberColumn(format="%+.3f"),
        },
    )
    st.caption(
        "Each run's interval stands beside its figure. A difference has none of its own: the two "
        "runs may share their sentences, and then are not independent."
    )


def whole_number(place: DeltaGenerator, label: str, most: int, **options: Any) -> int | None:
    """A field for a number from 0 to `most` that the address holds; None while it is empty."""
    # Of whole numbers Streamlit cannot read an address that says `inf`.
    number = place.number_input(
        label,
        min_value=0.0,
        max_value=float(most),
        step=1.0,
        format="%.0f",
        bind="query-params",
        **options,
    )
    return None if number is None else int(number)


def share(python: str, cli: str) -> None:
    """The page's link, and the same in Python and on the command line, each to be copied."""
    st.fragment(_share)(python, cli)


def _share(python: str, cli: str) -> None:
    asked = st.popover("Copy as …", key="share", on_change="rerun")
    if not asked.open:
        return
    with asked:
        st.caption("Link to this view")
        st.code(link(), language=None)
        st.caption("Python")
        st.code(python, language="python")
        st.caption("Command line")
        st.code(cli, language="bash")


def link() -> str:
    """The address that shows this view."""
    place = urlsplit(str(st.context.url or "http://127.0.0.1/"))
    # The address itself follows a click only once the page has been drawn.
    chosen = {key: st.session_state.get(key) for key in _LINKED}
    told = {key: _in_address(value) for key, value in chosen.items() if value is not None}
    query = urlencode(st.query_params.to_dict() | told)
    return urlunsplit((place.scheme, place.netloc, place.path, query, ""))


def _in_address(value: object) -> str:
    """A widget's value as Streamlit writes and reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def share_run(run: Path, chart: str, *, experiment: str = "compare") -> None:
    """`share` for a page that reads a run."""
    results = str(run / "results.parquet")
    python = (
        "import pandas as pd\nfrom experiments import figures\n\n"
        f"results = pd.read_parquet({results!r})\nfigures.{chart}(results)"
    )
    settings = shlex.quote(str(run / "config.toml"))
    share(python, f"isogloss run {experiment} --config {settings}")
