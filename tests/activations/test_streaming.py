"""The pipeline gives what single passes give, whatever the batches, buffers, sites and kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import activations.streaming as streaming
from activations import CaptureError, capture, open_model
from activations.batching import length_batches
from corpora import Corpus

from .conftest import WORDS, tiny, tokenizer

ROOT = Path(__file__).resolve().parents[2]
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def opened():
    return {k: open_model(tiny(k), tokenizer=tokenizer(), device="cpu") for k in ("gpt2", "llama")}


def corpus_of(texts):
    return Corpus.from_parallel({"a": texts, "b": [f"{t} now" for t in texts]})


def random_texts(seed, count, longest=22):
    rng = random.Random(seed)
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[" ".join(rng.choices(WORDS, k=rng.randint(2, longest)))] = None
    return list(texts)


def one_by_one(model, corpus, sites, rule):
    """States of each text alone in its batch, without padding."""
    rows = {site: [] for site in sites}
    for text in corpus.frame["text"]:
        got = model.activations(torch.tensor([model.encode(text)]), None, sites)
        for site, x in got.items():
            x = x[0] if model.site(site).axis == 1 else x[0].movedim(1, 0)
            rows[site].append(
                {"last": x[-1:], "all": x, "mean": x[1:].mean(0, keepdim=True)}[rule].numpy()
            )
    return {site: np.concatenate(parts) for site, parts in rows.items()}


@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 9),
    kind=st.sampled_from(["gpt2", "llama"]),
    rule=st.sampled_from(["last", "mean", "all"]),
    budget=st.integers(1, 200),
    shard=st.integers(1, 2000),
)
def test_no_batch_and_no_shard_changes_the_states(opened, seed, count, kind, rule, budget, shard):
    model = opened[kind]
    corpus = corpus_of(random_texts(seed, count))
    sites = ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.2.hook_resid_post"]
    store = capture(
        model, corpus, sites=sites, tokens=rule, token_budget=budget, shard_bytes=shard, **QUIET
    )
    for site, expected in one_by_one(model, corpus, sites, rule).items():
        np.testing.assert_allclose(store[site][:], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_disk_and_memory_hold_the_same_in_every_dtype(opened, dtype, tmp_path):
    model, corpus = opened["llama"], corpus_of(random_texts(1, 7))
    sites = ["result", "pattern", "mlp_post", "final_norm", "logits"]
    options = {
        "sites": sites, "layers": [0, 2], "tokens": "all", "dtype": dtype, "shard_examples": 4
    }  # fmt: skip
    options |= QUIET
    disk = capture(model, corpus, store=tmp_path, **options)
    memory = capture(model, corpus, **options)
    assert len(disk.manifest["shards"]) > 2
    assert disk.rows.equals(memory.rows)
    full = capture(model, corpus, **{**options, "dtype": "float32"})
    step = {"float32": 1e-6, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
    for site in disk.sites:
        np.testing.assert_array_equal(disk[site][:], memory[site][:])
        np.testing.assert_allclose(disk[site][:], full[site][:], rtol=step, atol=step)
    disk.verify()


def test_a_pattern_has_a_row_for_each_query_and_zeros_after_its_keys(opened):
    model, texts = opened["gpt2"], ["the cat sat", "a dog ran on the big red log now"]
    corpus = Corpus.from_parallel({"a": texts, "b": [texts[1], texts[0]]})
    site = "blocks.1.attn.hook_pattern"
    store = capture(model, corpus, sites=site, tokens="all", **QUIET)
    for example, text in enumerate(corpus.frame["text"]):
        ids = torch.tensor([model.encode(text)])
        alone = model.activations(ids, None, [site])[site][0]
        rows = np.flatnonzero(store.rows["example"] == example)
        got = store[site][rows]
        assert got.shape == (ids.shape[1], 4, 9)
        np.testing.assert_allclose(got[..., : ids.shape[1]], alone.movedim(1, 0), atol=1e-6)
        assert not got[..., ids.shape[1] :].any()


def test_batches_are_full_of_tokens_and_not_of_padding():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(3.3, 0.7, 4000).astype(int), 2, 400).tolist()
    batches = length_batches(lengths, budget=2048, overhead=64)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    padded = [len(b) * max(lengths[i] for i in b) for b in batches]
    assert max(padded) <= 2048
    assert 1 - sum(lengths) / sum(padded) < 0.04
    assert len(batches) < 1.3 * sum(lengths) / 2048 + 10


def test_memory_that_does_not_suffice_halves_the_batches_from_then_on(opened, monkeypatch):
    model, corpus = opened["gpt2"], corpus_of(random_texts(2, 12))
    whole = capture(model, corpus, **QUIET)
    real, sizes = type(model).activations, []

    def small(self, tokens, mask, sites, **options):
        sizes.append(tokens.numel())
        if tokens.numel() > 60:
            raise torch.OutOfMemoryError("full")
        return real(self, tokens, mask, sites, **options)

    monkeypatch.setattr(type(model), "activations", small)
    halved = capture(model, corpus, **QUIET)
    for site in whole.sites:
        np.testing.assert_allclose(halved[site][:], whole[site][:], rtol=1e-4, atol=1e-5)
    assert sum(size > 60 for size in sizes) <= 4

    def none(self, tokens, mask, sites, **options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(type(model), "activations", none)
    with pytest.raises(CaptureError, match="does not hold one text"):
        capture(model, corpus, **QUIET)


def test_what_was_written_before_a_bad_value_stays_and_names_the_text(tmp_path):
    hf = tiny("gpt2")
    with torch.no_grad():  # the word `log` has no finite embedding
        hf.transformer.wte.weight[WORDS.index("log") + 3] = float("inf")
    model = open_model(hf, tokenizer=tokenizer(), device="cpu")
    texts = ["the cat", "a dog ran", "the bird sat on a log now and then"]
    corpus = Corpus.from_parallel({"a": texts, "b": [t + " ." for t in texts]})
    with pytest.raises(CaptureError, match="NaN or infinite for the text 'the bird sat on a log"):
        capture(model, corpus, store=tmp_path, shard_examples=2, **QUIET)
    assert {p.name for p in (tmp_path / "shards").glob("*.safetensors")} == {
        "00000.safetensors",
        "00001.safetensors",
    }


def test_the_device_waits_where_the_disk_is_slow(opened, monkeypatch):
    """Never more shards in memory than there are buffers."""
    model, corpus = opened["gpt2"], corpus_of(random_texts(3, 12))
    alive, most = set(), []
    real = streaming._Passes.fill

    def fill(self, number, whole):
        alive.add(number)
        most.append(len(alive))
        yield from real(self, number, whole)

    def deliver(number, states):
        time.sleep(0.02)
        alive.remove(number)

    monkeypatch.setattr(streaming._Passes, "fill", fill)
    job = streaming_job(model, corpus)
    streaming.stream_shards(model, job, range(job.shards), deliver, tuning=streaming.Tuning())
    assert job.shards == 12 and not alive
    assert max(most) == streaming._BUFFERS


def streaming_job(model, corpus):
    from activations.job import plan_job

    return plan_job(
        model, corpus, sites="resid_post", layers=None, tokens="last", dtype="float32",
        shard_bytes=2**20, shard_examples=2,
    )  # fmt: skip


def bytes_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def kill_fifty_times(place):
    """Fork captures, kill them at random moments and go on, until fifty kills have hit."""
    model = open_model(tiny("llama"), tokenizer=tokenizer(), device="cpu")
    corpus = corpus_of(random_texts(4, 60))
    options = {"tokens": "all", "shard_examples": 4, **QUIET}
    capture(model, corpus, store=place / "whole", **options)
    began = time.monotonic()
    capture(model, corpus, store=place / "timed", **options)
    usual = time.monotonic() - began
    expected = bytes_of(place / "whole")
    assert bytes_of(place / "timed") == expected
    rng, kills, stores = random.Random(0), 0, 0
    while kills < 50:
        stores += 1
        folder = place / f"killed{stores}"
        while True:
            child = os.fork()
            if child == 0:
                capture(model, corpus, store=folder, **options)
                os._exit(0)
            time.sleep(rng.uniform(0, usual / 2))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if not os.WIFSIGNALED(status):
                assert status == 0
                break
            kills += 1
        assert bytes_of(folder) == expected
    print(kills, stores)


def alone(program, *arguments):
    """What a program prints that runs in an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


_KILLS = """
import sys
from pathlib import Path
from tests.activations.test_streaming import kill_fifty_times
kill_fifty_times(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_fifty_kills_at_random_moments_change_no_bit(tmp_path):
    kills, stores = map(int, alone(_KILLS, tmp_path).split())
    assert kills >= 50 and stores < kills  # they did come in the middle


_PEAK = """
import resource, sys
import torch
from activations import capture, open_model
from tests.activations.conftest import tiny, tokenizer
from tests.activations.test_streaming import corpus_of, random_texts
model = open_model(tiny("llama"), tokenizer=tokenizer(), device="cpu")
corpus = corpus_of(random_texts(0, int(sys.argv[1]) // 2))
store = capture(model, corpus, sites=["resid_post", "mlp_post", "z", "result"], tokens="all",
                store=sys.argv[2], shard_bytes=2**22, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
      sum(shard["bytes"] for shard in store.manifest["shards"]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    def peak(count):
        return tuple(map(int, alone(_PEAK, count, tmp_path / str(count)).split()))

    (few, _), (many, kept) = peak(1000), peak(10_000)
    assert many < 1.3 * few
    assert many - few < 0.3 * kept  # what was kept went to disk, not into memory
    assert kept > 2**27


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives(tmp_path):
    corpus = corpus_of(random_texts(5, 40))
    options = {"sites": ["resid_post", "z", "pattern"], "tokens": "all", **QUIET}
    here = capture(
        open_model(tiny("llama"), tokenizer=tokenizer(), device="cpu"), corpus, **options
    )
    there = capture(
        open_model(tiny("llama"), tokenizer=tokenizer(), device="cuda"), corpus,
        store=tmp_path, shard_examples=7, **options,
    )  # fmt: skip
    for site in here.sites:
        np.testing.assert_allclose(there[site][:], here[site][:], rtol=1e-3, atol=1e-4)
    there.verify()
