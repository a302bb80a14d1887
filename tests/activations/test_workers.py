"""Shards shared among processes give the very store that one process gives, also when one dies."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from activations import CaptureError, Workers, capture, open_model
from corpora import Corpus

from .conftest import tiny, tokenizer
from .deadly import Deadly
from .test_streaming import bytes_of, random_texts

OPTIONS = {"tokens": "all", "shard_examples": 6, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    tiny("llama").save_pretrained(place)
    tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """A model, a corpus, and the bytes of the store that one process makes of them."""
    model = open_model(str(folder), device="cpu")
    texts = random_texts(7, 24)
    corpus = Corpus.from_parallel({"a": texts, "b": [f"yon {t}" for t in texts]})
    store = tmp_path_factory.mktemp("alone") / "store"
    capture(model, corpus, store=store, **OPTIONS)
    return model, corpus, bytes_of(store)


def kill_one_worker(stop, killed, is_worker):
    """Kill the first process below this one that looks like a worker at work."""
    while not stop.wait(0.02):
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
                if is_worker(int(pid), words):
                    os.kill(int(pid), signal.SIGKILL)
                    killed.append(int(pid))
                    return
            except OSError:
                continue


@pytest.mark.slow
def test_processes_give_the_same_store_although_one_is_killed(alone, tmp_path):
    import multiprocessing

    model, corpus, expected = alone
    stop, killed = threading.Event(), []

    def at_work(pid, words):
        mine = [c.pid for c in multiprocessing.active_children()]
        return pid in mine and any((tmp_path / "shards").glob("*.json"))

    killer = threading.Thread(target=kill_one_worker, args=(stop, killed, at_work))
    killer.start()
    try:
        capture(model, corpus, store=tmp_path, workers=Workers(2), **OPTIONS)
    finally:
        stop.set()
        killer.join()
    assert killed
    assert bytes_of(tmp_path) == expected


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_store_although_a_worker_is_killed(alone, tmp_path):
    pytest.importorskip("ray")
    model, corpus, expected = alone
    stop, killed = threading.Event(), []

    def at_work(pid, words):
        return b"ray::_compute" in words and any((tmp_path / "shards").glob("*.json"))

    killer = threading.Thread(target=kill_one_worker, args=(stop, killed, at_work))
    killer.start()
    try:
        capture(model, corpus, store=tmp_path, workers=Workers(2, engine="ray"), **OPTIONS)
    finally:
        stop.set()
        killer.join()
    assert killed
    assert bytes_of(tmp_path) == expected


def test_a_piece_that_kills_every_worker_is_given_up_and_the_rest_is_kept(tmp_path):
    with pytest.raises(CaptureError, match=r"Piece 1 ended 3 workers"):
        Workers(1).share(Deadly(tmp_path), [0, 1, 2], lambda piece, answer: None)
    assert (tmp_path / "deaths").read_text() == "xxx"
    assert (tmp_path / "0").exists()


def test_what_a_piece_returns_and_raises_reaches_the_one_who_shares_it_out(tmp_path):
    told = {}
    Workers(2).share(Deadly(tmp_path), [0, 2, 4], told.__setitem__)
    assert told == {0: 0, 2: 20, 4: 40}
    with pytest.raises(KeyError, match="a mistake in piece 3") as raised:
        Workers(1).share(Deadly(tmp_path), [3], told.__setitem__)
    assert "In a worker" in raised.value.__notes__[0] and "compute" in raised.value.__notes__[0]


@pytest.mark.slow
def test_a_workers_own_error_reaches_the_user(alone, tmp_path, folder):
    """The folder changes while the workers start: they find other weights."""
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    model = open_model(str(copy), device="cpu")
    changed = tiny("llama")
    changed.model.norm.weight.data += 1
    changed.save_pretrained(copy)
    with pytest.raises(CaptureError, match="other weights than the work began"):
        capture(model, alone[1], store=tmp_path / "s", workers=Workers(1), **OPTIONS)


def test_workers_need_a_name_and_a_store(alone, folder, tmp_path):
    model, corpus, _ = alone
    with pytest.raises(CaptureError, match="name one with `store`"):
        capture(model, corpus, workers=Workers(2), **OPTIONS)
    module = open_model(tiny("gpt2"), tokenizer=tokenizer(), device="cpu")
    with pytest.raises(CaptureError, match="save it to a folder"):
        capture(module, corpus, workers=Workers(2), store=tmp_path / "a", **OPTIONS)
    spread = open_model(str(folder), device_map={"": "cpu"})
    crew = Workers(2, devices=("cpu",))
    with pytest.raises(CaptureError, match="leave `devices` out"):
        capture(spread, corpus, workers=crew, store=tmp_path / "c", **OPTIONS)
    with pytest.raises(CaptureError, match="0 workers can do nothing"):
        capture(model, corpus, workers=Workers(0), store=tmp_path / "b", **OPTIONS)
    with model.edited(Same()), pytest.raises(CaptureError, match="Edits of the model are open"):
        capture(model, corpus, workers=Workers(1), store=tmp_path / "d", **OPTIONS)


class Same:
    """An edit that changes nothing."""

    name = "same"
    sites = ("blocks.0.hook_resid_post",)

    def __call__(self, activation, site, positions):
        return activation
