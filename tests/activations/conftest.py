"""Tiny random models, built from a config: no network, no file."""

from __future__ import annotations

import copy

import pytest
import torch

WORDS = ["the", "a", "cat", "dog", "bird", "sat", "ran", "on", "under", "mat", "log", "red", "big"]
WORDS += ["youse", "yon", "now", "then", ".", ",", "!"]


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )


def tiny(kind: str):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    n = len(WORDS) + 3
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=n,
            n_positions=24,
            n_embd=16,
            n_layer=3,
            n_head=4,
            bos_token_id=1,
            eos_token_id=1,
            initializer_range=0.3,
        )
        return GPT2LMHeadModel(config).eval()
    config = LlamaConfig(
        vocab_size=n,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=24,
        bos_token_id=1,
        eos_token_id=1,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def both(request):
    """An opened model, and an untouched copy of what it was made from."""
    from activations import open_model

    plain = tiny(request.param)
    model = open_model(copy.deepcopy(plain), tokenizer=tokenizer(), device="cpu")
    return model, plain


@pytest.fixture(scope="module")
def model(both):
    return both[0]


@pytest.fixture(scope="module")
def texts():
    return [
        "the cat sat on the mat .",
        "a dog ran .",
        "youse sat on the big red log now , then ran !",
        "the bird ran under the mat .",
        "yon dog sat .",
    ]
