"""Activations on disk: one safetensors file a shard, read lazily; a manifest says of what."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from activations.errors import StoreError

FORMAT = 1


class SiteArray:
    """`[n_rows, ...]` states of one site, read from disk as they are sliced."""

    def __init__(self, store: ActivationStore, site: str, rows: np.ndarray | None) -> None:
        self._store, self._site, self._rows = store, site, rows
        self._offsets = np.cumsum([0, *store.shard_rows])

    @property
    def shape(self) -> tuple[int, ...]:
        n = int(self._offsets[-1]) if self._rows is None else len(self._rows)
        return (n, *self._store.site_shape(self._site))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self._store.manifest["dtype"])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        if isinstance(index, tuple):  # rows first, then whatever is asked of the row
            rows, *rest = index
            taken = self[rows]
            return taken[tuple(rest)] if np.isscalar(rows) else taken[(slice(None), *rest)]
        everything = np.arange(self._offsets[-1]) if self._rows is None else self._rows
        wanted = everything[index]
        if np.isscalar(wanted):
            return self._take(np.array([wanted]))[0]
        return self._take(np.asarray(wanted))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def _take(self, wanted: np.ndarray) -> np.ndarray:
        out = np.empty((len(wanted), *self._store.site_shape(self._site)), self.dtype)
        shard_of = np.searchsorted(self._offsets, wanted, side="right") - 1
        for shard in np.unique(shard_of):
            here = shard_of == shard
            inside = wanted[here] - self._offsets[shard]
            out[here] = self._store.read(int(shard), self._site, inside)
        return out


class ActivationStore:
    """What `capture` returns. In memory when `path` is None, with the same interface."""

    def __init__(
        self,
        manifest: dict[str, Any],
        rows: pd.DataFrame,
        *,
        path: Path | None = None,
        shards: list[dict[str, np.ndarray]] | None = None,
        picked: np.ndarray | None = None,
    ) -> None:
        self.manifest, self.path = manifest, path
        self._all_rows, self._shards, self._picked = rows, shards, picked

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.manifest["sites"])

    @property
    def rows(self) -> pd.DataFrame:
        """One row for each row of every site's array."""
        if self._picked is None:
            return self._all_rows
        return self._all_rows.iloc[self._picked].reset_index(drop=True)

    @property
    def shard_rows(self) -> list[int]:
        return [shard["rows"] for shard in self.manifest["shards"]]

    def __repr__(self) -> str:
        where = self.path or "memory"
        return f"ActivationStore({len(self.rows)} rows, {len(self.sites)} sites, {where})"

    def __getitem__(self, site: str) -> SiteArray:
        if site not in self.manifest["sites"]:
            raise StoreError(f"The store holds no site {site!r}; it has {', '.join(self.sites)}.")
        return SiteArray(self, site, self._picked)

    def site_shape(self, site: str) -> tuple[int, ...]:
        """Shape of one row at a site."""
        return tuple(self.manifest["sites"][site])

    def select(self, **equals: Any) -> ActivationStore:
        """A view of the rows whose columns have the given values."""
        keep = np.ones(len(self.rows), dtype=bool)
        for column, value in equals.items():
            if column not in self.rows:
                raise StoreError(f"The store's rows have no column {column!r}.")
            keep &= (self.rows[column] == value).to_numpy()
        base = np.arange(len(self._all_rows)) if self._picked is None else self._picked
        return ActivationStore(
            self.manifest,
            self._all_rows,
            path=self.path,
            shards=self._shards,
            picked=base[keep],
        )

    def read(self, shard: int, site: str, rows: np.ndarray) -> np.ndarray:
        """Rows of one shard; only they are touched on disk where they lie together."""
        if self._shards is not None:
            return self._shards[shard][site][rows]
        assert self.path is not None
        file = shard_path(self.path, shard)
        try:
            with safe_open(file, framework="numpy") as opened:
                part = opened.get_slice(site)
                first, last = int(rows.min()), int(rows.max()) + 1
                return part[first:last][rows - first]
        except (SafetensorError, OSError) as error:
            raise StoreError(
                f"Shard {file} is missing or broken ({error}); capture again to mend it."
            ) from None

    @classmethod
    def open(cls, path: str | Path) -> ActivationStore:
        """Open a whole store.

        Raises:
            StoreError: nothing there, half written, or a manifest that cannot be read.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        if not manifest.get("complete"):
            raise StoreError(f"The store {folder} is half written; run the same capture to end it.")
        try:
            rows = pd.read_parquet(folder / "rows.parquet")
        except (OSError, ValueError) as error:
            raise StoreError(f"{folder}/rows.parquet is missing or broken: {error}") from None
        if len(rows) != sum(shard["rows"] for shard in manifest["shards"]):
            raise StoreError(
                f"The store {folder} is broken: rows.parquet and shards differ in rows."
            )
        return cls(manifest, rows, path=folder)

    def verify(self) -> None:
        """Compare every shard with its digest.

        Raises:
            StoreError: naming the first shard that is missing, truncated or changed.
        """
        if self.path is None:
            return
        rows = self.path / "rows.parquet"
        if not rows.exists() or file_digest(rows) != self.manifest["rows_sha256"]:
            raise StoreError(f"{rows} is missing or changed; capture again to mend it.")
        for number, shard in enumerate(self.manifest["shards"]):
            file = shard_path(self.path, number)
            if not file.exists():
                raise StoreError(f"Shard {file} is missing; capture again to mend it.")
            if file_digest(file) != shard["sha256"]:
                raise StoreError(
                    f"Shard {file} is truncated or changed: its digest differs; "
                    "capture again to mend it."
                )


def shard_path(folder: Path, number: int) -> Path:
    return folder / "shards" / f"{number:05d}.safetensors"


def file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_shard(folder: Path, number: int, states: dict[str, np.ndarray]) -> str:
    """Write whole, then rename; returns the digest."""
    file = shard_path(folder, number)
    file.parent.mkdir(parents=True, exist_ok=True)
    data = to_bytes({site: np.ascontiguousarray(x) for site, x in states.items()})
    replace_bytes(file, data)
    return hashlib.sha256(data).hexdigest()


def replace_bytes(file: Path, data: bytes) -> None:
    """A file that is there is whole."""
    partial = file.with_name(file.name + ".partial")
    partial.write_bytes(data)
    partial.replace(file)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store, whole or half written."""
    file = folder / "manifest.json"
    if not file.is_file():
        raise StoreError(f"There is no store at {folder}: it has no manifest.json.")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise StoreError(f"{file} is broken: it is not valid JSON; delete the store.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise StoreError(f"{file} is of another format than {FORMAT}; capture into a new folder.")
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"A store cannot be made at {folder} ({error.strerror}); name another folder."
        ) from None
    replace_bytes(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
