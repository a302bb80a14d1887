"""Steer: a prompt of one's own along a direction, and what a run's edits did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from apps import models, session, uploads
from apps.background import Job
from apps.charts import kept
from apps.showing import draw, numbers, share, show, table, theme, whole_number
from experiments import figures
from experiments.inputs import Inputs, read_inputs
from experiments.prompt_steering import find_direction, steerable, steered_replies
from experiments.steer.settings import SteerSettings

if TYPE_CHECKING:
    from activations import Model

_PROMPT = "could you lower the wagon beside the well in autumn ?"
_STRENGTHS = (-1.0, 0.5, 1.0, 1.5, 2.0)


def main() -> None:
    """The prompt first; what the open run measured below."""
    st.header("Steer")
    name = models.choose()
    try:
        inputs, corpus = _inputs()
        towards = steerable(inputs)
    except Exception as error:
        models.tell(error)
        return
    left, middle, right = st.columns(3)
    direction = left.selectbox("Direction", towards, key="towards", bind="query-params")
    block = whole_number(middle, "Block", 200, value=1.0, key="block", help="From 0.") or 0
    strength = right.slider(
        "Strength (differences of means)", -3.0, 3.0, 1.0, 0.25, key="strength", bind="query-params"
    )
    prompt = st.text_input("Prompt", _PROMPT, key="prompt", bind="query-params")
    share(
        "from activations import open_model\n"
        "from experiments.inputs import read_inputs\n"
        "from experiments.prompt_steering import find_direction, steered_replies\n"
        "from experiments.steer.settings import SteerSettings\n\n"
        f"model = open_model({name!r})\n"
        f"inputs = read_inputs(SteerSettings(model={name!r}))\n"
        f"found = find_direction(model, inputs, {direction!r}, 'blocks.{block}.hook_resid_post')\n"
        f"list(steered_replies(model, {prompt!r}, found, [{strength:g}]))",
        f"isogloss run steer --model {name}  # over a corpus, with controls and intervals",
    )
    if st.button("Steer", type="primary", key="go"):
        _begin(name, inputs, direction, block, strength, prompt, corpus)
    job = st.session_state.get("steer_job")
    if job is not None:
        st.fragment(_replies, run_every=0.2 if job.alive else None)(job, job.alive)
    _recorded()


def _inputs() -> tuple[Inputs, str]:
    """The corpus that directions come from: the bundled one, or one that was uploaded."""
    with st.expander("Directions from another corpus"):
        return uploads.corpus() or (_bundled(), "")


@st.cache_resource(max_entries=1, show_spinner=False)
def _bundled() -> Inputs:
    """The bundled corpus, read once for all readers; which model is asked does not matter to it."""
    return read_inputs(SteerSettings())


@st.cache_resource(max_entries=32, show_spinner=False)
def _direction(name: str, corpus: str, direction: str, block: int, _inputs: Inputs) -> Any:
    """A direction once found; corpora are told apart by the upload and its standard."""
    model = models.opened(name)
    site = model.resolve_sites("resid_post", layers=[block])[0]
    return find_direction(model, _inputs, direction, site)


def _begin(
    name: str,
    inputs: Inputs,
    direction: str,
    block: int,
    strength: float,
    prompt: str,
    corpus: str,
) -> None:
    """Find the direction, then let a thread write replies, the strength asked for first."""

    def make(model: Model) -> Job:
        steered = _direction(name, corpus, direction, block, inputs)
        strengths = list(dict.fromkeys([strength, *_STRENGTHS]))
        replies = steered_replies(model, prompt, steered, strengths)
        return Job(replies, 1 + 2 * len(strengths), strength=strength)

    models.begin("steer_job", f"Opening {name}, finding the direction", name, make)


def _replies(job: Job, live: bool) -> None:
    """Replies side by side, and the response to strength as far as it is known."""
    if live and not job.alive:
        st.rerun()  # it is over: the page shows what is known, without redrawing this first
    if job.error:
        models.tell(job.error)
    if live:
        st.progress(job.done / job.count, f"{job.done} of {job.count} replies")
        st.button("Stop", on_click=job.stop, key="stop")
    elif job.stopped:
        st.caption(f"Stopped: {job.done} of {job.count} replies are known.")
    rows = job.frame()
    if rows.empty:
        return
    asked = job.about["strength"]
    headings = {
        "plain": "Plain",
        "steered": f"Steered, {asked:g}",
        "random": f"Random direction, {asked:g}",
    }
    for column, (kind, heading) in zip(st.columns(3), headings.items(), strict=True):
        with column:
            st.markdown(f"**{heading}**")
            at = 0.0 if kind == "plain" else asked
            own = rows[rows["kind"].eq(kind) & rows["strength"].eq(at)]
            st.code(
                own["reply"].iloc[0].strip() if len(own) else "…", language=None, wrap_lines=True
            )
    if live:
        if len(rows) > 1:
            draw(
                job.latest(len(rows), lambda: figures.chart_prompt_doses(rows, theme())), "filling"
            )
        return
    show(figures.chart_prompt_doses(rows, theme()), "doses")
    numbers(rows, "replies", label="All replies")


def _recorded() -> None:
    """What edits did in the open run."""
    if not session.offered():
        return
    opened = session.opened()
    frame = opened.frame
    asked = frame["measure"].isin(["loss_change", "refusal_rate"]).any()
    if not asked:
        return
    st.subheader(f"Measured in the run {opened.name}")
    if figures.steered(frame):
        show(kept(opened.table, figures.chart_dose_response, theme()), "dose_response")
    show(kept(opened.table, figures.chart_ablation_loss, theme()), "ablation")
    table(frame, "loss_change", "loss")
    show(kept(opened.table, figures.chart_refusal, theme()), "refusal")
    table(frame, "refusal_rate")


if __name__ == "__main__":
    main()
