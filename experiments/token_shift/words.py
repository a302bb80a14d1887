"""The text of each token of an answer, and the class of the word that it belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

#: From the words of one answer, marks among them, to the class of each.
Classify = Callable[[Sequence[str]], Sequence[str]]

#: Closed classes of English: articles, pronouns, prepositions, conjunctions, auxiliaries,
#: quantifiers and a few adverbs of grammar. Our list.
FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any no every each either neither both all such what which
    i me my mine myself you your yours yourself he him his she her hers it its we us our ours they
    them their theirs one who whom whose there here
    of in on at by for with about against between into through during before after above below to
    from up down out off over under within without upon toward towards as than like beside near per
    and or but nor so yet if because while although though unless until since whether when where
    how why however therefore thus also then
    am is are was were be been being do does did done have has had having can could will would
    shall should may might must ought not n't don't doesn't didn't can't cannot won't wouldn't
    isn't aren't wasn't i'm i'll i've it's that's you're you'll we're let's
    very too more most much many few little less least only just even still again
    """.split()  # noqa: SIM905
)
_WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]+")


def word_classes(words: Sequence[str]) -> list[str]:
    """`function`, `content`, `number` or `punctuation`, of each word of any text.

    A rule for English: what is no function word of the list counts as content, so that in another
    language next to all words do.
    """
    found = []
    for word in words:
        if not any(c.isalnum() for c in word):
            found.append("punctuation")
        elif word.replace(",", "").replace(".", "").isdigit():
            found.append("number")
        else:
            known = word.lower().replace("’", "'") in FUNCTION_WORDS
            found.append("function" if known else "content")
    return found


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; a token that ends within a character adds nothing yet."""
    found: list[str] = []
    said = ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(
            list(ids[:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        whole = end == len(ids) or not text.endswith("\ufffd")
        found.append(text[len(said) :] if whole else "")
        said = text if whole else said
    return found


def token_classes(pieces: Sequence[str], classify: Classify) -> list[str]:
    """The class of each token: that of the word in which it begins; `space` for line breaks.

    A space belongs to the word after it.
    """
    text = "".join(pieces)
    spans = [match.span() for match in _WORDS.finditer(text)]
    classes = classify([text[first:last] for first, last in spans])
    found, start = [], 0
    for piece in pieces:
        at = start + len(piece) - len(piece.lstrip())
        owner = next((i for i, (_, last) in enumerate(spans) if last > at), None)
        breaks = "\n" in piece and not piece.strip()
        found.append("space" if owner is None or breaks else classes[owner])
        start += len(piece)
    return found
