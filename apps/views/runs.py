"""Runs: every run here, two of them compared, one's report, the same again, and its files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import streamlit as st

from apps import rerun_form, run_files, session
from apps.rerun import DESK, experiment_of
from apps.showing import differences, numbers, share
from experiments.differences import compare_results, compare_settings


def main() -> None:
    """The list, what is under way, a comparison, the open run's report, and the run again."""
    st.header("Runs")
    rerun_form.under_way()
    runs = session.offered()
    if runs:
        name = str(st.session_state.get("run", next(iter(runs))))
        _list(runs, name)
        if DESK.at_work(runs[name]):
            st.info("The open run is under way; once it is done, its figures are here.")
            return
        rerun_form.resume(runs[name])
    opened = session.opened()
    experiment = experiment_of(opened.run).name
    command = f"isogloss run {experiment} --config {_quoted(opened.run)}"
    share(
        f"import pandas as pd\n\npd.read_parquet({str(opened.run / 'results.parquet')!r})",
        f"{command}\n# with changed settings, in another folder:\n{command} --set seed=1",
    )
    others = [name for name in session.finished() if name != opened.name]
    if others:
        st.subheader("Compare")
        other = st.selectbox(f"{opened.name} against", others, key="against", bind="query-params")
        _compare(opened, other, runs[other])
    st.subheader("Run again")
    rerun_form.form(opened.name, opened.run)
    st.subheader("Take along")
    run_files.offer(opened.run)
    st.subheader("Report")
    _report(opened.run, experiment)


def _quoted(run: Path) -> str:
    return shlex.quote(str(run / "config.toml"))


def take_run(names: list[str]) -> None:
    """A clicked row opens its run, and with it the page's address."""
    cells = st.session_state["runs"]["selection"].get("cells") or []
    if cells and cells[0][0] < len(names):
        st.session_state["run"] = names[cells[0][0]]


def _list(runs: dict[str, Path], opened: str) -> None:
    """Every run; a click on one opens it."""
    listed = pd.DataFrame([_facts(name, run, name == opened) for name, run in runs.items()])
    st.dataframe(
        listed,
        hide_index=True,
        key="runs",
        on_select=lambda: take_run(list(runs)),
        selection_mode="single-cell",
        column_config={"open": st.column_config.TextColumn("", width=30)},
    )
    if len(runs) > 1:
        st.caption("Click a run to open it.")


def _facts(name: str, run: Path, opened: bool) -> dict[str, object]:
    told = session.config(run)
    size = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    return {
        "open": "●" if opened else "",
        "run": name,
        "experiment": experiment_of(run).name,
        "model": told.get("model", ""),
        "corpus": told.get("corpus", "") or "the bundled one",
        "seed": told.get("seed"),
        "state": _state(run),
        "MB": round(size / 1e6, 1),
    }


def _state(run: Path) -> str:
    if DESK.at_work(run):
        return "under way"
    return "done" if (run / "results.parquet").is_file() else "unfinished"


def _compare(opened: session.Opened, name: str, other: Path) -> None:
    settings = compare_settings(session.config(opened.run), session.config(other))
    if len(settings):
        st.caption("Settings that differ")
        st.dataframe(settings, hide_index=True, key="settings")
    else:
        st.caption("Their settings are the same.")
    found = compare_results(opened.frame, session.results(other))
    if found.empty:
        st.info("The two runs measured nothing in common: they asked other questions.")
        return
    measure = st.selectbox(
        "Measure", sorted(set(found["measure"])), key="measure", bind="query-params"
    )
    own = found[found["measure"] == measure]
    differences(own.drop(columns="measure"), "differences", this=opened.name, other=name)
    numbers(found, "differences_all", label="All measures that both have")


def _report(run: Path, experiment: str) -> None:
    path = run / "report.md"
    if not path.is_file():
        st.info(
            f"This run has no report yet; `isogloss run {experiment} --config "
            f"{run / 'config.toml'} --out {run}` finishes it."
        )
        return
    # Pictures and links of the file point into the run directory, which the server does not serve;
    # the other pages show the same charts.
    lines = path.read_text(encoding="utf-8").split("\n")
    text = "\n".join(x for x in lines if not x.startswith(("![", "[interactive](")))
    before, _, rest = text.partition("\n## Figures")
    _, heading, after = rest.partition("\n## ")
    # The file's title is a page's; here headings are three sizes down.
    st.markdown(re.sub(r"^#", "####", before + heading + after, flags=re.MULTILINE))


if __name__ == "__main__":
    main()
