"""A store holds what the model gave, ends the same when killed, and says what is wrong with it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import activations.capturing as capturing
from activations import ActivationStore, CaptureError, StoreError, capture, open_model
from corpora import Corpus

from .conftest import tiny, tokenizer


@pytest.fixture(scope="module")
def corpus(texts):
    other = [text.replace("the", "yon") + " now" for text in texts]
    return Corpus.from_parallel({"plain": texts, "yonder": other})


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


OPTIONS = {"progress": False, "shard_examples": 3}


@pytest.mark.parametrize("rule", ["last", "mean", "all"])
def test_rows_equal_single_passes_in_corpus_order(model, corpus, rule, tmp_path):
    store = capture(model, corpus, tokens=rule, store=tmp_path / "s", token_budget=20, **OPTIONS)
    at = 0
    for example, text in enumerate(corpus.frame["text"]):
        ids = model.encode(text)
        states = model.activations(*model.pad([ids]), store.sites)
        for site in store.sites:
            x = states[site][0].numpy()
            expected = {"last": x[-1:], "mean": x[1:].mean(0, keepdims=True), "all": x}[rule]
            got = store[site][at : at + len(expected)]
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        here = store.rows.iloc[at : at + len(expected)]
        assert (here["example"] == example).all()
        if rule == "all":
            assert here["token_id"].tolist() == ids
        at += len(expected)
    assert at == len(store.rows) == len(store[store.sites[0]])
    store.verify()


def test_memory_and_disk_hold_the_same_and_slice_alike(model, corpus, tmp_path):
    disk = capture(model, corpus, store=tmp_path / "s", **OPTIONS)
    memory = capture(model, corpus, **OPTIONS)
    site = disk.sites[1]
    whole = np.asarray(disk[site])
    np.testing.assert_array_equal(whole, np.asarray(memory[site]))
    for index in (3, -1, slice(2, 9, 3), [7, 0, 7], whole[:, 0] > 0, (slice(1, 4), 2), (0, 1)):
        np.testing.assert_array_equal(disk[site][index], whole[index])
    assert disk.rows.equals(memory.rows)
    view = disk.select(variety="yonder")
    keep = (disk.rows["variety"] == "yonder").to_numpy()
    np.testing.assert_array_equal(view[site][:], whole[keep])
    np.testing.assert_array_equal(view.select(example=7)[site][:], whole[7:8])
    assert len(view.rows) == keep.sum()


def test_a_killed_capture_ends_bit_identical(model, corpus, tmp_path, monkeypatch):
    capture(model, corpus, store=tmp_path / "whole", **OPTIONS)
    real, done = capturing.write_shard, []

    def killed(folder, number, states, **options):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(number)
        return real(folder, number, states, **options)

    monkeypatch.setattr(capturing, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        capture(model, corpus, store=tmp_path / "killed", **OPTIONS)
    with pytest.raises(StoreError, match="half written"):
        ActivationStore.open(tmp_path / "killed")
    again = []
    monkeypatch.setattr(
        capturing, "write_shard", lambda f, n, s, **o: (again.append(n), real(f, n, s, **o))[1]
    )
    capture(model, corpus, store=tmp_path / "killed", **OPTIONS)
    assert again == [2, 3]
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_another_capture_into_the_same_store_is_refused_by_name(model, corpus, tmp_path):
    capture(model, corpus, store=tmp_path, **OPTIONS)
    with pytest.raises(StoreError, match="other texts"):
        capture(model, corpus.take(range(4)), store=tmp_path, **OPTIONS)
    with pytest.raises(StoreError, match="other token rule"):
        capture(model, corpus, tokens="mean", store=tmp_path, **OPTIONS)
    with pytest.raises(StoreError, match="other sites"):
        capture(model, corpus, sites="mlp_out", store=tmp_path, **OPTIONS)
    changed = tiny("gpt2")
    with torch.no_grad():
        changed.lm_head.weight[4, 0] += 1
    other = open_model(changed, tokenizer=tokenizer(), device="cpu")
    with pytest.raises(StoreError, match="other weights"):
        capture(other, corpus, store=tmp_path, **OPTIONS)


def test_verify_names_what_is_broken_and_capture_mends_it(model, corpus, tmp_path):
    store = capture(model, corpus, store=tmp_path, **OPTIONS)
    shard = tmp_path / "shards" / "00001.safetensors"
    good = shard.read_bytes()
    for bad in (good[:-7], good[:-9] + bytes([good[-9] ^ 4]) + good[-8:], None):
        shard.unlink() if bad is None else shard.write_bytes(bad)
        with pytest.raises(StoreError, match="00001"):
            store.verify()
        capture(model, corpus, store=tmp_path, **OPTIONS)
        assert shard.read_bytes() == good
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"rows\.parquet"):
        store.verify()
    with pytest.raises(StoreError, match=r"rows\.parquet"):
        _ = ActivationStore.open(tmp_path).rows
    capture(model, corpus, store=tmp_path, **OPTIONS).verify()
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="not valid JSON"):
        ActivationStore.open(tmp_path)
    with pytest.raises(StoreError, match="no store"):
        ActivationStore.open(tmp_path / "nowhere")


def test_states_that_are_no_numbers_name_site_and_text(corpus):
    broken = tiny("gpt2")
    with torch.no_grad():
        broken.transformer.h[1].mlp.c_fc.weight.fill_(float("nan"))
    model = open_model(broken, tokenizer=tokenizer(), device="cpu")
    with pytest.raises(CaptureError, match=r"blocks\.1\.hook_resid_post .*'a dog ran"):
        capture(model, corpus, **OPTIONS)


def test_a_text_too_long_is_reported_before_anything_is_computed(model, corpus, monkeypatch):
    long = Corpus.from_parallel({"a": ["the cat"], "b": ["cat " * 40]})
    monkeypatch.setattr(model, "activations", lambda *a, **k: pytest.fail("computed"))
    with pytest.raises(CaptureError, match="40 tokens"):
        capture(model, long, **OPTIONS)


def test_a_batch_that_memory_does_not_hold_is_halved(model, corpus, monkeypatch):
    whole = capture(model, corpus, **OPTIONS)
    real = type(model).activations

    def small(self, tokens, mask, sites, **options):
        if len(tokens) > 1:
            raise torch.OutOfMemoryError("full")
        return real(self, tokens, mask, sites, **options)

    monkeypatch.setattr(type(model), "activations", small)
    halved = capture(model, corpus, **OPTIONS)
    for site in whole.sites:
        np.testing.assert_allclose(halved[site][:], whole[site][:], rtol=1e-4, atol=1e-5)


def test_requests_take_the_chat_template_and_other_texts_do_not():
    reader = tokenizer()
    reader.chat_template = "{% for m in messages %}! {{ m['content'] }}{% endfor %} ,"
    model = open_model(tiny("gpt2"), tokenizer=reader, device="cpu")
    frame = Corpus.from_parallel({"p": ["a cat", "a dog"], "q": ["the cat", "the dog"]}).frame
    frame = frame.assign(behaviour=["harmful", "harmless", "harmful", "harmless"])
    corpus = Corpus.from_frame(frame)
    store = capture(model, corpus, tokens="all", **OPTIONS)
    assert store.rows.query("example == 0")["token"].tolist() == ["!", "a", "cat", ","]
    manifest = json.dumps(store.manifest)
    assert model.digest in manifest and corpus.digest in manifest
