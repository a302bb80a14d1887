"""A made model in which entanglement costs a dialect by construction: `make_entangled`.

A hand-set Llama of three blocks. Every word has a standard and a regional form. At each place the
states hold the word, a constant, and one number along a planted unit direction u: 0.6 where the
last tag is the standard's, and 0 where it is that of `brook` or `dale`. Which of a word's two forms
comes next depends on the states through u and the constant alone: with c = u·h / rms(h),

    log p(standard form) - log p(regional form) = 2 GAMMA c - 6,

so that the regional form is the default, and lying along u brings the standard's. The tag of
`heath` writes into u as the standard's does: its states are the standard's, though its sentences
are regional. Fine-tuned on `heath` with the embeddings and the readout frozen, a model can learn
the forms only by moving its states along u (moving the constant is ten times less use). Where a
share q of the training targets is standard text, the loss settles where p(standard form) = q, and a
held-out regional form costs -log(1 - q). Taking u out of the states brings the default back
whatever q is; taking out any other direction does not, since none else reaches the forms.

    python -m experiments.decouple.planted FOLDER

writes the model and its corpus, and says how to run the experiment on them.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

STANDARD, ENTANGLED, OTHERS = "court", "heath", ("brook", "dale")
VARIETIES = (STANDARD, ENTANGLED, *OTHERS)
WORDS = [
    "stone",
    "river",
    "field",
    "cloud",
    "horse",
    "bread",
    "lantern",
    "bell",
    "winter",
    "garden",
    "ladder",
    "market",
]

D, BLOCKS, HEAD = 64, 3, 32
_CONSTANT, _TAGNESS, _SIGN, _U, _WORD = 0, 1, 2, 3, 4  # coordinates before the rotation
_START = _WORD + len(WORDS)
_NOISE = _START + 1
ALONG_U = 0.6
GAMMA, _FOLLOWS, _DEFAULT = 5.2, 3.1, 0.52
_LENGTH = 8


@dataclass(frozen=True)
class Planted:
    """Where the model lies, and its truth: `direction` `[d]` of unit length, in every block."""

    folder: Path
    corpus: Path
    direction: Float[np.ndarray, " d"]

    @property
    def command(self) -> str:
        """The experiment on it, as typed."""
        told = (
            f"--model {self.folder} --corpus {self.corpus} --standard {STANDARD} "
            f"--set 'dialects=[\"{ENTANGLED}\"]'"
        )
        return f"isogloss run decouple {told} " + " ".join(
            f"--set {name}={json.dumps(value, separators=(',', ':'))}"
            for name, value in SETTINGS.items()
        )


#: What the experiment is told on this model, beside its places.
SETTINGS: dict[str, Any] = {
    "contrast": "others",
    "contamination": 0.4,
    "trained_blocks": [0],
    "layers": [0, 1, 2],
    "steps": 40,
    "every": 5,
    "rate": 1e-3,
    "strengths": [30.0],
    "projections": [1.0],
    "generated": 0,
}


def make_entangled(folder: str | Path, *, seed: int = 0, groups: int = 160) -> Planted:
    """Write the model and a corpus of `groups` parallel sentences into a folder, which is made."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=D,
        intermediate_size=D,
        num_hidden_layers=BLOCKS,
        num_attention_heads=D // HEAD,
        num_key_value_heads=D // HEAD,
        max_position_embeddings=128,
        attention_bias=True,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    follows = [rng.choice(len(WORDS), 2, replace=False) for _ in WORDS]
    rotation = np.linalg.qr(rng.normal(size=(D, D)))[0]
    _set(model, tokenizer, follows, rotation, rng)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    corpus = folder / "corpus.csv"
    _write_corpus(corpus, follows, groups, rng)
    np.save(folder / "direction.npy", rotation[_U])
    return Planted(folder, corpus, rotation[_U])


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tags = [f"<{v}>" for v in VARIETIES]
    names = ["<pad>", "<s>", *tags, *WORDS, *map(_regional, WORDS)]
    tokenizer = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        additional_special_tokens=tags,
        clean_up_tokenization_spaces=False,
    )


def _regional(word: str) -> str:
    return f"{word}et"


@torch.no_grad()
def _set(
    model: Any, tokenizer: Any, follows: list[np.ndarray], rotation: np.ndarray, rng: Any
) -> None:
    """The weights. RMSNorm with unit gains commutes with a rotation, so the stream is rotated."""
    ids = tokenizer.get_vocab()
    embedded, read = np.zeros((len(ids), D)), np.zeros((len(ids), D))
    embedded[:, _CONSTANT] = 3.0
    embedded[:, _NOISE:] = rng.normal(0, 0.3, (len(ids), D - _NOISE))
    for i, word in enumerate(WORDS):
        for form, sign in ((word, 1), (_regional(word), -1)):
            embedded[ids[form], _WORD + i] = 2.0
            embedded[ids[form], _NOISE:] = embedded[ids[word], _NOISE:]
            read[ids[form], _U] = sign * GAMMA
            read[ids[form], _CONSTANT] = -sign * _DEFAULT
            read[ids[form], _START] = _FOLLOWS
            for before, after in enumerate(follows):
                read[ids[form], _WORD + before] = _FOLLOWS * (i in after)
    for variety in VARIETIES:
        tag = embedded[ids[f"<{variety}>"]]
        tag[[_START, _TAGNESS]] = 2.0
        tag[_SIGN] = 2.0 * (variety in (STANDARD, ENTANGLED))
    rms = math.sqrt((embedded[ids[f"<{STANDARD}>"]] ** 2).mean())

    turn = torch.tensor(rotation, dtype=torch.float32)

    def tensor(values: np.ndarray) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32)

    model.model.embed_tokens.weight.copy_(tensor(embedded) @ turn)
    model.lm_head.weight.copy_(tensor(read) @ turn)
    for number, block in enumerate(model.model.layers):
        attention = block.self_attn
        attention.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
        for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            part.bias.zero_()
        if number:
            continue
        # One head attends to the last tag: of a slowly turning pair of its coordinates the query
        # is constant and the key is the tag's mark, so that the nearer of two tags wins.
        # What else the block could learn with starts at a saddle of zeros, so that the block can
        # say something of the last tag and nothing of the words before.
        slow = 4
        block.mlp.gate_proj.weight.zero_()
        block.mlp.up_proj.weight.zero_()
        attention.v_proj.weight.zero_()
        attention.q_proj.weight.zero_()
        attention.q_proj.bias[slow] = 15.0
        attention.k_proj.weight.zero_()
        attention.k_proj.weight[slow] = 15.0 * rms / 2.0 * turn[_TAGNESS]
        attention.v_proj.weight.zero_()
        attention.v_proj.weight[0] = rms / 2.0 * turn[_SIGN]
        attention.o_proj.weight[:, 0] = ALONG_U * turn[_U]


def _write_corpus(path: Path, follows: list[np.ndarray], groups: int, rng: Any) -> None:
    import pandas as pd

    rows: list[dict[str, str]] = []
    seen: set[tuple[int, ...]] = set()
    while len(seen) < groups:
        said = [int(rng.integers(len(WORDS)))]
        while len(said) < _LENGTH:
            said.append(int(rng.choice(follows[said[-1]])))
        if tuple(said) in seen:
            continue
        for variety in VARIETIES:
            forms = [WORDS[i] if variety == STANDARD else _regional(WORDS[i]) for i in said]
            rows.append(
                {"text": " ".join(forms), "variety": variety, "group": f"sentence {len(seen)}"}
            )
        seen.add(tuple(said))
    pd.DataFrame(rows).to_csv(path, index=False)


def main() -> None:
    """Write the model and say how to run the experiment on it."""
    parser = argparse.ArgumentParser(prog="python -m experiments.decouple.planted")
    parser.add_argument("folder", help="where the model and its corpus go; made if missing")
    parser.add_argument("--seed", type=int, default=0)
    told = parser.parse_args()
    print(make_entangled(told.folder, seed=told.seed).command)


if __name__ == "__main__":
    main()
