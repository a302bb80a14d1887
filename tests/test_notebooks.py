"""The notebooks run top to bottom, offline, and hold nothing of the machine that ran them last."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_committed(path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    committed = nbformat.read(path, 4)
    fresh = nbformat.read(path, 4)
    nbclient.NotebookClient(
        fresh, timeout=120, resources={"metadata": {"path": path.parent}}
    ).execute()
    kinds = [
        [sorted(o.get("data", {})) for o in cell.get("outputs", []) if o.output_type != "stream"]
        for book in (committed, fresh)
        for cell in book.cells
    ]
    half = len(kinds) // 2
    assert kinds[:half] == kinds[half:], "make notebooks"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_names_no_folder_of_a_machine_and_no_warning(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 600_000
    assert not re.search(r"site-packages|/home/|/root/|/Users/|Warning:|Traceback", text)
