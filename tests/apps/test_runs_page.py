"""The page Runs: a run is opened, run again with changed settings, stopped, and taken along."""

from __future__ import annotations

import io
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from apps import rerun, run_files
from apps.rerun import DESK
from apps.views import runs as page
from experiments.registry import EXPERIMENTS

from ..experiments import made_results

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "apps" / "explorer.py"
TINY = {"model": "organism/base", "layers": [3], "pairs": 2, "positions": 2, "varieties": ["tarn"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one finished run of `patch`, as far as a page can tell."""
    run = tmp_path / "runs" / "patch" / "first"
    run.mkdir(parents=True)
    EXPERIMENTS["patch"].settings(**TINY, corpus="").write(run / "config.toml")
    made_results.made_results().to_parquet(run / "results.parquet")
    (run / "report.md").write_text("# patch\n\n## Findings\n\n- Found.\n")
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """No run is left to the next test."""
    yield
    if DESK.run:
        DESK.run.child.stop()
    DESK.clear()


def open_at(monkeypatch: pytest.MonkeyPatch, *arguments: str, run: str = "") -> AppTest:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    at = AppTest.from_file(str(SCRIPT), default_timeout=60)
    if run:
        at.query_params["run"] = run
    return at.run().switch_page("views/runs.py").run()


def written(at: AppTest, run: str):
    return at.text_area(key=f"again_{run}_settings")


def labels(at: AppTest) -> list[str]:
    return [button.proto.label for button in at.get("download_button")]


def until_ended(seconds: float = 120) -> None:
    assert DESK.run is not None
    end = time.monotonic() + seconds
    while DESK.run.child.alive:
        assert time.monotonic() < end, DESK.run.child.lines(9)
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_is_run_again_with_a_changed_setting_and_opened(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = open_at(monkeypatch, str(root))
    text = written(at, "patch/first").value
    assert "seed = 0" in text and "corpus" not in text and "model" not in text
    written(at, "patch/first").set_value(text.replace("seed = 0", "seed = 5"))
    at.button(key="again").click().run()
    assert not at.exception and not at.error
    out = DESK.run.out
    assert out.parent == root / "patch" and out.name != "first"
    assert at.button(key="stop") and any("under way" in text.value for text in at.markdown)
    assert at.button(key="again").disabled  # one at a time
    until_ended()
    at.run()
    assert not at.exception and "done" in at.success[0].value, DESK.run.child.lines(9)
    at.button(key="open_new").click().run()
    assert not at.exception and not at.success
    new = f"patch/{out.name}"
    assert at.selectbox(key="run").value == new
    assert "seed = 5" in written(at, new).value
    figures = {file.name for file in (out / "figures").iterdir()}
    assert at.selectbox(key="figure").value in {Path(name).stem for name in figures}
    assert {"results.parquet", "report.html", "All of it (ZIP)"} <= set(labels(at))
    assert figures & set(labels(at))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed = 0", "seed = -1", "'seed'"),
        ("seed = 0", "sede = 0", "did you mean seed"),
        ("seed = 0", "seed = ", "not valid TOML"),
        ("seed = 0", 'corpus = "../other.csv"', "'corpus' stays"),
        ("seed = 0", 'model = "../weights"', "chosen above"),
    ],
)
def test_a_wrong_value_is_a_sentence_and_starts_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, said: str
) -> None:
    at = open_at(monkeypatch, str(root))
    model = at.selectbox(key="again_patch/first_model")
    assert {"organism/base", "organism/aligned"} <= set(model.options)
    area = written(at, "patch/first")
    area.set_value(area.value.replace(old, new))
    at.button(key="again").click().run()
    assert not at.exception and said in at.error[0].value
    assert DESK.run is None and [x.name for x in (root / "patch").iterdir()] == ["first"]
    assert new in written(at, "patch/first").value  # what was written is still there to mend


def test_the_shipped_run_goes_into_the_folder_that_is_explored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    monkeypatch.setattr(DESK, "begin", lambda *told: begun.append(told))
    at = open_at(monkeypatch, str(tmp_path / "runs"), "--example")
    at.button(key="again").click().run()
    assert not at.exception and not at.error
    (experiment, settings, out), *more = begun
    assert not more and experiment.name == "compare" and settings.model == "organism/aligned"
    assert out.parent == tmp_path / "runs" / "compare"


def test_a_run_alone_says_where_to_start(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = open_at(monkeypatch, str(root / "patch" / "first"))
    at.button(key="again").click().run()
    assert not at.exception and "isogloss explore" in at.error[0].value and DESK.run is None


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """What is started in place of `isogloss run`."""
    monkeypatch.setattr(rerun, "command", lambda *told: [sys.executable, "-u", "-c", code])


def test_a_run_can_be_stopped_and_its_lines_are_seen(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "import time; print('Measuring: one'); time.sleep(60)")
    at = open_at(monkeypatch, str(root))
    at.button(key="again").click().run()
    while not DESK.run.child.lines(1):
        time.sleep(0.02)
    at.run()
    assert any("Measuring: one" in code.value for code in at.code)
    at.button(key="stop").click().run()
    at.run()
    assert not at.exception and "Stopped" in at.info[0].value and not DESK.at_work()
    at.button(key="dismiss").click().run()
    assert not at.exception and DESK.run is None


def test_a_run_is_seen_from_a_page_that_is_opened_later(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "import time; time.sleep(60)")
    open_at(monkeypatch, str(root)).button(key="again").click().run()
    at = open_at(monkeypatch, str(root))
    assert any("under way" in text.value for text in at.markdown)
    assert at.button(key="again").disabled


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; print('isogloss: No such variety: mars.'); sys.exit(2)", "mars"),
        ("raise ValueError('odd')", "failed after"),
    ],
)
def test_a_run_that_fails_says_why(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    stand_in(monkeypatch, code)
    at = open_at(monkeypatch, str(root))
    at.button(key="again").click().run()
    until_ended()
    at.run()
    assert not at.exception and said in at.error[0].value
    assert "isogloss:" not in at.error[0].value
    shown = any("ValueError: odd" in text.value for text in at.code)
    assert shown == ("ValueError" in code)


def test_an_unfinished_run_can_be_gone_on_with(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("report.md", "results.parquet"):
        (root / "patch" / "first" / name).unlink()
    stand_in(monkeypatch, "import time; time.sleep(60)")
    at = open_at(monkeypatch, str(root))
    at.button(key="resume").click().run()
    assert not at.exception and DESK.run.out == root / "patch" / "first"
    assert DESK.run.experiment == "patch"
    listed = at.dataframe[0].value
    assert list(listed["state"]) == ["under way"]


def test_a_page_opens_on_a_run_with_results(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = root / "patch" / "under-way"
    newer.mkdir()
    EXPERIMENTS["patch"].settings(**TINY).write(newer / "config.toml")
    at = open_at(monkeypatch, str(root))
    assert at.selectbox(key="run").options == ["patch/first", "patch/under-way"]
    assert at.selectbox(key="run").value == "patch/first" and not at.info


def test_a_finished_run_and_the_shipped_one_are_not_gone_on_with(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not [b for b in open_at(monkeypatch, str(root)).button if b.key == "resume"]
    at = open_at(monkeypatch, "nowhere", "--example")
    assert not [b for b in at.button if b.key == "resume"]


def test_a_clicked_row_opens_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"runs": {"selection": {"cells": [(1, "model")]}}, "run": "a"}
    monkeypatch.setattr(st, "session_state", state)
    page.take_run(["a", "b"])
    assert state["run"] == "b"
    for cells in ([], [(2, "model")]):  # a click let go, and a row that is gone
        state["runs"] = {"selection": {"cells": cells}}
        page.take_run(["a", "b"])
        assert state["run"] == "b"


def test_only_files_of_the_run_itself_are_offered(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = root / "patch" / "first"
    (tmp_path / "secret.csv").write_text("no")
    (run / "linked.csv").symlink_to(tmp_path / "secret.csv")
    (run / "figures").mkdir()
    (run / "figures" / "linked.html").symlink_to(tmp_path / "secret.csv")
    (run / "figures" / "map.html").write_text("<p>map</p>")
    at = open_at(monkeypatch, str(root))
    assert not at.exception
    assert at.selectbox(key="figure").options == ["map"]
    assert {"map.html", "config.toml", "report.md"} <= set(labels(at))
    assert "linked.csv" not in labels(at)
    with zipfile.ZipFile(io.BytesIO(run_files._packed(run)())) as packed:
        assert sorted(packed.namelist()) == sorted(
            f"first/{name}"
            for name in ("config.toml", "results.parquet", "report.md", "figures/map.html")
        )
        assert packed.read("first/figures/map.html") == b"<p>map</p>"
