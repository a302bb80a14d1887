"""The form that runs an experiment again, and what is seen of the run while it goes on."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from apps import models, session
from apps.rerun import (
    DESK,
    Rerun,
    as_text,
    changeable,
    changed,
    experiment_of,
    models_of,
    place_for,
)
from experiments.settings import ConfigError

_REFUSED = "again_refused"


def form(name: str, run: Path) -> None:
    """The settings of the run of that name, to be changed and run into a new folder."""
    experiment = experiment_of(run)
    try:
        text = as_text(experiment, run)
    except ConfigError as error:
        st.info(f"The settings of this run cannot be read as those of {experiment.name}: {error}")
        return
    told, key = session.config(run), f"again_{name}"
    kept = sorted(set(told) - set(changeable(experiment)) - set(models_of(experiment)))
    names = models_of(experiment)
    with st.form(key):
        for one, place in zip(names, st.columns(max(2, len(names))), strict=False):
            own = str(told.get(one, ""))
            place.selectbox(one.capitalize(), _options(own), key=f"{key}_{one}")
        st.text_area("Settings, in TOML", text, height=260, max_chars=20_000, key=f"{key}_settings")
        st.caption(f"As in the run, and to be changed on the command line only: {', '.join(kept)}.")
        busy = DESK.at_work()
        st.form_submit_button(
            "Run",
            key="again",
            type="primary",
            disabled=busy,
            help="Another run is under way." if busy else None,
            on_click=_start,
            args=(run, key),
        )
    if said := st.session_state.pop(_REFUSED, ""):
        st.error(said)


def _options(own: str) -> list[str]:
    """Models to choose from, the run's own first; no name is the experiment's own choice."""
    return list(dict.fromkeys([own, *models.offered()]))


def _start(run: Path, key: str) -> None:
    """Check what was written, and start it."""
    experiment = experiment_of(run)
    state = st.session_state
    put = {name: str(state[f"{key}_{name}"]) for name in models_of(experiment)}
    try:
        settings = changed(experiment, run, state[f"{key}_settings"], put, models.offered())
        root = Path(session.started_with().root)
        DESK.begin(experiment, settings, place_for(experiment, run, root, settings))
    except (ConfigError, OSError) as error:
        state[_REFUSED] = str(error)


def resume(run: Path) -> None:
    """A button that goes on with a run that was cut off; the shipped one is nobody's to write."""
    busy = DESK.at_work()
    if (run / "report.md").is_file() or run == session.EXAMPLE or busy:
        return

    def begin() -> None:
        experiment = experiment_of(run)
        try:
            settings = experiment.settings.read(run / "config.toml")
            DESK.begin(experiment, settings, run)
        except (ConfigError, OSError) as error:
            st.session_state[_REFUSED] = str(error)

    st.button(
        "Go on with this run",
        on_click=begin,
        key="resume",
        help="After the last stage that was kept. Unless another program is at it.",
    )


def under_way() -> None:
    """The run that is carried out, or how it ended."""
    rerun = DESK.run
    if rerun is None:
        return
    with st.container(border=True):
        if rerun.child.alive:
            st.fragment(_progress, run_every=1.0)(rerun)
        else:
            _ended(rerun)


def _progress(rerun: Rerun) -> None:
    if not rerun.child.alive:
        st.rerun()
    kept = ", ".join(rerun.stages)
    st.markdown(f"**{rerun.experiment}** is under way: `{rerun.out.name}`")
    st.caption(f"{_time(rerun.child.seconds)}. Stages kept: {kept or 'none yet'}.")
    st.code("\n".join(rerun.child.lines(6)) or "…", language=None)
    st.button("Stop", on_click=rerun.child.stop, key="stop")
    st.caption(
        "It goes on when this page is closed, and ends when the explorer is: what is kept by then "
        "can be gone on with."
    )


def _ended(rerun: Rerun) -> None:
    """How it ended, and what can be done now."""
    child, name = rerun.child, rerun.out.name
    found = {path.resolve(): at for at, path in session.offered().items()}
    own = found.get(rerun.out.resolve())
    if child.code == 0:
        st.success(f"{rerun.experiment} is done after {_time(child.seconds)}: {name}")
    elif rerun.refusal:
        st.error(rerun.refusal)
    elif child.stopped:
        rest = "nothing was measured yet"
        if own:
            rest = f"{', '.join(rerun.stages) or 'its settings'} of {name} are kept"
        st.info(f"Stopped after {_time(child.seconds)}; {rest}.")
    else:
        st.error(f"{rerun.experiment} failed after {_time(child.seconds)}. Its last lines:")
        st.code("\n".join(child.lines(20)), language=None)
    with st.container(horizontal=True):
        if own and st.session_state.get("run") != own:

            def open_it() -> None:
                st.session_state["run"] = own
                DESK.clear()

            st.button("Open it", on_click=open_it, key="open_new", type="primary")
        st.button("Dismiss", on_click=DESK.clear, key="dismiss")


def _time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
