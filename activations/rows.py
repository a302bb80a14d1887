"""`rows.parquet`: which token of which text each row of a store is; read column by column."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from activations.errors import StoreError

COLUMNS = ("example", "position", "token_id", "token", "group", "variety", "behaviour")
_NUMBERS = ("example", "position", "token_id")
SCHEMA = pa.schema([(n, pa.int64() if n in _NUMBERS else pa.string()) for n in COLUMNS])
_GROUP_ROWS = 1 << 17


def as_table(rows: pd.DataFrame) -> pa.Table:
    """The frame's columns as they are stored: numbers as int64, all others as text.

    Raises:
        StoreError: a column of `COLUMNS` is not there.
    """
    lacking = [name for name in COLUMNS if name not in rows]
    if lacking:
        raise StoreError(f"The rows of a store need a column {lacking[0]!r}.")
    return pa.table({name: _column(rows[name], number=name in _NUMBERS) for name in COLUMNS})


def _column(values: pd.Series, *, number: bool) -> pa.Array | pa.ChunkedArray:
    if number:
        return pa.array(values.to_numpy(np.int64))
    read = pa.array(values, from_pandas=True)
    if pa.types.is_dictionary(read.type):  # a categorical
        read = read.dictionary_decode()
    return read.cast(pa.string()).fill_null("")


def rows_digest(table: pa.Table) -> str:
    """SHA-256 of the content, whatever version of Parquet it is written with."""
    digest = hashlib.sha256()
    for name in COLUMNS:
        column = table.column(name).combine_chunks()
        if name not in _NUMBERS:
            column = column.dictionary_encode()
            digest.update(json.dumps(column.dictionary.to_pylist()).encode())
            column = column.indices
        digest.update(np.ascontiguousarray(column.to_numpy(zero_copy_only=False)).data)
    return digest.hexdigest()


def writer(sink: Any) -> pq.ParquetWriter:
    """A writer of `rows.parquet`; the same rows always give the same bytes."""
    texts: Any = [name for name in COLUMNS if name not in _NUMBERS]
    return pq.ParquetWriter(
        sink,
        SCHEMA,
        compression="zstd",
        use_dictionary=texts,
        column_encoding=dict.fromkeys(_NUMBERS, "DELTA_BINARY_PACKED"),
    )


def encode(table: pa.Table) -> pa.Buffer:
    """The bytes of `rows.parquet`."""
    sink = pa.BufferOutputStream()
    with writer(sink) as out:
        out.write_table(table, row_group_size=_GROUP_ROWS)
    return sink.getvalue()


class RowTable:
    """The rows in the corpus's order; columns are read from disk when first asked for.

    `order` is, for each row in the corpus's order, where it lies among the stored ones.
    """

    def __init__(self, source: Path | pa.Table, n_rows: int, *, mend: str = "") -> None:
        self._source, self._n_rows, self._mend = source, n_rows, mend
        self._order: np.ndarray | None = None
        self._codes: dict[str, tuple[np.ndarray, list[Any] | None]] = {}

    @property
    def order(self) -> np.ndarray:
        if self._order is None:
            examples = self._read(["example"]).column(0).to_numpy()
            # Within a text the stored rows are in order already, so a stable sort is enough.
            self._order = np.argsort(examples, kind="stable")
        return self._order

    def where(self, column: str, wanted: Collection[Any]) -> np.ndarray:
        """Mask of the rows, in the corpus's order, whose value in `column` is one of `wanted`."""
        codes, values = self._coded(column)
        if values is None:
            numbers = [w for w in wanted if isinstance(w, int | float | np.number)]
            mask = np.isin(codes, np.asarray(numbers, dtype=float if numbers else int))
        else:
            known = np.array([value in wanted for value in values], dtype=bool)
            mask = known[codes] if len(known) else np.zeros(len(codes), dtype=bool)
        return mask[self.order]

    def frame(self, picked: np.ndarray | None) -> pd.DataFrame:
        """All columns of the rows `picked` in the corpus's order; of all rows if None."""
        places = self.order if picked is None else self.order[picked]
        return self._read(list(COLUMNS)).take(pa.array(places)).to_pandas()

    def _coded(self, column: str) -> tuple[np.ndarray, list[Any] | None]:
        """A column in the stored order: numbers, or codes and the texts that they stand for."""
        if column not in self._codes:
            read = self._read([column]).column(0).combine_chunks()
            if column in _NUMBERS:
                self._codes[column] = (read.to_numpy(), None)
            else:
                coded = read.dictionary_encode()
                self._codes[column] = (coded.indices.to_numpy(), coded.dictionary.to_pylist())
        return self._codes[column]

    def _read(self, columns: Iterable[str]) -> pa.Table:
        if isinstance(self._source, Path):
            return read_rows(self._source, columns, self._n_rows, mend=self._mend)
        return self._source.select(list(columns))


def read_rows(file: Path, columns: Iterable[str], n_rows: int, *, mend: str) -> pa.Table:
    """Some columns of `rows.parquet`, in the order in which they are stored.

    Raises:
        StoreError: it is missing, broken, or has another number of rows than the shards; `mend`
            says what to do about it.
    """
    try:
        table = pq.read_table(file, columns=list(columns))
    except FileNotFoundError:
        raise StoreError(f"{file} is missing; {mend}.") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{file} is broken ({str(error).splitlines()[0]}); {mend}.") from None
    lacking = [name for name in columns if name not in table.column_names]
    if lacking:
        raise StoreError(f"{file} is broken: it has no column {lacking[0]!r}; {mend}.")
    if table.num_rows != n_rows:
        raise StoreError(
            f"{file} is broken: it has {table.num_rows} rows, the shards have {n_rows}; {mend}."
        )
    return table
