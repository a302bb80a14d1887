"""`isogloss store` says what is there, what is wrong and what is missing, of half stores too."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from activations.manifest import read_manifest
from activations.shards import shard_path
from apps.cli import main
from tests.activations.made_stores import RESID, files, made


@pytest.fixture
def isogloss(monkeypatch, capsys):
    """Exit code, standard output and standard error of one call."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["isogloss", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, told.err

    return call


def test_info_tells_what_people_ask_of_a_store(isogloss, tmp_path):
    sites = {f"blocks.{k}.hook_resid_post": (5,) for k in (0, 1, 2, 4)}
    source = made(sites=sites | {"blocks.1.attn.hook_z": (2, 3)}, revision="v1", shards=3)
    source.write(tmp_path / "s")
    code, out, err = isogloss("store", "info", tmp_path / "s")
    assert (code, err) == (0, "")
    told = [line.split(maxsplit=1) for line in out.splitlines()]
    assert ["store", f"{tmp_path / 's'}, complete, format 2"] in told
    assert ["model", "made, revision v1, run in torch.float32"] in told
    assert ["texts", "11 of corpus 0"] in told and ["tokens", "all"] in told
    assert "blocks.0-2,4.hook_resid_post  [5]" in out and "blocks.1.attn.hook_z  [2, 3]" in out
    assert ["dtype", "float32"] in told and ["shards", "3 of 3"] in told
    assert ["rows", str(len(source.rows))] in told
    for (variety, behaviour), n in source.rows.groupby(["variety", "behaviour"]).size().items():
        assert [str(n), ", ".join(filter(None, (variety, behaviour)))] in told
    size = sum(map(len, files(tmp_path / "s").values()))
    assert ["on", f"disk   {size / 1e6:,.1f} MB"] in told


def test_info_tells_what_a_half_written_store_lacks(isogloss, tmp_path):
    source = made(shards=4)
    source.write(tmp_path, 0, 2)
    code, out, _ = isogloss("store", "info", tmp_path)
    assert code == 0
    assert "half written" in out
    assert "2 of 4; it lacks 2 of 4 shards (1, 3); run the same capture to end it" in out
    assert "tarn, harmful" in out  # rows are known from the beginning
    (tmp_path / "rows.parquet").unlink()
    code, out, _ = isogloss("store", "info", tmp_path)
    assert code == 0 and "rows.parquet is missing; run the same capture" in out


def test_info_as_json_is_the_manifest(isogloss, tmp_path):
    made().write(tmp_path)
    code, out, _ = isogloss("store", "info", tmp_path, "--json")
    assert code == 0
    assert json.loads(out) == read_manifest(tmp_path)


def test_verify_gives_every_problem_a_line(isogloss, tmp_path):
    made().write(tmp_path)
    code, out, err = isogloss("store", "verify", tmp_path)
    assert (code, err) == (0, "") and "every shard is whole" in out
    shard_path(tmp_path, 1).unlink()
    shard_path(tmp_path, 3).write_bytes(shard_path(tmp_path, 2).read_bytes())
    code, out, err = isogloss("store", "verify", tmp_path)
    assert code == 2
    first, second = out.splitlines()
    assert "00001.safetensors is missing" in first
    assert "00003.safetensors holds shard 2; capture again to mend it." in second
    assert err == f"isogloss: {tmp_path} is not whole (2 problems).\n"
    (tmp_path / "manifest.json").write_text("{")
    code, out, err = isogloss("store", "verify", tmp_path)
    assert (code, out) == (2, "") and "not valid JSON" in err and err.count("\n") == 1


def test_merge_joins_and_says_what_is_missing(isogloss, tmp_path):
    source = made(shards=4)
    source.write(tmp_path / "a", 0, 1)
    source.write(tmp_path / "b", 3)
    shard_path(tmp_path / "a", 1).unlink()
    code, out, err = isogloss("store", "merge", tmp_path / "out", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert "half written: it lacks 2 of 4 shards (1, 2); run the same capture to end it" in out
    assert "00001.safetensors is missing, and was left out." in err
    source.write(tmp_path / "a")
    made(seed=1).write(tmp_path / "c")
    code, out, err = isogloss("store", "merge", tmp_path / "two", tmp_path / "a", tmp_path / "c")
    n = len(source.rows) + len(made(seed=1).rows)
    assert (code, err) == (0, "") and out.startswith(f"{n} rows at 2 sites in ")
    code, _, err = isogloss("store", "merge", tmp_path / "two", tmp_path / "a")
    assert code == 2 and "is there already" in err


def test_export_writes_what_is_asked_for(isogloss, tmp_path):
    source = made()
    source.write(tmp_path / "s")
    code, out, _ = isogloss("store", "export", tmp_path / "s", tmp_path / "x.parquet")
    assert code == 0 and out.startswith(f"{len(source.rows)} rows at 2 sites in ")
    states = np.stack(pd.read_parquet(tmp_path / "x.parquet")[RESID])
    np.testing.assert_array_equal(states, source.array(RESID))
    arguments = ("export", tmp_path / "s", tmp_path / "n", "--format", "numpy")
    assert isogloss("store", *arguments)[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "n" / f"{RESID}.npy"), source.array(RESID))
    code, _, err = isogloss("store", *arguments)
    assert code == 2 and "is there already" in err
    code, _, err = isogloss("store", *arguments[:-1], "csv")
    assert code == 2 and "'csv' is not one of 'parquet', 'numpy', 'datasets'" in err


def test_looking_at_a_store_loads_no_framework(tmp_path):
    made().write(tmp_path)
    program = (
        "import sys; from apps.cli import app\n"
        f"for name in ('info', 'verify'): app(['store', name, {str(tmp_path)!r}], "
        "standalone_mode=False)\n"
        "from activations import ActivationStore\n"
        f"ActivationStore.open({str(tmp_path)!r}).select(variety='tarn')[{RESID!r}][:]\n"
        "assert not {'torch', 'jax', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
