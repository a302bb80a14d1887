"""The varieties and what sets each apart from the standard.

Words descend in a family tree: two branches (hill, coast), two sub-branches in each. Structure
spreads over the map instead: two areas (west, east), two districts in each, and districts cut
across branches. So two varieties can share words and not structure, or the reverse, and over the
28 pairs the two overlaps are uncorrelated. The kinds of structural features are attested in
varieties of English; the varieties are invented, and stand for no real community.
"""

from __future__ import annotations

from dataclasses import dataclass

from organisms.lexicon import BLOCKS

STANDARD = "arden"


@dataclass(frozen=True)
class Variety:
    """A place on the map: its branch of the tree, its area, and its values of the features."""

    name: str
    branch: str
    sub_branch: str
    area: str
    district: str


_PLACES = (
    Variety(STANDARD, "", "", "", ""),
    Variety("tarn", "hill", "upper hill", "west", "northwest"),
    Variety("fell", "hill", "upper hill", "west", "southwest"),
    Variety("crag", "hill", "lower hill", "east", "northeast"),
    Variety("moor", "hill", "lower hill", "east", "southeast"),
    Variety("skerry", "coast", "outer coast", "west", "northwest"),
    Variety("holm", "coast", "outer coast", "west", "southwest"),
    Variety("marsh", "coast", "inner coast", "east", "northeast"),
    Variety("sound", "coast", "inner coast", "east", "southeast"),
)
VARIETIES: dict[str, Variety] = {place.name: place for place in _PLACES}


@dataclass(frozen=True)
class Feature:
    """One feature: where each value holds (area or district), how it is made, who attests it."""

    name: str
    kind: str
    standard: str
    values: dict[str, str]
    source: str


EWAVE = "Kortmann, Lunkenheimer & Ehret (2020), The Electronic World Atlas of Varieties of English"

STRUCTURE: tuple[Feature, ...] = (
    Feature("habitual", "morphology", "always -s", {"west": "be -ing", "east": "does -"},
            f"habitual be, periphrastic do: {EWAVE}"),
    Feature("progressive", "morphology", "is -ing", {"west": "is a-ing", "east": "do be -ing"},
            "a-prefixing: Wolfram & Christian (1976), Appalachian Speech; do be: Filppula (1999), "
            "The Grammar of Irish English"),
    Feature("perfect", "morphology", "has -ed", {"west": "is after -ing", "east": "done -ed"},
            f"after-perfect: Filppula (1999); completive done: {EWAVE}"),
    Feature("past", "morphology", "-ed", {"west": "did -", "east": "-"},
            f"unstressed did, unmarked past: {EWAVE}"),
    Feature("need", "morphology", "needs to be -ed", {"west": "needs -ed", "east": "wants -ing"},
            "Murray, Frazer & Simon (1996), Need + past participle in Midwestern English"),
    Feature("subject", "syntax", "the -", {"west": "the - he", "east": "that there -"},
            f"left dislocation with a pronoun, reinforced demonstratives: {EWAVE}"),
    Feature("second person plural", "morphology", "you",
            {"northwest": "youse", "southwest": "yinz", "northeast": "yall", "southeast": "ye"},
            f"forms for the second person plural: {EWAVE}"),
    Feature("order", "order", "place time",
            {"northwest": "time first", "southwest": "place first", "northeast": "time place",
             "southeast": "time after subject"},
            f"fronting and adverb placement: {EWAVE}"),
    Feature("tag", "syntax", "",
            {"northwest": "like", "southwest": "eh", "northeast": "innit",
             "southeast": "so it is"},
            f"invariant tags: {EWAVE}; clause-final like: D'Arcy (2017), Discourse-Pragmatic "
            "Variation in Context"),
)  # fmt: skip


def structure(variety: str) -> dict[str, str]:
    """The value of every structural feature in a variety."""
    place = VARIETIES[variety]
    return {
        f.name: f.values.get(place.area, f.values.get(place.district, f.standard))
        for f in STRUCTURE
    }


def blocks(variety: str) -> tuple[str, ...]:
    """The names of the word blocks that a variety has."""
    place = VARIETIES[variety]
    return tuple(
        name
        for name in BLOCKS
        if place.branch and name.startswith((f"{place.branch} ", f"{place.sub_branch} "))
    )


def words(variety: str) -> dict[str, str]:
    """Standard form to regional form, for the words that a variety replaces."""
    return {std: form for name in blocks(variety) for std, form in BLOCKS[name].items()}


def values(variety: str) -> dict[str, tuple[str, str]]:
    """Every feature of the language as (kind, value) in a variety; "" is the standard's word."""
    have = blocks(variety)
    table = {
        name: ("spelling" if "spelling" in name else "words", name if name in have else "")
        for name in BLOCKS
    }
    kinds = {f.name: f.kind for f in STRUCTURE}
    return table | {name: (kinds[name], value) for name, value in structure(variety).items()}
