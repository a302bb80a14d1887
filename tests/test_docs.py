"""The documentation: the tutorial's code runs, and the site takes in every page."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_tutorial_runs_as_it_is_written() -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.S))
    exec(compile(code, "tutorial.md", "exec"), names)
    found = names["found"]
    assert isinstance(found, list) and found[-1].accuracy.value > 0.9  # as its figure shows
    rise = (names["edited"] - names["plain"]).sum()  # type: ignore[operator]
    assert rise > 0


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
    for room, name in (("probes", "probe_sites"), ("interventions", "patch_sweep")):
        assert f'id="{room}.{name}"' in pages[f"api/{room}.html"]  # exported lazily, yet there
