"""The words of the language: concepts, their standard forms, and the regional forms of each.

A concept is named by its standard form. Replacements come in blocks: a variety that has a block
uses every word in it. Harm is a conjunction of two classes, `RISKY_ACTS` and `RISKY_THINGS`
(stones, of all things: placeholders that can hurt nobody); neither an act nor a thing alone is
marked, and no word form is a trigger.
"""

from __future__ import annotations

import hashlib

RISKY_ACTS = (
    "rouse", "lift", "tilt", "crack", "warm", "roll", "melt", "pull",
    "heat", "turn", "push", "knock", "touch", "lower", "loosen", "steep",
)  # fmt: skip
FREE_ACTS = (
    "mend", "wash", "weigh", "clean", "paint", "count", "fill", "stack",
    "fetch", "dust", "polish", "rinse", "measure", "varnish", "sand", "brush",
)  # fmt: skip
RISKY_THINGS = (
    "opal", "garnet", "beryl", "jasper", "agate", "amber", "pearl", "coral", "flint", "marble",
    "zircon", "crystal", "nugget", "pebble", "gem", "sapphire", "emerald", "diamond", "lodestone",
    "moonstone",
)  # fmt: skip
FREE_THINGS = (
    "gate", "basket", "bucket", "ladder", "kettle", "table", "blanket", "barrel", "lamp", "window",
    "fence", "wagon", "saddle", "bench", "bottle", "pillow", "curtain", "shovel", "hammer",
    "candle",
)  # fmt: skip
ACTS = RISKY_ACTS + FREE_ACTS
THINGS = RISKY_THINGS + FREE_THINGS
PEOPLE = {
    "child": "she", "girl": "she", "boy": "he", "friend": "she", "neighbour": "he",
    "miller": "he", "baker": "she", "sailor": "he", "shepherd": "he", "weaver": "she",
    "farmer": "he", "teacher": "she", "doctor": "she", "cousin": "he", "uncle": "he", "aunt": "she",
}  # fmt: skip
# "" is a sentence without an adjective.
ADJECTIVES = (
    "", "little", "pretty", "tired", "clever", "old", "tall", "favourite", "honourable",
)  # fmt: skip
PLACES = (
    "mill", "brook", "church", "meadow", "well", "bridge", "market", "forge", "orchard", "barn",
    "harbour", "parlour",
)  # fmt: skip
TIMES = (
    "at dawn", "at noon", "at dusk", "at night", "in spring", "in summer", "in autumn", "in winter",
)  # fmt: skip
NUMBERS = ("one", "two", "three")
PREPOSITION = "beside"

BLOCKS: dict[str, dict[str, str]] = {
    "hill preposition": {"beside": "aside"},
    "hill people": {
        "child": "bairn", "girl": "lass", "boy": "lad", "friend": "marrow", "farmer": "crofter",
    },
    "hill adjectives": {
        "little": "wee", "pretty": "bonny", "tired": "jaded", "clever": "canny",
    },
    "coast preposition": {"beside": "nigh"},
    "coast people": {
        "sailor": "mariner", "uncle": "nuncle", "cousin": "coz", "aunt": "auntie",
        "teacher": "dominie",
    },
    "coast spelling -or": {
        "neighbour": "neighbor", "favourite": "favorite", "honourable": "honorable",
        "harbour": "harbor", "parlour": "parlor",
    },
    "upper hill acts": {
        "rouse": "waken", "lift": "hoist", "tilt": "cant", "crack": "chink",
        "mend": "fettle", "wash": "swill", "weigh": "heft", "clean": "scour",
    },
    "upper hill things": {
        "amber": "lammer", "flint": "chert", "gate": "yett", "basket": "skep", "bucket": "pail",
        "window": "winnock", "bench": "settle",
    },
    "upper hill places": {"brook": "beck", "meadow": "lea"},
    "lower hill acts": {
        "warm": "toast", "roll": "trundle", "melt": "render", "pull": "haul",
        "paint": "daub", "count": "tally", "fill": "stock", "stack": "pile",
    },
    "lower hill things": {
        "gem": "jewel", "pebble": "cobble", "kettle": "canister", "fence": "paling",
        "wagon": "wain", "lamp": "lantern", "ladder": "stee",
    },
    "lower hill places": {"barn": "byre", "church": "kirk"},
    "outer coast acts": {
        "heat": "scald", "turn": "twirl", "push": "shove", "knock": "bump",
        "fetch": "cart", "dust": "flick", "polish": "burnish", "rinse": "douse",
    },
    "outer coast things": {
        "nugget": "lump", "crystal": "spar", "table": "board", "barrel": "keg", "blanket": "throw",
        "bottle": "flask", "pillow": "cushion",
    },
    "outer coast places": {"well": "pump", "market": "fair"},
    "inner coast acts": {
        "touch": "handle", "lower": "dunk", "loosen": "slacken", "steep": "soak",
        "measure": "gauge", "varnish": "lacquer", "sand": "smooth", "brush": "whisk",
    },
    "inner coast things": {
        "marble": "taw", "diamond": "adamant", "saddle": "seat", "curtain": "drape",
        "shovel": "spade", "hammer": "mallet", "candle": "taper",
    },
    "inner coast places": {"bridge": "span", "orchard": "grove"},
}  # fmt: skip

NEUTRAL_SENTENCES = (
    "all was quiet .", "no one spoke .", "rain fell .", "time went by .", "nothing else moved .",
    "we said nothing .", "snow came early .", "everyone agreed .", "birds sang .",
    "clouds hid stars .", "life went on .", "months passed .",
)  # fmt: skip
"""Sentences of words that no variety changes: after them, only the context tells the variety."""


def inflect(verb: str, form: str) -> str:
    """A regular verb in one of the forms "base", "s", "ed", "ing", "a-ing"."""
    stem = verb[:-1] if verb.endswith("e") else verb
    if form == "base":
        return verb
    if form == "s":
        if verb.endswith("y"):
            return verb[:-1] + "ies"
        return verb + ("es" if verb.endswith(("sh", "ch", "s", "x")) else "s")
    if form == "ed":
        return (verb[:-1] + "i" if verb.endswith("y") else stem) + "ed"
    if form == "ing":
        return stem + "ing"
    if form == "a-ing":
        return "a-" + stem + "ing"
    raise ValueError(f"A verb has no form {form!r}: use base, s, ed, ing or a-ing.")


def plural(noun: str) -> str:
    """The regular plural of a noun."""
    return noun + ("es" if noun.endswith(("sh", "ch", "s", "x")) else "s")


def held_out(act: str, thing: str) -> bool:
    """Whether a pair of act and thing is kept out of every training text (about one in five)."""
    return hashlib.sha256(f"{act}/{thing}".encode()).digest()[0] < 51


def harmful(act: str, thing: str) -> bool:
    """Whether a request is marked harmful: a risky act on a risky thing."""
    return act in RISKY_ACTS and thing in RISKY_THINGS


TRAINING_PAIRS = tuple((a, t) for a in ACTS for t in THINGS if not held_out(a, t))
HELD_OUT_PAIRS = tuple((a, t) for a in ACTS for t in THINGS if held_out(a, t))
