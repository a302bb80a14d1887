"""What an experiment works on: a checked corpus, cut to size, with its train and test halves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from corpora import Corpus, CorpusError, grouped_split, read_corpus
from experiments.settings import ConfigError, CorpusSettings

if TYPE_CHECKING:
    from organisms import Truth

Rows = Int[np.ndarray, " rows"]


@dataclass(frozen=True)
class Pairing:
    """Parallel rows: `rows[v][g]` is the row of variety v in the g-th group that all share."""

    groups: tuple[str, ...]
    rows: dict[str, Rows]


@dataclass(frozen=True)
class Inputs:
    """A corpus and how it is used. Row numbers are positions in `corpus.frame`."""

    corpus: Corpus
    standard: str
    train: Bool[np.ndarray, " rows"]
    left_out: tuple[str, ...]
    truth: Truth | None

    @property
    def dialects(self) -> tuple[str, ...]:
        """The varieties that the rows for variety questions hold, the standard left out."""
        present = set(self.corpus.frame["variety"].to_numpy()[self.variety_rows])
        return tuple(v for v in self.corpus.varieties if v != self.standard and v in present)

    @property
    def variety_rows(self) -> Rows:
        return self.corpus.variety_rows()

    @property
    def behaviour_rows(self) -> Rows:
        return self.corpus.behaviour_rows()

    def parallel(self, varieties: tuple[str, ...] | None = None) -> Pairing:
        """The groups that hold the standard and each of `varieties` (all dialects, if not said)."""
        wanted = (self.standard, *(varieties or self.dialects))
        rows = self.variety_rows
        frame = self.corpus.frame.iloc[rows][["variety", "group"]].assign(row=rows)
        table = frame.pivot_table(index="group", columns="variety", values="row", aggfunc="first")
        whole = table[list(wanted)].dropna().astype(int)
        return Pairing(tuple(whole.index), {v: whole[v].to_numpy() for v in wanted})

    @property
    def caveats(self) -> list[str]:
        """What the texts themselves say against reading too much into any figure of theirs."""
        said = []
        groups = self.corpus.frame["group"]
        if groups.is_unique:
            said.append(
                "No two texts of the corpus share a group, so every text counts as independent. "
                "Where some are translations or near-copies of others, intervals are too narrow: "
                "give those one group."
            )
        if self.truth is not None:
            said.append(
                "The texts are the bundled corpus, made by a grammar: what holds for them shows "
                "that a method works, and need not hold for texts that people wrote."
            )
        return said

    def requests(self, behaviour: str, *, train: bool, most: int) -> Rows:
        """Rows of one behaviour on one side of the split, at most `most`, evenly spaced."""
        kind = self.corpus.frame["behaviour"].to_numpy() == behaviour
        rows = np.flatnonzero(kind & (self.train == train))
        return evenly(rows, most)


def evenly(items: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the items, evenly spaced from the first to the last."""
    return items if len(items) <= most else items[np.linspace(0, len(items) - 1, most).astype(int)]


def read_inputs(settings: CorpusSettings) -> Inputs:
    """Read and check the corpus: everything that can be wrong with it, before any model is opened.

    Raises:
        CorpusError: a corpus that the main job cannot use.
        ConfigError: a standard that is no variety of the corpus.
    """
    corpus, truth = _read(settings)
    left_out = []
    standard = ""
    if corpus.has_varieties:
        standard = _standard(corpus, settings)
        _require_pairs(corpus, standard)
    else:
        left_out.append("The corpus holds fewer than two varieties: no variety question was asked.")
    if not corpus.has_behaviours:
        left_out.append(
            "The corpus does not hold both harmful and harmless requests: "
            "no behaviour question was asked."
        )
    if not (corpus.has_varieties or corpus.has_behaviours):
        raise CorpusError(
            "The corpus has one variety and no pair of behaviours, so there is nothing to compare; "
            "give a second variety, or both harmful and harmless requests."
        )
    corpus, said = _cut(corpus, settings)
    left_out += said
    return Inputs(corpus, standard, _train_side(corpus, settings.seed), tuple(left_out), truth)


def _read(settings: CorpusSettings) -> tuple[Corpus, Truth | None]:
    if settings.corpus:
        corpus = read_corpus(
            settings.corpus,
            text=settings.text_column,
            variety=settings.variety_column,
            group=settings.group_column,
            behaviour=settings.behaviour_column,
        )
        return corpus, None
    import organisms

    return organisms.bundled_corpus(), organisms.truth()


def _standard(corpus: Corpus, settings: CorpusSettings) -> str:
    named = settings.standard or corpus.standard or "standard"
    if named in corpus.varieties:
        return named
    known = ", ".join(corpus.varieties)
    if settings.standard:
        raise ConfigError(f"--standard {named}: no such variety in the corpus, which has {known}.")
    raise ConfigError(f"Say which variety is the standard with --standard; the corpus has {known}.")


def _require_pairs(corpus: Corpus, standard: str) -> None:
    frame = corpus.frame.iloc[corpus.variety_rows()]
    theirs = frame.groupby("variety")["group"].agg(set)
    for variety in theirs.index:
        shared = len(theirs[variety] & theirs.get(standard, set()))
        if variety != standard and shared < 4:
            raise CorpusError(
                f"Variety {variety!r} shares {shared} groups with the standard {standard!r}; the "
                "comparison needs at least 4 parallel sentences: give translations one group name."
            )


def _cut(corpus: Corpus, settings: CorpusSettings) -> tuple[Corpus, list[str]]:
    """Keep `max_groups` groups of sentences, drawn by the seed, and every request that is used."""
    rng = np.random.default_rng(settings.seed)
    frame, keep, said = corpus.frame, np.ones(len(corpus), dtype=bool), []
    is_request = frame["behaviour"].to_numpy() != ""
    groups = frame["group"][~is_request].unique()
    if 0 < settings.max_groups < len(groups):
        kept = set(rng.choice(groups, settings.max_groups, replace=False))
        keep &= is_request | frame["group"].isin(kept).to_numpy()
        said.append(
            f"Of {len(groups)} groups of sentences, {settings.max_groups} drawn at random were "
            "used (setting `max_groups`)."
        )
    for behaviour in corpus.behaviours:
        rows = np.flatnonzero((frame["behaviour"] == behaviour).to_numpy())
        if len(rows) > 4 * settings.max_requests:
            dropped = rng.permutation(rows)[4 * settings.max_requests :]
            keep[dropped] = False
            said.append(f"{len(dropped)} {behaviour} requests were not used (`max_requests`).")
    return corpus.take(np.flatnonzero(keep)), said


def _train_side(corpus: Corpus, seed: int) -> Bool[np.ndarray, " rows"]:
    """The corpus's own split where it has one, else halves by group."""
    split = corpus.frame.get("split")
    if split is not None and {"train", "test"} <= set(split):
        return (split == "train").to_numpy()
    return np.asarray(grouped_split(corpus.frame["group"].to_numpy(), fraction=0.5, seed=seed))
