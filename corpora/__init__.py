"""Texts with a variety and a behaviour, aligned in groups; readers and splits."""

from __future__ import annotations

from corpora.corpus import Corpus
from corpora.errors import CorpusError
from corpora.readers import read_corpus
from corpora.splits import grouped_halves, grouped_split

__all__ = ["Corpus", "read_corpus", "CorpusError", "grouped_split", "grouped_halves"]
