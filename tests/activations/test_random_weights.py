"""A model with random weights has the trained one's shape, sites and words, and nothing of what it
learned; one seed gives the same bits everywhere.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from activations import ModelError, StoreError, capture, open_model, random_like
from corpora import Corpus

from .conftest import tiny, tokenizer
from .families import FAMILIES, make

TEXTS = ["the cat sat on the mat .", "a dog ran .", "youse sat on the big red log now ."]


def bits(model):
    return {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}


def same(one, other):
    return {name: torch.equal(tensor, other[name]) for name, tensor in one.items()}


def corpus():
    return Corpus(
        pd.DataFrame({"text": TEXTS, "variety": "", "group": ["a", "b", "c"], "behaviour": ""})
    )


@pytest.mark.parametrize("family", [*FAMILIES])
def test_any_architecture_keeps_its_shape_and_its_sites_and_loses_its_weights(family):
    trained = open_model(make(family), tokenizer=tokenizer(), device="cpu")
    drawn = random_like(trained, seed=1)
    assert type(drawn.hf) is type(trained.hf) and drawn.hf is not trained.hf
    assert drawn.sites == trained.sites
    assert [drawn.site(s).row for s in drawn.sites] == [trained.site(s).row for s in trained.sites]
    ours, theirs = bits(drawn), bits(trained)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    matrices = [name for name, tensor in ours.items() if tensor.ndim > 1]
    assert matrices and not any(same(ours, theirs)[name] for name in matrices)
    assert drawn.digest != trained.digest
    assert drawn.tokenizer is trained.tokenizer and drawn.dtype == trained.dtype
    assert drawn.is_causal == trained.is_causal


def test_a_seed_gives_the_same_bits_by_every_way_and_leaves_torchs_draws_alone(tmp_path):
    plain = tiny("llama")
    plain.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    saved = open_model(str(tmp_path), device="cpu")
    before, torch_before = bits(saved), torch.random.get_rng_state()
    drawn = [
        random_like(saved, seed=5),
        open_model(str(tmp_path), device="cpu", random_seed=5),
        open_model(plain, tokenizer=tokenizer(), device="cpu", random_seed=5),
        random_like(random_like(saved, seed=8), seed=5),
    ]
    for other in drawn[1:]:
        assert all(same(bits(drawn[0]), bits(other)).values())
        assert other.digest == drawn[0].digest
    assert random_like(saved, seed=np.int64(5)).digest == drawn[0].digest
    assert random_like(saved, seed=6).digest != drawn[0].digest
    torch.testing.assert_close(torch.random.get_rng_state(), torch_before, rtol=0, atol=0)
    assert all(same(before, bits(saved)).values())
    assert all(same(before, plain.state_dict()).values())


def test_the_weights_follow_the_configurations_own_initialisation(tmp_path):
    """The standard deviation that the configuration names, to four standard errors."""
    model = open_model("organism/base", random_seed=0)
    wanted = model.hf.config.initializer_range
    for name, tensor in bits(model).items():
        if tensor.ndim == 2:
            error = wanted / np.sqrt(2 * tensor.numel())
            assert abs(float(tensor.std()) - wanted) < 4 * error, name
        elif name.endswith("norm.weight"):
            assert bool((tensor == 1).all()), name


def test_an_organism_keeps_its_chat_template_and_says_what_it_is():
    trained = open_model("organism/aligned", dtype="bfloat16")
    drawn = random_like(trained, seed=3)
    assert drawn.name == "organism/aligned with random weights (seed 3)"
    assert drawn.has_chat_template and drawn.render("hello") == trained.render("hello")
    assert drawn.dtype == torch.bfloat16 and drawn.engine.name == trained.engine.name
    assert not drawn.hf.training
    assert drawn.origin == {**trained.origin, "random_seed": 3}


@pytest.mark.parametrize("engine", ["transformer_lens", "nnsight"])
def test_states_are_those_of_the_plain_random_module(engine):
    trained = open_model(tiny("llama"), tokenizer=tokenizer(), device="cpu", engine=engine)
    drawn = random_like(trained, seed=2)
    assert drawn.engine.name == engine
    store = capture(drawn, corpus(), sites="resid_post", progress=False)
    for i, text in enumerate(TEXTS):
        ids = torch.tensor([drawn.encode(text)])
        with torch.no_grad():
            hidden = drawn.hf(ids, output_hidden_states=True).hidden_states
        np.testing.assert_allclose(
            store["blocks.0.hook_resid_post"][i], hidden[1][0, -1], rtol=1e-4
        )


def test_a_store_of_the_one_is_refused_for_the_other(tmp_path):
    trained = open_model(tiny("gpt2"), tokenizer=tokenizer(), device="cpu")
    drawn = random_like(trained, seed=7)
    kept = capture(trained, corpus(), store=tmp_path / "s", progress=False)
    with pytest.raises(StoreError, match="weights"):
        capture(drawn, corpus(), store=tmp_path / "s", progress=False)
    other = capture(drawn, corpus(), store=tmp_path / "r", progress=False)
    assert other.sites == kept.sites
    assert other.manifest["model_digest"] == drawn.digest != kept.manifest["model_digest"]
    assert not np.allclose(other[other.sites[0]][:], kept[kept.sites[0]][:])


def test_an_encoder_without_a_pooler_stays_without_one():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=24,
    )  # fmt: skip
    plain = BertModel(config, add_pooling_layer=False).eval()
    drawn = random_like(open_model(plain, tokenizer=tokenizer(), device="cpu"), seed=0)
    assert drawn.hf.pooler is None


@pytest.mark.parametrize("seed", [-1, 1.5, True, None, "0"])
def test_a_seed_that_is_none_is_refused(seed):
    with pytest.raises(ModelError, match="seed of random weights is"):
        random_like(open_model(tiny("gpt2"), tokenizer=tokenizer(), device="cpu"), seed=seed)


def test_what_has_no_random_form_is_refused(tmp_path):
    with pytest.raises(ModelError, match="leave out remote and device_map"):
        open_model("organism/base", random_seed=0, device_map="auto")
    with pytest.raises(ModelError, match="leave out remote and device_map"):
        open_model("somebody/model", random_seed=0, remote=True)
    quantised = tiny("llama")
    model = open_model(quantised, tokenizer=tokenizer(), device="cpu")
    quantised.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(ModelError, match="is quantised, and random weights have no such form"):
        random_like(model, seed=0)


def test_a_configuration_that_fits_nothing_is_one_sentence(tmp_path):
    plain = tiny("llama")
    model = open_model(plain, tokenizer=tokenizer(), device="cpu")
    plain.config.hidden_size = -16
    with pytest.raises(ModelError, match=r"with random weights cannot be built: .*"):
        random_like(model, seed=0)
