"""An export holds what the store holds, as the tools that it is for read it."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import activations.exporting as exporting
from activations import ActivationStore, StoreError
from activations.exporting import export

from .made_stores import RESID, SITES, Z, files, made


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def one(request, tmp_path):
    source = made(dtype=request.param, texts=40)
    source.write(tmp_path / "s")
    return ActivationStore.open(tmp_path / "s"), source


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Exports of several blocks and several files, although the store is small."""
    monkeypatch.setattr(exporting, "_BLOCK", 500)
    monkeypatch.setattr(exporting, "_ARROW_FILE", 2000)


def same_rows(found: pd.DataFrame, source) -> None:
    expected = source.frame()[list(found)]
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_parquet_is_read_by_pandas(one, tmp_path):
    store, source = one
    assert export(store, tmp_path / "x.parquet") == tmp_path / "x.parquet"
    frame = pd.read_parquet(tmp_path / "x.parquet")
    same_rows(frame.drop(columns=list(SITES)), source)
    np.testing.assert_array_equal(np.stack(frame[RESID]), source.array(RESID))
    nested = np.array([np.stack(row) for row in frame[Z]])
    np.testing.assert_array_equal(nested, source.array(Z))
    assert np.stack(frame[RESID]).dtype == store[RESID].dtype
    read = pq.ParquetFile(tmp_path / "x.parquet")
    assert read.num_row_groups > 3
    told = json.loads(read.schema_arrow.metadata[b"isogloss"])
    assert told["model_digest"] == "weights" and told["corpus_digest"] == "texts 0"


def test_numpy_maps_its_files(one, tmp_path):
    store, source = one
    out = export(store, tmp_path / "new" / "x", "numpy")
    for site in SITES:
        found = np.load(out / f"{site}.npy", mmap_mode="r", allow_pickle=False)
        assert found.dtype == store[site].dtype
        np.testing.assert_array_equal(found, source.array(site))
    same_rows(pd.read_parquet(out / "rows.parquet"), source)
    assert json.loads((out / "source.json").read_text())["capture"] == store.manifest["capture"]


def test_datasets_loads_its_folder(one, tmp_path):
    datasets = pytest.importorskip("datasets")
    store, source = one
    out = export(store, tmp_path / "x", "datasets")
    assert len(list(out.glob("*.arrow"))) > 2
    loaded = datasets.load_from_disk(str(out))
    assert len(loaded) == len(store) and loaded[0]["variety"] == source.frame()["variety"][0]
    same_rows(loaded.remove_columns(list(SITES)).to_pandas(), source)
    arrays = loaded.with_format("numpy", dtype=store[RESID].dtype)
    for site in SITES:
        np.testing.assert_array_equal(arrays[:][site], source.array(site))
        np.testing.assert_array_equal(arrays[7][site], source.array(site)[7])
    tarn = loaded.filter(lambda row: row["variety"] == "tarn", load_from_cache_file=False)
    assert len(tarn) == len(store.select(variety="tarn"))
    assert json.loads(loaded.info.description)["tokens"] == "all"
    assert not datasets.are_progress_bars_disabled()


@pytest.mark.parametrize("format", ["parquet", "numpy", "datasets"])
def test_views_and_stores_in_memory_are_exported_alike(tmp_path, format):
    source = made(texts=30)
    source.write(tmp_path / "s")
    arrays = {site: source.array(site) for site in SITES}
    disk = ActivationStore.open(tmp_path / "s")
    facts = {"capture": disk.manifest["capture"]}
    memory = ActivationStore.in_memory(source.manifest | facts, source.frame(), arrays)
    views = [store.select(variety=["tarn", "weald"], position=0) for store in (disk, memory)]
    keep = source.frame()["variety"].isin(["tarn", "weald"]) & (source.frame()["position"] == 0)
    for name, view in zip("ab", views, strict=True):
        export(view, tmp_path / name, format)
    if format == "parquet":
        a, b = (pd.read_parquet(tmp_path / name) for name in "ab")
        pd.testing.assert_frame_equal(a, b)
        found = np.stack(a[RESID])
    elif format == "numpy":
        a, b = (files(tmp_path / name) for name in "ab")
        assert {k: v for k, v in a.items() if k != "source.json"} == {
            k: v for k, v in b.items() if k != "source.json"
        }
        found = np.load(tmp_path / "a" / f"{RESID}.npy")
    else:
        datasets = pytest.importorskip("datasets")
        found = datasets.load_from_disk(str(tmp_path / "a")).with_format("numpy")[:][RESID]
    np.testing.assert_array_equal(found, source.array(RESID)[keep.to_numpy()])


@pytest.mark.parametrize("format", ["parquet", "numpy", "datasets"])
def test_an_empty_view_is_an_empty_export(one, tmp_path, format):
    store, _ = one
    out = export(store.select(variety="nowhere"), tmp_path / "x", format)
    if format == "parquet":
        assert len(pd.read_parquet(out)) == 0
    elif format == "numpy":
        assert np.load(out / f"{Z}.npy").shape == (0, 2, 3)
    else:
        assert len(pytest.importorskip("datasets").load_from_disk(str(out))) == 0


def test_what_cannot_be_exported_is_said_and_leaves_nothing(one, tmp_path, monkeypatch):
    store, _ = one
    out = tmp_path / "x"
    with pytest.raises(StoreError, match="Unknown format 'csv'; use one of parquet, numpy, data"):
        export(store, out, "csv")
    with pytest.raises(StoreError, match="s is there already; name a new place"):
        export(store, store.path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written to .*file/x"):
        export(store, tmp_path / "file" / "x")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "datasets", None)
        with pytest.raises(StoreError, match=r"pip install 'isogloss\[datasets\]'"):
            export(store, out, "datasets")
    before = set(tmp_path.iterdir())
    for file in (store.path / "shards").iterdir():
        file.unlink()
    for format in ("parquet", "numpy", "datasets"):
        with pytest.raises(StoreError, match="is missing; capture again"):
            export(ActivationStore.open(store.path), out, format)
    assert set(tmp_path.iterdir()) == before
