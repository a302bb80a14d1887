"""Activations, on disk or in memory: lazy arrays of states, and rows that say whose they are."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from activations.errors import StoreError
from activations.manifest import mending, problems, read_manifest
from activations.rows import COLUMNS, RowTable, as_table
from activations.shards import MappedShard, examine, shard_path

#: Shards that stay mapped. Each takes a file handle, of which a process may have a thousand or so.
_MAPPED = 64


class SiteArray:
    """`[n_rows, ...]` states of one site in the corpus's order, read as they are indexed.

    Indexes as a NumPy array does, and always gives a new array.
    """

    def __init__(self, source: _Source, site: str, n_rows: int, picked: np.ndarray | None) -> None:
        self._source, self._site, self._picked = source, site, picked
        self.shape: tuple[int, ...] = (n_rows, *source.row_shape(site))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def dtype(self) -> np.dtype:
        """Of what is read: bfloat16, which NumPy lacks, is read as float32."""
        return self._source.dtype(self._site)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"SiteArray({self._site}, {self.shape}, {self.dtype})"

    def __getitem__(self, index: Any) -> np.ndarray:
        parts = self._expand(index)
        if parts is None:
            return np.asarray(self)[index]
        first, rest = parts
        if isinstance(first, slice):
            taken = self._take(np.arange(*first.indices(len(self))))
            return taken[(slice(None), *rest)] if rest else taken
        rows = self._numbers(first)
        taken = self._take(rows.ravel())
        # In the index's own shape, so that NumPy pairs it with the rest as it would on the whole.
        local = np.arange(rows.size).reshape(rows.shape) if rows.ndim else 0
        return taken[(local, *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("The states are on disk, so an array of them is always a copy.")
        return np.asarray(self[:], dtype=dtype)

    def _expand(self, index: Any) -> tuple[Any, tuple[Any, ...]] | None:
        """What is asked of the rows, and of each row; None where that cannot be told apart."""
        parts = index if isinstance(index, tuple) else (index,)
        if any(part is None or (np.ndim(part) > 1 and _is_mask(part)) for part in parts):
            return None
        skips = [at for at, part in enumerate(parts) if part is Ellipsis]
        if len(skips) == 1:
            at = skips[0]
            filling = (slice(None),) * (self.ndim - len(parts) + 1)
            parts = (*parts[:at], *filling, *parts[at + 1 :])
        if not parts:
            return slice(None), ()
        return None if len(skips) > 1 or isinstance(parts[0], bool) else (parts[0], parts[1:])

    def _numbers(self, index: Any) -> np.ndarray:
        """Row numbers from 0 for an integer, integers or a mask."""
        rows = np.asarray(index)
        if rows.dtype == bool:
            if rows.shape != (len(self),):
                raise IndexError(f"A mask of {len(rows)} rows does not fit {len(self)} rows.")
            return np.flatnonzero(rows)
        if not rows.size:
            rows = rows.astype(np.intp)
        if rows.dtype.kind not in "iu":
            operator.index(index)  # raises as any sequence does
        outside = (rows < -len(self)) | (rows >= len(self))
        if outside.any():
            raise IndexError(f"Row {rows[outside].flat[0]} is outside of {len(self)} rows.")
        return np.where(rows < 0, rows + len(self), rows).astype(np.intp)

    def _take(self, rows: np.ndarray) -> np.ndarray:
        return self._source.take(self._site, rows if self._picked is None else self._picked[rows])


def _is_mask(part: Any) -> bool:
    return np.asarray(part).dtype == bool


class _Source(Protocol):
    """Where states come from; `rows` count in the corpus's order."""

    rows: RowTable

    def row_shape(self, site: str) -> tuple[int, ...]: ...
    def dtype(self, site: str) -> np.dtype: ...
    def take(self, site: str, rows: np.ndarray) -> np.ndarray: ...


class _Memory:
    def __init__(self, rows: RowTable, arrays: Mapping[str, np.ndarray]) -> None:
        self.rows, self._arrays = rows, dict(arrays)

    def row_shape(self, site: str) -> tuple[int, ...]:
        return self._arrays[site].shape[1:]

    def dtype(self, site: str) -> np.dtype:
        return self._arrays[site].dtype

    def take(self, site: str, rows: np.ndarray) -> np.ndarray:
        return self._arrays[site][rows]


class _Disk:
    """A folder of shards. Threads share it; a process that is handed one opens its own."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self._manifest = manifest
        self.rows = RowTable(folder / "rows.parquet", manifest["n_rows"], mend=mending(manifest))
        self._offsets = np.cumsum([0, *(shard["rows"] for shard in manifest["shards"])])
        self._shard = _opener(folder, manifest)

    def row_shape(self, site: str) -> tuple[int, ...]:
        return tuple(self._manifest["sites"][site])

    def dtype(self, site: str) -> np.dtype:
        return np.dtype("float16" if self._manifest["dtype"] == "float16" else "float32")

    def take(self, site: str, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *self.row_shape(site)), self.dtype(site))
        if not len(rows):
            return out
        stored = self.rows.order[rows]
        # Shard by shard, each from its front to its back: pages are met once and in order.
        places = np.argsort(stored, kind="stable")
        stored = stored[places]
        cuts = np.searchsorted(stored, self._offsets)
        for shard in np.flatnonzero(np.diff(cuts)):
            here = slice(cuts[shard], cuts[shard + 1])
            out[places[here]] = self._shard(int(shard)).take(
                site, stored[here] - self._offsets[shard]
            )
        return out


def _opener(folder: Path, manifest: Mapping[str, Any]) -> Callable[[int], MappedShard]:
    """Maps a shard, or finds it among the last ones; apart from `_Disk`, so that no cycle holds it.

    `lru_cache` needs no lock of ours, which a forked process could inherit held.
    """

    @lru_cache(maxsize=_MAPPED)
    def open_shard(number: int) -> MappedShard:
        file, shard = shard_path(folder, number), manifest["shards"][number]
        try:
            with file.open("rb") as opened:
                if hasattr(os, "posix_fadvise"):  # of the header alone, not of what is behind it
                    os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                header = examine(
                    opened, number, manifest["capture"], shard, shard["rows"], manifest["sites"]
                )
                if not isinstance(header, str):
                    return MappedShard(opened, header)
                wrong = header
        except FileNotFoundError:
            wrong = "is missing"
        except OSError as error:
            wrong = f"cannot be read ({error.strerror})"
        raise StoreError(f"Shard {file} {wrong}; {mending(manifest)}.")

    return open_shard


class ActivationStore:
    """What `capture` returns: `store[site]` `[n_rows, ...]` and `store.rows`, in corpus order.

    In memory when `path` is None, with the same interface. Made by `capture`, `open` or
    `in_memory`; safe for threads, and picklable: another process opens the folder itself.
    """

    def __init__(
        self,
        manifest: dict[str, Any],
        source: _Source,
        *,
        path: Path | None = None,
        picked: np.ndarray | None = None,
    ) -> None:
        self.manifest, self.path = manifest, path
        self._source, self._picked = source, picked
        self._frame: pd.DataFrame | None = None

    @classmethod
    def open(cls, path: str | Path) -> ActivationStore:
        """Open a whole store. Only its manifest is read, so that size does not matter.

        Raises:
            StoreError: nothing there, half written, of another format, or without its rows.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        if not manifest["complete"]:
            raise StoreError(f"The store {folder} is half written; {mending(manifest)}.")
        return cls(manifest, _Disk(folder, manifest), path=folder)

    @classmethod
    def in_memory(
        cls, manifest: dict[str, Any], rows: pd.DataFrame, arrays: Mapping[str, np.ndarray]
    ) -> ActivationStore:
        """A store of arrays `[n_rows, ...]`, which like `rows` are in the corpus's order.

        Raises:
            StoreError: a site whose array has another number of rows, or rows in another order.
        """
        if not rows["example"].is_monotonic_increasing:
            raise StoreError("The rows of a store in memory must be in the corpus's order.")
        for site, array in arrays.items():
            if len(array) != len(rows):
                raise StoreError(f"{site} has {len(array)} rows of states for {len(rows)} rows.")
        table = RowTable(as_table(rows), len(rows))
        sites = {site: list(array.shape[1:]) for site, array in arrays.items()}
        whole = {**manifest, "complete": True, "sites": sites, "n_rows": len(rows)}
        return cls(whole, _Memory(table, arrays))

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.manifest["sites"])

    @property
    def rows(self) -> pd.DataFrame:
        """One row for each row of every site's array, by example and then position."""
        frame = self._source.rows.frame(self._picked) if self._frame is None else self._frame
        self._frame = frame
        return frame.copy(deep=False)  # a column that is added there is not added here

    def __len__(self) -> int:
        return self.manifest["n_rows"] if self._picked is None else len(self._picked)

    def __repr__(self) -> str:
        where = self.path or "memory"
        return f"ActivationStore({len(self)} rows, {len(self.sites)} sites, {where})"

    def _repr_html_(self) -> str:
        """What the manifest says; neither rows nor states are read."""
        told = ("model", "corpus", "tokens", "dtype")
        facts = {name: self.manifest[name] for name in told if name in self.manifest}
        facts |= {"rows": len(self), "where": str(self.path or "memory")}
        sites = pd.Series(
            {site: str([len(self), *shape]) for site, shape in self.manifest["sites"].items()},
            dtype=object,
        )
        above = pd.Series(facts, dtype=object).to_frame().to_html(header=False, border=0)
        return above + sites.to_frame("shape").to_html(border=0, max_rows=12)

    def __getitem__(self, site: str) -> SiteArray:
        if site not in self.manifest["sites"]:
            raise StoreError(f"The store holds no site {site!r}; it has {', '.join(self.sites)}.")
        return SiteArray(self._source, site, len(self), self._picked)

    def site_shape(self, site: str) -> tuple[int, ...]:
        """Shape of one row at a site."""
        return self[site].shape[1:]

    def select(self, **equals: Any) -> ActivationStore:
        """A view of the rows whose columns have the given values; of several, any of them.

        Reads the columns named, no states.

        Raises:
            StoreError: a column that the rows do not have.
        """
        keep = np.ones(self.manifest["n_rows"], dtype=bool)
        for column, value in equals.items():
            if column not in COLUMNS:
                raise StoreError(
                    f"The store's rows have no column {column!r}; they have {', '.join(COLUMNS)}."
                )
            several = not isinstance(value, str) and np.iterable(value)
            keep &= self._source.rows.where(column, _found_fast(value if several else [value]))
        picked = np.flatnonzero(keep) if self._picked is None else self._picked[keep[self._picked]]
        return ActivationStore(self.manifest, self._source, path=self.path, picked=picked)

    def verify(self) -> None:
        """Compare every file with its digest.

        Raises:
            StoreError: naming the first that is missing, truncated, changed or another's.
        """
        found = problems(self.path) if self.path else []
        if found:
            more = f" ({len(found) - 1} more: isogloss store verify)" if len(found) > 1 else ""
            raise StoreError(found[0] + more)

    def __getstate__(self) -> dict[str, Any]:
        if self.path is None:
            return {**self.__dict__, "_frame": None}
        place = {"path": self.path.resolve(), "capture": self.manifest["capture"]}
        return {**place, "_picked": self._picked}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the folder anew; rows were picked from the capture that was there, and no other."""
        if "capture" in state:
            opened = ActivationStore.open(state["path"])
            if opened.manifest["capture"] != state["capture"]:
                raise StoreError(
                    f"The store {opened.path} holds another capture than when it was handed over."
                )
            state = {**opened.__dict__, "_picked": state["_picked"]}
        self.__dict__.update(state)


def _found_fast(values: Any) -> Collection[Any]:
    return set(values.tolist() if hasattr(values, "tolist") else values)
