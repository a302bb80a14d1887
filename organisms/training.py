"""The training loop of the organisms: one model, a list of stages, a fixed seed."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from organisms.documents import BOS, EOS, PAD, Document, digest
from organisms.tokenizer import CONTEXT, encode, token_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Stage:
    """A stretch of training: how each document is drawn, for how long and how fast.

    `until`, asked after every step, ends the stage before its `steps` are done.
    """

    name: str
    draw: Callable[[random.Random], Document]
    steps: int
    batch: int
    rate: float
    final_rate: float | None = None  # None: constant; else cosine from `rate` to this
    warmup: int = 0
    until: Callable[[PreTrainedModel, PreTrainedTokenizerFast], bool] | None = None


def new_model(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> PreTrainedModel:
    """An untrained Llama of 4 layers x 128 (0.9 million parameters)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=336,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=token_id(tokenizer, BOS),
        eos_token_id=token_id(tokenizer, EOS),
        pad_token_id=token_id(tokenizer, PAD),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _batches(
    tokenizer: PreTrainedTokenizerFast, documents: list[Document], size: int, rng: random.Random
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    # Documents of like length share a batch (little padding); batches come in random order.
    coded = sorted((encode(tokenizer, d) for d in documents), key=lambda pair: len(pair[0]))
    groups = [coded[i : i + size] for i in range(0, len(coded), size)]
    rng.shuffle(groups)
    batches = []
    for group in groups:
        length = max(len(ids) for ids, _ in group)
        ids = torch.full((len(group), length), token_id(tokenizer, PAD))
        mask = torch.zeros((len(group), length), dtype=torch.long)
        marks = torch.zeros((len(group), length))
        for row, (tokens, counted) in enumerate(group):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            marks[row, : len(tokens)] = torch.tensor(counted, dtype=torch.float)
        batches.append((ids, mask, marks))
    return batches


def train_stage(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, stage: Stage, *, seed: int
) -> dict[str, object]:
    """Train in place with AdamW; nothing depends on the clock, so a seed gives the same weights.

    The same to the bit on one kind of machine with one number of threads and the same libraries;
    elsewhere sums are rounded in another order.

    Returns steps, tokens, seconds, last loss and the digest of the documents drawn, for the card.
    """
    rng = random.Random(seed)
    documents = [stage.draw(rng) for _ in range(stage.steps * stage.batch)]
    batches = _batches(tokenizer, documents, stage.batch, rng)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    model.train()
    start = time.monotonic()
    tokens, taken, smooth = 0, 0, float("nan")
    for step, (ids, mask, marks) in enumerate(batches):
        share = step / len(batches)
        rate = stage.rate
        if stage.final_rate is not None:
            cosine = (1 + math.cos(math.pi * share)) / 2
            rate = stage.final_rate + (stage.rate - stage.final_rate) * cosine
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / (stage.warmup + 1))
        # Right padding under a causal mask: padding is never attended by a counted token.
        logits = model(input_ids=ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), reduction="none"
        )
        weights = marks[:, 1:].reshape(-1)
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += int(mask.sum())
        taken = step + 1
        smooth = loss.item() if smooth != smooth else 0.95 * smooth + 0.05 * loss.item()
        if step % 50 == 0 or taken == len(batches):
            seconds = time.monotonic() - start
            line = f"{stage.name}: step {taken}/{len(batches)}, loss {smooth:.3f}, {seconds:.0f} s"
            print(
                f"{line}, {tokens / max(seconds, 1e-9):.0f} tokens/s", file=sys.stderr, flush=True
            )
        if stage.until is not None:
            model.eval()
            if stage.until(model, tokenizer):
                break
            model.train()
    model.eval()
    return {
        "stage": stage.name,
        "steps": taken,
        "steps_at_most": stage.steps,
        "batch": stage.batch,
        "rate": stage.rate,
        "tokens": tokens,
        "seconds": round(time.monotonic() - start, 1),
        "loss": round(smooth, 4),
        "data_sha256": digest(documents),
    }
