"""Every experiment as a command: the same options, the same exits, and a config that repeats it."""

import json
import re
import sys

import pandas as pd
import pytest

from apps.cli import main
from experiments.registry import EXPERIMENTS


def isogloss(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of one call."""
    monkeypatch.setattr(sys, "argv", ["isogloss", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    return ended.value.code or 0, told.out, told.err


def test_help_lists_every_experiment(monkeypatch, capsys):
    code, out, err = isogloss(monkeypatch, capsys, "run", "--help")
    assert (code, err) == (0, "")
    assert all(name in out for name in EXPERIMENTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["patch", "--set", "way=sideways"], "way.*denoise"),
        (["patch", "--set", "pairs=1"], "pairs"),
        (["patch", "--set", 'varieties=["mars"]'], "mars"),
        (["directions", "--set", "depth=2"], "depth"),
        (["directions", "--set", "kl=1"], "kl_threshold"),
        (["steer", "--set", "target=mood"], "target"),
        (["steer", "--set", "strengths=[1]"], "strengths"),
        (["steer", "--corpus", "nowhere.csv"], "nowhere.csv"),
        (["directions", "--config", "none.toml"], "none.toml"),
    ],
)
def test_a_bad_setting_is_one_sentence_and_leaves_nothing(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    code, _, err = isogloss(monkeypatch, capsys, "run", *arguments, "--quiet")
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err
    assert re.search(message, err), err
    assert list(tmp_path.iterdir()) == []


def test_a_run_tells_where_it_is_and_its_config_repeats_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--model", "organism/base", "--layers", "3", "--set", "pairs=2"]
    options += ["--set", "positions=2", "--set", 'varieties=["tarn"]', "--set", "way=denoise"]
    code, out, err = isogloss(
        monkeypatch, capsys, "run", "patch", *options, "--out", "one", "--quiet", "--json"
    )
    assert code == 0, err
    told = json.loads(out.strip().splitlines()[-1])
    assert set(told) == {"run", "results", "seconds"}
    again = ("run", "patch", "--config", "one/config.toml", "--out", "two")
    code, out, err = isogloss(monkeypatch, capsys, *again)
    assert code == 0 and "of the gap is closed" in out
    one, two = (pd.read_parquet(tmp_path / n / "results.parquet") for n in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)
