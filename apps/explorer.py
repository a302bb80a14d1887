"""The explorer's pages: what a run found, to look at and click through. No model is opened.

Run by `apps.launch.explore`; the folder to read comes after `--` on the command line. Every
control that belongs in a link is bound to the address of the page.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from experiments import figures
from experiments.runner import PROJECTION

_HELP = "`isogloss run compare` makes one"


def find_runs(root: Path) -> dict[str, Path]:
    """Runs at or below `root` by name, the newest first."""
    if (root / "config.toml").is_file() or (root / "results.parquet").is_file():
        return {root.resolve().name: root}
    found = [p.parent for p in root.rglob("config.toml")]
    found.sort(key=lambda run: (run / "config.toml").stat().st_mtime, reverse=True)
    return {str(run.relative_to(root)): run for run in found}


@st.cache_data(max_entries=8, show_spinner=False)
def read_results(path: str, changed_ns: int) -> pd.DataFrame:
    """The run's table; `changed_ns` makes a rewritten file a new entry."""
    return pd.read_parquet(path)


def main() -> None:
    st.set_page_config(page_title="Isogloss", page_icon="🗺️", layout="wide")
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "runs")
    run = _choose_run(root)
    if run is None:
        return
    table = run / "results.parquet"
    if not table.is_file():
        st.info(
            f"The run `{run.name}` has no results yet; `isogloss run compare --config "
            f"{run / 'config.toml'} --out {run}` finishes it."
        )
        return
    try:
        frame = read_results(str(table), table.stat().st_mtime_ns)
    except (OSError, ValueError):
        st.error(f"`{table}` cannot be read as a table of results; run the experiment again.")
        return
    labels = list(figures.depths(frame).values())
    tabs = st.tabs(["Layers", "Varieties", "Directions", "Cause", "Patching map", "Report"])
    depth = _choose_depth(frame, labels)
    pages = (_layers, _varieties, _directions, _causes, _patching)
    for tab, page in zip(tabs, pages, strict=False):
        with tab:
            page(frame, depth)
    with tabs[pages.index(_directions)]:
        _projection(run)
    with tabs[-1]:
        _report(run)


def _choose_run(root: Path) -> Path | None:
    runs = find_runs(root) if root.is_dir() else {}
    with st.sidebar:
        st.title("Isogloss")
        if runs:
            name = st.selectbox("Run", list(runs), key="run", bind="query-params")
    if not runs:
        what = "holds no run" if root.is_dir() else "does not exist"
        st.info(f"The folder `{root}` {what}; {_HELP}.")
        return None
    return runs[name]


def _choose_depth(frame: pd.DataFrame, labels: list[str]) -> str | None:
    """The slider that says at which depth to look; its value stands in the page's address."""
    if not labels:
        return None
    if len(labels) == 1:
        return labels[0]
    best = _best_depth(frame, labels)
    with st.sidebar:
        return st.select_slider(
            "Layer",
            labels,
            value=best,
            key="layer",
            bind="query-params",
            help="Or click a point of the curve under Layers. It starts at the best layer.",
        )


def _best_depth(frame: pd.DataFrame, labels: list[str]) -> str:
    for measure in ("variety_probe_accuracy", "behaviour_probe_accuracy"):
        rows = frame[(frame["measure"] == measure) & (frame["control"] == "")]
        if len(rows):
            return figures.depths(frame)[rows.loc[rows["value"].idxmax(), "site"]]
    return labels[-1]


def take_click(key: str) -> None:
    """A clicked point moves the slider, and the slider the page's address."""
    hits = st.session_state[key]["selection"].get("pick") or []
    if hits:
        st.session_state["layer"] = hits[0]["depth"]


def _layers(frame: pd.DataFrame, depth: str | None) -> None:
    for kind in ("variety", "behaviour"):
        measure = f"{kind}_probe_accuracy"
        if kind == "behaviour" and not (frame["measure"] == measure).any():
            continue
        chart = figures.chart_probe_curve(frame, _theme(), measure=measure, at=depth, pick="pick")
        clickable = (frame["measure"] == measure).any() and len(figures.depths(frame)) > 1
        if clickable:
            _show(chart, f"{kind}_curve", on_select=lambda k=f"{kind}_curve": take_click(k))
        else:
            _show(chart, f"{kind}_curve")
        _table(frame, measure)
    _show(figures.chart_cka(frame, _theme()), "cka")
    _table(frame, "cka", "participation_ratio", "intrinsic_dimension", "anisotropy")
    _show(figures.chart_reliability(frame, _theme()), "reliability")
    _table(frame, "reliability", "reliability_confidence", "calibration_error")


def _varieties(frame: pd.DataFrame, depth: str | None) -> None:
    sites = {label: site for site, label in figures.depths(frame).items()}
    site = sites.get(depth or "", "")
    _show(figures.chart_overlap_matrix(frame, _theme(), site=site), "matrix")
    _show(figures.chart_overlap_by_layer(frame, _theme(), at=depth), "overlap_by_layer")
    _table(frame, "subspace_overlap")
    _show(figures.chart_dendrogram(frame, _theme(), site=site), "dendrogram")
    _table(frame, "variety_distance", "clade_support", "tree_plan_correlation")
    _show(figures.chart_angle_spectrum(frame, _theme(), site=site), "angles")
    _table(frame, "principal_angle")


def _directions(frame: pd.DataFrame, depth: str | None) -> None:
    _show(figures.chart_direction_cosine(frame, _theme(), at=depth), "directions")
    _table(frame, "direction_cosine", "direction_subspace_cosine")


def _projection(run: Path) -> None:
    path = run / PROJECTION
    points = pd.DataFrame()
    if path.is_file():
        points = read_results(str(path), path.stat().st_mtime_ns)
    _show(figures.chart_projection(points, _theme()), "projection")


def _causes(frame: pd.DataFrame, depth: str | None) -> None:
    _show(figures.chart_ablation_loss(frame, _theme()), "ablation")
    _table(frame, "loss_change", "loss")
    _show(figures.chart_refusal(frame, _theme()), "refusal")
    _table(frame, "refusal_rate")


def _patching(frame: pd.DataFrame, depth: str | None) -> None:
    rows = frame[frame["measure"] == "recovered_fraction"]
    names = sorted(set(rows["variety"]))
    chosen = None
    if len(names) > 1:
        everyone = "mean of all"
        picked = st.selectbox(
            "Runs of", [everyone, *names], key="patched", bind="query-params", width=260
        )
        chosen = None if picked == everyone else picked
    _show(figures.chart_patching_map(frame, _theme(), variety=chosen), "patching")
    _table(frame, "recovered_fraction")


def _report(run: Path) -> None:
    path = run / "report.md"
    if not path.is_file():
        st.info(
            f"This run has no report yet; `isogloss run compare --config {run / 'config.toml'} "
            f"--out {run}` finishes it."
        )
        return
    # Pictures and links of the file point into the run directory, which the server does not serve;
    # the other pages show the same charts.
    lines = path.read_text(encoding="utf-8").split("\n")
    text = "\n".join(x for x in lines if not x.startswith(("![", "[interactive](")))
    before, _, rest = text.partition("\n## Figures")
    _, heading, after = rest.partition("\n## ")
    # The file's title is a page's; under a tab, headings two sizes down.
    st.markdown(re.sub(r"^#", "###", before + heading + after, flags=re.MULTILINE))
    st.download_button("Download report.md", path.read_bytes(), file_name="report.md")
    config = run / "config.toml"
    if config.is_file():
        with st.expander("Settings of this run"):
            st.code(config.read_text(encoding="utf-8"), language="toml")


def _theme() -> figures.Theme:
    return "dark" if st.context.theme.type == "dark" else "light"


def _show(chart: figures.Figure, key: str, **options: Any) -> None:
    # Streamlit would squeeze the plot to make room for its title and legend.
    chart = chart.properties(autosize="pad")
    st.altair_chart(chart, key=key, theme=None, width="content", **options)


def _table(frame: pd.DataFrame, *measures: str) -> None:
    """The figures behind a chart, for reading and for taking along."""
    rows = frame[frame["measure"].isin(measures)]
    if rows.empty:
        return
    used = [c for c in rows.columns if not (rows[c].isna() | rows[c].isin(["", -1])).all()]
    rows = rows[used].reset_index(drop=True)
    with st.expander(f"Table: {len(rows)} rows"):
        st.dataframe(rows, hide_index=True, key=f"table_{measures[0]}")
        st.download_button(
            "Download CSV",
            rows.to_csv(index=False).encode(),
            file_name=f"{measures[0]}.csv",
            mime="text/csv",
            key=f"csv_{measures[0]}",
        )


if __name__ == "__main__":
    main()
