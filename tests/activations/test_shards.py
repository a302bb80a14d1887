"""A shard is whole or not there, names itself, and every damage to it is told apart."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from activations import StoreError
from activations.atomic import remove_partials, write_whole
from activations.shards import check_shard, read_record, record_path, shard_path, write_shard

from .made_stores import RESID, SITES, Z, files, made

CAPTURE = "an id"


def states(dtype=torch.float32, rows=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        site: torch.randn(rows, *row, generator=generator).to(dtype) for site, row in SITES.items()
    }


def check(folder, number=1, capture=CAPTURE, rows=6, sites=SITES):
    return check_shard(folder, number, capture, read_record(folder, number), rows, sites)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_library_of_the_format_reads_what_is_written(tmp_path, dtype):
    written = states(dtype)
    write_shard(tmp_path, 1, written, capture=CAPTURE)
    with safe_open(shard_path(tmp_path, 1), framework="pt") as opened:
        assert opened.metadata() == {"format": "2", "capture": CAPTURE, "shard": "1"}
        assert set(opened.keys()) == set(SITES)
        for site, x in written.items():
            found = opened.get_tensor(site)
            assert found.dtype == dtype
            assert torch.equal(found, x)
    assert check(tmp_path) is None


def test_the_record_tells_size_and_digest(tmp_path):
    record = write_shard(tmp_path, 1, states(), capture=CAPTURE)
    data = shard_path(tmp_path, 1).read_bytes()
    assert record == {"rows": 6, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert json.loads(record_path(tmp_path, 1).read_text()) == record == read_record(tmp_path, 1)


def test_the_same_states_give_the_same_bytes(tmp_path):
    whole = states()
    transposed = {
        site: x.transpose(0, -1).contiguous().transpose(0, -1) for site, x in whole.items()
    }
    assert not transposed[RESID].is_contiguous()
    arrays = {site: whole[site].numpy() for site in reversed(whole)}
    for name, given_ in (("a", whole), ("b", transposed), ("c", arrays)):
        write_shard(tmp_path / name, 0, given_, capture=CAPTURE)
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")


def test_data_start_on_a_boundary_and_need_no_second_copy(tmp_path):
    big = {RESID: np.ones((16_000, 1024), np.float32)}  # 64 MB
    tracemalloc.start()
    try:
        write_shard(tmp_path, 0, big, capture=CAPTURE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    head = int.from_bytes(shard_path(tmp_path, 0).read_bytes()[:8], "little")
    assert (8 + head) % 64 == 0


def test_what_no_store_holds_is_refused(tmp_path):
    with pytest.raises(StoreError, match="hold float32, float16, bfloat16, not int64"):
        write_shard(tmp_path, 0, {RESID: torch.zeros(2, 3, dtype=torch.long)}, capture=CAPTURE)
    with pytest.raises(StoreError, match="not >f4"):
        write_shard(tmp_path, 0, {RESID: np.zeros((2, 3), ">f4")}, capture=CAPTURE)
    with pytest.raises(StoreError, match="different numbers of rows"):
        write_shard(tmp_path, 0, {RESID: torch.zeros(2, 3), Z: torch.zeros(3, 3)}, capture="x")
    assert files(tmp_path) == {}


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"00001\.safetensors cannot be written \(No space left"):
        write_shard(tmp_path, 1, states(), capture=CAPTURE)
    assert files(tmp_path) == {}


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    def blocks():
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", blocks())
    assert files(tmp_path) == {}


def test_unfinished_files_go_only_when_their_writer_is_dead(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    node = "".join(c if c.isalnum() or c == "_" else "_" for c in platform.node())[:40]
    old, new = tmp_path / "c.elsewhere-1.partial", tmp_path / "d.elsewhere-1.partial"
    dead, alive = (
        tmp_path / f"{n}.{node}-{p}.partial" for n, p in (("a", gone.pid), ("b", os.getpid()))
    )
    foreign = tmp_path / "thesis.partial"
    for file in (old, new, dead, alive, foreign):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    remove_partials(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([new, alive, foreign])


# Damage


def flip(file: Path, at: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << bit
    file.write_bytes(bytes(data))


DAMAGES = {
    "is missing": lambda f, r: f.unlink(),
    "has no record": lambda f, r: r.unlink(),
    r"is truncated: it has \d+ of \d+ bytes": lambda f, r: f.write_bytes(f.read_bytes()[:-5]),
    "is truncated: it has 0": lambda f, r: f.write_bytes(b""),
    "is truncated: it has 30": lambda f, r: f.write_bytes(f.read_bytes()[:30]),
    r"has \d+ bytes, where \d+ were written": lambda f, r: f.write_bytes(f.read_bytes() + b"x"),
    "its SHA-256 differs": lambda f, r: flip(f, -3),
    "has a broken header": lambda f, r: flip(f, 8, 1),
}


@pytest.mark.parametrize("words", DAMAGES)
def test_every_damage_is_named(tmp_path, words):
    write_shard(tmp_path, 1, states(), capture=CAPTURE)
    assert check(tmp_path) is None
    DAMAGES[words](shard_path(tmp_path, 1), record_path(tmp_path, 1))
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(check(tmp_path))


def test_a_shard_in_anothers_place_is_named_for_what_it_is(tmp_path):
    for number, capture in ((1, CAPTURE), (2, CAPTURE), (3, "elsewhere")):
        write_shard(tmp_path, number, states(seed=number), capture=capture)
    a, b, c = (shard_path(tmp_path, number) for number in (1, 2, 3))
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    assert check(tmp_path, 1) == "holds shard 2"
    assert check(tmp_path, 2) == "holds shard 1"
    a.write_bytes(c.read_bytes())
    assert check(tmp_path, 1) == "belongs to another capture"
    record_path(tmp_path, 3).replace(record_path(tmp_path, 1))
    assert check(tmp_path, 1) == "belongs to another capture"


def test_a_shard_that_does_not_fit_the_plan_is_named(tmp_path):
    write_shard(tmp_path, 1, states(), capture=CAPTURE)
    assert check(tmp_path, rows=7) == "has 6 rows, where 7 are planned"
    assert check(tmp_path, sites={RESID: (5,)}) == "holds other sites"
    assert "not (6, 5, 1)" in str(check(tmp_path, sites={**SITES, RESID: (5, 1)}))


def test_broken_records_vouch_for_nothing(tmp_path):
    write_shard(tmp_path, 1, states(), capture=CAPTURE)
    for bad in ("{", "[]", '{"rows": 6}', '{"rows": 6, "bytes": "9", "sha256": ""}'):
        record_path(tmp_path, 1).write_text(bad)
        assert read_record(tmp_path, 1) is None
        assert str(check(tmp_path)).startswith("has no record")


@given(st.data())
def test_any_flipped_bit_and_any_cut_is_found(data):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shard(folder, 1, states(), capture=CAPTURE)
        file = shard_path(folder, 1)
        whole = file.read_bytes()
        flip(file, data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7)))
        assert check(folder)
        file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        assert check(folder)
        file.write_bytes(whole)
        assert check(folder) is None


def test_made_stores_are_cut_where_the_plan_says():
    one = made()
    parts = [one.shard(number) for number in range(len(one.manifest["shards"]))]
    for site, x in one.states.items():
        assert torch.equal(torch.cat([part[site] for part in parts]), x)
