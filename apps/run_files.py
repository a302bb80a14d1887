"""The files of a run, to be taken along: data, figures, or all of them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from apps import session

_DATA = (".parquet", ".csv")
_PICTURES = (".png", ".svg", ".html")


def offer(run: Path) -> None:
    """Downloads of one run, and its settings to be read."""
    with st.container(horizontal=True):
        held = [file for file in run.iterdir() if _own(run, file)]
        for file in sorted(held, key=lambda f: (f.suffix not in _DATA, f.name)):
            _button(file, f"file_{file.name}")
        st.download_button(
            "All of it (ZIP)",
            _packed(run),
            file_name=f"{run.resolve().name}.zip",
            mime="application/zip",
            key="file_all",
            on_click="ignore",
        )
    _figures(run)
    with st.expander("Settings of this run"):
        st.json(session.config(run))


def _figures(run: Path) -> None:
    """The figures that the run drew, one at a time, as it drew them."""
    drawn = sorted(p for p in (run / "figures").glob("*") if p.suffix in _PICTURES)
    names = list(dict.fromkeys(p.stem for p in drawn if _own(run, p)))
    if not names:
        st.caption("This run drew no figures; the other pages draw them from its results.")
        return
    name = st.selectbox("Figure", names, key="figure")
    files = [p for p in drawn if p.stem == name and _own(run, p)]
    for picture in [p for p in files if p.suffix != ".html"][:1]:
        st.image(str(picture), width=640)
    with st.container(horizontal=True):
        for file in files:
            _button(file, f"figure{file.suffix}")


def _button(file: Path, key: str) -> None:
    # Read only when it is asked for.
    st.download_button(file.name, file.read_bytes, file_name=file.name, key=key, on_click="ignore")


def _own(run: Path, file: Path) -> bool:
    """Whether it is a file that lies in the run, and not a link to one outside."""
    return file.is_file() and file.resolve().is_relative_to(run.resolve())


def _packed(run: Path) -> Callable[[], bytes]:
    """Every file of the run directory, in one."""

    def pack() -> bytes:
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as packed:
            for file in sorted(run.rglob("*")):
                if _own(run, file):
                    packed.write(file, Path(run.resolve().name) / file.relative_to(run))
        return held.getvalue()

    return pack
