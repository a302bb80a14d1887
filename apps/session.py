"""What every page of the explorer works on: the runs here, the one that is open, its depth.

The page's address holds all of it, so that a link shows the same view. Nothing here opens a model.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from experiments import figures
from experiments.runner import PROJECTION, PROJECTION_AXES

#: A finished run that comes with the code, so that there is something to see before any other.
EXAMPLE = Path(__file__).with_name("example")
_EXAMPLE_NAME = "example: organism/aligned"
_HELP = "`isogloss run compare` makes one"


@dataclass(frozen=True)
class Opened:
    """The run that the pages show, and the depth at which they look.

    `depth` is its label among all of the run's sites, `site` the site's full name, empty where the
    run measured at none; `kind` the kind of site looked at, empty where the run has only one.
    """

    name: str
    run: Path
    frame: pd.DataFrame
    depth: str | None
    site: str
    kind: str

    @property
    def table(self) -> Path:
        """The file that `frame` is from."""
        return self.run / "results.parquet"

    @property
    def model(self) -> str:
        """What the run's settings call its model."""
        return str(config(self.run).get("model", ""))


def started_with() -> argparse.Namespace:
    """The folder, the model, and whether the example is offered, as `apps.launch` passed them."""
    parser = argparse.ArgumentParser(prog="explorer")
    parser.add_argument("root", nargs="?", default="runs")
    parser.add_argument("--model", default="")
    parser.add_argument("--example", action="store_true")
    return parser.parse_args(sys.argv[1:])


def find_runs(root: Path) -> dict[str, Path]:
    """Runs at or below `root` by name: those with results first, and the newest of them."""
    if not root.is_dir():
        return {}
    if (root / "config.toml").is_file() or (root / "results.parquet").is_file():
        return {root.resolve().name: root}
    found = [p.parent for p in root.rglob("config.toml")]
    found.sort(key=_standing, reverse=True)
    return {str(run.relative_to(root)): run for run in found}


def _standing(run: Path) -> tuple[bool, float]:
    """Whether it has results, and when it was begun: no page opens on a run that is under way."""
    return (run / "results.parquet").is_file(), (run / "config.toml").stat().st_mtime


def offered() -> dict[str, Path]:
    """Every run that a page may read; there is no other way to name one."""
    told = started_with()
    runs = find_runs(Path(told.root))
    if told.example and EXAMPLE.is_dir():
        runs = {_EXAMPLE_NAME: EXAMPLE} | runs
    return runs


def finished() -> list[str]:
    """The names of those that have results."""
    return [name for name, run in offered().items() if (run / "results.parquet").is_file()]


def config(run: Path) -> dict[str, Any]:
    """The settings of a run; nothing where they cannot be read."""
    try:
        return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return {}


@st.cache_data(max_entries=8, show_spinner=False)
def _read(path: str, changed_ns: int, size: int) -> pd.DataFrame:
    """A table; `changed_ns` and `size` make a rewritten file a new entry."""
    return pd.read_parquet(path)


def read_table(path: Path) -> pd.DataFrame:
    """A table of a run.

    Raises:
        OSError, ValueError: no such file, or no table.
    """
    return _read(*state_of(path))


def results(run: Path) -> pd.DataFrame:
    """The run's results; where there are none the page says so and ends."""
    table = run / "results.parquet"
    if not table.is_file():
        st.info(
            f"The run `{run.name}` has no results yet; go on with it under Runs, or by `isogloss "
            f"run EXPERIMENT --config {run / 'config.toml'} --out {run}`."
        )
        st.stop()
    try:
        return read_table(table)
    except (OSError, ValueError):
        st.error(f"`{table}` cannot be read as a table of results; run the experiment again.")
        st.stop()


@st.cache_data(max_entries=40, show_spinner=False)
def _read_site(path: str, changed_ns: int, size: int, site: str) -> pd.DataFrame:
    """The rows of a table at one site."""
    return pd.read_parquet(path, filters=[("site", "==", site)])


def directions(run: Path) -> pd.DataFrame:
    """The directions on which the run saw its texts; empty where it projected none."""
    try:
        return read_table(run / PROJECTION_AXES)
    except (OSError, ValueError):
        return pd.DataFrame()


def points(run: Path, site: str) -> pd.DataFrame:
    """The run's texts on its directions at a site; empty where it projected none."""
    try:
        return _read_site(*state_of(run / PROJECTION), site)
    except (OSError, ValueError):
        return pd.DataFrame()


def state_of(path: Path) -> tuple[str, int, int]:
    """A file and when it changed to what size: what is kept of it is known by that.

    Raises:
        OSError: no such file.
    """
    told = path.stat()
    return str(path), told.st_mtime_ns, told.st_size


def begin() -> None:
    """Draw what all pages share, in the sidebar."""
    runs = offered()
    with st.sidebar:
        if runs:
            name = st.selectbox("Run", list(runs), key="run", bind="query-params")
            table = runs[name] / "results.parquet"
            if table.is_file():
                _choose_depth(table)


def _choose_depth(table: Path) -> None:
    """The slider that says at which depth to look."""
    try:
        frame = read_table(table)
    except (OSError, ValueError):
        return  # the page says it
    kinds = figures.kinds_of(frame)
    if len(kinds) > 1:
        best = _best_site(frame)
        known = [best in set(figures.of_kind(frame, kind)["site"]) for kind in kinds]
        kind = st.selectbox(
            "Kind of site",
            kinds,
            index=known.index(True) if any(known) else len(kinds) - 1,
            key="kind",
            bind="query-params",
            help="Each has a curve and a projection of its own. It starts where the best layer is.",
        )
        frame = figures.of_kind(frame, kind)
    sites = figures.depths(frame)
    labels = list(sites.values())
    if len(labels) > 1:
        st.select_slider(
            "Layer",
            labels,
            value=sites.get(_best_site(frame), labels[-1]),
            key="layer",
            bind="query-params",
            help="Or click a point of a curve under Layers. It starts at the best layer.",
        )


def _best_site(frame: pd.DataFrame) -> str:
    """Where variety, else behaviour, is read best; empty where neither was asked."""
    for measure in ("variety_probe_accuracy", "behaviour_probe_accuracy"):
        rows = frame[(frame["measure"] == measure) & (frame["control"] == "")]
        if len(rows):
            return str(rows.loc[rows["value"].idxmax(), "site"])
    return ""


def opened() -> Opened:
    """The run that is open; where there is none the page says so and ends."""
    runs = offered()
    if not runs:
        root = Path(started_with().root)
        what = "holds no run" if root.is_dir() else "does not exist"
        st.info(f"The folder `{root}` {what}; {_HELP}.")
        st.stop()
    name = st.session_state.get("run", next(iter(runs)))
    frame = results(runs[name])
    kinds = figures.kinds_of(frame)
    kind = st.session_state.get("kind") if len(kinds) > 1 else ""
    kind = kind if kind in kinds else ""
    at = {label: site for site, label in sites_of(frame, kind).items()}
    depth = st.session_state.get("layer")
    site = at.get(str(depth), next(iter(at.values())) if len(at) == 1 else "")
    return Opened(name, runs[name], frame, figures.depths(frame).get(site), site, kind)


def sites_of(frame: pd.DataFrame, kind: str) -> dict[str, str]:
    """Site to label, of all sites or of one kind's."""
    return figures.depths(figures.of_kind(frame, kind))


def take_click(key: str) -> None:
    """A clicked point of a curve moves the layer's slider, and the slider the page's address."""
    hits = st.session_state[key]["selection"].get("pick") or []
    if hits:
        st.session_state["layer"] = hits[0]["depth"]
