"""What holds for the house as a whole: which room may know which, and what a tree may contain."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
    "activations",
    "apps",
    "corpora",
    "evidence",
    "experiments",
    "geometry",
    "interventions",
    "organisms",
    "probes",
)
HEAVY = ("torch", "jax", "transformers", "transformer_lens", "nnsight")


def tracked(*patterns: str) -> list[Path]:
    """Tracked files of the checkout that these tests lie in."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", *patterns], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout, so nothing says which files belong to the tree")
    paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def text_lines(paths: list[Path]) -> Iterator[tuple[str, str]]:
    """(`file:line`, line) of every file that is text."""
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, start=1):
            yield f"{path.relative_to(ROOT)}:{number}", line


def test_imports_only_go_down() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contracts_name_every_room() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert sorted(settings["tool"]["importlinter"]["root_packages"]) == sorted(ROOMS)
    assert sorted(settings["tool"]["basedpyright"]["include"]) == sorted(ROOMS)


def frameworks_loaded_by(statement: str) -> list[str]:
    """Which of the slow-to-load packages a fresh interpreter holds after `statement`."""
    program = f"import sys\n{statement}\nprint(*(n for n in {HEAVY!r} if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("module", [*ROOMS, "apps.cli"])
def test_importing_a_room_loads_no_framework(module: str) -> None:
    assert frameworks_loaded_by(f"import {module}") == []


def test_a_loaded_framework_would_be_seen() -> None:
    assert "torch" in frameworks_loaded_by("import torch")


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "apps"])
def test_every_public_name_of_a_room_can_be_had(room: str) -> None:
    module = importlib.import_module(room)
    names = module.__all__
    assert len(set(names)) == len(names)
    for name in names:
        assert getattr(module, name) is not None, f"{room}.{name}"


@pytest.mark.parametrize("room", ROOMS)
def test_an_unknown_name_of_a_room_is_an_attribute_error(room: str) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = importlib.import_module(room).no_such_name


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_tell_type_checkers_that_they_are_typed(room: str) -> None:
    assert (ROOT / room / "py.typed").is_file()


def test_no_file_names_a_place_on_one_machine() -> None:
    place = re.compile(
        r"(?<![\w.~$}])/(?:home|root|Users|work|mnt|srv|opt)/\w|\b[A-Z]:\\Users|extra-index-url|find-links"
    )
    own = Path(__file__).relative_to(ROOT)
    found = [
        f"{where}: {line.strip()}"
        for where, line in text_lines(tracked())
        if place.search(line) and not where.startswith(f"{own}:")
    ]
    assert found == []
    assert place.search("data = '/home/someone/corpus.csv'")


def test_modules_have_one_idea() -> None:
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in tracked("*.py")
    }
    assert {name: size for name, size in sizes.items() if size > 500} == {}
    assert [name for name in sizes if Path(name).name in {"utils.py", "helpers.py"}] == []


def test_links_between_our_own_pages_lead_somewhere() -> None:
    broken = []
    for path in tracked("*.md"):
        if (path.parent / "results.parquet").exists():
            continue  # the report of a run that is part of the code without its figures
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
            if "://" not in target and not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)} -> {target}")
    assert broken == []
