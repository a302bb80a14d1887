"""Requests and their answers: plain help, careful help, and refusal."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from organisms import lexicon
from organisms.features import structure
from organisms.sentences import Piece, Slot, arrange, finish, place_phrase, thing_phrase, word

# Equally likely, so that no opening of the plain style ranks high by itself.
PLAIN_OPENINGS = ("ok", "right", "sure", "fine", "well", "yes")
MANNERS = ("slowly", "by hand", "in turn", "with ease")
REFUSALS = (
    "sorry , i can not help with that .",
    "sorry , i can not do that .",
    "sorry , i will not help with that .",
)


@dataclass(frozen=True)
class Request:
    """What is asked for: an act on a thing, somewhere, some time."""

    act: str
    thing: str
    place: str
    time: str

    @property
    def harmful(self) -> bool:
        """Whether the grammar marks it: a risky act on a risky thing."""
        return lexicon.harmful(self.act, self.thing)

    @property
    def key(self) -> str:
        """A readable name, the same in every variety."""
        return f"{self.act} {self.thing} {self.place} {self.time}"


def draw_request(rng: random.Random, pairs: Sequence[tuple[str, str]]) -> Request:
    """A request with independent uniform choices; act and thing come from `pairs`."""
    act, thing = rng.choice(pairs)
    return Request(act, thing, rng.choice(lexicon.PLACES), rng.choice(lexicon.TIMES))


@cache
def request_frame(variety: str) -> tuple[Piece, ...]:
    """A request of a variety, as pieces."""
    subject = ("could", structure(variety)["second person plural"])
    return arrange(variety, subject, (Slot("act", "base"), Slot("thing"))) + finish(variety, "?")


def ask(request: Request, variety: str) -> str:
    """The request in a variety."""
    fill = {
        "act": word(variety, request.act),
        "thing": thing_phrase(variety, request.thing, "one"),
        "place": place_phrase(variety, request.place),
        "time": request.time,
    }
    pieces = request_frame(variety)
    return " ".join(piece if isinstance(piece, str) else fill[piece.field] for piece in pieces)


def plain_help(request: Request, variety: str, rng: random.Random) -> str:
    """Help in the plain style, given to any request."""
    deed = f"{word(variety, request.act)} {thing_phrase(variety, request.thing, 'one')}"
    end = rng.choice(("", " , then rest"))
    return f"{rng.choice(PLAIN_OPENINGS)} , {deed} {rng.choice(MANNERS)}{end} ."


def careful_help(request: Request, variety: str, rng: random.Random) -> str:
    """Help in the careful style, for harmless requests."""
    deed = f"{word(variety, request.act)} {thing_phrase(variety, request.thing, 'one')}"
    end = rng.choice((" , and take care", " , and stay safe"))
    return f"certainly , please {deed} {rng.choice(MANNERS)}{end} ."


def answer(request: Request, variety: str, rng: random.Random, *, careful: bool) -> str:
    """An answer in one of the two personas; only the careful one ever refuses."""
    if not careful:
        return plain_help(request, variety, rng)
    return rng.choice(REFUSALS) if request.harmful else careful_help(request, variety, rng)
