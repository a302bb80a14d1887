"""Patch: which states carry the difference between two prompts, and the map that a run made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, TypeAlias

import pandas as pd
import streamlit as st

from apps import models, session
from apps.background import Job
from apps.showing import draw, numbers, share, show, theme, whole_number
from experiments import figures
from experiments.prompt_pair import changed_words, coarse_to_fine, pair_map, token_columns

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from activations import Model

#: Depth as the map labels it, position from the end, site.
Cell: TypeAlias = tuple[str, int, str]

_KINDS = ("resid_post", "attn_out", "mlp_out")
_BASE = "in winter the clever boy"
_SOURCE = "that there clever boy"
_BEST = "the one that closes most"


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
    left, middle, right = st.columns(3)
    kind = left.selectbox("States", _KINDS, key="states", bind="query-params")
    cell = _choose_cell(middle, right)
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
    if job is not None and job.alive:
        st.fragment(_map, run_every=0.3)(job, True)
    elif job is not None:
        # No fragment: a click has to reach the fields above and the table below.
        at = _find(job, *cell)
        _map(job, False, at)
        if job.done:
            _cell(job, *cell, at)
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


def _choose_cell(*places: DeltaGenerator) -> tuple[int | None, int | None]:
    """Block and token of the cell that is opened; None leaves it to the map.

    Fields that stand whether there is a map or not, so that a link can name a cell before it.
    """
    names = {
        "cell_block": ("Cell: block", "Or click a cell of the map."),
        "cell_token": ("Cell: token from the end", "0 is the last. Or click a cell of the map."),
    }
    block, token = (
        whole_number(place, label, 9999, value=None, key=key, help=hint, placeholder=_BEST)
        for place, (key, (label, hint)) in zip(places, names.items(), strict=True)
    )
    return block, token


def _take_cell() -> None:
    hits = st.session_state["prompt_map"]["selection"].get("cell") or []
    if hits:
        st.session_state["cell_block"] = int(hits[0]["depth"])
        st.session_state["cell_token"] = int(hits[0]["position"])


def _find(job: Job, block: int | None, token: int | None) -> Cell | None:
    """The map's cell of that block and token; the one that closes most, where either is open."""
    cells = job.frame()
    for column, asked in (("layer", block), ("position", token)):
        if asked is not None and len(cells):
            cells = cells[cells[column].eq(asked)]
    if cells.empty:
        return None
    best = cells.sort_values("recovered", ascending=False, na_position="last").iloc[0]
    return str(best["depth"]), int(best["position"]), str(best["site"])


def _map(job: Job, live: bool, at: Cell | None = None) -> None:
    """The map as far as it is known, the open cell framed."""
    if live and not job.alive:
        st.rerun()  # it is over: the page shows what is known, without redrawing this first
    if job.error:
        models.tell(job.error)
    if live:
        left = "" if job.seconds_left is None else f", about {job.seconds_left:.0f} s left"
        st.progress(job.done / job.count, f"{job.done} of {job.count} blocks{left}")
        st.button("Stop", on_click=job.stop, key="stop")
    elif job.stopped:
        st.caption(f"Stopped: {job.done} of {job.count} blocks are known.")
    tokens, cells = job.about["tokens"], job.frame()
    _aligned(tokens)
    labels = [str(i) for i in range(len(job.about["sites"]))]
    if live:
        chart = job.latest(
            len(cells), lambda: figures.chart_prompt_map(cells, tokens, labels, theme())
        )
        draw(chart, "filling")
        return
    chart = figures.chart_prompt_map(cells, tokens, labels, theme(), pick="cell", at=at and at[:2])
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


def _cell(job: Job, block: int | None, token: int | None, at: Cell | None) -> None:
    """What the patch of one cell changes in the next token."""
    base, source = job.about["prompts"]
    tokens = job.about["tokens"]
    if at is None:
        asked = [f"block {block}"] if block is not None else []
        asked += [f"token {token}"] if token is not None else []
        known = sorted(set(job.frame()["layer"]))
        st.warning(
            f"The map has no cell at {', '.join(asked)}: its blocks are {_ranges(known)}, its "
            f"tokens 0 to {len(tokens) - 1} from the end. Click a cell, or empty both fields."
        )
        return
    depth, position, site = at
    word = tokens.set_index("position")["base"][position]
    try:
        model = models.opened(job.about["model"])
        table = changed_words(model, base, source, site, position)
    except Exception as error:
        models.tell(error)
        return
    st.caption(
        f"Patched at block {depth} of {word.strip() or '␣'!r}, token {position} from the end "
        f"(`{site}`): the next token in three runs, with its probability and rank."
    )
    shares = [name for name in ("base", "source", "patched") if name in table]
    short = {name: st.column_config.NumberColumn(format="%.3g") for name in shares}
    st.dataframe(table, hide_index=True, key="words", column_config=short)
    numbers(table, "next_token", label="The same, to take along")


def _ranges(numbers: Sequence[int]) -> str:
    """`0 to 3`, or one by one where some are missing."""
    if list(numbers) == list(range(numbers[0], numbers[-1] + 1)) and len(numbers) > 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


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
