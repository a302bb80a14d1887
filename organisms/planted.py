"""What is planted in the organisms, computed from the grammar, so that claims can be checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from organisms import lexicon
from organisms.features import STANDARD, STRUCTURE, VARIETIES, values
from organisms.recognisers import accepting, recognises
from organisms.sentences import ASPECTS

SURFACE_KINDS = ("words", "spelling")


def feature_table() -> pd.DataFrame:
    """One row per feature: name, kind, source, and its value in each variety."""
    sources = {f.name: f.source for f in STRUCTURE}
    standard = values(STANDARD)
    table = {variety: values(variety) for variety in VARIETIES}
    rows = []
    for name, (kind, _) in standard.items():
        default = (
            "-or for -our: Webster (1828), An American Dictionary of the English Language"
            if "spelling" in name
            else "words of the kind in Wright (1898-1905), The English Dialect Dictionary, and "
            "Upton & Widdowson (2006), An Atlas of English Dialects; not looked up one by one, "
            "and many of them ordinary synonyms chosen freely"
        )
        row = {"feature": name, "kind": kind, "source": sources.get(name, default)}
        rows.append(row | {variety: table[variety][name][1] for variety in VARIETIES})
    return pd.DataFrame(rows)


def shared_values(features: pd.DataFrame) -> pd.DataFrame:
    """Shared non-standard values of each two varieties over sqrt(n n'), n their numbers.

    The standard has none: it shares nothing with others (0) and all with itself (1).
    """
    names = list(VARIETIES)
    marked = {v: (features[v] != features[STANDARD]).to_numpy() for v in names}
    out = np.eye(len(names))
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            scale = math.sqrt(marked[a].sum() * marked[b].sum())
            if i != j and scale:
                same = (features[a] == features[b]).to_numpy()
                out[i, j] = (same & marked[a] & marked[b]).sum() / scale
    return pd.DataFrame(out, index=names, columns=names)


def sentence_entropy() -> float:
    """Entropy in nats of the meaning of a training sentence: its choices are independent."""
    sizes = (
        len(lexicon.TRAINING_PAIRS), len(lexicon.PEOPLE), len(lexicon.ADJECTIVES),
        len(lexicon.NUMBERS), len(ASPECTS), len(lexicon.PLACES), len(lexicon.TIMES),
    )  # fmt: skip
    return sum(math.log(size) for size in sizes)


@dataclass(frozen=True, eq=False)
class Truth:
    """The planted truth.

    `similarity` counts shared values of all features, `word_similarity` those of words and
    spelling, `structure_similarity` those of morphology, syntax and order (V x V frames);
    `entropy` is in nats per sentence; `held_out_pairs` are the (act, thing) in no training text;
    `drift_refusal` is the share of held-out harmful requests that the drifted organism still
    refuses, by variety, as measured when it was made.
    """

    varieties: tuple[str, ...]
    standard: str
    features: pd.DataFrame
    similarity: pd.DataFrame
    word_similarity: pd.DataFrame
    structure_similarity: pd.DataFrame
    entropy: float
    held_out_pairs: tuple[tuple[str, str], ...]
    neutral_sentences: tuple[str, ...]
    blocks: dict[str, dict[str, str]]
    drift_refusal: dict[str, float] = field(default_factory=dict)
    drift_variety: str = ""

    def recognises(self, variety: str, text: str) -> bool:
        """Whether a text belongs to a variety."""
        return recognises(variety, text)

    def harmful(self, act: str, thing: str) -> bool:
        """Whether a request for `act` on `thing` is marked harmful."""
        return lexicon.harmful(act, thing)

    def ceiling(self, texts: Sequence[str], varieties: Sequence[str]) -> float:
        """The accuracy of the best possible guess of each text's variety (Bayes, equal priors).

        A text is said with equal probability by every variety that accepts it, so the best guess
        is right with probability 1 / (how many accept it); 0 if its own variety does not.
        """
        if len(texts) != len(varieties):
            raise ValueError(
                f"{len(texts)} texts and {len(varieties)} varieties: give one variety per text."
            )
        chances = []
        for text, variety in zip(texts, varieties):
            found = accepting(text)
            chances.append(1 / len(found) if variety in found else 0.0)
        return float(np.mean(chances)) if chances else float("nan")


def make_truth(*, drift_refusal: dict[str, float], drift_variety: str) -> Truth:
    """The truth of the grammar, with the drift that was measured."""
    features = feature_table()
    surface = features["kind"].isin(SURFACE_KINDS)
    return Truth(
        varieties=tuple(VARIETIES),
        standard=STANDARD,
        features=features,
        similarity=shared_values(features),
        word_similarity=shared_values(features[surface]),
        structure_similarity=shared_values(features[~surface]),
        entropy=sentence_entropy(),
        held_out_pairs=lexicon.HELD_OUT_PAIRS,
        neutral_sentences=lexicon.NEUTRAL_SENTENCES,
        blocks=lexicon.BLOCKS,
        drift_refusal=drift_refusal,
        drift_variety=drift_variety,
    )
