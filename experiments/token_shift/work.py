"""The two models, the requests, and the aligned model's answers to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from experiments.compare.bench import open_checked
from experiments.inputs import Inputs, Rows, evenly
from experiments.settings import ConfigError
from experiments.token_shift.prompts import KINDS, Prompter
from experiments.token_shift.settings import TokenShiftSettings
from experiments.token_shift.shift import Scores, Speaker, answer_shifts
from experiments.token_shift.words import Classify, token_classes, token_texts, word_classes

if TYPE_CHECKING:
    from activations import Model

_LEAST = 4


@dataclass(frozen=True, eq=False)
class Answered:
    """Requests with one model's answers, those that are empty left out.

    Attributes:
        rows: of the corpus. contexts, answers: token ids of each.
        empty: how many answers had no token.
    """

    rows: Rows
    contexts: list[list[int]]
    answers: list[list[int]]
    empty: int


@dataclass(frozen=True, eq=False)
class Work:
    """What is measured on. `aligned` and `base` are one object where one model is named twice."""

    settings: TokenShiftSettings
    inputs: Inputs
    aligned: Speaker
    base: Speaker
    prompter: Prompter
    classify: Classify
    own: Answered
    bases: Answered
    left_out: tuple[str, ...]

    def column(self, name: str, rows: Rows) -> np.ndarray:
        """A column of the corpus at some rows, as text."""
        return self.inputs.corpus.frame[name].astype(str).to_numpy()[rows]

    def shown(self, answered: Answered) -> list[list[int]]:
        """What base sees before answers: the same tokens, unless a template was asked for."""
        if self.settings.template == "same":
            return answered.contexts
        texts = self.column("text", answered.rows)
        return [self.prompter.base(str(text), self.settings.template) for text in texts]

    def frame(self, answered: Answered, scores: Scores) -> pd.DataFrame:
        """One row for each token of each answer, with its place, its text, class and scores."""
        tokenizer = self.aligned.model.tokenizer
        texts = self.column("text", answered.rows)
        behaviours = self.column("behaviour", answered.rows)
        varieties = self.column("variety", answered.rows)
        groups = self.column("group", answered.rows)
        frames = []
        for number, ids in enumerate(answered.answers):
            pieces = token_texts(tokenizer, ids)
            frames.append(
                pd.DataFrame(
                    {
                        "text": number,
                        "group": groups[number],
                        "behaviour": behaviours[number],
                        "variety": varieties[number],
                        "request": texts[number],
                        "position": np.arange(len(ids)),
                        "token_id": ids,
                        "piece": pieces,
                        "token_class": token_classes(pieces, self.classify),
                    }
                )
            )
        frame = pd.concat(frames, ignore_index=True)
        words = {int(i): tokenizer.decode([int(i)]) for i in np.unique(scores.top)}
        return frame.assign(
            rank=scores.rank,
            shift=scores.kind,
            log_probability=scores.log_probability,
            own_log_probability=scores.own_log_probability,
            kl=scores.kl,
            top=[words[int(i)] for i in scores.top],
        )

    def compare(
        self, writer: Speaker, reference: Speaker, answered: Answered, contexts: Any = None
    ) -> pd.DataFrame:
        """The tokens of some answers with how `reference` takes them, after `contexts` if given."""
        scores = answer_shifts(
            writer,
            reference,
            answered.contexts,
            answered.answers,
            reference_contexts=contexts,
        )
        return self.frame(answered, scores)


def gather(settings: TokenShiftSettings, inputs: Inputs, model: Model) -> Work:
    """Open base, check that the two can be compared, and let both answer.

    Raises:
        ConfigError: no base named, tokenizers that differ, too few requests or answers.
    """
    named = settings.base or ("organism/base" if settings.model.startswith("organism/") else "")
    if not named:
        raise ConfigError(
            f"Say which model {settings.model} was tuned from, by --set base=MODEL: its tokens are "
            "ranked there."
        )
    settings = settings.model_copy(update={"base": named})
    same = named == settings.model
    before = model if same else open_checked(settings.model_copy(update={"model": named}))
    rows, left_out = _requests(settings, inputs)
    texts = [str(text) for text in inputs.corpus.frame["text"].iloc[rows]]
    require_one_tokenizer(model, before, texts)
    aligned = Speaker(model)
    base = aligned if same else Speaker(before)
    prompter = Prompter(settings, model, before)
    contexts = [prompter.aligned(text) for text in texts]
    own = answers_of(model, rows, contexts, settings.new_tokens)
    if len(own.rows) < _LEAST:
        raise ConfigError(
            f"Of {len(rows)} answers of {settings.model} {own.empty} are empty; it takes {_LEAST} "
            "that are not. Give a corpus of requests that it answers."
        )
    for kind in KINDS:  # refused here, before anything is measured
        prompter.shown(texts[0], kind, max([0, *settings.shots]))
    if settings.template != "same":
        prompter.base(texts[0], settings.template)
    bases = own if same else answers_of(before, rows, contexts, settings.new_tokens)
    if own.empty:
        left_out.append(f"{own.empty} of {len(rows)} answers were empty and are not counted.")
    if same:
        left_out.append(
            "One model was named twice: every token is unshifted, and nothing moves to be patched."
        )
    return Work(
        settings,
        inputs,
        aligned,
        base,
        prompter,
        _classify(settings),
        own,
        bases,
        (*_said(inputs), *left_out),
    )


def _said(inputs: Inputs) -> list[str]:
    # That no variety question is asked is no news here: none was.
    return [said for said in inputs.left_out if "question was asked" not in said]


def answers_of(
    model: Model, rows: Rows, contexts: Sequence[list[int]], new_tokens: int
) -> Answered:
    """A model's greedy answers, the token that ends them left out."""
    answers = model.generate_ids(contexts, max_new_tokens=new_tokens)
    kept = [i for i, answer in enumerate(answers) if answer]
    return Answered(
        rows[kept],
        [contexts[i] for i in kept],
        [answers[i] for i in kept],
        len(answers) - len(kept),
    )


def require_one_tokenizer(one: Model, other: Model, texts: Sequence[str]) -> None:
    """Raises ConfigError, with what differs, where tokens of the one are not the other's."""
    a, b = one.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    parts = []
    for name, lacks in ((one.name, b.keys() - a.keys()), (other.name, a.keys() - b.keys())):
        if lacks:
            parts.append(f"{name} lacks {len(lacks)} tokens, such as {min(lacks)!r}")
    moved = sorted(t for t in a.keys() & b.keys() if a[t] != b[t])
    if moved:
        parts.append(
            f"{len(moved)} tokens have another number, such as {moved[0]!r} ({a[moved[0]]} and "
            f"{b[moved[0]]})"
        )
    if not parts:
        for text in texts:
            cut = [m.tokenizer(text, add_special_tokens=False)["input_ids"] for m in (one, other)]
            if list(cut[0]) != list(cut[1]):
                parts.append(f"they cut {text[:40]!r} into other tokens")
                break
    if parts:
        raise ConfigError(
            f"The tokenizers of {one.name} and {other.name} differ: {'; '.join(parts)}. A rank "
            "needs one tokenizer: give a model and the one that it was tuned from."
        )


def _requests(settings: TokenShiftSettings, inputs: Inputs) -> tuple[Rows, list[str]]:
    """Requests of both behaviours, or, where the corpus has none, all its texts taken as such."""
    frame = inputs.corpus.frame
    split = frame.get("split")
    halved = split is not None and {"train", "test"} <= set(split)
    # Nothing is fitted: only a split that the corpus itself brings keeps some rows back.
    free = ~inputs.train if halved else np.ones(len(frame), dtype=bool)
    left_out: list[str] = []
    if inputs.corpus.has_behaviours:
        kinds = frame["behaviour"].to_numpy()
        parts = [np.flatnonzero(free & (kinds == b)) for b in ("harmful", "harmless")]
    else:
        parts = [np.flatnonzero(free)]
        left_out.append("The corpus has no behaviours: its texts were all taken as requests.")
    rows = np.sort(np.concatenate([evenly(part, settings.max_requests) for part in parts]))
    if len(rows) < _LEAST:
        raise ConfigError(f"The corpus holds {len(rows)} requests to answer; it takes {_LEAST}.")
    return rows, left_out


def _classify(settings: TokenShiftSettings) -> Classify:
    from organisms.answers import answer_classes

    grammar = settings.classes == "grammar" or (
        settings.classes == "auto" and settings.model.startswith("organism/")
    )
    return answer_classes if grammar else word_classes
