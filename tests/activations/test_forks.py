"""Forked runs give what whole passes under edits give, or say why they cannot."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from activations import open_model
from activations.forking import CannotFork, Fork, Forks, Put

from .conftest import tokenizer
from .families import FAMILIES, make

#: Bloom computes attention by itself, Gemma 2 caps its scores, BERT sees what follows.
FORK = sorted(set(FAMILIES) - {"bloom", "gemma2", "bert"})
KINDS = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "z",
    "q",
    "k",
    "v",
    "mlp_post",
)


@pytest.fixture(scope="module")
def models():
    return {k: open_model(make(k), tokenizer=tokenizer(), device="cpu") for k in FAMILIES}


class _Puts:
    """The same states put in by an ordinary edit of a whole pass."""

    name = "puts"

    def __init__(self, puts):
        self.puts = puts
        self.sites = tuple(dict.fromkeys(put.site for put in puts))

    def __call__(self, activation, site, positions):
        new = activation.clone()
        for put in self.puts:
            if put.site == site:
                part = new[0] if put.head is None else new[0, :, put.head]
                part[list(put.positions)] = put.values
        return new


def whole_pass(model, ids, fork, reads):
    tokens, mask = model.pad([ids[fork.base]])
    with model.edited(_Puts(fork.puts)):
        return model.logits(tokens, mask)[0, -reads:]


@st.composite
def some_forks(draw):
    lengths = draw(st.lists(st.integers(3, 20), min_size=1, max_size=4))
    forks = []
    for _ in range(draw(st.integers(1, 6))):
        base = draw(st.integers(0, len(lengths) - 1))
        puts = [
            (
                draw(st.sampled_from(KINDS)),
                draw(st.integers(0, 1)),
                sorted(draw(st.sets(st.integers(0, lengths[base] - 1), min_size=1, max_size=3))),
                draw(st.booleans()),
            )
            for _ in range(draw(st.integers(0, 2)))
        ]
        # No state is put in twice: one block's output is the next one's input.
        if len(puts) == 2 and (puts[0][0][:5] == puts[1][0][:5] or puts[0][:2] == puts[1][:2]):
            puts.pop()
        forks.append((base, puts))
    return lengths, forks, draw(st.integers(1, 3)), draw(st.integers(0, 999))


@pytest.mark.parametrize("family", FORK)
@given(case=some_forks())
def test_forks_equal_whole_passes_under_edits(models, family, case):
    model = models[family]
    lengths, drawn, reads, seed = case
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 22, (n,), generator=generator).tolist() for n in lengths]
    forks = []
    for base, puts in drawn:
        made = []
        for kind, layer, positions, one_head in puts:
            if kind == "resid_mid" and family == "gpt_neox":
                kind = "attn_out"  # attention and MLP read the same stream there
            site = model.resolve_sites(kind, [layer])[0]
            row = model.site(site).row
            head = row[0] - 1 if one_head and len(row) == 2 else None
            shape = row[1:] if head is not None else row
            values = torch.randn(len(positions), *shape, generator=generator)
            made.append(Put(site, positions, values, head))
        forks.append(Fork(base, tuple(made)))
    used = sorted({put.site for fork in forks for put in fork.puts})
    runs = Forks.of(model, used or model.resolve_sites("resid_pre"))
    got = runs.run(runs.record(ids), forks, reads=reads)
    for fork, found in zip(forks, got, strict=True):
        torch.testing.assert_close(
            found, whole_pass(model, ids, fork, reads), rtol=1e-4, atol=1e-4, msg=str(fork)
        )


@pytest.mark.parametrize("family", FORK)
def test_logits_of_some_words_are_those_among_all(models, family):
    model = models[family]
    ids = [[3, 4, 5, 6, 7], [8, 9, 10]]
    site = model.resolve_sites("resid_post", [0])[0]
    runs = Forks.of(model, [site])
    record = runs.record(ids)
    forks = [Fork(1), Fork(0, (Put(site, [2], torch.ones(1, model.d_model)),))]
    whole = runs.run(record, forks)
    some = runs.run(record, forks, vocabulary=torch.tensor([7, 3]))
    torch.testing.assert_close(some, whole[..., [7, 3]])


def test_a_window_of_attention_slides_in_forks_too(models):
    model = models["mistral"]
    assert model.hf.config.sliding_window < 20
    ids = [list(range(3, 22))]
    site = model.resolve_sites("resid_pre", [1])[0]
    runs = Forks.of(model, [site])
    fork = Fork(0, (Put(site, [12], torch.ones(1, model.d_model)),))
    torch.testing.assert_close(
        runs.run(runs.record(ids), [fork])[0], whole_pass(model, ids, fork, 1), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("family", "kind", "reason"),
    [
        ("bert", "resid_post", "next token"),
        ("gemma2", "resid_post", "attention"),
        ("llama", "pattern", "no place inside a block"),
        ("llama", "result", "no place inside a block"),
        ("bloom", "resid_post", "."),
    ],
)
def test_what_cannot_fork_says_why(models, family, kind, reason):
    model = models[family]
    with pytest.raises(CannotFork, match=reason):
        Forks.of(model, model.resolve_sites(kind, [0]))


def test_forks_that_give_other_numbers_are_not_used(monkeypatch):
    model = open_model(make("llama"), tokenizer=tokenizer(), device="cpu")
    monkeypatch.setattr("activations.engines.forks.causal_mask", lambda *_: None)
    with pytest.raises(CannotFork, match="other numbers"):
        Forks.of(model, model.resolve_sites("resid_post"))


def test_no_forks_under_edits(models):
    model = models["gpt2"]
    site = model.resolve_sites("resid_post", [0])[0]
    with (
        model.edited(_Puts([Put(site, [0], torch.zeros(1, model.d_model))])),
        pytest.raises(CannotFork, match="edits are open"),
    ):
        Forks.of(model, [site])


def test_forks_leave_the_model_as_it_was(models):
    model = models["gpt2"]
    ids = [[3, 4, 5, 6]]
    tokens, mask = model.pad(ids)
    before = model.logits(tokens, mask)
    site = model.resolve_sites("mlp_out", [0])[0]
    runs = Forks.of(model, [site])
    record, seen = runs.record(ids), []
    fork = Fork(0, (Put(site, [1], torch.ones(1, model.d_model)),))
    wanted = runs.run(record, [fork])
    with pytest.raises(IndexError):
        runs.run(record, [Fork(0, (Put(site, [99], torch.ones(1, model.d_model)),))])

    def work(forked):
        for _ in range(20):
            got = runs.run(record, [fork]) if forked else model.logits(tokens, mask)
            seen.append(torch.equal(got, wanted if forked else before))

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 80 and all(seen)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.hf.modules())
