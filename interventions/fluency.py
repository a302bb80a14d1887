"""What steering costs: losses of texts that should stay likely, and of what the model writes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interventions.dose import Outcome
from interventions.errors import EditError
from interventions.metrics import is_refusal
from interventions.next_token import last_logits, refusal_score

if TYPE_CHECKING:
    from activations import Model
    from activations.edit import Edit

_LOSS = "nats per token"


@dataclass(frozen=True, eq=False)
class TextLosses:
    """Observes the loss per token of texts of each variety, and how one pair is preferred.

    Attributes:
        texts, varieties, groups: `[n]`.
        pair: (target, other): also observe `variety_log_odds`, for each group that has both the
            log-probability of its text in the target less that in the other, in nats. It falls as
            well as rises with the losses of the two, which stand beside it.
    """

    texts: Sequence[str]
    varieties: Sequence[str]
    groups: Sequence[str]
    pair: tuple[str, str] | None = None

    def __call__(self, model: Model, edit: Edit | None) -> list[Outcome]:
        """The outcomes under an edit."""
        with model.edited(edit) if edit is not None else nullcontext():
            nll, tokens = model.losses(list(self.texts))
        variety = np.asarray(self.varieties, dtype=object)
        group = np.asarray(self.groups, dtype=object)
        found = []
        for name in dict.fromkeys(variety.tolist()):
            own = variety == name
            found.append(Outcome("loss", nll[own] / tokens[own], group[own], _LOSS, str(name)))
        if self.pair is not None:
            sums = [
                dict(zip(group[variety == name], nll[variety == name], strict=True))
                for name in self.pair
            ]
            shared = [g for g in sums[0] if g in sums[1]]
            if not shared:
                raise EditError(
                    f"{self.pair[0]} and {self.pair[1]} share no group: give parallel texts."
                )
            odds = np.array([sums[1][g] - sums[0][g] for g in shared])
            where = np.array(shared, dtype=object)
            found.append(Outcome("variety_log_odds", odds, where, "nats per text", self.pair[0]))
        return found


@dataclass(frozen=True, eq=False)
class Refusals:
    """Observes the refusals of requests, their score, and how likely the plain model finds replies.

    Attributes:
        requests: as a user would write them.
        tokens: those that begin a refusal; no score is observed without.
        new_tokens: length of the replies; none are written where it is 0.
    """

    requests: Sequence[str]
    groups: Sequence[str]
    behaviour: str
    tokens: Sequence[int] = ()
    new_tokens: int = 12

    def __call__(self, model: Model, edit: Edit | None) -> list[Outcome]:
        """The outcomes under an edit."""
        asked = [model.render(text) for text in self.requests]
        group = np.asarray(self.groups, dtype=object)
        found, replies = [], []
        with model.edited(edit) if edit is not None else nullcontext():
            if len(self.tokens):
                scores = refusal_score(last_logits(model, asked), self.tokens)
                unit = "log-odds of a refusal"
                found.append(Outcome("refusal_score", scores, group, unit, "", self.behaviour))
            if self.new_tokens:
                replies = model.generate(
                    asked, max_new_tokens=self.new_tokens, rendered=model.has_chat_template
                )
        if self.new_tokens:
            flags = np.array([is_refusal(reply) for reply in replies], dtype=float)
            unit = "share of requests"
            rate = Outcome("refusal_rate", flags, group, unit, "", self.behaviour, (0.0, 1.0))
            loss = reply_losses(model, asked, replies, rendered=model.has_chat_template)
            found += [rate, Outcome("reply_loss", loss, group, _LOSS, "", self.behaviour)]
        return found


def reply_losses(
    model: Model, prompts: Sequence[str], replies: Sequence[str], *, rendered: bool
) -> np.ndarray:
    """Loss per token `[n]` of replies after their prompts, in the model as it is now.

    With no edit open it tells how natural the plain model finds what was written: repetition is
    cheap and nonsense dear, so look at changes both ways. The end of a reply does not count, and a
    reply without a token has loss 0.
    """
    from activations.batching import length_batches

    heads = model.encode_many(list(prompts), rendered=rendered)
    tails = [
        list(model.tokenizer(reply, add_special_tokens=False)["input_ids"])[
            : model.max_length - len(head)
        ]
        for head, reply in zip(heads, replies, strict=True)
    ]
    out = np.zeros(len(heads))
    ids = [head + tail for head, tail in zip(heads, tails, strict=True)]
    for batch in length_batches([len(i) for i in ids], budget=1024):
        tokens, mask = model.pad([ids[i] for i in batch])
        scores = model.logits(tokens, mask)[:, :-1].float().log_softmax(-1)
        said = scores.gather(-1, tokens[:, 1:, None].to(scores.device))[..., 0].double().cpu()
        for row, i in enumerate(batch):
            start, end = len(heads[i]) - 1, len(ids[i]) - 1
            if end > start:
                out[i] = -float(said[row, start:end].mean())
    return out
