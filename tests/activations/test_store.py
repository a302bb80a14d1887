"""A store reads as the plain arrays do, touches what it is asked for, and bears many readers."""

from __future__ import annotations

import ctypes
import json
import mmap
import multiprocessing
import os
import pickle
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activations import ActivationStore, StoreError
from activations.manifest import begin, finish
from activations.shards import (
    DTYPES,
    Extent,
    encode_header,
    read_header,
    shard_path,
    write_record,
)

from .made_stores import RESID, SITES, VARIETIES, Made, Z, files, made


@pytest.fixture
def one(tmp_path):
    """A store of four shards, and what it was made of."""
    source = made()
    source.write(tmp_path / "s")
    return ActivationStore.open(tmp_path / "s"), source


# Reading


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_comes_back_is_what_was_kept_in_the_order_of_the_corpus(tmp_path, dtype):
    source = made(dtype=dtype)
    source.write(tmp_path)
    store = ActivationStore.open(tmp_path)
    assert store.sites == tuple(SITES)
    assert store.manifest["dtype"] == dtype
    for site in SITES:
        found = np.asarray(store[site])
        assert found.dtype == store[site].dtype == ("float16" if dtype == "float16" else "float32")
        np.testing.assert_array_equal(found, source.array(site))
        assert store[site].shape == found.shape and store.site_shape(site) == found.shape[1:]
    pd.testing.assert_frame_equal(store.rows, source.frame()[list(store.rows)], check_dtype=False)
    store.verify()


def test_disk_and_memory_are_alike(one):
    store, source = one
    arrays = {site: source.array(site) for site in SITES}
    memory = ActivationStore.in_memory(source.manifest, source.frame(), arrays)
    assert memory.rows.equals(store.rows)
    assert memory.path is None and len(memory) == len(store) == len(source.rows)
    for a, b in ((memory, store), (memory.select(variety="arden"), store.select(variety="arden"))):
        assert a.rows.equals(b.rows)
        for site in SITES:
            np.testing.assert_array_equal(a[site][:], b[site][:])
            np.testing.assert_array_equal(a[site][1:3, -1], b[site][1:3, -1])
    memory.verify()
    with pytest.raises(StoreError, match="corpus's order"):
        ActivationStore.in_memory(source.manifest, source.rows, arrays)
    with pytest.raises(StoreError, match=r"2 rows of states for \d+ rows"):
        ActivationStore.in_memory(source.manifest, source.frame(), {Z: arrays[Z][:2]})


def indices(n: int):
    """Whatever NumPy takes to index the first axis of an array of `n` rows."""
    row = st.integers(-n, n - 1)
    return st.one_of(
        row,
        st.slices(n),
        st.lists(row, max_size=9),
        st.lists(row, max_size=9).map(np.array).map(lambda a: a.astype(int)),
        st.lists(st.booleans(), min_size=n, max_size=n).map(np.array),
        st.lists(row, min_size=4, max_size=4).map(lambda rows: np.array(rows).reshape(2, 2)),
        row.map(np.int64),
    )


@given(st.data(), st.integers(0, 10**6), st.integers(1, 7))
def test_any_index_reads_as_on_a_plain_array(data, seed, shards):
    source = made(seed=seed, texts=7, shards=shards)
    n = len(source.rows)
    with tempfile.TemporaryDirectory() as folder:
        source.write(Path(folder))
        store = ActivationStore.open(folder)
        whole = {site: source.array(site) for site in SITES}
        rows = data.draw(indices(n))
        for site in SITES:
            np.testing.assert_array_equal(store[site][rows], whole[site][rows])
        head = data.draw(indices(2))
        for index in ((rows, 1), (rows, slice(None), slice(0, 2)), (Ellipsis, 1), (rows, ..., 0)):
            np.testing.assert_array_equal(store[Z][index], whole[Z][index])
        if np.ndim(head) == 0:
            np.testing.assert_array_equal(store[Z][rows, head], whole[Z][rows, head])
        picked = np.flatnonzero((source.frame()["variety"] == "arden").to_numpy())
        view = store.select(variety="arden")[Z]
        np.testing.assert_array_equal(view[:], whole[Z][picked])
        np.testing.assert_array_equal(view[::-1, :, 1], whole[Z][picked][::-1, :, 1])


def test_rare_indices_read_as_on_a_plain_array(one):
    store, source = one
    whole = source.array(Z)
    pairs = ([0, 2, 1], [1, 0, 1])
    masked = whole > 0
    for index in (
        pairs,
        (*pairs, 0),
        (),
        ...,
        masked,
        (None, 3),
        ([1, 2], None, 0),
        (5, ..., [0, 2]),
    ):
        np.testing.assert_array_equal(store[Z][index], whole[index])
    with pytest.raises(IndexError):
        store[Z][len(store)]
    with pytest.raises(IndexError):
        store[Z][[0, -len(store) - 1]]
    with pytest.raises(IndexError, match="mask of 3 rows"):
        store[Z][np.ones(3, bool)]
    with pytest.raises(TypeError):
        store[Z][1.5]
    assert len(list(iter(store[Z]))) == len(whole)
    np.testing.assert_array_equal(np.asarray(store[Z], dtype=np.float64), whole.astype(float))
    with pytest.raises(ValueError, match="always a copy"):
        np.array(store[Z], copy=False)


def test_what_is_read_can_be_written_to_without_harm(one):
    store, source = one
    for index in (slice(None), 3, [4, 5], slice(4, 6)):
        taken = store[RESID][index]
        taken += 1
    np.testing.assert_array_equal(store[RESID][:], source.array(RESID))
    frame = store.rows
    frame["variety"] = "changed"
    assert set(store.rows["variety"]) == set(VARIETIES)


# Views


@pytest.mark.parametrize(
    "equals",
    [
        {"variety": "weald"},
        {"group": "1", "variety": "tarn"},
        {"position": 0},
        {"position": [0, 2], "variety": ["tarn", "arden"]},
        {"example": range(3, 6)},
        {"example": np.array([1, 8]), "token": "token 1"},
        {"behaviour": ""},
        {"token_id": {3, 7, 11}},
        {"variety": "nowhere"},
        {"variety": 7},
        {"position": "0"},
        {"variety": pd.Series(["tarn"])},
        {},
    ],
)
def test_views_are_what_a_frame_would_keep(one, equals):
    store, source = one
    frame = source.frame()
    keep = np.ones(len(frame), bool)
    for column, value in equals.items():
        values = [value] if np.isscalar(value) else list(value)
        keep &= np.array([any(x == v for v in values) for x in frame[column]])
    view = store.select(**equals)
    assert len(view) == len(view[Z]) == len(view.rows) == keep.sum()
    np.testing.assert_array_equal(view[Z][:], source.array(Z)[keep])
    assert view.rows["example"].tolist() == frame["example"][keep].tolist()
    narrower = view.select(position=1)
    np.testing.assert_array_equal(
        narrower[RESID][:], source.array(RESID)[keep & (frame["position"] == 1).to_numpy()]
    )


def test_what_a_store_does_not_have_is_named(one):
    store, _ = one
    with pytest.raises(StoreError, match=r"no site 'blocks\.9'; it has blocks\.1"):
        _ = store["blocks.9"]
    with pytest.raises(StoreError, match="no column 'dialect'; they have example, position"):
        store.select(dialect="tarn")
    assert repr(store).startswith(f"ActivationStore({len(store)} rows, 2 sites, ")
    assert "blocks.0.attn.hook_z" in repr(store[Z])


def test_a_selection_reads_only_the_columns_it_needs(one, monkeypatch):
    store, _ = one
    import activations.rows as rows

    asked = []
    real = rows.read_rows
    monkeypatch.setattr(
        rows, "read_rows", lambda f, c, n, **k: (asked.append(list(c)), real(f, c, n, **k))[1]
    )
    store.select(variety="tarn", position=0)[RESID][:]
    assert asked == [["variety"], ["example"], ["position"]]


# Opening


def test_opening_reads_the_manifest_alone(one):
    store, _ = one
    assert store.path
    for file in store.path.rglob("*"):
        if file.is_file() and file.name != "manifest.json":
            file.unlink()
    opened = ActivationStore.open(store.path)
    assert len(opened) == len(store)
    with pytest.raises(StoreError, match=r"rows\.parquet is missing; capture again to mend it"):
        _ = opened.rows


def change(**facts):
    return lambda text: json.dumps({**json.loads(text), **facts})


MANIFESTS = {
    "not valid JSON": lambda text: text[:-30],
    "not the manifest of a store": lambda text: "[1, 2]",
    "of format 1, and this version reads format 2": change(format=1),
    "of format 3, and": change(format=3),
    "half written; run the same capture to end it": change(complete=False),
    "does not say which sites": change(sites=None),
    "does not say how many rows": change(shards=[None]),
    "do not add up": change(n_rows=3),
    "unknown dtype 'float8'": change(dtype="float8"),
    "of which capture": change(capture=None),
    "without a digest": change(shards=[{"rows": 1, "examples": 1}], n_rows=1),
}


@pytest.mark.parametrize("words", MANIFESTS)
def test_a_manifest_that_is_no_good_is_refused_by_name(one, words):
    store, _ = one
    manifest = store.path / "manifest.json"
    manifest.write_text(MANIFESTS[words](manifest.read_text()))
    with pytest.raises(StoreError, match=words):
        ActivationStore.open(store.path)


def test_no_store_is_no_store(tmp_path):
    with pytest.raises(StoreError, match=r"There is no store at .*nowhere"):
        ActivationStore.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("text")
    with pytest.raises(StoreError, match=r"There is no store at .*file"):
        ActivationStore.open(tmp_path / "file")


def test_a_shard_that_breaks_is_named_when_its_rows_are_read(one):
    store, source = one
    first, last = (store.rows["example"].isin(_examples(source, k)).to_numpy() for k in (0, 3))
    file = shard_path(store.path, 0)
    whole = file.read_bytes()
    other = shard_path(store.path, 1).read_bytes()
    for bad, words in (
        (whole[:-9], r"is truncated: it has \d+ of"),
        (other, "holds shard 1"),
        (None, "is missing"),
    ):
        file.unlink() if bad is None else file.write_bytes(bad)
        opened = ActivationStore.open(store.path)
        with pytest.raises(StoreError, match=rf"00000\.safetensors {words}.*capture again"):
            opened[RESID][first]
        np.testing.assert_array_equal(opened[RESID][last], source.array(RESID)[last])
        file.write_bytes(whole)
        np.testing.assert_array_equal(opened[RESID][first], source.array(RESID)[first])


def _examples(source: Made, shard: int) -> list[int]:
    ends = np.cumsum([0, *(s["rows"] for s in source.manifest["shards"])])
    return source.rows["example"][ends[shard] : ends[shard + 1]].tolist()


def test_rows_that_break_are_named(one):
    store, source = one
    file = store.path / "rows.parquet"
    shorter = source.rows.iloc[:-1]
    for make, words in (
        (lambda: file.write_bytes(b"PAR1"), "is broken"),
        (lambda: file.write_bytes(b""), "is broken"),
        (lambda: shorter.to_parquet(file), r"is broken: it has \d+ rows, the shards have \d+"),
        (lambda: source.rows[["position"]].to_parquet(file), "is broken"),
        (file.unlink, "is missing"),
    ):
        make()
        with pytest.raises(StoreError, match=rf"rows\.parquet {words}"):
            ActivationStore.open(store.path)[Z][0]
        with pytest.raises(StoreError, match=r"rows\.parquet (was changed|is missing)"):
            store.verify()


# Many readers


def _sum(store: ActivationStore, site: str) -> float:
    return float(np.asarray(store[site], dtype=np.float64).sum())


def test_threads_share_a_store_and_few_files_stay_open(tmp_path):
    source = made(texts=120, shards=100)
    source.write(tmp_path)
    store = ActivationStore.open(tmp_path)
    whole = source.array(RESID)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0

    def read(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        picked = rng.integers(0, len(whole), 40)
        return bool((store[RESID][picked] == whole[picked]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))
    np.testing.assert_array_equal(store[RESID][:], whole)
    if before:
        assert 0 < len(os.listdir("/proc/self/fd")) - before <= 64


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_other_processes_read_a_store_that_they_are_handed(one, processes):
    store, source = one
    views = [store, store.select(variety="tarn"), store.select(position=[0, 1])]
    _ = store[RESID][0]  # what is open here does not go along
    sums = list(processes.map(_sum, views, [RESID] * 3))
    for view, found in zip(views, sums, strict=True):
        assert found == pytest.approx(_sum(view, RESID))
    assert sums[0] == pytest.approx(source.array(RESID).astype(float).sum())


def test_a_store_pickles_as_its_place_and_knows_another_capture(one, tmp_path):
    store, source = one
    arrays = {site: source.array(site) for site in SITES}
    memory = ActivationStore.in_memory(source.manifest, source.frame(), arrays)
    for whole in (store, memory):
        view = pickle.loads(pickle.dumps(whole.select(variety="weald")))
        np.testing.assert_array_equal(view[Z][:], store.select(variety="weald")[Z][:])
    handed = pickle.dumps(store)
    assert len(handed) < 1000
    store.path.rename(tmp_path / "away")
    made(seed=1).write(store.path)
    with pytest.raises(StoreError, match="another capture than when it was handed over"):
        pickle.loads(handed)


def _write(source: Made, folder: str, numbers: list[int]) -> None:
    source.write(Path(folder), *numbers)


def test_writers_on_disjoint_shards_end_as_one_writer(tmp_path, processes):
    source = made(texts=40, shards=12)
    source.write(tmp_path / "one")
    many = tmp_path / "many"
    jobs = [processes.submit(_write, source, str(many), [*range(k, 12, 2)]) for k in range(2)]
    for job in jobs:
        job.result()
    finish(many, source.begin(many))
    assert files(many) == files(tmp_path / "one")


# A million rows


def _pages_in_memory(file: Path) -> np.ndarray:
    """Numbers of the pages of a file that the system holds."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as map_:
        view = np.frombuffer(map_, np.uint8)
        found = (ctypes.c_ubyte * (-(-len(map_) // mmap.PAGESIZE)))()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(map_)), found):
            pytest.skip("this system does not tell which pages it holds")
        del view
        return np.flatnonzero(np.frombuffer(found, np.uint8) & 1)


def _forget(folder: Path) -> None:
    """Have the system drop every page of the files in a folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _sparse_store(folder: Path, *, texts: int, tokens: int, shards: int, width: int) -> int:
    """A complete store of `texts * tokens` rows whose states are holes in the files."""
    example = np.random.default_rng(0).permutation(texts).repeat(tokens)
    rows = pd.DataFrame({"example": example})
    rows["position"] = np.tile(np.arange(tokens), texts)
    rows["token_id"] = rows["position"] + example % 50
    rows["token"] = np.array([f"t{i}" for i in range(50 + tokens)], dtype=object)[rows["token_id"]]
    rows["group"] = np.array([str(i) for i in range(texts)], dtype=object)[example // 10]
    rows["variety"] = np.array([f"variety {i}" for i in range(10)], dtype=object)[example % 10]
    rows["behaviour"] = ""
    sites = {f"blocks.{layer}.hook_resid_post": [width] for layer in range(4)}
    each = texts // shards
    facts = made(sites={site: tuple(row) for site, row in sites.items()}).manifest
    plan = [{"rows": each * tokens, "examples": each}] * shards
    manifest = begin(folder, {**facts, "shards": plan}, rows)
    size = each * tokens * width * 4
    extents = {
        site: Extent("F32", (each * tokens, width), at * size, (at + 1) * size)
        for at, site in enumerate(sites)
    }
    for number in range(shards):
        head = encode_header(extents, capture=manifest["capture"], number=number)
        with shard_path(folder, number).open("wb") as out:
            out.write(head)
            out.truncate(len(head) + size * len(sites))
        record = {"rows": each * tokens, "bytes": len(head) + size * len(sites), "sha256": ""}
        write_record(folder, number, record)
    finish(folder, manifest)
    return len(rows)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise and mincore")
def test_one_site_of_one_variety_among_a_million_rows_touches_its_own_pages(tmp_path, capsys):
    tokens, width, site = 10, 256, "blocks.2.hook_resid_post"
    n = _sparse_store(tmp_path, texts=100_000, tokens=tokens, shards=100, width=width)
    assert n == 1_000_000
    _forget(tmp_path)
    began = time.perf_counter()
    store = ActivationStore.open(tmp_path)
    opened = time.perf_counter() - began
    assert len(store) == n and store[site].shape == (n, width)
    held = {file: len(_pages_in_memory(file)) for file in tmp_path.rglob("*.[sp]a*")}
    assert not sum(held.values()), "opening read more than the manifest"

    view = store.select(variety="variety 3")
    columns = len(_pages_in_memory(tmp_path / "rows.parquet"))
    began = time.perf_counter()
    states = view[site][:]
    took = time.perf_counter() - began
    assert states.shape == (n // 10, width)

    stored = pd.read_parquet(tmp_path / "rows.parquet", columns=["variety"])["variety"]
    per_shard = (stored == "variety 3").to_numpy().reshape(100, -1)
    touched = needed = 0
    for number, mask in enumerate(per_shard):
        file = shard_path(tmp_path, number)
        found = _pages_in_memory(file)
        with file.open("rb") as opened_file:
            header = read_header(opened_file)
        first = header.start + header.tensors[site].first + np.flatnonzero(mask) * width * 4
        own = np.unique([first // mmap.PAGESIZE, (first + width * 4 - 1) // mmap.PAGESIZE])
        beyond = set(found) - set(own)
        assert beyond <= {0, 1}, "pages were read that hold neither the header nor the rows"
        touched, needed = touched + len(found), needed + len(own)
    page = mmap.PAGESIZE / 1e6
    assert touched <= 1.05 * needed
    assert touched * page <= 1.5 * states.nbytes / 1e6
    total = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    with capsys.disabled():
        print(
            f"\n  1,000,000 rows, 4 sites, {total / 1e6:,.0f} MB: opened in {opened * 1e3:.1f} ms; "
            f"one site of one variety: {states.nbytes / 1e6:,.1f} MB of states, "
            f"{touched * page:,.1f} MB of shards touched ({needed * page:,.1f} needed at pages of "
            f"{mmap.PAGESIZE} bytes), {columns * page:.2f} MB of rows.parquet "
            f"(of {(tmp_path / 'rows.parquet').stat().st_size / 1e6:.2f}), {took:.2f} s"
        )
