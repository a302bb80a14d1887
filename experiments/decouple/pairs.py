"""Sentence pairs for fine-tuning: what stands before a dialect's sentence, and which tokens count.

Where the tokenizer has a tag for each variety, as the organisms' has, a pair is written as their
training wrote it: `<s><standard> sentence <dialect> sentence</s>`. Elsewhere the standard's
sentence is put into a template and the dialect's follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from experiments.settings import ConfigError


@dataclass(frozen=True)
class Example:
    """One text as token ids; those from `start` on are the target."""

    ids: tuple[int, ...]
    start: int
    variety: str
    group: str
    text: str


@dataclass(frozen=True)
class Batch:
    """Examples side by side, padded on the right. `target` marks the target's tokens."""

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    target: Bool[Tensor, "batch pos"]
    varieties: tuple[str, ...]

    @classmethod
    def of(cls, examples: Sequence[Example], device: torch.device | str = "cpu") -> Batch:
        longest = max(len(e.ids) for e in examples)
        ids = torch.zeros((len(examples), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        target = torch.zeros_like(ids, dtype=torch.bool)
        for row, example in enumerate(examples):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            mask[row, : len(example.ids)] = 1
            target[row, example.start : len(example.ids)] = True
        return cls(ids, mask, target, tuple(e.variety for e in examples)).to(device)

    def to(self, device: torch.device | str) -> Batch:
        ids, mask, target = (part.to(device) for part in (self.ids, self.mask, self.target))
        return Batch(ids, mask, target, self.varieties)


class Writer:
    """Writes pairs and single sentences as a tokenizer's model expects them."""

    def __init__(self, tokenizer: Any, varieties: Sequence[str], template: str) -> None:
        self.tokenizer = tokenizer
        known = tokenizer.get_vocab()
        self.tagged = all(f"<{v}>" in known for v in varieties)
        if not self.tagged and "{standard}" not in template:
            raise ConfigError(
                f"template {template!r} has no {{standard}}, where the standard's sentence goes."
            )
        self._template = template
        self._begin = [tokenizer.bos_token_id] if _adds_bos(tokenizer) else []
        self._end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def pair(
        self, source: str, target: str, *, standard: str, dialect: str, group: str, text: str = ""
    ) -> Example:
        """A target after its source; `text` is what it is judged by (`target`, if not said)."""
        if self.tagged:
            before = self._ids(f"<{standard}> {source} <{dialect}>")
        else:
            before = self._ids(self._template.replace("{standard}", source))
        after = self._ids(f" {target}" if self.tagged else target) + self._end
        before = self._begin + before
        return Example((*before, *after), len(before), dialect, group, text or target)

    def alone(self, text: str, *, variety: str, group: str) -> Example:
        """A sentence by itself, after its variety's tag where there is one."""
        before = self._begin + (self._ids(f"<{variety}>") if self.tagged else [])
        ids = self._ids(f" {text}" if self.tagged else text)
        if not before:  # the first token has nothing before it, so it is never a target
            before, ids = ids[:1], ids[1:]
        return Example((*before, *ids), len(before), variety, group, text)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


@dataclass(frozen=True)
class Task:
    """One dialect to be learnt, from the standard; groups never lie on both sides.

    Attributes:
        train: target in the dialect, and the same pair with the standard's sentence as target.
        test: held-out pairs.
        standard: the standard's own sentences of the same held-out groups.
        references: by group of the train side, its sentence in every variety.
    """

    dialect: str
    train: tuple[tuple[Example, Example], ...]
    test: tuple[Example, ...]
    standard: tuple[Example, ...]
    references: tuple[tuple[Example, ...], ...]

    def drawn(self, seed: int, *, count: int, contamination: float) -> list[Example]:
        """Training targets of one seed; the given share of them, rounded, is in the standard."""
        rng = np.random.default_rng([seed, 0])
        rows = rng.permutation(len(self.train))[:count]
        foreign = round(contamination * len(rows))
        return [self.train[row][int(i < foreign)] for i, row in enumerate(rows)]


def make_task(
    writer: Writer,
    sentences: Mapping[str, Mapping[str, str]],
    *,
    dialect: str,
    standard: str,
    against: Sequence[str],
    train: Sequence[str],
    test: Sequence[str],
    longest: int,
) -> Task:
    """A task from `sentences[group][variety]`; pairs of more than `longest` tokens are left out."""

    def pair(group: str, of: str) -> Example:
        said = sentences[group]
        return writer.pair(
            said[standard], said[of], standard=standard, dialect=dialect, group=group
        )

    def fits(*examples: Example) -> bool:
        return all(len(e.ids) <= longest for e in examples)

    def alone(group: str, variety: str) -> Example:
        return writer.alone(sentences[group][variety], variety=variety, group=group)

    trained = [(pair(g, dialect), pair(g, standard)) for g in train]
    trained = [p for p in trained if fits(*p)]
    tested = [e for e in (pair(g, dialect) for g in test) if fits(e)]
    if len(trained) < 2 or len(tested) < 2:
        raise ConfigError(
            f"{dialect}: {len(trained)} training and {len(tested)} held-out pairs have no more "
            f"than {longest} tokens (`longest`); at least 2 of each are needed."
        )
    wanted = (standard, *against)
    references = [
        tuple(alone(g, v) for v in wanted)
        for g in dict.fromkeys(p[0].group for p in trained)
        if all(v in sentences[g] for v in wanted)
    ]
    return Task(
        dialect,
        tuple(trained),
        tuple(tested),
        tuple(alone(e.group, standard) for e in tested),
        tuple(r for r in references if fits(*r)),
    )
