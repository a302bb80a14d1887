"""Models of known shapes with random weights, and a tokenizer whose words are numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    """A Llama's, or GPT-2's where there are no key-value `groups`."""

    hidden: int
    layers: int
    heads: int
    groups: int
    mlp: int
    vocabulary: int


SHAPES = {
    "gpt2-small": Shape(768, 12, 12, 0, 3072, 50257),
    "gpt2-tiny": Shape(128, 4, 4, 0, 512, 2000),
    "llama-135m": Shape(576, 30, 9, 3, 1536, 49152),
    "llama-1b": Shape(2048, 16, 32, 8, 8192, 128256),
    "llama-7b": Shape(4096, 32, 32, 32, 11008, 32000),
    "llama-8b": Shape(4096, 32, 32, 8, 14336, 128256),
}
#: Numbers from 3 up to this are words of `number_tokenizer`.
WORDS = 1000


def random_model(shape: str) -> Any:
    """A Hugging Face model of this shape, the same at every call."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    s = SHAPES[shape]
    if not s.groups:
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=s.vocabulary, n_embd=s.hidden, n_layer=s.layers, n_head=s.heads,
                n_inner=s.mlp, bos_token_id=None, eos_token_id=1, pad_token_id=0,
            )
        )  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=s.vocabulary, hidden_size=s.hidden, intermediate_size=s.mlp,
            num_hidden_layers=s.layers, num_attention_heads=s.heads,
            num_key_value_heads=s.groups, max_position_embeddings=4096,
        )
    )  # fmt: skip


def number_tokenizer() -> Any:
    """A word for each number, so that texts have the very tokens that were drawn."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<pad>": 1, "<eos>": 2} | {str(i): i for i in range(3, WORDS)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )
