"""A corpus that a reader uploads: read as the command line reads it, and called by its name."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import streamlit as st

from corpora import CorpusError
from experiments.inputs import Inputs, read_inputs
from experiments.settings import ConfigError
from experiments.steer.settings import SteerSettings

_KEPT = "read_corpus"


def corpus(*, most_mb: int = 50) -> tuple[Inputs, str] | None:
    """The uploaded corpus, and a name for it and its standard; None where there is none.

    Raises:
        CorpusError, ConfigError: a file that `isogloss run` would refuse, in the same words.
    """
    st.caption(
        "A CSV, TSV, JSONL or Parquet file with columns text, variety, group, and behaviour "
        "(harmful, harmless) for requests; translations of one sentence share a group."
    )
    # Any file may be chosen: what cannot be read is told in our words rather than the browser's.
    file = st.file_uploader("Corpus", key="corpus", max_upload_size=most_mb)
    standard = st.text_input("Its standard variety", "standard", key="standard")
    if file is None:
        st.session_state.pop(_KEPT, None)
        return None
    # The same file under another standard gives other directions.
    name = f"{file.file_id} {standard}"
    kept = st.session_state.get(_KEPT)
    if kept is None or kept[1] != name:
        kept = (_read(file.name, file.getvalue(), standard), name)
        st.session_state[_KEPT] = kept
    return kept


def _read(name: str, content: bytes, standard: str) -> Inputs:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (Path(name).name or "corpus")
        path.write_bytes(content)
        try:
            return read_inputs(SteerSettings(corpus=str(path), standard=standard))
        except (CorpusError, ConfigError) as error:
            # Where it lay here is nothing to its reader.
            raise type(error)(str(error).replace(f"{folder}{os.sep}", "")) from None
