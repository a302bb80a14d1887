"""What is read from a patched run: figures of the logits at the ends of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from interventions.errors import EditError

if TYPE_CHECKING:
    from activations import Model

Measure: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From logits `[runs, reads, vocabulary]` and those of the source and of the base run
`[reads, vocabulary]` to a figure for each run, `[runs]`."""

PlainMetric: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A user's own: from logits `[runs, vocabulary]` at the last token and those of the source and of
the base run `[vocabulary]` to a figure for each run, `[runs]`."""


@dataclass(frozen=True)
class Reading:
    """What is read of the runs of one pair.

    Attributes:
        measure: the figure.
        answer: tokens that both texts are given after their end, all but the last; there is one
            read for each of them, or one at the last token where there are none.
        vocabulary: the tokens whose logits `measure` takes, in this order; all if None.
    """

    measure: Measure
    answer: tuple[int, ...] = ()
    vocabulary: tuple[int, ...] | None = None

    @property
    def reads(self) -> int:
        """How many last positions are read."""
        return max(1, len(self.answer))

    @property
    def given(self) -> list[int]:
        """What the texts go on with."""
        return list(self.answer[:-1])


class Metric:
    """A figure of a run, for each pair of a sweep. Larger need not be better.

    Attributes:
        name, unit: for tables and figures.
    """

    name = "metric"
    unit = ""

    def reading(self, model: Model, pair: int) -> Reading:
        """What to read of the runs of pair number `pair`."""
        raise NotImplementedError

    def check(self, pairs: int) -> None:
        """Raise `EditError` where the metric does not fit this many pairs."""


@dataclass(frozen=True)
class KLFromSource(Metric):
    """KL(source ‖ run) of the next-token distributions at the last token: 0 where they agree."""

    name = "kl_from_source"
    unit = "nats"

    def reading(self, model: Model, pair: int) -> Reading:
        """See `Metric.reading`."""
        return Reading(lambda run, source, base: kl_from_source(run[:, 0], source[0], base[0]))


@dataclass(frozen=True)
class LogitDifference(Metric):
    """Logit of `right` less that of `wrong` at the last token (Wang et al. 2023).

    One of each for every pair, as token ids, or as words, of which the first token counts; the two
    must begin with different tokens.
    """

    right: Sequence[str | int]
    wrong: Sequence[str | int]
    name = "logit_difference"
    unit = "logits"

    def reading(self, model: Model, pair: int) -> Reading:
        """See `Metric.reading`."""
        two = tuple(first_token(model, words[pair]) for words in (self.right, self.wrong))
        if two[0] == two[1]:
            raise EditError(
                f"{self.right[pair]!r} and {self.wrong[pair]!r} begin with the same token, so "
                "their logits never differ; use AnswerLogProb, which reads whole answers."
            )
        return Reading(lambda run, source, base: run[:, 0, 0] - run[:, 0, 1], vocabulary=two)

    def check(self, pairs: int) -> None:
        """See `Metric.check`."""
        _as_many(self.right, pairs, "right answers")
        _as_many(self.wrong, pairs, "wrong answers")


@dataclass(frozen=True)
class AnswerLogProb(Metric):
    """Log-probability of an answer of any number of tokens after the text, the sum over them.

    Both runs are given the answer's own tokens before each of its next ones. `mean=True` divides
    by their number. Words are taken as they stand: with byte-pair tokenizers begin them with a
    space.
    """

    answers: Sequence[str | Sequence[int]]
    mean: bool = False
    name = "answer_log_prob"
    unit = "nats"

    def reading(self, model: Model, pair: int) -> Reading:
        """See `Metric.reading`."""
        answer = _tokens(model, self.answers[pair])
        wanted = torch.tensor(answer)

        def measure(run: Tensor, source: Tensor, base: Tensor) -> Tensor:
            scores = run.double().log_softmax(-1)
            at = wanted.to(run.device).expand(len(run), -1)[..., None]
            each = scores.gather(-1, at)[..., 0]
            return each.mean(-1) if self.mean else each.sum(-1)

        return Reading(measure, answer=tuple(answer))

    def check(self, pairs: int) -> None:
        """See `Metric.check`."""
        _as_many(self.answers, pairs, "answers")


@dataclass(frozen=True)
class ContinuationLoss(Metric):
    """Mean loss in nats a token of a continuation after the text: less is likelier."""

    continuations: Sequence[str | Sequence[int]]
    name = "continuation_loss"
    unit = "nats per token"

    def reading(self, model: Model, pair: int) -> Reading:
        """See `Metric.reading`."""
        likely = AnswerLogProb(self.continuations, mean=True).reading(model, pair)
        return Reading(lambda *runs: -likely.measure(*runs), answer=likely.answer)

    def check(self, pairs: int) -> None:
        """See `Metric.check`."""
        _as_many(self.continuations, pairs, "continuations")


@dataclass(frozen=True)
class OwnMetric(Metric):
    """A user's function of the last token's logits."""

    function: PlainMetric

    @property
    def name(self) -> str:  # type: ignore[override]
        """What the function is called."""
        return getattr(self.function, "__name__", "metric")

    def reading(self, model: Model, pair: int) -> Reading:
        """See `Metric.reading`."""

        def measure(run: Tensor, source: Tensor, base: Tensor) -> Tensor:
            found = self.function(run[:, 0], source[0], base[0])
            if not isinstance(found, Tensor) or found.shape != (len(run),):
                shape = tuple(getattr(found, "shape", ()))
                raise EditError(
                    f"The metric {self.name} gave shape {shape} for {len(run)} runs: give one "
                    "figure for each run, from logits [runs, vocabulary]."
                )
            return found

        return Reading(measure)


def as_metric(metric: Literal["kl"] | Metric | PlainMetric) -> Metric:
    """The metric that a name or a function stands for.

    Raises:
        EditError: another name.
    """
    if isinstance(metric, Metric):
        return metric
    if metric == "kl":
        return KLFromSource()
    if callable(metric):
        return OwnMetric(metric)
    raise EditError(
        f"There is no metric {metric!r}: give 'kl', a metric such as LogitDifference, or a "
        "function of logits [runs, vocabulary]."
    )


def kl_from_source(logits: Tensor, source: Tensor, base: Tensor) -> Tensor:
    """KL(source ‖ run) in nats, in f64: 0 where the run predicts as the source run does."""
    p = source.double().log_softmax(-1)
    q = logits.double().log_softmax(-1)
    return torch.where(p.exp() > 0, p.exp() * (p - q), 0.0).sum(-1)


def first_token(model: Model, word: str | int) -> int:
    """A token id, or that of a word's first token."""
    return _tokens(model, [word] if isinstance(word, int) else word)[0]


def _tokens(model: Model, answer: str | Sequence[int]) -> list[int]:
    """The answer's tokens, without those that begin a text."""
    if not isinstance(answer, str):
        ids = [int(token) for token in answer]
    else:
        ids = list(model.tokenizer(answer, add_special_tokens=False)["input_ids"])
    if not ids:
        raise EditError(f"The answer {answer!r} has no token: give at least one.")
    return ids


def _as_many(given: Sequence[object], pairs: int, what: str) -> None:
    if isinstance(given, str) or len(given) != pairs:
        count = "one text" if isinstance(given, str) else str(len(given))
        raise EditError(f"There are {pairs} pairs and {count} for {what}: give one for each pair.")
