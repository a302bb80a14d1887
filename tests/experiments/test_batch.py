"""A batch runs what its grid says, each run once, whatever fails, dies or is killed on the way."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activations import Workers
from apps.cli import main
from experiments.batch import BatchFolder, Planned, join, plan, read_grid, run_batch, share
from experiments.batch.grid import Grid
from experiments.batch.summary import summarise
from experiments.registry import EXPERIMENTS, Experiment
from experiments.results import DEFAULTS, as_frame, row
from experiments.settings import CompareSettings, ConfigError

ROOT = Path(__file__).resolve().parents[2]
MADE = Path(__file__).with_name("made_experiment")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the experiment `made` in this process and in those it starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(MADE))
    about = Experiment("made", "", "made_experiment:MadeSettings", "made_experiment:run_made")
    monkeypatch.setitem(EXPERIMENTS, "made", about)
    return tmp_path


def written(place: Path, text: str) -> Path:
    file = place / "grid.toml"
    file.write_text(text, encoding="utf-8")
    return file


def batch(*arguments: object) -> int:
    """The exit code of one call of the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["isogloss", "batch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def begun(place: Path) -> list[str]:
    """What began, in order."""
    file = place / "begun"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


# The grid


@given(
    models=st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True),
    seeds=st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True),
    k=st.lists(st.integers(1, 9), max_size=3, unique=True),
    extra=st.lists(st.integers(0, 3), max_size=3),
)
def test_lists_multiply_and_each_run_is_there_once(
    models: list[str], seeds: list[int], k: list[int], extra: list[int]
) -> None:
    axes: dict[str, Any] = {"model": models, "seed": seeds} | ({"settings": {"k": k}} if k else {})
    further = [{"model": "a", "settings": {"seed": seed}} for seed in extra]
    runs = plan(Grid(common={"experiment": "compare", "folds": 3}, grid=axes, runs=further))
    default = CompareSettings().k
    expected = [*itertools.product(models, seeds, k or [default])]
    expected += [("a", seed, default) for seed in extra]
    found = [(r.settings.model, r.settings.seed, getattr(r.settings, "k")) for r in runs]  # noqa: B009
    assert found == list(dict.fromkeys(expected))
    assert {getattr(run.settings, "folds") for run in runs} == {3}  # noqa: B009
    assert len({run.name for run in runs}) == len(runs)


@given(runs=st.integers(0, 40), jobs=st.integers(1, 12), first=st.sampled_from([0, 1]))
def test_jobs_together_take_every_run_exactly_once(runs: int, jobs: int, first: int) -> None:
    all_runs = [Planned("compare", CompareSettings(seed=i)) for i in range(runs)]
    parts = [share(all_runs, f"{i}/{jobs}") for i in range(first, first + jobs)]
    seeds = sorted(run.settings.seed for part in parts for run in part)
    assert seeds == list(range(runs))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_settings_go_to_the_experiments_that_have_them(made: Path) -> None:
    grid = Grid(
        common={"k": 3, "place": "here"},
        grid={"experiment": ["compare", "made"], "parts": [[1], [2, 3]]},
    )
    runs = plan(grid)
    assert [run.experiment for run in runs] == ["compare", "made", "made"]
    told = [run.settings.model_dump() for run in runs]
    assert told[0]["k"] == 3 and "place" not in told[0]
    assert [one["parts"] for one in told[1:]] == [[1], [2, 3]] and "k" not in told[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[grid", "not valid TOML"),
        ("model = 'a'", "'model' outside the tables"),
        ("grid = 3", "'grid' must be a table"),
        ("[runs]\nmodel = 'a'", r"'runs' must be \[\[runs\]\]"),
        ("[common]\nexperiment = 'compare'", "The grid has no run"),
        ("[grid]\nseed = [0]", "names no experiment"),
        ("[grid]\nexperiment = ['compere']", "no experiment 'compere'; did you mean compare"),
        ("[grid]\nexperiment = 'compare'\nmodel = []", "model is an empty list"),
        ("[grid]\nexperiment = 'compare'\nfold = [2]", "no setting 'fold'; did you mean folds"),
        ("[common]\nfold = 2\n[[runs]]\nexperiment = 'compare'", "no setting 'fold'"),
        ("[[runs]]\nexperiment = 'compare'\nfold = 2", r"\[\[runs\]\] number 1: There is no"),
        (
            "[grid]\nexperiment = 'compare'\nseed = [0, -1]",
            "with experiment = 'compare', seed = -1",
        ),
        ("[grid]\nexperiment = 'compare'\nlayers = [0, 1]", "give a list of lists for layers"),
        ("[grid]\nexperiment = 'compare'\nk = 1\nsettings.k = 2", "gives 'k' twice"),
        ("[grid]\nsettings = 3", "settings are given as settings.NAME"),
    ],
)
def test_a_bad_grid_is_one_sentence_and_exit_2(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message):
        plan(read_grid(file))
    assert batch(file, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("only", ["", "3", "4/3", "1/0", "-1/3", "a/b"])
def test_a_share_that_is_none_is_refused(only: str) -> None:
    with pytest.raises(ConfigError, match="--only takes i/n"):
        share([], only)


def test_folders_and_devices_that_do_not_fit_are_refused(made: Path) -> None:
    (made / "out").mkdir()
    (made / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty and holds no batch"):
        BatchFolder.at(made / "out")
    with pytest.raises(ConfigError, match="There is no grid file"):
        read_grid(made / "nowhere.toml")
    run = Planned("compare", CompareSettings(device="cuda:1"))
    folder = BatchFolder.at(made / "b")
    with pytest.raises(ConfigError, match="leave the grid's device out"):
        run_batch([run], folder, workers=Workers(1, devices=("cuda:0",)))
    with pytest.raises(ConfigError, match="There is no device 'gpu'"):
        run_batch([], folder, workers=Workers(1, devices=("gpu",)))


def test_the_examples_can_be_read() -> None:
    examples = ROOT / "docs" / "examples"
    runs = plan(read_grid(examples / "gpu_grid.toml"))
    assert len({run.settings.model for run in runs}) == 6 and len(runs) == 31
    script = examples / "slurm_array.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    assert '--only "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"' in script.read_text()


# The runs


def test_what_fails_is_put_down_and_the_others_go_on(
    made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(
        made,
        f"""
        [common]
        experiment = "made"
        place = "{made}"
        [grid]
        act = ["die", "fail", "well", "err"]
        """,
    )
    assert batch(file, "--out", "out", "--devices", "gpu") == 2 and not (made / "out").exists()
    assert batch(file, "--dry-run") == 0
    assert "4 runs in" in capsys.readouterr().out and not begun(made)
    assert batch(file, "--out", "out", "--workers", 2, "--threads", 1, "--json") == 1
    told = capsys.readouterr()
    assert json.loads(told.out.splitlines()[-1])["runs"] == {"done": 1, "failed": 3, "to do": 0}
    for said in ("SIGKILL, most likely", "no such thing; give another.", "KeyError: 'a mistake"):
        assert said in told.err
        assert said in (made / "out" / "report.md").read_text()
    frame = pd.read_parquet(made / "out" / "results.parquet")
    own = ["run", "experiment", "model", "corpus", "setting_act"]
    assert list(frame.columns) == [*own, *DEFAULTS]
    assert set(frame["setting_act"]) == {"well"} and len(frame) == 5
    errs = [file for file in (made / "out" / "logs").iterdir() if "KeyError" in file.read_text()]
    assert len(errs) == 1 and "Traceback" in errs[0].read_text()

    assert sorted(begun(made)) == ["die", "err", "fail", "well"]
    assert batch(file, "--out", "out", "--quiet", "--only", "2/4") == 0  # its share is done
    runs, folder = plan(read_grid(file)), BatchFolder.at("out")
    states = ["failed", "failed", "done", "failed"]
    assert list(run_batch(runs, folder).values()) == states
    assert len(begun(made)) == 4  # what failed is left, and what is done too
    assert list(run_batch(runs[1:3], folder, retry=True).values()) == states[1:3]
    assert begun(made)[4:] == ["fail"]


def test_each_run_is_shown_its_own_gpu_and_threads(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    grid = {"experiment": "made", "place": str(made), "figure": [1.0, 2.0]}
    folder = BatchFolder.at(made / "out")
    folder.begin("")
    states = run_batch(
        plan(Grid(grid=grid)),
        folder,
        workers=Workers(2, devices=("cuda:1", "cuda:0"), threads=3),
    )
    assert list(states.values()) == ["done", "done"]
    told = [line.split()[2:] for line in (made / "begun").read_text().splitlines()]
    assert sorted(told) == [["3", "GPU-a"], ["3", "GPU-b"]]
    with pytest.raises(ConfigError, match="no device cuda:2"):
        run_batch([], folder, workers=Workers(1, devices=("cuda:2",)))


def test_a_killed_batch_goes_on_and_repeats_nothing(made: Path) -> None:
    file = written(
        made,
        f"""
        [grid]
        experiment = "made"
        place = "{made}"
        act = ["well", "wait"]
        """,
    )
    command = [sys.executable, "-c", "from apps.cli import main; main()"]
    first = subprocess.Popen(
        [*command, "batch", str(file), "--out", "out"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(MADE), str(ROOT)])},
        stderr=subprocess.DEVNULL,
    )
    patience = time.monotonic() + 120
    while begun(made) != ["well", "wait"] and time.monotonic() < patience:
        time.sleep(0.02)
    runs = plan(read_grid(file))
    folder = BatchFolder.at("out")
    assert [folder.state(run) for run in runs] == ["done", "to do"]
    said: list[str] = []
    assert run_batch(runs, folder, say=said.append)[runs[1].name] == "to do"
    assert said == [f"[1/1] {runs[1].name}: is being run by another process"]
    first.send_signal(signal.SIGKILL)
    first.wait()
    orphan = int((made / "begun").read_text().splitlines()[1].split()[1])
    while Path(f"/proc/{orphan}").exists() and time.monotonic() < patience:
        time.sleep(0.02)
    assert not Path(f"/proc/{orphan}").exists()  # nobody waits for it, so it is gone
    (made / "go").touch()
    assert batch(file, "--out", "out", "--quiet") == 0
    assert begun(made) == ["well", "wait", "wait"]
    frame = pd.read_parquet(made / "out" / "results.parquet")
    assert sorted(set(frame["setting_act"])) == ["wait", "well"]


@pytest.mark.slow
def test_two_runs_on_an_organism_one_of_which_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"this is {i},std,g{i},\ndis be {i},dia,g{i},\n" for i in range(8)]
    (tmp_path / "texts.csv").write_text("text,variety,group,behaviour\n" + "".join(lines))
    quick = """
        corpus = "texts.csv"\nlayers = [0]\ncontrol_draws = 1\npermutations = 20\nnull_draws = 50
        split_draws = 2\nbootstrap_draws = 20\nablation_controls = 1\nloss_groups = 2
        patch_pairs = 0\nfolds = 2\nrandom_model = false\ncloud_rows = 50\nk = 1
    """
    text = f"[common]\n{quick}\n[grid]\nexperiment = 'compare'\nstandard = ['nowhere', 'std']"
    assert batch(written(tmp_path, text), "--quiet") == 1
    folder = tmp_path / "runs" / "batch" / "grid"
    frame = pd.read_parquet(folder / "results.parquet")
    assert set(frame["corpus"]) == {"texts.csv"} and set(frame["setting_standard"]) == {"std"}
    single = pd.read_parquet(next((folder / "runs").iterdir()) / "results.parquet")
    assert frame[list(single.columns)].equals(single)
    report = (folder / "report.md").read_text()
    assert "nowhere: no such variety" in report and "variety_probe_accuracy" in report
    assert (folder / "figures" / "runs_by_measure.png").stat().st_size > 10_000


# What is joined


def test_the_middle_row_of_each_run_is_shown_with_its_own_interval(made: Path) -> None:
    runs = plan(Grid(grid={"experiment": "made", "figure": [1.0, 5.0], "model": ["a", "b"]}))
    folder = BatchFolder.at(made / "out")
    for run in runs[:3]:
        path = folder.run(run)
        path.mkdir(parents=True)
        values = [run.settings.model_dump()["figure"] + 10 * i for i in (2, 0, 3, 1)]
        rows = [row("figure", v) | {"low": v - 1, "high": v + 1, "layer": i}
                for i, v in enumerate(values)]  # fmt: skip
        rows.append(row("figure", 500.0, edit="ablate(variety:x)"))
        rows.append(row("figure", -500.0, control="chance"))
        as_frame(rows).to_parquet(path / "results.parquet")
        (path / "report.md").write_text("done")
    folder.begin("")
    joined = join(runs, folder)
    assert joined["setting_figure"].dtype == float
    table = summarise(joined)
    plain = table[table["measure"] == "figure"].set_index("label")
    assert list(plain.index) == ["a · figure 1.0", "b · figure 1.0", "a · figure 5.0"]
    assert list(plain["value"]) == [11.0, 11.0, 15.0]
    assert list(plain["low"]) == [10.0, 10.0, 14.0]
    assert list(plain["least"]) == [1.0, 1.0, 5.0] and list(plain["most"]) == [31.0, 31.0, 35.0]
    assert set(plain["rows"]) == {4}
    assert set(table["measure"]) == {"figure", "figure, ablate(variety)"}


def test_no_run_done_joins_to_an_empty_table_with_every_column(made: Path) -> None:
    runs = plan(Grid(grid={"experiment": "made", "seed": [0, 1]}))
    folder = BatchFolder.at(made / "out")
    folder.begin("")
    joined = join(runs, folder)
    assert joined.empty
    assert list(joined.columns) == [
        "run", "experiment", "model", "corpus", "setting_seed", *DEFAULTS,
    ]  # fmt: skip
