"""The command as a user meets it: what is wrong is one sentence and exit 2; what is right runs."""

import json
import re
import subprocess
import sys

import pandas as pd
import pytest

from apps.cli import main

HEADER = "text,variety,group,behaviour\n"
PAIRS = "".join(f"this is {i},std,g{i},\ndis be {i},dia,g{i},\n" for i in range(8))
QUICK = [
    "permutations=20",
    "null_draws=50",
    "split_draws=2",
    "bootstrap_draws=20",
    "ablation_controls=1",
    "max_groups=12",
    "max_requests=8",
    "patch_pairs=1",
    "control_draws=1",
    "folds=3",
    "add_scales=[0.6]",
    "new_tokens=8",
    "loss_groups=4",
    "patch_positions=4",
    "patch_layers=2",
]


def isogloss(monkeypatch, capsys, *arguments):
    """Exit code, standard output and standard error of one call."""
    monkeypatch.setattr(sys, "argv", ["isogloss", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr()
    return ended.value.code or 0, told.out, told.err


def quick():
    return [part for setting in QUICK for part in ("--set", setting)]


BAD_FILES = {
    "missing column": ("a.csv", b"words,variety\nx,y\n", "text"),
    "empty": ("a.csv", b"", "empty"),
    "header only": ("a.csv", HEADER.encode(), "no rows|empty|holds no"),
    "wrong encoding": ("a.csv", "text,variety\ncaf\xe9,x\n".encode("latin-1"), "UTF-8|utf-8"),
    "broken parquet": ("a.parquet", b"PAR1 not at all", "[Pp]arquet"),
    "pickle": ("a.pkl", b"\x80\x04.", "pickle|\\.pkl"),
    "broken json line": ("a.jsonl", b'{"text": "x"\n', "line 1|JSON"),
    "blank text": ("a.csv", (HEADER + " ,std,g1,\n" + PAIRS).encode(), "blank|empty"),
    "duplicate": ("a.csv", (HEADER + PAIRS + "this is 0,std,g0,\n").encode(), "duplicate|twice"),
    "one variety": ("a.csv", (HEADER + "a,std,g1,\nb,std,g2,\n").encode(), "one variety|two"),
    "no pairs": (
        "a.csv",
        (HEADER + "".join(f"a{i},std,s{i},\nb{i},dia,d{i},\n" for i in range(6))).encode(),
        "shares 0 groups",
    ),
    "unknown behaviour": ("a.csv", (HEADER + "a,std,g1,evil\n" + PAIRS).encode(), "evil"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_corpus_is_one_sentence_and_leaves_nothing(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file, content, message = BAD_FILES[name]
    (tmp_path / file).write_bytes(content)
    code, _, err = isogloss(
        monkeypatch, capsys, "run", "compare", "--corpus", file, "--standard", "std"
    )
    assert code == 2, err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert re.search(message, err), err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "nowhere.csv"], "nowhere.csv"),
        (["--model", "organism/none"], "organism/none|organism"),
        (["--model", "./no-such-folder"], "no-such-folder"),
        (["--sites", "resid_pots"], "resid_post"),
        (["--layers", "99"], "99"),
        (["--layers", "two"], "--layers"),
        (["--dtype", "float3"], "float3"),
        (["--device", "toaster"], "toaster"),
        (["--set", "kk=3"], "kk"),
        (["--tokens", "first"], "tokens"),
        (["--config", "none.toml"], "none.toml"),
        (["--standard", "martian"], "martian"),
        (["--seed", "x"], "--seed"),
        (["--nope"], "--nope"),
        (["--out", "a-file/run"], "a-file"),
    ],
)
def test_a_bad_option_is_one_sentence_and_leaves_nothing(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("mine")
    code, _, err = isogloss(monkeypatch, capsys, "run", "compare", "--quiet", *arguments)
    assert code == 2, err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    assert re.search(message, err), err
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare"], "No such command 'compare'"),
        (["run", "nothing"], "nothing"),
        (["explore", "nowhere"], "no folder nowhere"),
        (["store", "info", "nowhere"], "no store at nowhere"),
        (["capture", "--model", "organism/base", "--store", "a-file"], "a-file"),
        (["capture", "--model", "organism/base", "--store", "a-file/s"], "a-file"),
        (["capture", "--model", "organism/base"], "--store DIR, or ask for the --plan"),
        (["capture", "--model", "organism/base", "--plan", "--tokens", "first"], "rule 'first'"),
        (["capture", "--model", "organism/base", "--plan", "--sites", "resid"], "resid_pre"),
        (["capture", "--model", "organism/base", "--plan", "--store-dtype", "int8"], "'int8'"),
        (["capture", "--model", "organism/base", "--plan", "--set", "texts=a"], "text_column"),
        (["capture", "--model", "organism/base", "--plan", "--engine", "jax"], "--engine"),
    ],
)
def test_a_bad_call_of_any_command_is_one_sentence(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("mine")
    code, _, err = isogloss(monkeypatch, capsys, *arguments)
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1
    assert re.search(message, err), err
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_help_and_lists_end_well(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments in (["--help"], ["run", "compare", "--help"], ["runs"]):
        code, out, err = isogloss(monkeypatch, capsys, *arguments)
        assert (code, err) == (0, "")
        assert out.strip()


@pytest.mark.slow
def test_the_main_job_runs_and_its_own_config_repeats_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = isogloss(
        monkeypatch, capsys, "run", "compare", "--out", "one", "--quiet", "--json", *quick()
    )
    assert code == 0, err
    told = json.loads(out.strip().splitlines()[-1])
    assert set(told) == {"run", "results", "seconds"}
    for part in (
        "config.toml",
        "results.parquet",
        "report.md",
        "projection.parquet",
        "projection_axes.parquet",
        "environment.json",
        "log.txt",
    ):
        assert (tmp_path / "one" / part).exists(), part
    again = ("run", "compare", "--config", "one/config.toml", "--out", "two", "--quiet")
    code, _, err = isogloss(monkeypatch, capsys, *again)
    assert code == 0, err
    one, two = (pd.read_parquet(tmp_path / n / "results.parquet") for n in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)
    assert {
        "variety_probe_accuracy",
        "behaviour_probe_accuracy",
        "subspace_overlap",
        "principal_angle",
        "loss",
        "refusal_rate",
        "recovered_fraction",
    } <= set(one["measure"])


@pytest.mark.slow
def test_a_corpus_of_varieties_alone_says_what_was_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text(HEADER + PAIRS)
    options = ("--corpus", "mine.csv", "--standard", "std", "--out", "run", "--quiet")
    code, _, err = isogloss(monkeypatch, capsys, "run", "compare", *options, *quick())
    assert code == 0, err
    report = (tmp_path / "run" / "report.md").read_text()
    assert "no behaviour question was asked" in report
    measures = set(pd.read_parquet(tmp_path / "run" / "results.parquet")["measure"])
    assert "refusal_rate" not in measures


@pytest.mark.slow
def test_a_plan_costs_nothing_and_comes_true(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text(HEADER.replace("text", "words") + PAIRS)
    call = ["capture", "--model", "organism/base", "--corpus", "mine.csv", "--tokens", "all"]
    call += ["--set", "text_column=words", "--sites", "resid_post,z", "--store-dtype", "float16"]
    code, out, err = isogloss(monkeypatch, capsys, *call, "--plan", "--json")
    assert code == 0, err
    plan = json.loads(out.strip().splitlines()[-1])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]
    code, out, err = isogloss(monkeypatch, capsys, *call, "--plan")
    assert code == 0 and "On disk:" in out
    code, out, err = isogloss(monkeypatch, capsys, *call, "--store", "kept", "--quiet", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out.strip().splitlines()[-1])
    manifest = json.loads((tmp_path / "kept" / "manifest.json").read_text())
    assert told["rows"] == plan["rows"] == plan["tokens"] == manifest["n_rows"]
    assert plan["disk_bytes"] == manifest["n_rows"] * 8 * 128 * 2
    assert plan["sites"] == len(manifest["sites"]) == 8
    assert plan["shards"] == len(manifest["shards"])
    assert 0 < plan["seconds"] < 600 and 0 <= plan["padding"] < 1


def test_help_loads_no_heavy_library():
    code = (
        "import sys; import apps.cli; "
        "assert not {'torch', 'jax', 'transformers', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
