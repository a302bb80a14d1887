"""The documentation: the tutorial's code runs, and the site takes in every page."""

from __future__ import annotations

import html
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.registry import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[1]
HOW_TO = ROOT / "docs" / "how-to"
ROOMS = (
    "experiments",
    "interventions",
    "probes",
    "activations",
    "organisms",
    "geometry",
    "corpora",
    "evidence",
)


def test_the_tutorial_runs_as_it_is_written() -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.S))
    exec(compile(code, "tutorial.md", "exec"), names)
    found = names["found"]
    assert isinstance(found, list) and found[-1].accuracy.value > 0.9  # as its figure shows
    rise = (names["edited"] - names["plain"]).sum()  # type: ignore[operator]
    assert rise > 0


def commands(page: Path) -> list[list[str]]:
    """The words of every `isogloss` command that a page prints."""
    text = re.sub(r" \\\n *", " ", page.read_text(encoding="utf-8"))  # a command may go on below
    blocks = re.findall(r"^ *```\n(.*?)^ *```", text, re.S | re.M)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("isogloss ")]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_how_to_whose_commands_it_would_take(name: str) -> None:
    """The oracle is the experiment's own settings: an unknown key or a wrong value is refused."""
    printed = [words for words in commands(HOW_TO / f"{name}.md") if words[1:3] == ["run", name]]
    own = [words for words in printed if not any("organism/" in word for word in words)]
    assert own and len(printed) > len(own)  # on one's own models, and on the embedded ones
    for words in printed:
        options, assigned, given = {}, [], words[3:]
        while given and not given[0].startswith("--"):
            given = given[1:]
        for option, value in zip(given[::2], given[1::2], strict=True):
            if option == "--set":
                assigned.append(value)
            elif option != "--out":
                options[option.removeprefix("--")] = value
        EXPERIMENTS[name].settings.read(options=options, assignments=assigned)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_no_host(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed; the extra docs brings it")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    pages = {
        str(path.relative_to(tmp_path / "site")): path.read_text(encoding="utf-8")
        for path in (tmp_path / "site").rglob("*.html")
    }
    written = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    assert {str(path.with_suffix(".html")) for path in written} <= set(pages)
    loads = re.compile(r"""<(?:script|img|iframe)[^>]*src=["']?(?:https?:)?//""")
    sheets = re.compile(r"<link[^>]*rel=[\"']?stylesheet[^>]*href=[\"']?(?:https?:)?//")
    assert [name for name, page in pages.items() if loads.search(page) or sheets.search(page)] == []
    for module in (*ROOMS, "interventions.decoupling"):
        page = pages[f"api/{module.partition('.')[0]}.html"]
        for name in importlib.import_module(module).__all__:  # exported lazily, yet there
            assert f'id="{module}.{name}"' in page or f'id="{module}.{name}.{name}"' in page, name
    said = html.unescape(re.sub(r"<[^>]+>", "", pages["command-line.html"]))
    for usage in ("run token-shift [BASE MODEL] [OPTIONS]", "store export [OPTIONS] {PATH} {OUT}"):
        assert f"Usage: isogloss {usage}" in said
