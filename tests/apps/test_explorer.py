"""The explorer on a made run: every page opens, the address is kept, gaps are told in words."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from apps import launch
from apps.background import Job

from ..experiments import made_results

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "apps" / "explorer.py"
# Page, and how many charts it draws of the made run.
PAGES = {
    "layers": 5,
    "varieties": 5,
    "directions": 2,
    "patch": 1,
    "steer": 2,
    "tokens": 0,
    "runs": 0,
}


@pytest.fixture(scope="module")
def results() -> pd.DataFrame:
    return made_results.made_results()


def make_run(run: Path, results: pd.DataFrame) -> None:
    run.mkdir(parents=True)
    results.to_parquet(run / "results.parquet")
    made_results.made_points().to_parquet(run / "projection.parquet")
    made_results.made_axes().to_parquet(run / "projection_axes.parquet")
    (run / "config.toml").write_text('model = "made"\n')
    (run / "report.md").write_text(
        "# made: where varieties lie\n\n## Findings\n\n- Found.\n\n## Figures\n\n"
        "![a](figures/a.png)\n\n## Read with care\n\n- Made up.\n"
    )


@pytest.fixture
def runs(tmp_path: Path, results: pd.DataFrame) -> Path:
    make_run(tmp_path / "runs" / "compare" / "first", results)
    return tmp_path / "runs"


def open_at(
    path: Path | list[str], monkeypatch: pytest.MonkeyPatch, page: str = "layers", **query: str
) -> AppTest:
    given = path if isinstance(path, list) else [str(path)]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *given])
    at = AppTest.from_file(str(SCRIPT), default_timeout=60)
    for name, value in query.items():
        at.query_params[name] = value
    at.run()
    if page != "layers":
        at.switch_page(f"views/{page}.py").run()
    return at


@pytest.mark.parametrize("page", PAGES)
def test_every_page_of_a_run_opens_without_an_error(
    runs: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    at = open_at(runs, monkeypatch, page)
    assert not at.exception and not at.error
    assert at.header[0].value == page.capitalize()
    assert len(at.get("vega_lite_chart")) == PAGES[page]
    if page == "tokens":
        assert "isogloss run token-shift" in at.info[0].value
    if page == "runs":
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


@pytest.mark.parametrize("page", ["layers", "varieties", "directions"])
def test_pages_open_where_a_question_was_not_asked(
    runs: Path, monkeypatch: pytest.MonkeyPatch, results: pd.DataFrame, page: str
) -> None:
    kept = results[results["measure"] == "behaviour_probe_accuracy"]
    kept.to_parquet(runs / "compare" / "first" / "results.parquet")
    at = open_at(runs, monkeypatch, page)
    assert not at.exception and not at.error


def test_the_pair_of_the_address_is_the_pair_shown(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = open_at(runs, monkeypatch)
    at.query_params["pair"] = "river and valley"
    at.session_state["open_pair_rows"] = True
    at.switch_page("views/varieties.py").run()
    assert at.selectbox(key="pair").value == "river and valley"
    tables = [t.value for t in at.dataframe if "reference" in t.value and "variety" in t.value]
    pairs = {frozenset(p) for t in tables for p in zip(t["variety"], t["reference"])}
    assert frozenset(("river", "valley")) in pairs


def test_two_runs_are_compared_where_they_measured_the_same(
    runs: Path, monkeypatch: pytest.MonkeyPatch, results: pd.DataFrame
) -> None:
    make_run(runs / "compare" / "second", results.assign(value=results["value"] + 0.125))
    at = open_at(runs, monkeypatch, "runs")
    assert not at.exception
    found = next(t.value for t in at.dataframe if "difference" in t.value)
    assert len(found) and found["difference"].abs().round(9).eq(0.125).all()
    at.switch_page("views/directions.py").run()
    at.selectbox(key="beside").select(at.selectbox(key="beside").options[1]).run()
    assert not at.exception and len(at.get("vega_lite_chart")) == 6


def test_reading_never_loads_torch(runs: Path) -> None:
    code = (
        "import sys; from streamlit.testing.v1 import AppTest; "
        f"sys.argv = ['explorer', {str(runs)!r}]; "
        f"at = AppTest.from_file({str(SCRIPT)!r}, default_timeout=60).run(); "
        f"pages = {list(PAGES)!r}\n"
        "for page in pages:\n"
        "    at.switch_page(f'views/{page}.py').run()\n"
        "    assert not at.exception and at.header[0].value == page.capitalize()\n"
        "    assert 'torch' not in sys.modules, page\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Asking a model


@pytest.fixture(scope="module")
def asked() -> Iterator[tuple[AppTest, pytest.MonkeyPatch]]:
    """The explorer as started on an embedded model, with no run but the one that is shipped."""
    with pytest.MonkeyPatch.context() as patch:
        yield open_at(["no-such-folder", "--model", "organism/aligned", "--example"], patch), patch


def test_the_shipped_run_is_there_when_a_model_is_named(
    asked: tuple[AppTest, pytest.MonkeyPatch],
) -> None:
    at, _ = asked
    assert not at.exception and not at.info
    assert at.selectbox(key="run").value == "example: organism/aligned"
    assert sum(f.stat().st_size for f in (ROOT / "apps" / "example").iterdir()) < 300_000


def test_patching_two_prompts_gives_the_sweep_and_what_a_cell_changes(
    asked: tuple[AppTest, pytest.MonkeyPatch],
) -> None:
    from activations import open_model
    from interventions import patch_sweep

    at, _ = asked
    at.switch_page("views/patch.py").run()
    at.button(key="go").click().run()
    job = at.session_state["patch_job"]
    job.join(60)
    at.run()
    assert not at.exception and not at.error and job.error is None
    prompts = (at.text_input(key="base").value, at.text_input(key="source").value)
    model = open_model("organism/aligned")
    whole = patch_sweep(model, [prompts], sites="resid_post", max_positions=64).frame
    merged = job.frame().merge(whole, on=["site", "position"])
    assert len(merged) == len(whole)
    assert merged["recovered_x"].to_numpy() == pytest.approx(
        merged["recovered_y"].to_numpy(), abs=1e-6
    )
    at.number_input(key="cell_block").set_value(3)
    at.number_input(key="cell_token").set_value(0).run()
    words = next(t.value for t in at.dataframe if "patched rank" in t.value)
    # Patched after the last block at the last token, the run predicts as the source does.
    assert words["patched"].to_numpy() == pytest.approx(words["source"].to_numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("base", "source", "said"),
    [("a", "a", "the same"), (" ", "a", "empty"), ("the lad " * 40, "a", "64 at most")],
)
def test_prompts_that_cannot_be_patched_give_a_sentence(
    asked: tuple[AppTest, pytest.MonkeyPatch], base: str, source: str, said: str
) -> None:
    at, _ = asked
    at.switch_page("views/patch.py").run()
    at.text_input(key="base").set_value(base)
    at.text_input(key="source").set_value(source)
    at.button(key="go").click().run()
    assert not at.exception and said in at.error[0].value


def test_steering_writes_three_replies_and_leaves_the_model_as_it_was(
    asked: tuple[AppTest, pytest.MonkeyPatch],
) -> None:
    from activations import open_model
    from interventions import is_refusal

    at, _ = asked
    at.switch_page("views/steer.py").run()
    at.number_input(key="block").set_value(3)
    at.button(key="go").click().run()
    assert not at.exception and not at.error
    job = at.session_state["steer_job"]
    job.join(120)
    at.run()
    assert not at.exception and job.error is None
    rows = job.frame()
    assert len(rows) == job.count == 11
    one = rows[rows["strength"].isin([0.0, 1.0])].set_index("kind")["reply"]
    plain = open_model("organism/aligned")
    prompt = plain.render(at.text_input(key="prompt").value)
    assert one["plain"] == plain.generate([prompt], max_new_tokens=24)[0]
    # Planted: the aligned organism refuses along the harmful direction, and only along it.
    assert is_refusal(one["steered"]) and not is_refusal(one["plain"])
    assert not is_refusal(one["random"])


def test_a_block_that_the_model_lacks_gives_a_sentence(
    asked: tuple[AppTest, pytest.MonkeyPatch],
) -> None:
    at, _ = asked
    at.switch_page("views/steer.py").run()
    at.number_input(key="block").set_value(99)
    at.button(key="go").click().run()
    assert not at.exception and "99" in at.error[0].value


def test_a_model_that_cannot_be_opened_gives_a_sentence(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = open_at(runs, monkeypatch, "patch")  # the run's model is `made`, which is nowhere
    at.button(key="go").click().run()
    assert not at.exception and "made" in at.error[0].value


def test_a_job_stops_before_its_next_part_and_keeps_what_is_done() -> None:
    more = threading.Semaphore(2)

    def parts() -> Iterator[pd.DataFrame]:
        for i in range(100):
            more.acquire(timeout=5)
            yield pd.DataFrame({"i": [i]})

    job = Job(parts(), 100)
    while job.done < 2:
        time.sleep(0.01)
    began = time.monotonic()
    job.stop()
    assert not job.alive and time.monotonic() - began < 1
    more.release(100)
    job.join(5)
    assert job.done in (2, 3) and list(job.frame()["i"])[:2] == [0, 1]


def test_a_job_keeps_its_error_and_the_rows_before_it() -> None:
    def parts() -> Iterator[pd.DataFrame]:
        yield pd.DataFrame({"i": [0]})
        raise ValueError("no more")

    job = Job(parts(), 2)
    job.join(5)
    assert isinstance(job.error, ValueError) and len(job.frame()) == 1 and not job.alive


# The server


def test_the_server_is_bound_to_this_machine(tmp_path: Path) -> None:
    flags = launch.command([str(tmp_path)], port=8601, headless=True)
    assert "--server.address=127.0.0.1" in flags
    assert "--browser.gatherUsageStats=false" in flags
    assert "--server.showEmailPrompt=false" in flags
    assert "--server.port=8601" in flags
    # A comma list would be taken for one odd name and shut every page out.
    hosts = [flag for flag in flags if flag.startswith("--server.allowedHosts=")]
    assert hosts[:2] == ["--server.allowedHosts=127.0.0.1", "--server.allowedHosts=localhost"]
    assert flags[-2:] == ["--", str(tmp_path)]


def test_an_address_that_others_can_reach_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SSH tunnel"):
        launch.explore([str(tmp_path)], host="0.0.0.0")


def test_the_target_is_a_folder_a_model_or_left_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert launch.target(str(ROOT)) == [str(ROOT)]
    assert launch.target(None) == ["runs", "--example"]
    named = ["runs", "--model", "organism/base", "--example"]
    assert launch.target("organism/base") == named
    assert launch.target(str(tmp_path)) == ["runs", "--model", str(tmp_path), "--example"]
    assert launch.target(str(ROOT), "gpt2") == [str(ROOT), "--model", "gpt2"]


@pytest.mark.parametrize("told", ["organism/none", "no-such-folder"])
def test_a_target_that_is_nothing_gives_a_sentence(told: str) -> None:
    from experiments import ConfigError

    with pytest.raises(ConfigError, match="organism/"):
        launch.target(told)
