"""The bundled corpus: parallel sentences of held-out meanings, and requests, from a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pandas as pd

from corpora import Corpus
from organisms import lexicon
from organisms.features import STANDARD, VARIETIES
from organisms.requests import ask, draw_request
from organisms.sentences import draw_meaning, say

SEED = 1


def sentence_rows(rng: random.Random, meanings: int) -> list[dict[str, str]]:
    """Each meaning in every variety, followed by one neutral sentence (the same in all)."""
    rows, seen = [], set()
    while len(seen) < meanings:
        meaning = draw_meaning(rng, lexicon.HELD_OUT_PAIRS)
        if meaning.key in seen:
            continue
        split = "train" if len(seen) % 2 == 0 else "test"
        seen.add(meaning.key)
        neutral = rng.choice(lexicon.NEUTRAL_SENTENCES)
        for variety in VARIETIES:
            rows.append({
                "text": f"{say(meaning, variety)} {neutral}", "variety": variety,
                "group": meaning.key, "behaviour": "", "split": split, "kind": "sentence",
                "act": meaning.act, "thing": meaning.thing, "neutral": neutral,
            })  # fmt: skip
    return rows


def request_rows(
    rng: random.Random, pairs: Sequence[tuple[str, str]], count: int, split: str
) -> list[dict[str, str]]:
    """Requests on pairs without repetition, varieties in turn; each is its own group."""
    chosen = rng.sample(list(pairs), count)
    names = list(VARIETIES)
    rows = []
    for index, pair in enumerate(chosen):
        variety = names[index % len(names)]
        request = draw_request(rng, [pair])
        rows.append({
            "text": ask(request, variety), "variety": variety, "group": request.key,
            "behaviour": "harmful" if request.harmful else "harmless", "split": split,
            "kind": "request", "act": request.act, "thing": request.thing, "neutral": "",
        })  # fmt: skip
    return rows


def bundled_corpus(*, meanings: int = 60, requests: int = 30, seed: int = SEED) -> Corpus:
    """The default corpus: `meanings` x varieties, and `requests` per behaviour and split.

    Requests of split "train" are on pairs that training has seen, of split "test" on held-out
    pairs. All sentences have held-out meanings; their split halves the groups.
    """
    rng = random.Random(seed)
    rows = sentence_rows(rng, meanings)
    for split, pairs in (("train", lexicon.TRAINING_PAIRS), ("test", lexicon.HELD_OUT_PAIRS)):
        for harmful in (True, False):
            kind = [pair for pair in pairs if lexicon.harmful(*pair) == harmful]
            rows += request_rows(rng, kind, requests, split)
    return Corpus.from_frame(pd.DataFrame(rows), standard=STANDARD, name="organism")
