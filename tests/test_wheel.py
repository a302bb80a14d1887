"""A wheel is the whole product: models, corpus, explorer and command, outside any checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from tests.test_house import ROOMS, ROOT, tracked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the tracked files alone, so that nothing untracked strays in."""
    tree = tmp_path_factory.mktemp("tree")
    for path in tracked():
        copy = tree / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(out),
            str(tree),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (built,) = out.glob("isogloss-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked into an empty folder, as an installer would lay it out."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run_installed(site: Path, *arguments: str) -> str:
    """Standard output of python with the unpacked wheel first on the path, outside the checkout."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=site.parent,
        env=os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_wheel_holds_every_module_and_every_data_file_of_the_rooms(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {path.relative_to(ROOT).as_posix() for path in tracked(*ROOMS)}
    assert wanted - names == set()
    assert not [name for name in names if PurePosixPath(name).parts[0] in {"tests", "docs", "runs"}]


def test_a_wheel_holds_the_weights_of_every_organism(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    for organism in ("base", "aligned", "drifted"):
        folder = f"organisms/weights/{organism}/"
        files = {
            name.removeprefix(folder) for name in archive.namelist() if name.startswith(folder)
        }
        assert {"config.json", "tokenizer.json"} <= files
        weights = archive.getinfo(f"{folder}model.safetensors").file_size
        assert weights > 1_000_000, f"{organism}: {weights} bytes"


def test_a_wheel_brings_the_command_and_the_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "isogloss = apps.cli:main" in archive.read(entry).decode()
    assert [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]


def test_an_unpacked_wheel_finds_its_own_models(installed: Path) -> None:
    program = (
        "import organisms, sys\n"
        "print(organisms.__file__)\n"
        "print(*(organisms.path(name) for name in organisms.NAMES), sep='\\n')\n"
    )
    places = run_installed(installed, "-c", program).split()
    assert len(places) == 4
    assert all(Path(place).is_relative_to(installed) for place in places)
    assert all(Path(place).exists() for place in places)


def test_an_unpacked_wheel_lists_its_models_from_the_command_line(installed: Path) -> None:
    printed = run_installed(installed, "-c", "from apps.cli import main; main()", "models")
    for organism in ("base", "aligned", "drifted"):
        assert f"organism/{organism}" in printed
