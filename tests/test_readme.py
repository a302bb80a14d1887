"""The README does what it says: its notebook runs, its commands exist."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.test_house import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_every_make_target_that_the_readme_names_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z]+)", README))
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.slow
def test_the_notebook_of_the_readme_runs_as_printed() -> None:
    notebook, _ = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(notebook, "README.md", "exec"), names)
    assert [result.site for result in names["found"]] == list(names["store"].sites)
    plain, _ = names["model"].losses(names["pairs"]["text"].tolist())
    assert (names["nats"] > 0).all()
    assert (names["nats"] != plain).any()


def test_the_sweep_of_the_readme_runs_as_printed() -> None:
    _, sweep = blocks("python")
    names: dict[str, Any] = {}
    exec(compile(sweep, "README.md", "exec"), names)
    assert names["table"].shape[0] == 2 * names["model"].n_layers
