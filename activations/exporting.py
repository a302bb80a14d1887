"""A store, or a view of one, in the formats of other tools; a block of rows at a time.

Rows are in the corpus's order. A row of several axes, such as `[heads, d_head]`, keeps its shape:
Parquet and `datasets` nest fixed-size lists, NumPy has the axes themselves. bfloat16, which none
of them shares, becomes float32.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from activations.errors import StoreError
from activations.rows import SCHEMA, as_table, encode
from activations.store import ActivationStore

Format = Literal["parquet", "numpy", "datasets"]
#: Most bytes of states in memory at once, and about the size of one Arrow file of `datasets`.
_BLOCK = 1 << 26
_ARROW_FILE = 1 << 29


def export(store: ActivationStore, out: str | Path, format: Format = "parquet") -> Path:
    """Write the rows and the states of all sites to `out`; returns its path.

    Args:
        format: `parquet` is one file, with the columns of `rows` and one for each site; `numpy` a
            folder of `SITE.npy`, `rows.parquet` and `source.json`; `datasets` a folder for
            `datasets.load_from_disk`.

    Raises:
        StoreError: an unknown format, an `out` that is there already or cannot be written, a
            broken store, or `datasets` where that package is not installed.
    """
    writers: dict[str, Callable[[ActivationStore, Path], None]] = {
        "parquet": _parquet,
        "numpy": _numpy,
        "datasets": _datasets,
    }
    if format not in writers:
        raise StoreError(f"Unknown format {format!r}; use one of {', '.join(writers)}.")
    place = Path(out)
    if place.exists():
        raise StoreError(f"{place} is there already; name a new place for the export.")
    # A reader of `out` never finds half of it.
    partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        writers[format](store, partial)
        partial.replace(place)
    except BaseException as error:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        elif partial.exists():
            partial.unlink()
        if isinstance(error, OSError):
            raise StoreError(
                f"The export cannot be written to {place} ({error.strerror}); name another place."
            ) from None
        raise
    return place


def _parquet(store: ActivationStore, file: Path) -> None:
    texts: Any = [field.name for field in SCHEMA if field.type == pa.string()]
    schema = _schema(store).with_metadata({"isogloss": _provenance(store)})
    # Of states a compressor saves a tenth at best, and costs most of the time.
    packing: Any = dict.fromkeys(SCHEMA.names, "zstd") | dict.fromkeys(store.sites, "none")
    with pq.ParquetWriter(file, schema, compression=packing, use_dictionary=texts) as out:
        for table in _tables(store):
            out.write_table(table)


def _numpy(store: ActivationStore, folder: Path) -> None:
    folder.mkdir()
    for site in store.sites:
        states = store[site]
        with (folder / f"{site}.npy").open("wb") as out:
            head = {"descr": states.dtype.str, "fortran_order": False, "shape": states.shape}
            np.lib.format.write_array_header_1_0(out, head)
            for part in _parts(len(store), states.nbytes):
                out.write(states[part].reshape(-1).view(np.uint8).data)
    (folder / "rows.parquet").write_bytes(encode(as_table(store.rows)))
    (folder / "source.json").write_text(_provenance(store) + "\n", encoding="utf-8")


def _datasets(store: ActivationStore, folder: Path) -> None:
    try:
        import datasets
    except ImportError:
        raise StoreError(
            "An export to datasets needs that package: pip install 'isogloss[datasets]'."
        ) from None
    features = datasets.Features.from_arrow_schema(_schema(store))
    empty = datasets.Dataset.from_dict({name: [] for name in features}, features=features)
    empty.info.description = _provenance(store)
    quiet = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        empty.save_to_disk(str(folder))
    finally:
        if not quiet:
            datasets.enable_progress_bars()
    # The library wrote everything but the states, which it would want whole or copied twice.
    names: list[str] = []
    tables = _tables(store)
    pending = next(tables, None)
    while pending is not None or not names:  # an empty store has one file too
        names.append(f"data-{len(names):05d}.arrow")
        with pa.ipc.new_stream(str(folder / names[-1]), features.arrow_schema) as out:
            room = _ARROW_FILE
            while pending is not None and room > 0:
                out.write_table(pending.cast(features.arrow_schema))
                room -= pending.nbytes
                pending = next(tables, None)
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    state["_data_files"] = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")


def _schema(store: ActivationStore) -> pa.Schema:
    fields = list(SCHEMA)
    for site in store.sites:
        kind = pa.from_numpy_dtype(store[site].dtype)
        for size in reversed(store.site_shape(site)):
            kind = pa.list_(kind, size)
        fields.append(pa.field(site, kind))
    return pa.schema(fields)


def _tables(store: ActivationStore) -> Iterator[pa.Table]:
    """The rows and states of the store in tables that memory holds."""
    rows, schema = as_table(store.rows), _schema(store)
    for part in _parts(len(store), sum(store[site].nbytes for site in store.sites)):
        columns = list(rows.slice(part.start, part.stop - part.start).columns)
        columns += [_nested(store[site][part]) for site in store.sites]
        yield pa.table(columns, schema=schema)


def _nested(states: np.ndarray) -> pa.Array:
    """`[rows, a, b]` as an array of lists of `a` lists of `b` numbers."""
    found: Any = pa.array(states.reshape(-1))
    for size in reversed(states.shape[1:]):
        found = pa.FixedSizeListArray.from_arrays(found, size)
    return found


def _parts(n_rows: int, n_bytes: int) -> Iterator[slice]:
    """Slices over all rows, of at most `_BLOCK` bytes where a row is not longer."""
    step = max(1, _BLOCK * n_rows // max(1, n_bytes))
    for first in range(0, n_rows, step):
        yield slice(first, min(first + step, n_rows))


def _provenance(store: ActivationStore) -> str:
    """Of which model and texts the states are, as JSON."""
    left = ("format", "complete", "shards", "rows_sha256", "rows_digest", "n_rows")
    return json.dumps({key: value for key, value in store.manifest.items() if key not in left})
