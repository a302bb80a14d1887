"""Which words of an organism's answer are style, and which say what is done."""

from __future__ import annotations

from collections.abc import Sequence

from organisms.requests import MANNERS, PLAIN_OPENINGS, REFUSALS

STYLE, CONTENT, PUNCTUATION = "stylistic", "content", "punctuation"

#: What may stand anywhere in an answer beside deed and manner.
_PHRASES = (
    "certainly",
    "please",
    "then rest",
    "and take care",
    "and stay safe",
    *(part.strip(" .") for refusal in REFUSALS for part in refusal.split(",")),
)


def answer_classes(words: Sequence[str]) -> list[str]:
    """The class of each word of an answer: `stylistic`, `content` or `punctuation`.

    Content is deed and manner; style is the opening, the closing and the whole of a refusal. What
    the grammar does not know counts as content.
    """
    lower = [word.lower() for word in words]
    found = [CONTENT if any(c.isalnum() for c in word) else PUNCTUATION for word in words]
    if lower and lower[0] in PLAIN_OPENINGS:
        found[0] = STYLE
    for phrase in _PHRASES:
        parts = phrase.split()
        for at in range(len(lower) - len(parts) + 1):
            if lower[at : at + len(parts)] == parts:
                found[at : at + len(parts)] = [STYLE] * len(parts)
    # "with ease" says how, whatever stands around it.
    for manner in MANNERS:
        parts = manner.split()
        for at in range(len(lower) - len(parts) + 1):
            if lower[at : at + len(parts)] == parts:
                found[at : at + len(parts)] = [CONTENT] * len(parts)
    return found
