"""Meanings and the sentences that say them, the same meaning in every variety."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from organisms import lexicon
from organisms.features import structure, words

ASPECTS = ("past", "habitual", "progressive", "perfect", "need")


@dataclass(frozen=True)
class Meaning:
    """What a sentence says, in concepts (each named by its standard word)."""

    person: str
    adjective: str
    act: str
    thing: str
    number: str
    aspect: str
    place: str
    time: str

    @property
    def key(self) -> str:
        """A readable name, the same for every variety: the group of parallel sentences."""
        parts = (self.adjective, self.person, self.aspect, self.act, self.number, self.thing)
        return " ".join((*filter(None, parts), self.place, self.time))


def draw_meaning(rng: random.Random, pairs: Sequence[tuple[str, str]]) -> Meaning:
    """A meaning with independent uniform choices; act and thing come from `pairs`."""
    act, thing = rng.choice(pairs)
    return Meaning(
        person=rng.choice(list(lexicon.PEOPLE)),
        adjective=rng.choice(lexicon.ADJECTIVES),
        act=act,
        thing=thing,
        number=rng.choice(lexicon.NUMBERS),
        aspect=rng.choice(ASPECTS),
        place=rng.choice(lexicon.PLACES),
        time=rng.choice(lexicon.TIMES),
    )


@dataclass(frozen=True)
class Slot:
    """A gap in a frame: what fills it (a field of `Meaning`) and in which form."""

    field: str
    form: str = ""


Piece = str | Slot


@cache
def word(variety: str, concept: str) -> str:
    """The word for a concept in a variety."""
    return words(variety).get(concept, concept)


def predicate(variety: str, aspect: str) -> tuple[Piece, ...]:
    """Verb and object of a clause, as pieces."""
    thing = Slot("thing")
    frames: dict[str, tuple[Piece, ...]] = {
        "always -s": ("always", Slot("act", "s"), thing),
        "be -ing": ("be", Slot("act", "ing"), thing),
        "does -": ("does", Slot("act", "base"), thing),
        "is -ing": ("is", Slot("act", "ing"), thing),
        "is a-ing": ("is", Slot("act", "a-ing"), thing),
        "do be -ing": ("do", "be", Slot("act", "ing"), thing),
        "has -ed": ("has", Slot("act", "ed"), thing),
        "is after -ing": ("is", "after", Slot("act", "ing"), thing),
        "done -ed": ("done", Slot("act", "ed"), thing),
        "-ed": (Slot("act", "ed"), thing),
        "did -": ("did", Slot("act", "base"), thing),
        "-": (Slot("act", "base"), thing),
        "needs to be -ed": ("says", thing, Slot("need", "need"), "to", "be", Slot("act", "ed")),
        "needs -ed": ("says", thing, Slot("need", "need"), Slot("act", "ed")),
        "wants -ing": ("says", thing, Slot("need", "want"), Slot("act", "ing")),
    }
    return frames[structure(variety)[aspect]]


def arrange(variety: str, subject: tuple[Piece, ...], rest: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """Subject, predicate, place and time in the order of a variety."""
    place, time = (Slot("place"),), (Slot("time"),)
    orders = {
        "place time": subject + rest + place + time,
        "time first": time + subject + rest + place,
        "place first": place + subject + rest + time,
        "time place": subject + rest + time + place,
        "time after subject": subject + time + rest + place,
    }
    return orders[structure(variety)["order"]]


def finish(variety: str, end: str) -> tuple[Piece, ...]:
    """The tag, if the variety has one, and the last mark."""
    tag = structure(variety)["tag"]
    return (",", tag, end) if tag else (end,)


@cache
def frame(variety: str, aspect: str) -> tuple[Piece, ...]:
    """A whole sentence of a variety, as pieces."""
    subjects: dict[str, tuple[Piece, ...]] = {
        "the -": ("the", Slot("person")),
        "the - he": ("the", Slot("person"), Slot("pronoun")),
        "that there -": ("that", "there", Slot("person")),
    }
    subject = subjects[structure(variety)["subject"]]
    return arrange(variety, subject, predicate(variety, aspect)) + finish(variety, ".")


def thing_phrase(variety: str, thing: str, number: str) -> str:
    """ "the gate", "two gates", in a variety's words."""
    noun = word(variety, thing)
    return f"the {noun}" if number == "one" else f"{number} {lexicon.plural(noun)}"


def place_phrase(variety: str, place: str) -> str:
    """ "beside the mill", in a variety's words."""
    return f"{word(variety, lexicon.PREPOSITION)} the {word(variety, place)}"


def say(meaning: Meaning, variety: str) -> str:
    """The sentence of a variety that says a meaning."""
    filled = []
    for piece in frame(variety, meaning.aspect):
        if isinstance(piece, str):
            filled.append(piece)
        elif piece.field == "person":
            adjective = word(variety, meaning.adjective) if meaning.adjective else ""
            filled.append(f"{adjective} {word(variety, meaning.person)}".strip())
        elif piece.field == "pronoun":
            filled.append(lexicon.PEOPLE[meaning.person])
        elif piece.field == "act":
            filled.append(lexicon.inflect(word(variety, meaning.act), piece.form))
        elif piece.field == "thing":
            filled.append(thing_phrase(variety, meaning.thing, meaning.number))
        elif piece.field == "need":
            filled.append(piece.form + ("s" if meaning.number == "one" else ""))
        elif piece.field == "place":
            filled.append(place_phrase(variety, meaning.place))
        else:
            filled.append(meaning.time)
    return " ".join(filled)
