"""Parts become one store: of one capture bit by bit, of several with their examples numbered on."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

from activations import ActivationStore, StoreError
from activations.manifest import missing, problems
from activations.merging import merge
from activations.shards import shard_path

from .made_stores import RESID, SITES, files, made

# Parts of one capture


def test_parts_of_one_capture_make_the_store_that_one_machine_makes(tmp_path):
    source = made(shards=6)
    source.write(tmp_path / "whole")
    source.write(tmp_path / "a", 0, 3, 4)
    source.write(tmp_path / "b", 1, 3)
    source.write(tmp_path / "c", 2, 5, 0)
    merged = merge([tmp_path / name for name in "abc"], tmp_path / "out")
    assert merged.manifest["complete"] and merged.left_out == ()
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    # A whole store is a part as good as any.
    merge([tmp_path / "a", tmp_path / "whole"], tmp_path / "again")
    assert files(tmp_path / "again") == files(tmp_path / "whole")


def test_what_no_part_has_is_left_for_the_capture(tmp_path):
    source = made(shards=6)
    source.write(tmp_path / "whole")
    source.write(tmp_path / "a", 0, 3)
    source.write(tmp_path / "b", 5)
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert not merged.manifest["complete"]
    with pytest.raises(StoreError, match="half written; run the same capture to end it"):
        ActivationStore.open(tmp_path / "out")
    assert missing(tmp_path / "out", source.begin(tmp_path / "out")) == [1, 2, 4]
    source.write(tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_broken_shard_is_taken_from_another_part_or_left_out_by_name(tmp_path):
    source = made(shards=4)
    source.write(tmp_path / "whole")
    source.write(tmp_path / "a", 0, 1, 2)
    source.write(tmp_path / "b", 2, 3)
    for number in (1, 2):
        file = shard_path(tmp_path / "a", number)
        data = file.read_bytes()
        file.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
    shard_path(tmp_path / "b", 3).unlink()
    (tmp_path / "a" / "rows.parquet").write_bytes(b"")
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    changed = "was changed after it was written: its SHA-256 differs"
    assert [sentence.split("shards/")[1] for sentence in merged.left_out] == [
        f"00001.safetensors {changed}, and was left out.",
        f"00002.safetensors {changed}, and was left out.",
        "00003.safetensors is missing, and was left out.",
    ]
    assert missing(tmp_path / "out", source.begin(tmp_path / "out")) == [1, 3]
    source.write(tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    (tmp_path / "b" / "rows.parquet").unlink()
    with pytest.raises(StoreError, match=r"rows\.parquet is missing or broken, as in all parts"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "third")
    assert not (tmp_path / "third").exists()


# Captures of different texts


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captures_of_other_texts_follow_one_another(tmp_path, dtype):
    sources = [made(seed=k, texts=9 + k, shards=2 + k, dtype=dtype) for k in range(3)]
    for k, source in enumerate(sources):
        source.write(tmp_path / str(k))
    merged = merge([tmp_path / str(k) for k in range(3)], tmp_path / "out")
    store = ActivationStore.open(tmp_path / "out")
    store.verify()
    assert store.manifest == merged.manifest
    frames = [
        source.frame().assign(example=lambda f, by=by: f["example"] + by)
        for source, by in zip(sources, (0, 9, 19), strict=True)
    ]
    expected = pd.concat(frames, ignore_index=True)[list(store.rows)]
    pd.testing.assert_frame_equal(store.rows, expected, check_dtype=False)
    for site in SITES:
        whole = np.concatenate([source.array(site) for source in sources])
        np.testing.assert_array_equal(store[site][:], whole)
        keep = (expected["variety"] == "arden").to_numpy()
        np.testing.assert_array_equal(store.select(variety="arden")[site][:], whole[keep])
    names = {store.manifest["capture"], *store.manifest["merged"]}
    assert len(names) == 4 and store.manifest["corpus"] == "corpus 0 + corpus 1 + corpus 2"
    assert store.manifest["corpus_digest"] not in {"texts 0", "texts 1", "texts 2"}
    with safe_open(shard_path(tmp_path / "out", 3), framework="pt") as opened:
        capture = store.manifest["capture"]
        assert opened.metadata() == {"format": "2", "capture": capture, "shard": "3"}
        assert opened.get_tensor(RESID).equal(sources[1].shard(1)[RESID])


def test_merging_again_gives_the_same_and_a_broken_merger_says_how_to_mend_it(tmp_path):
    for k in range(2):
        made(seed=k).write(tmp_path / str(k))
    parts = [tmp_path / "0", tmp_path / "1"]
    for name in ("out", "again"):
        merge(parts, tmp_path / name)
    assert files(tmp_path / "out") == files(tmp_path / "again")
    shard_path(tmp_path / "out", 0).unlink()
    assert problems(tmp_path / "out")[0].endswith(
        "is missing; merge its parts again into a new folder."
    )
    with pytest.raises(StoreError, match="is missing; merge its parts again"):
        ActivationStore.open(tmp_path / "out")[RESID][:]


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"model_digest": "x"}, "they differ in weights"),
        ({"tokens": "last", "dtype": "float16"}, "they differ in token rule and dtype"),
        ({"sites": {RESID: (6,)}}, "they differ in sites"),
        ({"rendered": True}, "they differ in chat template"),
    ],
)
def test_captures_that_were_not_made_alike_are_refused_by_name(tmp_path, facts, words):
    made().write(tmp_path / "a")
    made(seed=1, **facts).write(tmp_path / "b")
    with pytest.raises(StoreError, match=rf"a and .*b cannot be one store: {words}\."):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(tmp_path):
    made().write(tmp_path / "a")
    made(seed=1).write(tmp_path / "half", 0)
    made(seed=2).write(tmp_path / "broken")
    made(shards=3).write(tmp_path / "same")
    out = tmp_path / "out"
    with pytest.raises(StoreError, match="half is half written; end its capture"):
        merge([tmp_path / "a", tmp_path / "half"], out)
    with pytest.raises(StoreError, match=r"a and .*same hold the same texts; merge only one"):
        merge([tmp_path / "a", tmp_path / "same"], out)
    with pytest.raises(StoreError, match="nowhere: it has no manifest"):
        merge([tmp_path / "a", tmp_path / "nowhere"], out)
    with pytest.raises(StoreError, match="nothing to merge"):
        merge([], out)
    with pytest.raises(StoreError, match="a is there already; name an empty folder"):
        merge([tmp_path / "a"], tmp_path / "a")
    file = shard_path(tmp_path / "broken", 1)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(StoreError, match=r"00001\.safetensors is truncated.*then merge into a new"):
        merge([tmp_path / "a", tmp_path / "broken"], out)
    (tmp_path / "broken" / "rows.parquet").unlink()
    with pytest.raises(StoreError, match=r"rows\.parquet is missing or broken; capture again"):
        merge([tmp_path / "a", tmp_path / "broken"], out)
    assert not out.exists()


def test_merging_holds_no_shard_in_memory(tmp_path):
    big = {RESID: (4096,)}
    for k in range(2):
        made(seed=k, texts=2000, shards=3, sites=big).write(tmp_path / str(k))
    size = shard_path(tmp_path / "0", 0).stat().st_size
    tracemalloc.start()
    try:
        merge([tmp_path / "0", tmp_path / "1"], tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size > 15e6 and peak < 11e6
