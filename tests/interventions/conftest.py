"""Two tiny random models, built here from configurations, with a tokenizer of a few words."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from activations import open_model

from .restorable import changed

WORDS = list("abcdefghijklmnopqrst")


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def _hf(kind: str) -> Any:
    torch.manual_seed(0)
    size = len(WORDS) + 3
    common = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=size,
            n_positions=64,
            n_embd=16,
            n_layer=3,
            n_head=2,
            initializer_range=0.4,
            **common,
        )
        return GPT2LMHeadModel(config)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.4,
        **common,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return open_model(_hf(request.param), tokenizer=_tokenizer())


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session", params=["transformer_lens", "nnsight"])
def opened(request: pytest.FixtureRequest, kind: str) -> Any:
    """(a model opened with either engine, an untouched copy of what it was made from)."""
    plain = _hf(kind).eval()
    model = open_model(copy.deepcopy(plain), tokenizer=_tokenizer(), engine=request.param)
    return model, plain


@pytest.fixture(params=["gpt2", "llama"])
def tuned_pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(a fine-tuned model, opened; its aligned parent)."""
    aligned = _hf(request.param).eval()
    return open_model(changed(aligned, 1), tokenizer=_tokenizer()), aligned


@pytest.fixture
def parent(tuned_pair: tuple[Any, Any], tmp_path: Path) -> Path:
    """The folder of the aligned parent."""
    tuned_pair[1].save_pretrained(tmp_path / "aligned")
    return tmp_path / "aligned"
