"""Texts laid end to end give what each gives alone, or are not laid end to end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from activations import ModelError, capture, open_model

from .by_hooks import Edit
from .conftest import tokenizer
from .families import FAMILIES, make
from .test_streaming import corpus_of, random_texts

#: Bloom computes attention by itself, Gemma 2 without the usual kernel (it caps its scores).
PACK = sorted(set(FAMILIES) - {"bloom", "gemma2"})
SHORT = ["resid_pre", "resid_post", "z", "q", "mlp_post", "attn_out"]


@pytest.fixture(scope="module")
def models():
    return {k: open_model(make(k), tokenizer=tokenizer(), device="cpu") for k in FAMILIES}


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6), seed=st.integers(0, 999))
@pytest.mark.parametrize("family", PACK)
def test_a_row_of_texts_holds_the_states_of_each_alone(models, family, lengths, seed):
    model = models[family]
    rng = np.random.default_rng(seed)
    ids = [rng.integers(3, 22, n).tolist() for n in lengths]
    sites = model.resolve_sites(SHORT)
    row = model.packed_activations(ids, sites)
    ends = np.cumsum([0, *lengths])
    for k, one in enumerate(ids):
        alone = model.activations(torch.tensor([one]), None, sites)
        for site in sites:
            here = row[site][0, ends[k] : ends[k + 1]]
            torch.testing.assert_close(here, alone[site][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rule", ["last", "mean", "all"])
def test_packed_captures_equal_padded_ones(models, family, rule):
    model, corpus = models[family], corpus_of(random_texts(8, 9, longest=18))
    options = {"sites": SHORT, "tokens": rule, "token_budget": 50, "progress": False}
    padded = capture(model, corpus, pack=False, **options)
    packed = capture(model, corpus, pack=True, **options)
    for site in padded.sites:
        np.testing.assert_allclose(packed[site][:], padded[site][:], rtol=1e-4, atol=1e-5)
    assert list(model._packs.values()) == [family in PACK]


def test_a_model_whose_numbers_differ_is_padded(models, monkeypatch):
    import activations.engines.packing as packing

    model = open_model(make("llama"), tokenizer=tokenizer(), device="cpu")
    real = packing.Layout.of
    broken = lambda lengths, device: real([*lengths[1:], lengths[0]], device)  # noqa: E731
    monkeypatch.setattr("activations.engines.local.Layout.of", broken)
    ids = [[3, 4, 5], [6, 7, 8, 9, 10], [11, 12]]
    assert not model.packs(ids, ("blocks.1.hook_resid_post",))


def test_a_site_inside_attention_is_padded(models):
    assert not models["llama"].packs([[3, 4, 5]], ("blocks.0.attn.hook_pattern",))


def test_the_loaded_model_keeps_its_own_attention(models):
    model = models["llama"]
    ids = torch.tensor([[3, 4, 5, 6]])
    before = model.logits(ids)
    model.packed_activations([[3, 4], [5]], ["blocks.0.hook_resid_post"])
    assert model.hf.config._attn_implementation == "sdpa"
    torch.testing.assert_close(model.logits(ids), before, rtol=0, atol=0)


def test_a_capture_under_an_edit_sees_it_though_one_before_was_packed():
    model, corpus = open_model(make("llama"), tokenizer=tokenizer()), corpus_of(random_texts(4, 9))
    site = "blocks.1.hook_resid_post"
    options = {"sites": [site], "tokens": "last", "progress": False}
    clean = capture(model, corpus, pack=True, **options)[site][:]
    assert list(model._packs.values()) == [True]
    with model.edited(Edit("blocks.0.hook_resid_post", lambda x: x * 0.5)):
        expected = capture(model, corpus, pack=False, **options)[site][:]
        np.testing.assert_array_equal(capture(model, corpus, pack=True, **options)[site], expected)
        with pytest.raises(ModelError, match="run without edits"):
            model.packed_activations([[3, 4]], [site])
    assert np.abs(expected - clean).max() > 1e-3
