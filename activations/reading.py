"""Which tokens of each text are read: last, mean or all, of a text or a span, or by a function."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from activations.errors import CaptureError

if TYPE_CHECKING:
    from activations.model import Model
    from corpora import Corpus

TokenRule = str | Callable[[str, list[int], list[tuple[int, int]]], Sequence[int]]
"""`last`, `mean` or `all`, of the whole text or (`last:NAME`) of the span that the corpus's columns
`NAME_start` and `NAME_end` give in characters; or a function of a text, its token ids and their
spans of characters, to the positions to be read."""

_WORDS = ("last", "mean", "all")


@dataclass(frozen=True, eq=False)
class Reading:
    """The positions that are read in each text, from 0, and whether their mean is kept instead.

    Attributes:
        name: how the rule is written in a store's manifest.
        positions: for each text, in ascending order.
    """

    name: str
    positions: list[np.ndarray]
    pooled: bool

    @cached_property  # asked for once and more for each shard
    def rows(self) -> np.ndarray:
        """How many rows each text has, `[texts]`."""
        if self.pooled:
            return np.ones(len(self.positions), dtype=int)
        return np.array([len(p) for p in self.positions], dtype=int)

    @property
    def digest(self) -> str:
        """SHA-256 over all positions, so that two rules of one name are told apart."""
        digest = hashlib.sha256(b"mean" if self.pooled else b"")
        for positions in self.positions:
            digest.update(np.asarray(positions, dtype="<i4").tobytes() + b"|")
        return digest.hexdigest()


def encode_corpus(model: Model, corpus: Corpus) -> list[list[int]]:
    """Token ids of every text; requests (rows with a behaviour) in the chat template first.

    Raises:
        CaptureError: a text without tokens or longer than the context, named.
    """
    texts = corpus.frame["text"].tolist()
    asked = _in_template(model, corpus)
    ids: list[list[int]] = [[]] * len(texts)
    for rendered in (False, True):
        rows = np.flatnonzero(asked == rendered).tolist()
        own = [model.render(texts[i]) if rendered else texts[i] for i in rows]
        for i, found in zip(rows, model.encode_many(own, rendered=rendered), strict=True):
            ids[i] = found
    return ids


def read_tokens(model: Model, corpus: Corpus, rule: TokenRule, ids: list[list[int]]) -> Reading:
    """The rule applied to every text.

    Raises:
        CaptureError: an unknown rule, a span that is missing, empty or outside its text, a position
            that is no token, or a tokenizer that does not say where its tokens lie.
    """
    if callable(rule):
        offsets = _offsets(model, corpus)
        texts = corpus.frame["text"]
        found = [rule(t, list(i), o) for t, i, o in zip(texts, ids, offsets, strict=True)]
        positions = [_checked(p, i, t) for p, i, t in zip(found, ids, texts, strict=True)]
        return Reading(getattr(rule, "__name__", type(rule).__name__), positions, False)
    word, _, span = rule.partition(":")
    if word not in _WORDS:
        raise CaptureError(
            f"Unknown token rule {rule!r}; use one of {', '.join(_WORDS)}, of a span as "
            "last:NAME, or a function."
        )
    if span:
        spans = _spans(model, corpus, span)
    else:
        # The first token is where attention rests, with a norm tens of times the others', so it
        # would be most of any mean (Xiao et al. 2023). A text of one token keeps it.
        spans = [np.arange(1 if word == "mean" and len(i) > 1 else 0, len(i)) for i in ids]
    return Reading(rule, [s[-1:] for s in spans] if word == "last" else spans, word == "mean")


def row_table(
    model: Model, corpus: Corpus, ids: list[list[int]], reading: Reading, order: Sequence[int]
) -> pd.DataFrame:
    """One row for each row of states, texts in `order`: what a store's `rows.parquet` holds."""
    frame = corpus.frame
    counts = reading.rows[np.asarray(order, dtype=int)]
    rows = pd.DataFrame({"example": np.repeat(np.asarray(order, dtype=int), counts)})
    if reading.pooled:
        rows["position"] = rows["token_id"] = -1
        rows["token"] = ""
    else:
        rows["position"] = np.concatenate([reading.positions[i] for i in order] or [[]])
        taken = [np.asarray(ids[i])[reading.positions[i]] for i in order]
        rows["token_id"] = np.concatenate(taken or [[]])
        known = rows["token_id"].unique().tolist()
        words = dict(zip(known, model.tokenizer.convert_ids_to_tokens(known), strict=True))
        rows["token"] = rows["token_id"].map(words)
    for column in ("group", "variety", "behaviour"):
        rows[column] = frame[column].to_numpy()[rows["example"]]
    return rows


def _in_template(model: Model, corpus: Corpus) -> np.ndarray:
    return (corpus.frame["behaviour"].to_numpy() != "") & model.has_chat_template


def _offsets(model: Model, corpus: Corpus) -> list[list[tuple[int, int]]]:
    """For each text the characters of each token; (0, 0) for those that a template adds."""
    if not getattr(model.tokenizer, "is_fast", False):
        raise CaptureError(
            f"The tokenizer of {model.name} does not say where its tokens lie in a text; use last, "
            "mean or all."
        )
    found = []
    for text, asked in zip(corpus.frame["text"], _in_template(model, corpus), strict=True):
        full = model.render(text) if asked else text
        at = full.find(text) if asked else 0
        if at < 0:
            raise CaptureError(
                f"The chat template changes the text {text[:60]!r}, so a span in it cannot be "
                "found; leave its behaviour empty, or trim it."
            )
        coded = model.tokenizer(full, add_special_tokens=not asked, return_offsets_mapping=True)
        moved = [(start - at, end - at) for start, end in coded["offset_mapping"]]
        found.append([(s, e) if 0 <= s < e <= len(text) else (0, 0) for s, e in moved])
    return found


def _spans(model: Model, corpus: Corpus, name: str) -> list[np.ndarray]:
    ends = [f"{name}_start", f"{name}_end"]
    missing = [column for column in ends if column not in corpus.frame]
    if missing:
        raise CaptureError(
            f"The corpus has no column {missing[0]!r}; the span {name!r} needs {ends[0]} and "
            f"{ends[1]}, counted in characters from 0."
        )
    spans = []
    # Files give their cells as text.
    starts, stops = (pd.to_numeric(corpus.frame[e], errors="coerce").to_numpy() for e in ends)
    table = zip(corpus.frame["text"], starts, stops, strict=True)
    for (text, first, last), offsets in zip(table, _offsets(model, corpus), strict=True):
        if not 0 <= first < last <= len(text):  # nor where one is NaN
            raise CaptureError(f"The span {name!r} from {first} to {last} is not in {text[:60]!r}.")
        found = [i for i, (s, e) in enumerate(offsets) if s < last and e > first and e > s]
        if not found:
            raise CaptureError(f"No token lies in the span {name!r} of {text[:60]!r}.")
        spans.append(np.array(found))
    return spans


def _checked(positions: Any, ids: list[int], text: str) -> np.ndarray:
    found = np.unique(np.asarray(list(positions), dtype=int))
    if not len(found) or found[0] < 0 or found[-1] >= len(ids):
        raise CaptureError(
            f"The token rule gave positions {found.tolist()} for {text[:60]!r}, which has "
            f"{len(ids)} tokens; give at least one, from 0 to {len(ids) - 1}."
        )
    return found
