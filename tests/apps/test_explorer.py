"""The explorer on a made run: every page opens, the address is kept, gaps are told in words."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from apps import launch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "apps" / "explorer.py"


def _made() -> ModuleType:
    path = ROOT / "tests" / "experiments" / "made_results.py"
    spec = importlib.util.spec_from_file_location("made_results", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    return _made().made_results()


@pytest.fixture
def runs(tmp_path: Path, results: pd.DataFrame) -> Path:
    run = tmp_path / "runs" / "compare" / "first"
    run.mkdir(parents=True)
    results.to_parquet(run / "results.parquet")
    _made().made_points().to_parquet(run / "projection.parquet")
    (run / "config.toml").write_text('model = "made"\n')
    (run / "report.md").write_text(
        "# made: where varieties lie\n\n## Findings\n\n- Found.\n\n## Figures\n\n"
        "![a](figures/a.png)\n\n## Read with care\n\n- Made up.\n"
    )
    return tmp_path / "runs"


def open_at(path: Path, monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(path)])
    at = AppTest.from_file(str(SCRIPT), default_timeout=60)
    for name, value in query.items():
        at.query_params[name] = value
    return at.run()


def test_every_page_of_a_run_opens_without_an_error(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = open_at(runs, monkeypatch)
    assert not at.exception and not at.error
    assert [tab.label for tab in at.tabs] == [
        "Layers",
        "Varieties",
        "Directions",
        "Cause",
        "Patching map",
        "Report",
    ]
    assert len(at.get("vega_lite_chart")) == 13
    assert any("Found." in text.value for text in at.markdown)


def test_the_layer_starts_where_variety_is_read_best(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_at(runs, monkeypatch).select_slider(key="layer").value == "3"


@pytest.mark.parametrize("layer", ["embed", "0", "5"])
def test_the_address_opens_at_its_layer(
    runs: Path, monkeypatch: pytest.MonkeyPatch, layer: str
) -> None:
    at = open_at(runs, monkeypatch, layer=layer)
    assert not at.exception
    assert at.select_slider(key="layer").value == layer


def test_an_unknown_layer_in_the_address_falls_back(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = open_at(runs, monkeypatch, layer="77")
    assert not at.exception
    assert at.select_slider(key="layer").value == "3"


def test_a_run_directory_itself_can_be_opened(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = open_at(runs / "compare" / "first", monkeypatch)
    assert not at.exception
    assert at.selectbox(key="run").options == ["first"]


@pytest.mark.parametrize(("made", "said"), [(True, "holds no run"), (False, "does not exist")])
def test_a_missing_run_gives_a_sentence_and_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool, said: str
) -> None:
    root = tmp_path / "none"
    if made:
        root.mkdir()
    at = open_at(root, monkeypatch)
    assert not at.exception
    assert said in at.info[0].value and "isogloss run compare" in at.info[0].value


def test_an_unfinished_run_says_how_to_finish_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs / "compare" / "first" / "results.parquet").unlink()
    at = open_at(runs, monkeypatch)
    assert not at.exception
    assert "has no results yet" in at.info[0].value and "--config" in at.info[0].value


def test_a_broken_table_gives_a_sentence(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (runs / "compare" / "first" / "results.parquet").write_bytes(b"not a table")
    at = open_at(runs, monkeypatch)
    assert not at.exception
    assert "cannot be read" in at.error[0].value


def test_pages_open_where_a_question_was_not_asked(
    runs: Path, monkeypatch: pytest.MonkeyPatch, results: pd.DataFrame
) -> None:
    kept = results[results["measure"] == "behaviour_probe_accuracy"]
    kept.to_parquet(runs / "compare" / "first" / "results.parquet")
    at = open_at(runs, monkeypatch)
    assert not at.exception and not at.error


def test_the_explorer_never_loads_torch(runs: Path) -> None:
    code = (
        "import sys; from streamlit.testing.v1 import AppTest; "
        f"sys.argv = ['explorer', {str(runs)!r}]; "
        f"at = AppTest.from_file({str(SCRIPT)!r}, default_timeout=60).run(); "
        "assert not at.exception; assert len(at.tabs) == 6; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_server_is_bound_to_this_machine(tmp_path: Path) -> None:
    flags = launch.command(tmp_path, port=8601, headless=True)
    assert "--server.address=127.0.0.1" in flags
    assert "--browser.gatherUsageStats=false" in flags
    assert "--server.port=8601" in flags
    # A comma list would be taken for one odd name and shut every page out.
    hosts = [flag for flag in flags if flag.startswith("--server.allowedHosts=")]
    assert hosts[:2] == ["--server.allowedHosts=127.0.0.1", "--server.allowedHosts=localhost"]
    assert flags[-2:] == ["--", str(tmp_path)]


def test_an_address_that_others_can_reach_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SSH tunnel"):
        launch.explore(tmp_path, host="0.0.0.0")
