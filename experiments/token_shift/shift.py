"""For each token of an answer: how another model ranks it, and how far the two models lie apart.

Lin et al. (2023), "The Unlocking Spell on Base LLMs": an answer token is *unshifted* where the
base model ranks it first on the same context, *marginal* at rank 2 or 3, *shifted* beyond.

One pass of each model over context and answer reads the states before the answer's tokens; logits
are made of few of them at a time, so that memory does not grow with vocabulary times text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from activations.batching import length_batches, limits
from experiments.settings import ConfigError
from interventions.readout import Readout

if TYPE_CHECKING:
    from activations import Model

Ids = Sequence[Sequence[int]]

#: The kinds of shift, by the last rank of each.
KINDS = ("unshifted", "marginal", "shifted")
_LAST_RANK = (1, 3)
#: Logits compared at once, both models' in f64.
_CELLS = 2**22


@dataclass(frozen=True, eq=False)
class Scores:
    """Of each token `[n]`; logarithms are natural, KL is in nats.

    Attributes:
        rank: in the reference model, from 1: one more than there are tokens with a larger logit,
            so that tokens tied for the first place all have rank 1.
        log_probability, own_log_probability: of the token in the reference model, and in the one
            that wrote it.
        kl: KL(writer ‖ reference) of the next token there.
        top: what the reference model ranks first.
    """

    rank: Int[np.ndarray, " n"]
    log_probability: Float[np.ndarray, " n"]
    own_log_probability: Float[np.ndarray, " n"]
    kl: Float[np.ndarray, " n"]
    top: Int[np.ndarray, " n"]

    @property
    def kind(self) -> np.ndarray:
        """`unshifted`, `marginal` or `shifted`, of each token."""
        return np.asarray(KINDS, dtype=object)[np.searchsorted(_LAST_RANK, self.rank)]


def shift_scores(
    writer: Float[Tensor, "n vocabulary"],
    reference: Float[Tensor, "n vocabulary"],
    tokens: Int[Tensor, " n"],
) -> Scores:
    """How `reference` takes the tokens that `writer` wrote, from both models' logits.

    Raises:
        ConfigError: shapes that do not fit.
    """
    if writer.shape != reference.shape or len(tokens) != len(writer):
        raise ConfigError(
            f"The logits have shapes {tuple(writer.shape)} and {tuple(reference.shape)} for "
            f"{len(tokens)} tokens: give both models' logits [n, vocabulary] and n tokens."
        )
    at = tokens.to(reference.device)[:, None]
    mine = reference.gather(-1, at)
    p = writer.double().log_softmax(-1).to(reference.device)
    q = reference.double().log_softmax(-1)
    each = torch.where(p > -torch.inf, p.exp() * (p - q), torch.zeros_like(p))
    found = (
        1 + (reference > mine).sum(-1),
        q.gather(-1, at)[:, 0],
        p.gather(-1, at)[:, 0],
        each.sum(-1).clamp(min=0),
        reference.argmax(-1),
    )
    return Scores(*(part.cpu().numpy() for part in found))


class Speaker:
    """A model with its own end apart, so that logits are had of the states that count only."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._readout = Readout(model)
        self.last = self._readout.last
        self.width = int(model.hf.get_output_embeddings().weight.shape[0])

    def states(
        self, contexts: Ids, answers: Ids, sites: Sequence[str] | None = None
    ) -> dict[str, Float[Tensor, "tokens d"]]:
        """By site the states from which each answer token is predicted, answer after answer.

        The pass is over each whole context and answer; keep the number of texts to a batch.

        Raises:
            ConfigError: a context and an answer that the model's context does not hold.
        """
        ids = [[*context, *answer[:-1]] for context, answer in zip(contexts, answers, strict=True)]
        longest = max(map(len, ids))
        if longest > self.model.max_length:
            raise ConfigError(
                f"A request with its answer has {longest} tokens and the context of "
                f"{self.model.name} holds {self.model.max_length}: shorten the requests, or "
                "`new_tokens`, or show fewer examples (`shots`)."
            )
        tokens, mask = self.model.pad(ids)
        text = torch.tensor([i for i, a in enumerate(answers) for _ in a])
        place = torch.tensor(
            [len(c) - 1 + t for c, a in zip(contexts, answers, strict=True) for t in range(len(a))]
        )

        def select(x: Tensor, _site: Any) -> Tensor:
            return x[text.to(x.device), place.to(x.device)]

        return self.model.activations(tokens, mask, sites or [self.last], select=select)

    def logits(self, states: Float[Tensor, "n d"]) -> Float[Tensor, "n vocabulary"]:
        """What the model says next after states of its last block."""
        return self._readout(states)


def vocabulary(*speakers: Speaker) -> int:
    """How many tokens all of them tell apart; embeddings are often padded beyond the tokenizer."""
    return min(min(s.width, len(s.model.tokenizer)) for s in speakers)


def answer_shifts(
    writer: Speaker,
    reference: Speaker,
    contexts: Ids,
    answers: Ids,
    *,
    reference_contexts: Ids | None = None,
    token_budget: int | None = None,
) -> Scores:
    """Scores of all tokens of all answers, answer after answer.

    Args:
        contexts: token ids of what stood before each answer when it was written.
        answers: token ids, at least one each.
        reference_contexts: what the reference model sees before them instead; the same if None.
        token_budget: tokens in one pass, which changes memory and nothing else.

    Raises:
        ConfigError: an empty context or answer, or one beyond a model's context.
    """
    shown = contexts if reference_contexts is None else reference_contexts
    if not len(contexts) == len(answers) == len(shown) or not len(answers):
        raise ConfigError(
            f"There are {len(contexts)} contexts and {len(answers)} answers: give as many, and at "
            "least one."
        )
    if not all(len(part) for several in (contexts, answers, shown) for part in several):
        raise ConfigError("A context or an answer has no token: leave that one out.")
    width = vocabulary(writer, reference)
    lengths = [
        max(len(a), len(b)) + len(c) for a, b, c in zip(contexts, shown, answers, strict=True)
    ]
    starts = np.cumsum([0, *(len(a) for a in answers)])
    kept: dict[str, np.ndarray] = {}
    budget, overhead = limits(writer.model.device.type, token_budget)
    for batch in length_batches(lengths, budget=budget, overhead=overhead):
        said = [answers[i] for i in batch]
        own = writer.states([contexts[i] for i in batch], said)[writer.last]
        other = reference.states([shown[i] for i in batch], said)[reference.last]
        tokens = torch.tensor([token for one in said for token in one])
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in batch])
        for chunk in torch.arange(len(tokens)).split(max(1, _CELLS // width)):
            found = shift_scores(
                writer.logits(own[chunk])[:, :width],
                reference.logits(other[chunk])[:, :width],
                tokens[chunk],
            )
            for name, values in vars(found).items():
                kept.setdefault(name, np.zeros(starts[-1], values.dtype))
                kept[name][rows[chunk.numpy()]] = values
    return Scores(**kept)
