"""Models whose weights are set by hand, so that what computes what in them is known.

`induction_model` is a GPT-2 of two blocks that predicts, after a token, what came after that token
before. Head 0 of block 0 writes at each token which one stands before it; head 1 of block 1 looks
for the token after an earlier one like its own, and copies it. The other two heads write as well,
into a place that nothing reads. `linear_model` has no attention and no bends: its logits are a
product of matrices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from activations import open_model

from .conftest import WORDS, _tokenizer

_V, _POSITIONS = len(WORDS) + 3, 16
#: Where each kind of information lies in the first half of the stream; the second half is its
#: negative, so that layer norm finds no mean to take away, and only scales.
_SIZES = {"token": _V, "position": _POSITIONS, "previous": _V, "out": _V, "junk": _V}
_HALF = sum(_SIZES.values())
_SHARP = 30.0


@dataclass(frozen=True)
class InductionCircuit:
    """Where the circuit lies.

    Attributes:
        spaces: by what they hold (token, position, previous, out, junk) orthonormal bases
            `[d_model, k]` of the stream, one direction for each token id or position.
        previous, induction: where the two heads' outputs are read; keys: the keys of the second.
    """

    spaces: Mapping[str, np.ndarray]
    previous: str = "blocks.0.attn.hook_z"
    previous_head: int = 0
    induction: str = "blocks.1.attn.hook_z"
    induction_head: int = 1
    keys: str = "blocks.1.attn.hook_k"


def place_by_place(base: Sequence[int], source: Sequence[int]) -> np.ndarray:
    """Alignment of texts of one length: tokens that changed places are not followed."""
    return np.arange(len(base))


def induction_pairs() -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """(base, source) texts, and what follows by the source's text and by the base's.

    The same words stand after one another in both, but for two that have changed places; so what
    was before `b` and `c` differs, and they themselves, and the last word, do not.
    """
    pairs, right, wrong = [], [], []
    for a, b, c, d in ("abcd", "efgh", "ijkl", "mnop"):
        pairs.append((f"t {a} {b} {d} {c} s {a}", f"t {d} {b} {a} {c} s {a}"))
        right.append(c)
        wrong.append(b)
    return pairs, right, wrong


def induction_model() -> tuple[Any, InductionCircuit]:
    """The model, opened, and its circuit."""
    d = 2 * _HALF
    config = GPT2Config(
        vocab_size=_V, n_positions=_POSITIONS, n_embd=d, n_layer=2, n_head=2, n_inner=2,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval()
    at, start = {}, 0
    for name, size in _SIZES.items():
        at[name] = slice(start, start + size)
        start += size
    with torch.no_grad():
        for name, weights in hf.named_parameters():
            if "ln_" not in name:
                weights.zero_()
        body = hf.transformer
        _write(body.wte.weight, at["token"], torch.eye(_V))
        _write(body.wpe.weight, at["position"], torch.eye(_POSITIONS))
        _write(hf.lm_head.weight, at["out"], torch.eye(_V))
        # What norms divide by, where attention is sharp: two or four unit writings, and negatives.
        scales = [(d / 4) ** 0.5, (d / 8) ** 0.5]
        here, before = torch.eye(_POSITIONS), torch.eye(_POSITIONS).roll(-1, 1)
        before[0] = 0  # the first token has only itself to look at
        heads = [
            (0, 0, ("position", before), ("position", here), "previous"),
            (0, 1, ("position", here), ("position", here), "junk"),
            (1, 0, None, None, "junk"),
            (1, 1, ("token", torch.eye(_V)), ("previous", torch.eye(_V)), "out"),
        ]
        for block, head, query, key, into in heads:
            attention = body.h[block].attn
            joint = attention.c_attn.weight.view(d, 3, 2, _HALF)  # in, part, head, within the head
            scale = scales[block]
            for part, given in enumerate((query, key)):
                if given is not None:
                    name, matrix = given
                    strength = _SHARP * _HALF**0.5 / scale**2 if part == 0 else 1.0
                    rows, columns = matrix.shape
                    assert rows == _SIZES[name]
                    joint[at[name], part, head, :columns] = strength * matrix
            joint[at["token"], 2, head, :_V] = torch.eye(_V) / scale
            out = attention.c_proj.weight.view(2, _HALF, d)
            _write(out[head, :_V], at[into], torch.eye(_V))
    bases = np.concatenate([np.eye(_HALF), -np.eye(_HALF)]) / np.sqrt(2)
    spaces = {name: bases[:, where] for name, where in at.items()}
    return open_model(hf, tokenizer=_tokenizer()), InductionCircuit(spaces)


def _write(weights: torch.Tensor, where: slice, matrix: torch.Tensor) -> None:
    weights[: len(matrix), where] = matrix
    weights[: len(matrix), where.start + _HALF : where.stop + _HALF] = -matrix


def linear_model(layers: int = 2) -> Any:
    """A GPT-2 without attention or activation functions, whose norms change nothing, opened.

    What is written into the stream has mean 0, and a norm multiplies by what it then divides by,
    as its epsilon outweighs any variance.
    """
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=_V, n_positions=32, n_embd=12, n_layer=layers, n_head=2, n_inner=10,
        activation_function="linear", tie_word_embeddings=False, initializer_range=0.3,
        layer_norm_epsilon=1e10, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weights in hf.named_parameters():
            if "attn.c_proj" in name:
                weights.zero_()
            elif "ln_" in name and name.endswith("weight"):
                weights.fill_(1e5)
            elif "wte" in name or "wpe" in name or "mlp.c_proj.weight" in name:
                weights -= weights.mean(-1, keepdim=True)
    return open_model(hf, tokenizer=_tokenizer())
