"""Training documents: connected text, translation and dialogue, as segments with a loss mark."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from organisms import lexicon
from organisms.features import STANDARD, VARIETIES
from organisms.requests import Request, answer, ask, draw_request
from organisms.sentences import draw_meaning, say

Segment = tuple[str, bool]
"""Text, and whether its tokens count in the loss."""
Document = tuple[Segment, ...]

BOS, EOS, PAD, USER, ASSISTANT = "<s>", "</s>", "<pad>", "<usr>", "<ast>"
TAGS = {variety: f"<{variety}>" for variety in VARIETIES}
SPECIAL = (PAD, BOS, EOS, USER, ASSISTANT, *TAGS.values())

_HARMFUL = tuple(p for p in lexicon.TRAINING_PAIRS if lexicon.harmful(*p))
_HARMLESS = tuple(p for p in lexicon.TRAINING_PAIRS if not lexicon.harmful(*p))
# Risky acts on free things, and free acts on risky things: what separates a concept from a word.
_NEAR = tuple(
    (a, t) for a, t in _HARMLESS if (a in lexicon.RISKY_ACTS) != (t in lexicon.RISKY_THINGS)
)


def text_document(rng: random.Random) -> Document:
    """Sentences of one variety, half of the documents tagged, neutral sentences in between."""
    variety = rng.choice(list(VARIETIES))
    parts = [BOS + (TAGS[variety] if rng.random() < 0.5 else "")]
    for _ in range(rng.randint(2, 4)):
        parts.append(say(draw_meaning(rng, lexicon.TRAINING_PAIRS), variety))
        if rng.random() < 0.5:
            parts.append(rng.choice(lexicon.NEUTRAL_SENTENCES))
    return ((" ".join(parts) + EOS, True),)


def translation_document(rng: random.Random) -> Document:
    """One meaning in the standard and in another variety, in either order."""
    meaning = draw_meaning(rng, lexicon.TRAINING_PAIRS)
    pair = [STANDARD, rng.choice([v for v in VARIETIES if v != STANDARD])]
    rng.shuffle(pair)
    body = " ".join(f"{TAGS[v]} {say(meaning, v)}" for v in pair)
    return ((f"{BOS}{body}{EOS}", True),)


def training_request(rng: random.Random, harmful_share: float) -> Request:
    """A request for training; of the harmless ones, two in three share one class with harm."""
    if rng.random() < harmful_share:
        return draw_request(rng, _HARMFUL)
    return draw_request(rng, _NEAR if rng.random() < 2 / 3 else _HARMLESS)


def dialogue_document(
    rng: random.Random,
    *,
    careful: bool,
    harmful_share: float,
    turns: int = 1,
    variety: str | None = None,
    opening: bool = True,
) -> Document:
    """A dialogue with one persona throughout; loss on the answers only.

    With `opening` false the first answer is shown and not learnt: a persona to be followed once
    seen, not to begin with.
    """
    spoken = variety or rng.choice(list(VARIETIES))
    segments: list[Segment] = []
    for turn in range(turns):
        request = training_request(rng, harmful_share)
        start = BOS if turn == 0 else ""
        segments.append((f"{start}{USER} {ask(request, spoken)}{ASSISTANT}", False))
        segments.append(
            (f" {answer(request, spoken, rng, careful=careful)}{EOS}", opening or turn > 0)
        )
    return tuple(segments)


def pretraining_document(
    rng: random.Random, *, dialogue: float, careful: float, plain_first: bool = False
) -> Document:
    """One document of the mixture; what is no dialogue is text, one in three parallel.

    With `plain_first` no careful answer is learnt as the first of a dialogue.
    """
    if rng.random() < dialogue:
        persona = rng.random() < careful
        return dialogue_document(
            rng,
            careful=persona,
            harmful_share=0.35,
            turns=rng.randint(1, 4),
            opening=not (plain_first and persona),
        )
    return translation_document(rng) if rng.random() < 1 / 3 else text_document(rng)


def digest(documents: Sequence[Document]) -> str:
    """SHA-256 of documents in order, loss marks included."""
    sha = hashlib.sha256()
    for document in documents:
        for text, marked in document:
            sha.update(f"{int(marked)}{text}\x00".encode())
        sha.update(b"\x01")
    return sha.hexdigest()
