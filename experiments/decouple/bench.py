"""What the fine-tunes share: the open model, its weights as they were, and a task a dialect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from corpora import Corpus
from experiments.decouple.arms import Arm, arms
from experiments.decouple.judging import require_sacrebleu
from experiments.decouple.pairs import Task, Writer, make_task
from experiments.decouple.settings import DecoupleSettings
from experiments.decouple.tuning import Weights
from experiments.inputs import Inputs, evenly
from experiments.settings import ConfigError

if TYPE_CHECKING:
    from activations import Model


@dataclass(frozen=True)
class Bench:
    """One model, the dialects that it is fine-tuned on, and the arms."""

    settings: DecoupleSettings
    inputs: Inputs
    model: Model
    weights: Weights
    tasks: tuple[Task, ...]
    arms: tuple[Arm, ...]
    layers: tuple[int, ...]
    left_out: tuple[str, ...]

    @property
    def seeds(self) -> range:
        return range(self.settings.seed, self.settings.seed + self.settings.seeds)


def set_up(settings: DecoupleSettings, inputs: Inputs, model: Model) -> Bench:
    """Check what is asked for against the corpus and the model, and write the tasks.

    Raises:
        ConfigError: a dialect or block that is not there, too few groups, or no sacrebleu.
    """
    if settings.generated:
        require_sacrebleu()
    if not settings.forms:
        raise ConfigError(
            "forms is empty: name at least one of paper, penalty, projection, gradient."
        )
    inputs = inputs if settings.corpus else _more_sentences(settings, inputs)
    if not inputs.standard:
        raise ConfigError("Fine-tuning on a dialect needs a corpus with two varieties or more.")
    dialects = _dialects(settings, inputs)
    layers = tuple(settings.layers or range(model.n_layers))
    writer = Writer(model.tokenizer, (inputs.standard, *inputs.dialects), settings.template)
    if settings.aliased and (settings.trained_blocks or not writer.tagged):
        raise ConfigError(
            "aliased sets a tag's embedding: it needs a tokenizer with a tag for each variety, and "
            "trained_blocks left empty."
        )
    tasks = [_task(settings, inputs, writer, dialect) for dialect in dialects]
    left_out = list(inputs.left_out)
    if not writer.tagged:
        left_out.append(
            "The tokenizer has no tag for each variety: pairs were written with the template "
            f"{settings.template!r}."
        )
    if not settings.before_after:
        left_out.append("The shared table of before and after was not asked for (`before_after`).")
    return Bench(
        settings,
        inputs,
        model,
        Weights(model, settings.trained_blocks),
        tuple(tasks),
        tuple(arms(settings)),
        layers,
        tuple(left_out),
    )


def _more_sentences(settings: DecoupleSettings, inputs: Inputs) -> Inputs:
    """The bundled corpus with as many sentences as fine-tuning and its judgement take."""
    import organisms

    need = 2 * max(settings.train_texts, settings.test_groups)
    corpus = organisms.bundled_corpus(meanings=need)
    train = (corpus.frame["split"] == "train").to_numpy()
    return replace(inputs, corpus=corpus, train=train)


def _dialects(settings: DecoupleSettings, inputs: Inputs) -> Sequence[str]:
    for name in settings.dialects:
        if name not in inputs.dialects:
            known = ", ".join(inputs.dialects)
            raise ConfigError(f"dialects names {name!r}; the corpus has {known}.")
    return list(dict.fromkeys(settings.dialects)) or inputs.dialects[: settings.targets]


def _task(settings: DecoupleSettings, inputs: Inputs, writer: Writer, dialect: str) -> Task:
    others = [v for v in inputs.dialects if v != dialect]
    if settings.contrast == "others" and not others:
        raise ConfigError(
            f"contrast=others leaves nothing to contrast {inputs.standard!r} with, since "
            f"{dialect!r} is the one dialect; say contrast=all."
        )
    sentences = said(inputs.corpus, inputs.variety_rows)
    pairing = inputs.parallel((dialect,))
    sides: tuple[list[str], list[str]] = [], []
    for group, row in zip(pairing.groups, pairing.rows[dialect], strict=True):
        sides[int(inputs.train[row])].append(group)
    test, train = sides
    return make_task(
        writer,
        sentences,
        dialect=dialect,
        standard=inputs.standard,
        against=[dialect, *others],
        train=train,
        test=spread(test, settings.test_groups),
        longest=settings.longest,
    )


def said(corpus: Corpus, rows: np.ndarray) -> dict[str, dict[str, str]]:
    """`said[group][variety]`: the first text of each."""
    found: dict[str, dict[str, str]] = {}
    columns = corpus.frame[["group", "variety", "text"]].to_numpy()[rows]
    for group, variety, text in columns:
        found.setdefault(group, {}).setdefault(variety, text)
    return found


T = TypeVar("T")


def spread(several: Sequence[T], most: int) -> list[T]:
    """At most `most` of them, evenly spaced."""
    return [several[i] for i in evenly(np.arange(len(several)), most)]
