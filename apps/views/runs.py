"""Runs: every run here, two of them compared, one's report, and the command that makes another."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pandas as pd
import streamlit as st

from apps import session
from apps.showing import numbers, share
from experiments.differences import compare_results, compare_settings


def main() -> None:
    """The list, a comparison, the open run's report."""
    opened = session.opened()
    runs = session.offered()
    st.header("Runs")
    command = f"isogloss run {_experiment(opened.run)} --config {_quoted(opened.run)}"
    share(
        f"import pandas as pd\n\npd.read_parquet({str(opened.run / 'results.parquet')!r})",
        f"{command}\n# with changed settings, in another folder:\n{command} --set seed=1",
    )
    listed = pd.DataFrame([_facts(name, run) for name, run in runs.items()])
    st.dataframe(listed, hide_index=True, key="runs")
    others = [name for name in runs if name != opened.name]
    if others:
        st.subheader("Compare")
        other = st.selectbox(f"{opened.name} against", others, key="against", bind="query-params")
        _compare(opened, runs[other])
    st.subheader("Report")
    _report(opened.run)
    st.subheader("Run again")
    st.code(f"{command} --set seed=1", language="bash")
    _files(opened.run)


def _quoted(run: Path) -> str:
    return shlex.quote(str(run / "config.toml"))


def _experiment(run: Path) -> str:
    """What was run, by the place runs/EXPERIMENT/RUN; `compare` where the folder lies alone."""
    from experiments.registry import EXPERIMENTS

    return run.resolve().parent.name if run.resolve().parent.name in EXPERIMENTS else "compare"


def _facts(name: str, run: Path) -> dict[str, object]:
    told = session.config(run)
    size = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
    return {
        "run": name,
        "model": told.get("model", ""),
        "corpus": told.get("corpus", "") or "the bundled one",
        "seed": told.get("seed"),
        "state": "done" if (run / "results.parquet").is_file() else "unfinished",
        "MB": round(size / 1e6, 1),
    }


def _compare(opened: session.Opened, other: Path) -> None:
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
    st.dataframe(own, hide_index=True, key="differences")
    st.caption(
        "Each run's interval stands beside its value. A difference has none of its own: the two "
        "runs may share their sentences, and then are not independent."
    )
    numbers(found, "differences_all", label="All measures that both have")


def _report(run: Path) -> None:
    path = run / "report.md"
    if not path.is_file():
        st.info(
            f"This run has no report yet; `isogloss run {_experiment(run)} --config "
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


def _files(run: Path) -> None:
    for name in ("results.parquet", "projection.parquet", "report.md", "config.toml"):
        if (run / name).is_file():
            st.download_button(
                f"Download {name}",
                (run / name).read_bytes(),
                file_name=name,
                key=f"file_{name}",
                on_click="ignore",
            )
    with st.expander("Settings of this run"):
        st.json(session.config(run))


if __name__ == "__main__":
    main()
