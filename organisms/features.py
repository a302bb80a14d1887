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


EWAVE = (
    "Kortmann, Lunkenheimer & Ehret (2020), The Electronic World Atlas of Varieties of English 3.0"
)

# Numbers are those of eWAVE's features, as its published table of them words and illustrates them.
STRUCTURE: tuple[Feature, ...] = (
    Feature("habitual", "morphology", "always -s", {"west": "be -ing", "east": "does -"},
            f"{EWAVE}: 90 invariant be, 91 do as habitual markers"),
    Feature("progressive", "morphology", "is -ing", {"west": "is a-ing", "east": "do be -ing"},
            f"{EWAVE}: 134 a-prefixing, 93 do be; see also Wolfram & Christian (1976), Appalachian "
            "Speech. Do be is attested as a habitual: its use for the progressive is chosen "
            "freely"),
    Feature("perfect", "morphology", "has -ed", {"west": "is after -ing", "east": "done -ed"},
            f"{EWAVE}: 98 after-perfect, 104 completive done; see also Filppula (1999), The "
            "Grammar of Irish English"),
    Feature("past", "morphology", "-ed", {"west": "did -", "east": "-"},
            f"{EWAVE}: 103 do as unstressed tense marker, 132 zero past tense of regular verbs"),
    Feature("need", "morphology", "needs to be -ed", {"west": "needs -ed", "east": "wants -ing"},
            f"{EWAVE}: 124 want/need + past participle; see also Yale Grammatical Diversity "
            "Project, Needs washed. Want + -ing: Kim (2018), The concealed passive construction "
            "needs investigating diachronically"),
    Feature("subject", "syntax", "the -", {"west": "the - he", "east": "that there -"},
            "pronominal apposition: Williams & Wolfram (1974), A Linguistic Description of Social "
            f"Dialects; demonstratives with there: {EWAVE}: 70"),
    Feature("second person plural", "morphology", "you",
            {"northwest": "youse", "southwest": "yinz", "northeast": "yall", "southeast": "ye"},
            f"{EWAVE}: 34; see also Hickey (2003), Rectifying a standard deficiency; yinz: "
            "Johnstone (2013), Speaking Pittsburghese"),
    Feature("order", "order", "place time",
            {"northwest": "time first", "southwest": "place first", "northeast": "time place",
             "southeast": "time after subject"},
            f"fronting: {EWAVE}: 224; which phrase stands where is chosen freely"),
    Feature("tag", "syntax", "",
            {"northwest": "like", "southwest": "eh", "northeast": "innit",
             "southeast": "so it is"},
            f"{EWAVE}: 165 invariant tags (innit), 234 like; final like: Bartlett (2013), Oh I "
            "just talk normal, like; eh: Denis (2020), How Canadian was eh? So it is follows "
            "Ulster usage, for which no study was consulted"),
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
