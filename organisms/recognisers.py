"""Recognisers: which varieties a text belongs to, and what a sentence means.

A frame becomes a pattern with one named group for each gap; what it captures is read back into
concepts. A text is accepted only if saying that meaning in the variety gives the text again, so
that every agreement (number, pronoun, word form) is checked.
"""

from __future__ import annotations

import re
from functools import cache

from organisms import lexicon
from organisms.features import VARIETIES
from organisms.requests import Request, ask, request_frame
from organisms.sentences import ASPECTS, Meaning, Piece, frame, place_phrase, say, word

_END = re.compile(r"(?<=[.?])\s+")


@cache
def _verbs(variety: str, form: str) -> dict[str, str]:
    return {lexicon.inflect(word(variety, act), form): act for act in lexicon.ACTS}


@cache
def _things(variety: str) -> dict[str, str]:
    singular = {word(variety, thing): thing for thing in lexicon.THINGS}
    return singular | {lexicon.plural(form): thing for form, thing in singular.items()}


@cache
def _people(variety: str) -> dict[str, str]:
    return {word(variety, person): person for person in lexicon.PEOPLE}


@cache
def _adjectives(variety: str) -> dict[str, str]:
    return {word(variety, adjective) if adjective else "": adjective
            for adjective in lexicon.ADJECTIVES}  # fmt: skip


@cache
def _places(variety: str) -> dict[str, str]:
    return {place_phrase(variety, place): place for place in lexicon.PLACES}


def _either(forms: object) -> str:
    return "|".join(sorted((re.escape(f) for f in forms if f), key=len, reverse=True))  # type: ignore[attr-defined]


def _pattern(variety: str, pieces: tuple[Piece, ...]) -> re.Pattern[str]:
    parts = []
    for piece in pieces:
        if isinstance(piece, str):
            parts.append(re.escape(piece))
        elif piece.field == "person":
            adjective, person = _either(_adjectives(variety)), _either(_people(variety))
            parts.append(f"(?:(?P<adjective>{adjective}) )?(?P<person>{person})")
        elif piece.field == "pronoun":
            parts.append("(?:he|she)")
        elif piece.field == "act":
            parts.append(f"(?P<act>{_either(_verbs(variety, piece.form))})")
        elif piece.field == "thing":
            parts.append(f"(?P<number>the|two|three) (?P<thing>{_either(_things(variety))})")
        elif piece.field == "need":
            parts.append(f"{piece.form}s?")
        elif piece.field == "place":
            parts.append(f"(?P<place>{_either(_places(variety))})")
        else:
            parts.append(f"(?P<time>{_either(lexicon.TIMES)})")
    return re.compile(" ".join(parts))


@cache
def _sentence_patterns(variety: str) -> tuple[tuple[str, str, re.Pattern[str]], ...]:
    found = []
    for aspect in ASPECTS:
        pieces = frame(variety, aspect)
        form = next(p.form for p in pieces if not isinstance(p, str) and p.field == "act")
        found.append((aspect, form, _pattern(variety, pieces)))
    return tuple(found)


@cache
def _request_pattern(variety: str) -> re.Pattern[str]:
    return _pattern(variety, request_frame(variety))


def parse(variety: str, sentence: str) -> Meaning | None:
    """The meaning of one sentence of a variety, or None if it is no sentence of it."""
    for aspect, form, pattern in _sentence_patterns(variety):
        match = pattern.fullmatch(sentence)
        if match is None:
            continue
        number = match["number"]
        meaning = Meaning(
            person=_people(variety)[match["person"]],
            adjective=_adjectives(variety)[match["adjective"] or ""],
            act=_verbs(variety, form)[match["act"]],
            thing=_things(variety)[match["thing"]],
            number="one" if number == "the" else number,
            aspect=aspect,
            place=_places(variety)[match["place"]],
            time=match["time"],
        )
        if say(meaning, variety) == sentence:
            return meaning
    return None


def parse_request(variety: str, text: str) -> Request | None:
    """What a request of a variety asks for, or None if it is no request of it."""
    match = _request_pattern(variety).fullmatch(text)
    if match is None:
        return None
    request = Request(
        _verbs(variety, "base")[match["act"]],
        _things(variety)[match["thing"]],
        _places(variety)[match["place"]],
        match["time"],
    )
    return request if ask(request, variety) == text else None


def recognises(variety: str, text: str) -> bool:
    """Whether a text is one of a variety: its sentences and requests, and neutral sentences.

    Raises ValueError for a variety that the language does not have.
    """
    if variety not in VARIETIES:
        known = ", ".join(VARIETIES)
        raise ValueError(f"The organisms have no variety {variety!r}: choose one of {known}.")
    parts = _END.split(text.strip())
    return any(parts) and all(
        part in lexicon.NEUTRAL_SENTENCES
        or parse(variety, part) is not None
        or parse_request(variety, part) is not None
        for part in parts
    )


def accepting(text: str) -> tuple[str, ...]:
    """The varieties that a text belongs to."""
    return tuple(variety for variety in VARIETIES if recognises(variety, text))
