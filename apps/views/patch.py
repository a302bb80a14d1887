"""Patch: which states carry the difference between two prompts, and the map that a run made."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from apps import models, session
from apps.background import Job
from apps.showing import draw, numbers, share, show, theme
from experiments import figures
from experiments.prompt_pair import changed_words, coarse_to_fine, pair_map, token_columns

if TYPE_CHECKING:
    from activations import Model

_KINDS = ("resid_post", "attn_out", "mlp_out")
_BASE = "in winter the clever boy"
_SOURCE = "that there clever boy"


def main() -> None:
    """Two prompts first; what the open run measured below."""
    st.header("Patch")
    name = models.choose()
    base = st.text_input(
        "Base prompt, whose run is patched", _BASE, key="base", bind="query-params"
    )
    source = st.text_input(
        "Source prompt, whose states go in", _SOURCE, key="source", bind="query-params"
    )
    kind = st.selectbox("States", _KINDS, key="states", bind="query-params", width=260)
    share(
        "from activations import open_model\nfrom interventions import patch_sweep\n\n"
        f"model = open_model({name!r})\n"
        f"sweep = patch_sweep(model, [({base!r}, {source!r})], sites={kind!r}, max_positions=64)\n"
        "sweep.array()",
        f"isogloss run patch --model {name} --set pairs=8  # a corpus's pairs",
    )
    if st.button("Run", type="primary", key="go"):
        _begin(name, base, source, kind)
    job = st.session_state.get("patch_job")
    if job is not None:
        st.fragment(_map, run_every=0.3 if job.alive else None)(job, job.alive)
        if not job.alive and job.done:
            _cell(job)
    _recorded()


def _begin(name: str, base: str, source: str, kind: str) -> None:
    """Check the prompts, then let a thread fill the map."""

    def make(model: Model) -> Job:
        tokens = token_columns(model, base, source)
        sites = coarse_to_fine(model.resolve_sites(kind))
        return Job(
            _parts(model, base, source, sites),
            len(sites),
            model=name,
            prompts=(base, source),
            tokens=tokens,
            sites=list(model.resolve_sites(kind)),
        )

    models.begin("patch_job", f"Opening {name}", name, make)


def _parts(model: Model, base: str, source: str, sites: list[str]) -> Iterator[pd.DataFrame]:
    for frame in pair_map(model, base, source, sites):
        yield frame.assign(depth=frame["layer"].astype(str))


def _take_cell() -> None:
    hits = st.session_state["prompt_map"]["selection"].get("cell") or []
    if hits:
        st.session_state["cell_depth"] = str(hits[0]["depth"])
        st.session_state["cell_position"] = int(hits[0]["position"])


def _map(job: Job, live: bool) -> None:
    """The map as far as it is known."""
    if job.error:
        models.tell(job.error)
    if live:
        left = "" if job.seconds_left is None else f", about {job.seconds_left:.0f} s left"
        st.progress(job.done / job.count, f"{job.done} of {job.count} blocks{left}")
        st.button("Stop", on_click=job.stop, key="stop")
    elif job.stopped:
        st.caption(f"Stopped: {job.done} of {job.count} blocks are known.")
    _aligned(job.about["tokens"])
    cells = job.frame()
    labels = [str(i) for i in range(len(job.about["sites"]))]
    chart = figures.chart_prompt_map(
        cells, job.about["tokens"], labels, theme(), pick=None if live else "cell"
    )
    if live:
        draw(chart, "filling")
        if not job.alive:
            st.rerun()
        return
    show(chart, "prompt_map", on_select=_take_cell)
    numbers(cells, "patched_cells")


def _aligned(tokens: pd.DataFrame) -> None:
    """Both prompts' tokens, those that stand for each other in one column."""
    lines = [
        f"<th scope='row'>{column}</th>"
        + "".join(f"<td>{escape(word) or '–'}</td>" for word in tokens[column])
        for column in ("base", "source")
    ]
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    style = "border-collapse:collapse;font:13px ui-monospace,monospace;white-space:pre"
    st.html(
        "<style>.aligned td,.aligned th{border:1px solid #8888;padding:2px 6px}</style>"
        f"<div style='overflow-x:auto'><table class='aligned' style='{style}'>{rows}</table></div>"
    )


def _cell(job: Job) -> None:
    """What the patch of one cell changes in the next token."""
    base, source = job.about["prompts"]
    depths = sorted(set(job.frame()["depth"]), key=int)
    tokens = job.about["tokens"]
    words = dict(zip(tokens["position"], tokens["base"], strict=True))
    left, right = st.columns(2)
    depth = left.selectbox("Block", depths, key="cell_depth", help="Or click a cell above.")
    position = right.selectbox(
        "Token, counted from the end",
        list(words),
        index=len(words) - 1,
        key="cell_position",
        format_func=lambda at: f"{at} {words[at]}",
    )
    site = next(iter(job.frame().loc[job.frame()["depth"] == depth, "site"]))
    try:
        model = models.opened(job.about["model"])
        table = changed_words(model, base, source, site, int(position or 0))
    except Exception as error:
        models.tell(error)
        return
    st.caption("The next token in three runs: probability and rank.")
    st.dataframe(table, hide_index=True, key="words")
    numbers(table, "next_token", label="The same, to take along")


def _recorded() -> None:
    """The map of a run, and its edits, where the open run made them."""
    if not session.offered():
        return
    opened = session.opened()
    rows = opened.frame[opened.frame["measure"] == "recovered_fraction"]
    if rows.empty:
        return
    st.subheader(f"Measured in the run {opened.name}")
    names, chosen = sorted(set(rows["variety"])), None
    if len(names) > 1:
        everyone = "mean of all"
        picked = st.selectbox(
            "Runs of", [everyone, *names], key="patched", bind="query-params", width=260
        )
        chosen = None if picked == everyone else picked
    show(figures.chart_patching_map(opened.frame, theme(), variety=chosen), "patching")
    numbers(rows, "recovered_fraction")


if __name__ == "__main__":
    main()
