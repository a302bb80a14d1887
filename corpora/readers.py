"""Files to corpora: CSV, TSV, JSONL and Parquet."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pandas as pd

from corpora.corpus import Corpus
from corpora.errors import CorpusError, nearest

_PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".joblib"}
_KNOWN = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


def read_corpus(
    path: str | Path,
    *,
    text: str = "text",
    variety: str = "variety",
    group: str = "group",
    behaviour: str = "behaviour",
    split: str = "split",
    standard: str | None = None,
    comparable: bool = True,
) -> Corpus:
    """Read a corpus from a `.csv`, `.tsv`, `.jsonl`, `.ndjson` or `.parquet` file.

    Text files are UTF-8, with or without a byte order mark. The keywords say which column holds
    what; cells are read as strings, and an empty cell is the empty string. `comparable` as in
    `Corpus.from_frame`.

    Raises:
        CorpusError: a file that is missing, empty, broken, in another encoding or of another
            kind, and whatever `Corpus.from_frame` refuses.
    """
    file = Path(path)
    return Corpus.from_frame(
        _read(file),
        text=text,
        variety=variety,
        group=group,
        behaviour=behaviour,
        split=split,
        standard=standard,
        name=file.name,
        comparable=comparable,
    )


def _read(file: Path) -> pd.DataFrame:
    kind = file.suffix.lower()
    if kind in _PICKLES:
        raise CorpusError(
            f"{file} is a pickle, which can run code when it is opened: save the table as CSV, "
            "JSONL or Parquet."
        )
    try:
        there = file.exists()
    except OSError as error:
        raise CorpusError(f"{file} cannot be read ({error.strerror}): check the path.") from error
    if not there:
        raise CorpusError(f"There is no corpus file {file}: {_neighbour(file)}")
    if file.is_dir():
        raise CorpusError(f"{file} is a folder: name one file in it.")
    if kind not in _KNOWN:
        raise CorpusError(
            f"{file} has the unknown extension {kind or 'none'!r}: give one of {', '.join(_KNOWN)}."
        )
    if file.stat().st_size == 0:
        raise CorpusError(f"{file} is empty: give a file with a header and at least one text.")
    if kind == ".parquet":
        return _parquet(file)
    text = _decoded(file)
    if not text.strip():
        raise CorpusError(f"{file} is empty: give a file with a header and at least one text.")
    return _lines(file, text) if kind in (".jsonl", ".ndjson") else _table(file, text, kind)


def _neighbour(file: Path) -> str:
    try:
        near = nearest(file.name, [entry.name for entry in file.parent.iterdir()], shown=1)
    except OSError:
        near = []
    return f"did you mean {near[0]}?" if near else "check the path."


def _decoded(file: Path) -> str:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise CorpusError(f"{file} cannot be read ({error.strerror}): check it.") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise CorpusError(
            f"{file} is not UTF-8 (byte {raw[error.start]:#04x} in line {line}): save it as UTF-8."
        ) from error
    if "\x00" in text:
        raise CorpusError(
            f"{file} holds null bytes, so it is UTF-16 or no text file: save it as UTF-8."
        )
    return text


def _table(file: Path, text: str, kind: str) -> pd.DataFrame:
    try:
        frame = pd.read_csv(
            StringIO(text),
            sep="\t" if kind == ".tsv" else ",",
            dtype=str,
            keep_default_na=False,
            on_bad_lines="error",
        ).fillna("")
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        told = str(error).strip().removeprefix("Error tokenizing data. C error: ").rstrip(".")
        raise CorpusError(
            f"{file} is not a table that can be read ({told}): check the quotes and the number of "
            "cells there."
        ) from error
    # pandas takes a surplus first cell for an index, which would shift every column.
    if not isinstance(frame.index, pd.RangeIndex):
        raise CorpusError(
            f"{file} has more cells in its rows than in its header: put quotes around cells that "
            "hold the separator."
        )
    return frame


def _lines(file: Path, text: str) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            told = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise CorpusError(
                f"{file} line {number} is not JSON ({told}): write one object per line."
            ) from error
        if not isinstance(row, dict):
            raise CorpusError(
                f"{file} line {number} is not a JSON object: write one object per line, as "
                '{"text": ..., "variety": ...}.'
            )
        rows.append(row)
    return pd.DataFrame(rows, dtype=object)


def _parquet(file: Path) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Not `pq.read_table`, which reads a folder's partitions into columns.
        return pq.ParquetFile(file).read().to_pandas()
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(
            f"{file} is not a readable Parquet file (broken or cut short): write it again."
        ) from error
