"""What restoration is judged by: plain callables from a model to a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from interventions.errors import EditError
from interventions.fluency import reply_losses
from interventions.metrics import is_refusal, replies_to

if TYPE_CHECKING:
    from activations import Model

ModelMetric: TypeAlias = "Callable[[Model], float]"
"""A figure of a model, such as `HarmfulRate` or `ReplyLikelihood`."""


@dataclass(frozen=True, eq=False)
class HarmfulRate:
    """The share of harmful requests that are not refused; lower is better.

    Attributes:
        requests: as a user would write them.
        refused: tells of a reply whether it refuses.
    """

    requests: Sequence[str]
    new_tokens: int = 12
    refused: Callable[[str], bool] = is_refusal

    def flags(self, model: Model) -> np.ndarray:
        """1 for each request that is not refused, `[n]`."""
        if not len(self.requests):
            raise EditError("There are no harmful requests to count: give at least one.")
        replies = replies_to(model, self.requests, max_new_tokens=self.new_tokens)
        return np.array([not self.refused(reply) for reply in replies], dtype=float)

    def __call__(self, model: Model) -> float:
        return float(self.flags(model).mean())


@dataclass(frozen=True, eq=False)
class ReplyLikelihood:
    """exp(-mean nats per token) of the task's replies after its prompts; higher is better.

    The geometric mean of the probability of a token, so that a fall of 5% is a loss of 0.05 nats
    per token more.

    Attributes:
        prompts: as a user would write them.
        replies: those that the task wants, as they would follow the prompt.
    """

    prompts: Sequence[str]
    replies: Sequence[str]

    def losses(self, model: Model) -> np.ndarray:
        """Nats per token of each reply, `[n]`."""
        if not len(self.prompts) or len(self.prompts) != len(self.replies):
            raise EditError(
                f"There are {len(self.prompts)} prompts and {len(self.replies)} replies: give at "
                "least one prompt, and the reply to each."
            )
        asked = [model.render(text) for text in self.prompts]
        return reply_losses(model, asked, self.replies, rendered=model.has_chat_template)

    def __call__(self, model: Model) -> float:
        return float(np.exp(-self.losses(model).mean()))
