"""Tiny models that others trained: what is captured is what transformers' own states are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from activations import capture, open_model
from corpora import Corpus

pytestmark = pytest.mark.data

TEXTS = [
    "Once upon a time there was a little cat.",
    "The dog ran home.",
    "Lily saw a big red ball in the park and she wanted to play with it all day long.",
    "Café, naïve: 12 €!",
]


@pytest.fixture(scope="module", params=["stories260k", "glassllm_en"])
def folder(request, data_dir):
    place = data_dir / request.param
    if not (place / "config.json").is_file():
        pytest.skip(f"{request.param} is not in ISOGLOSS_DATA")
    return place


def test_states_are_those_that_transformers_gives_text_by_text(folder, tmp_path):
    model = open_model(str(folder), device="cpu")
    options = {"tokens": "all", "shard_examples": 2, "progress": False}
    store = capture(model, Corpus.from_texts(TEXTS), sites="resid_pre", store=tmp_path, **options)
    for example, text in enumerate(TEXTS):
        ids = torch.tensor([model.encode(text)])
        with torch.no_grad():
            hidden = model.hf(ids, output_hidden_states=True).hidden_states
        rows = np.flatnonzero(store.rows["example"] == example)
        assert store.rows["token_id"].to_numpy()[rows].tolist() == ids[0].tolist()
        for layer in range(model.n_layers):
            got = store[f"blocks.{layer}.hook_resid_pre"][rows]
            np.testing.assert_allclose(got, hidden[layer][0], rtol=1e-4, atol=1e-4)


def test_both_engines_and_both_ways_of_batching_agree(folder):
    corpus = Corpus.from_texts(TEXTS)
    options = {"sites": ["resid_post", "z", "result"], "tokens": "mean", "progress": False}
    local = open_model(str(folder), device="cpu")
    kept = capture(local, corpus, pack=False, **options)
    packed = capture(local, corpus, pack=True, **options)
    traced = capture(open_model(str(folder), device="cpu", engine="nnsight"), corpus, **options)
    for site in kept.sites:
        for other in (packed, traced):
            np.testing.assert_allclose(other[site][:], kept[site][:], rtol=1e-3, atol=1e-4)
