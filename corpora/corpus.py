"""Texts with a variety and a behaviour, aligned in groups."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from corpora.errors import CorpusError
from corpora.validation import BEHAVIOURS, tidy


@dataclass(frozen=True, eq=False)
class Corpus:
    """A tidy frame of texts, one row per text.

    `frame` has a RangeIndex and the columns `text`, `variety` (`""` where there is none), `group`
    (texts that say the same in several varieties share it) and `behaviour` (`"harmful"`,
    `"harmless"` or `""`), all strings; `split` (`"train"`, `"test"` or `""`) where the source has
    one; and whatever else the source had. Make one with `read_corpus`, `Corpus.from_frame` or
    `Corpus.from_parallel`, which validate; a corpus is not changed afterwards.

    A Hugging Face dataset `ds` is read by `Corpus.from_frame(ds.to_pandas())`.
    """

    frame: pd.DataFrame
    name: str = "corpus"
    standard: str | None = None

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        *,
        text: str = "text",
        variety: str = "variety",
        group: str = "group",
        behaviour: str = "behaviour",
        split: str = "split",
        standard: str | None = None,
        name: str = "corpus",
        comparable: bool = True,
    ) -> Corpus:
        """A validated corpus from any frame; the keywords say which column holds what.

        One of the variety and behaviour columns must be there. Without a group column each row is
        a group of its own (equal texts share one). A corpus that need not be `comparable`, as for
        a capture alone, may be texts only, and may hold the same text twice.

        Raises:
            CorpusError: a column that is not there, blank or duplicate texts, one text of a group
                under two behaviours, an unknown behaviour or split, a group on both sides of a
                split, nothing to compare, or a standard that is no variety here.
        """
        columns = {
            "text": text,
            "variety": variety,
            "group": group,
            "behaviour": behaviour,
            "split": split,
        }
        kept = tidy(frame, columns=columns, standard=standard, name=name, comparable=comparable)
        return cls(kept, name, standard)

    @classmethod
    def from_texts(cls, texts: Sequence[str], *, name: str = "texts") -> Corpus:
        """A corpus of texts without variety or behaviour, to capture and not to compare.

        Raises:
            CorpusError: no text, or a blank one.
        """
        return cls.from_frame(pd.DataFrame({"text": list(texts)}), name=name, comparable=False)

    @classmethod
    def from_parallel(
        cls,
        mapping: Mapping[str, Sequence[str]],
        *,
        standard: str | None = None,
        name: str = "parallel",
    ) -> Corpus:
        """A corpus from one list of texts per variety; the i-th texts of all lists are group i.

        Raises:
            CorpusError: lists of different lengths, fewer than two varieties, and what
                `from_frame` refuses.
        """
        lengths = {variety: len(texts) for variety, texts in mapping.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{variety} has {n}" for variety, n in lengths.items())
            raise CorpusError(
                f"Parallel lists must be equally long, but {told}: give one text per variety for "
                "each meaning."
            )
        rows = [
            {"text": text, "variety": variety, "group": str(number)}
            for number, texts in enumerate(zip(*mapping.values()))
            for variety, text in zip(mapping, texts)
        ]
        frame = pd.DataFrame(rows, columns=["text", "variety", "group"])
        return cls.from_frame(frame, standard=standard, name=name)

    def __len__(self) -> int:
        return len(self.frame)

    @cached_property
    def varieties(self) -> tuple[str, ...]:
        """The standard first, then the others in order of appearance."""
        found = [v for v in self.frame["variety"].unique() if v]
        if self.standard in found:
            found = [self.standard, *(v for v in found if v != self.standard)]
        return tuple(found)

    @cached_property
    def behaviours(self) -> tuple[str, ...]:
        """Of `"harmful"`, `"harmless"` those that occur, in that order."""
        found = set(self.frame["behaviour"])
        return tuple(b for b in BEHAVIOURS if b in found)

    @property
    def has_varieties(self) -> bool:
        """At least two varieties, so that there is something to tell apart."""
        return len(self.varieties) >= 2

    @property
    def has_behaviours(self) -> bool:
        """Both harmful and harmless texts."""
        return len(self.behaviours) == len(BEHAVIOURS)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content: columns by name, rows in order, the corpus's name left out."""
        hashed = hashlib.sha256(json.dumps(self.standard).encode())
        for column in sorted(map(str, self.frame.columns)):
            hashed.update(json.dumps(column).encode())
            for value in self.frame[column]:
                hashed.update(json.dumps(value, default=str).encode())
                hashed.update(b"\n")
        return hashed.hexdigest()

    def take(self, rows: Sequence[int] | np.ndarray) -> Corpus:
        """The rows given (positions, or a mask), in the order given, renumbered from 0."""
        at = np.asarray(rows)
        at = np.flatnonzero(at) if at.dtype == bool else at.astype(np.intp)
        return Corpus(self.frame.iloc[at].reset_index(drop=True), self.name, self.standard)

    def where(self, **equals: Any) -> Corpus:
        """The rows whose columns equal the values given; a list, tuple or set means any of them.

        Raises:
            CorpusError: a column that the corpus does not have.
        """
        keep = np.ones(len(self), dtype=bool)
        for column, value in equals.items():
            if column not in self.frame.columns:
                known = ", ".join(map(str, self.frame.columns))
                raise CorpusError(f"The corpus has no column {column!r}: choose from {known}.")
            options = value if isinstance(value, (list, tuple, set, frozenset)) else [value]
            keep &= self.frame[column].isin(list(options)).to_numpy()
        return self.take(keep)

    def variety_rows(self) -> np.ndarray:
        """Rows `[n]` that take part in questions about varieties.

        Those with a variety and no behaviour where they hold at least two varieties, so that
        requests do not mix with plain text; else every row with a variety.
        """
        labelled = self.frame["variety"].to_numpy() != ""
        plain = labelled & (self.frame["behaviour"].to_numpy() == "")
        enough = self.frame["variety"].to_numpy()[plain]
        return np.flatnonzero(plain if len(set(enough)) >= 2 else labelled)

    def behaviour_rows(self) -> np.ndarray:
        """Rows `[n]` with a behaviour."""
        return np.flatnonzero(self.frame["behaviour"].to_numpy() != "")

    def pairs(self, variety: str, reference: str) -> pd.DataFrame:
        """Texts of `variety` beside the texts of `reference` in the same group.

        Columns `group`, `example`, `reference_example` (rows of this corpus), `text`,
        `reference_text`; in the order of this corpus, one row per group and behaviour.

        Raises:
            CorpusError: an unknown variety, or no group that holds both.
        """
        for wanted in (variety, reference):
            if wanted not in self.varieties:
                known = ", ".join(self.varieties) or "none"
                raise CorpusError(
                    f"The corpus has no variety {wanted!r}: its varieties are {known}."
                )
        rows = self.frame.iloc[self.variety_rows()]
        rows = rows.assign(example=rows.index)
        rows = rows[["group", "behaviour", "variety", "example", "text"]]
        left = rows[rows["variety"] == variety].drop(columns="variety")
        right = rows[rows["variety"] == reference].drop(columns="variety")
        right = right.rename(columns={"example": "reference_example", "text": "reference_text"})
        both = left.merge(right, on=["group", "behaviour"], sort=False)
        both = both.drop_duplicates("example").drop_duplicates("reference_example")
        if both.empty:
            raise CorpusError(
                f"No group holds both {variety!r} and {reference!r}: give texts that say the same "
                "one value in the group column."
            )
        both = both.sort_values("example", kind="stable").reset_index(drop=True)
        return both[["group", "example", "reference_example", "text", "reference_text"]]

    def __repr__(self) -> str:
        parts = [f"{len(self)} texts", f"{self.frame['group'].nunique()} groups"]
        if self.varieties:
            parts.append("varieties " + ", ".join(self.varieties))
        if self.behaviours:
            parts.append("behaviours " + ", ".join(self.behaviours))
        return f"Corpus({self.name!r}: {'; '.join(parts)})"

    def _repr_html_(self) -> str:
        counts = pd.crosstab(
            self.frame["variety"].replace("", "(no variety)"),
            self.frame["behaviour"].replace("", "(no behaviour)"),
        )
        shown = [c for c in ("text", "variety", "group", "behaviour") if c in self.frame.columns]
        head = self.frame[shown].head(4).to_html(index=False, border=0)
        return f"<p>{html.escape(repr(self))}</p>{counts.to_html(border=0)}{head}"
