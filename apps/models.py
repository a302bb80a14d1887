"""The model that a page asks: opened at the first question, one for all readers of a server."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

import streamlit as st

from apps import session
from apps.errors import is_users

if TYPE_CHECKING:
    from activations import Model
    from apps.background import Job


def offered() -> list[str]:
    """Models by name: what the command named, the runs' own, and the embedded ones."""
    import organisms

    runs = session.offered()
    own = st.session_state.get("run")
    first = [started] if (started := session.started_with().model) else []
    if own in runs:
        first.append(str(session.config(runs[own]).get("model", "")))
    rest = [str(session.config(run).get("model", "")) for run in runs.values()]
    embedded = [f"organism/{name}" for name in organisms.NAMES]
    return [name for name in dict.fromkeys([*first, *rest, *embedded]) if name]


def choose() -> str:
    """The model to ask, by name."""
    return st.selectbox("Model", offered(), key="model", bind="query-params")


@st.cache_resource(max_entries=1, show_spinner=False)
def opened(name: str) -> Model:
    """The model of that name. Streamlit lets one session open it while others wait."""
    from activations import open_model

    gc.unfreeze()  # what an earlier model left
    gc.collect()
    model = open_model(name)
    # Streamlit collects garbage after each run of a page, which holds up every thread. A model and
    # what it is made with are half a million objects that stay: the longest part of a short reply.
    gc.collect()
    gc.freeze()
    return model


def begin(key: str, said: str, name: str, make: Callable[[Model], Job]) -> None:
    """Put the job that `make` begins under `key`, in place of one that is under way there."""
    earlier = st.session_state.pop(key, None)
    if earlier is not None:
        earlier.stop()
    try:
        with st.spinner(said):
            st.session_state[key] = make(opened(name))
    except Exception as error:
        tell(error)


def tell(error: BaseException) -> None:
    """An error as a sentence."""
    if is_users(error):
        st.error(str(error))
    else:
        st.error(
            f"This failed with {type(error).__name__}: {error}. The server's terminal or log may "
            "say more; other pages and prompts go on."
        )
