"""A run directory keeps what is measured, continues, and refuses what is not its own."""

import math

import pandas as pd
import pytest

from evidence import Estimate
from experiments import CompareSettings, ConfigError
from experiments.results import DEFAULTS, as_frame, row
from experiments.runner import Run


def test_a_row_has_every_column_and_nan_where_there_is_no_interval():
    frame = as_frame([row("loss", 1.5, variety="x")])
    assert list(frame.columns) == list(DEFAULTS)
    assert frame.loc[0, "value"] == 1.5
    assert math.isnan(frame.loc[0, "low"])
    with pytest.raises(KeyError, match="no such column"):
        row("loss", 1.0, colour="red")


def test_an_estimate_brings_its_interval():
    told = row("loss", Estimate(0.5, 0.4, 0.6, n=7), layer=3)
    assert (told["low"], told["high"], told["n"], told["layer"]) == (0.4, 0.6, 7, 3)


def test_a_finished_stage_is_not_measured_again(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        yield row("loss", 1.0)

    for _ in range(2):
        run = Run.start("compare", CompareSettings(), out=tmp_path / "run")
        frame = run.stage("probe", measure)
    assert len(calls) == 1
    assert frame["value"].tolist() == [1.0]


def test_an_unfinished_run_of_the_same_settings_is_continued(tmp_path):
    first = Run.start("compare", CompareSettings(), out=None, root=tmp_path)
    again = Run.start("compare", CompareSettings(), out=None, root=tmp_path)
    other = Run.start("compare", CompareSettings(seed=1), out=None, root=tmp_path)
    assert first.path == again.path != other.path


def test_results_are_one_table_on_disk(tmp_path):
    run = Run.start("compare", CompareSettings(), out=tmp_path / "run")
    run.finish([as_frame([row("loss", 1.0)]), as_frame([]), as_frame([row("loss", 2.0)])])
    assert pd.read_parquet(run.path / "results.parquet")["value"].tolist() == [1.0, 2.0]
    assert not list(run.path.glob("*.partial"))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty and not a run"):
        Run.start("compare", CompareSettings(), out=tmp_path)
    Run.start("compare", CompareSettings(), out=tmp_path / "run")
    with pytest.raises(ConfigError, match="other settings"):
        Run.start("compare", CompareSettings(seed=9), out=tmp_path / "run")
