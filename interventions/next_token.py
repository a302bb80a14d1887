"""How likely a refusal is, from the next token alone: cheap, and graded where counts are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interventions.errors import EditError

if TYPE_CHECKING:
    from activations import Model

#: Keeps the logarithms finite; the published method's own.
_LEAST = 1e-8
#: Logits held at once, all tokens of a batch together.
_CELLS = 2**26


def last_logits(model: Model, prompts: Sequence[str]) -> Float[Tensor, "n vocabulary"]:
    """Logits of the first token of a reply to each rendered prompt, f64, under the open edits.

    Raises:
        EditError: no prompts.
    """
    if not len(prompts):
        raise EditError("There are no prompts: give at least one.")
    from activations.batching import length_batches

    # Without a template the text is plain, and gets its special tokens from the tokenizer.
    ids = model.encode_many(list(prompts), rendered=model.has_chat_template)
    budget = max(1, _CELLS // max(1, len(model.tokenizer)))
    ends: dict[int, Tensor] = {}
    for batch in length_batches([len(i) for i in ids], budget=budget):
        tokens, mask = model.pad([ids[i] for i in batch])
        logits = model.logits(tokens, mask)
        last = mask.sum(-1).to(logits.device) - 1
        kept = logits[torch.arange(len(batch), device=logits.device), last].double().cpu()
        ends |= dict(zip((int(i) for i in batch), kept, strict=True))
    return torch.stack([ends[i] for i in range(len(ids))])


def refusal_score(
    logits: Float[Tensor, "n vocabulary"], tokens: Sequence[int]
) -> Float[np.ndarray, " n"]:
    """Log-odds that the next token begins a refusal: log Σp − log(1 − Σp), Σ over `tokens`.

    Each of the two probabilities is raised by 1e-8 first (Arditi et al. 2024, and the published
    code). Above zero a refusal is likelier than not.

    Raises:
        EditError: no tokens.
    """
    if not len(tokens):
        raise EditError("No tokens that begin a refusal were given: give at least one.")
    p = logits.double().softmax(-1)[:, list(tokens)].sum(-1)
    return (torch.log(p + _LEAST) - torch.log(1 - p + _LEAST)).numpy()


def refusal_tokens(
    logits: Float[Tensor, "n vocabulary"], refused: Sequence[bool]
) -> tuple[int, ...]:
    """The tokens that replies open with where the model refuses, the commonest first.

    Those that open as many of its other replies are left out, since they tell nothing. The
    published method takes such tokens from a list for each family of models; taking them from the
    model's own replies is ours.

    Args:
        logits: as `last_logits` gives them, of prompts whose greedy replies are known.
        refused: of each, whether the reply was a refusal.

    Raises:
        EditError: no token is left, such as for a model that refuses nothing.
    """
    first = logits.argmax(-1).numpy()
    flags = np.asarray(refused, dtype=bool)
    names, counts = np.unique(first[flags], return_counts=True)
    kept = [
        (int(count), int(token))
        for token, count in zip(names, counts, strict=True)
        if count > int(np.sum(first[~flags] == token))
    ]
    if not kept:
        raise EditError(
            f"Of {len(flags)} requests the model refuses {int(flags.sum())}, so no token is known "
            "to begin a refusal: give a model that refuses, or the tokens."
        )
    return tuple(token for _, token in sorted(kept, reverse=True))


def next_token_kl(
    plain: Float[Tensor, "n vocabulary"], edited: Float[Tensor, "n vocabulary"]
) -> Float[np.ndarray, " n"]:
    """KL(plain ‖ edited) in nats, Σ p (log(p + 1e-6) − log(q + 1e-6)), as the published code."""
    p, q = plain.double().softmax(-1), edited.double().softmax(-1)
    return (p * (torch.log(p + 1e-6) - torch.log(q + 1e-6))).sum(-1).numpy()
