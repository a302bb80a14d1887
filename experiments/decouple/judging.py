"""How well a model writes a dialect: loss on its held-out sentences, and translations scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.batching import length_batches
from experiments.decouple.pairs import Batch, Example
from experiments.settings import ConfigError

_TOKENS = 4096  # in one pass


def target_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood of each target token in nats, `[tokens]`, row after row."""
    at = batch.target[:, 1:]
    said = logits[:, :-1][at].float()
    return torch.nn.functional.cross_entropy(said, batch.ids[:, 1:][at], reduction="none")


#: Around one pass: from which tokens of it are the target's to a context.
Acting = Callable[[Bool[Tensor, "batch pos"]], AbstractContextManager[None]]


def untouched(_: Bool[Tensor, "batch pos"]) -> AbstractContextManager[None]:
    """Nothing acts in a pass."""
    return nullcontext()


@torch.no_grad()
def example_losses(
    hf: Any, examples: Sequence[Example], acting: Acting = untouched
) -> Float[np.ndarray, " examples"]:
    """Mean loss of each example's target tokens, in nats a token."""
    found = np.zeros(len(examples))
    device = next(hf.parameters()).device
    for rows in length_batches([len(e.ids) for e in examples], budget=_TOKENS):
        batch = Batch.of([examples[i] for i in rows], device)
        with acting(batch.target):
            logits = hf(input_ids=batch.ids, attention_mask=batch.mask).logits
        losses = target_loss(logits, batch).double().cpu()
        owner = torch.nonzero(batch.target[:, 1:])[:, 0].cpu()
        total = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, owner, losses)
        count = torch.bincount(owner, minlength=len(rows))
        found[rows] = (total / count).numpy()
    return found


@dataclass(frozen=True)
class Translation:
    """Corpus-level scores from 0 to 100, with sacrebleu's signatures of how they were made."""

    chrf: float
    bleu: float
    signatures: tuple[str, str]


def require_sacrebleu() -> None:
    """Raises:
    ConfigError: sacrebleu is not installed.
    """
    try:
        import sacrebleu  # noqa: F401
    except ImportError:
        raise ConfigError(
            "chrF++ and BLEU need sacrebleu: install the extra `translation`, or set generated=0."
        ) from None


def translation_scores(said: Sequence[str], wanted: Sequence[str]) -> Translation:
    """chrF++ (Popović 2017; character 6-grams, word 2-grams) and BLEU (Papineni et al. 2002).

    Raises:
        ConfigError: no text, not as many of the one as of the other, or no sacrebleu.
    """
    if not said or len(said) != len(wanted):
        raise ConfigError(
            f"There are {len(said)} translations for {len(wanted)} references: give as many, and "
            "at least one."
        )
    require_sacrebleu()
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    chrf, bleu = CHRF(word_order=2), BLEU()
    found = [m.corpus_score(list(said), [list(wanted)]).score for m in (chrf, bleu)]
    return Translation(*found, signatures=(str(chrf.get_signature()), str(bleu.get_signature())))


@torch.no_grad()
def translate(
    hf: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    new_tokens: int,
    acting: Acting = untouched,
) -> list[str]:
    """Greedy translations of what stands before each example's target, as training saw it."""
    device = next(hf.parameters()).device
    end = tokenizer.eos_token_id
    found = [""] * len(examples)
    for rows in length_batches([e.start + new_tokens for e in examples], budget=_TOKENS):
        longest = max(examples[i].start for i in rows)
        ids = torch.zeros((len(rows), longest), dtype=torch.long, device=device)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(rows):
            before = examples[i].ids[: examples[i].start]
            ids[row, longest - len(before) :] = torch.tensor(before, device=device)
            mask[row, longest - len(before) :] = 1
        new, cache, step_in = [], None, ids
        done = torch.zeros(len(rows), dtype=torch.bool, device=device)
        for step in range(new_tokens):
            places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -step_in.shape[1] :]
            said = torch.full_like(step_in, bool(step), dtype=torch.bool)
            with acting(said):
                out = hf(
                    input_ids=step_in,
                    attention_mask=mask,
                    position_ids=places,
                    past_key_values=cache,
                    use_cache=True,
                )
            cache, chosen = out.past_key_values, out.logits[:, -1].argmax(-1)
            new.append(chosen)
            if end is not None:
                done |= chosen == end
            if bool(done.all()):
                break
            step_in = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        for i, row in zip(rows, torch.stack(new, dim=1).tolist(), strict=True):
            kept = row[: row.index(end)] if end in row else row
            found[i] = tokenizer.decode(kept, skip_special_tokens=True).strip()
    return found
