"""One store of several: parts of one capture made on several machines, or captures of other texts.

Shards are copied one after another, so that memory holds none of them whole.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from activations.atomic import file_sha256, write_whole
from activations.errors import StoreError
from activations.manifest import (
    IDENTITY,
    capture_id,
    finish,
    mending,
    read_manifest,
    write_manifest,
)
from activations.rows import COLUMNS, writer
from activations.shards import (
    Header,
    encode_header,
    examine,
    read_record,
    shard_path,
    write_blocks,
)

_BLOCK = 1 << 22
#: What two captures must have in common to be one store: all but what comes of other texts.
_OF_TEXTS = ("corpus_digest", "positions_digest", "rows_digest")
_COMMON = {key: word for key, word in IDENTITY.items() if key not in _OF_TEXTS}


@dataclass(frozen=True)
class Merged:
    """The manifest of the new store, and a sentence for each shard that could not be taken."""

    manifest: dict[str, Any]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    folder: Path
    manifest: dict[str, Any]

    def record(self, number: int) -> dict[str, Any] | None:
        if self.manifest["complete"]:
            return self.manifest["shards"][number]
        return read_record(self.folder, number)


def merge(stores: Sequence[str | Path], out: str | Path) -> Merged:
    """Join stores into a new one in the folder `out`.

    Stores of the *same* capture bring the shards that each has finished; if some are in none of
    them, the new store is half written, and the same capture ends it. Whole stores of *other*
    texts, captured alike, become one whose examples are numbered on.

    Raises:
        StoreError: stores that do not fit, by name of what differs; `out` is not empty; a disk
            that is full; a broken shard among captures of different texts.
    """
    folder = Path(out)
    parts = [_Part(Path(store), read_manifest(Path(store))) for store in stores]
    if not parts:
        raise StoreError("There is nothing to merge; name two stores or more.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} is there already; name an empty folder for the merged store.")
    together = _gather if len({part.manifest["capture"] for part in parts}) == 1 else _join
    try:
        return together(parts, folder)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)  # it was empty, and the parts have it all
        if isinstance(error, OSError):
            raise StoreError(
                f"The stores cannot be merged into {folder} ({error.strerror}); name another place."
            ) from None
        raise


# Parts of one capture


def _gather(parts: list[_Part], folder: Path) -> Merged:
    first = parts[0].manifest
    plan = [{key: shard[key] for key in ("rows", "examples")} for shard in first["shards"]]
    versions = _versions(parts)
    manifest = {**first, "complete": False, "shards": plan, "versions": versions}
    source = next((part for part in parts if _rows_are_whole(part)), None)
    if source is None:
        raise StoreError(
            f"{parts[0].folder}/rows.parquet is missing or broken, as in all parts; "
            f"{mending(first)}."
        )
    manifest["rows_sha256"] = source.manifest["rows_sha256"]
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, manifest)
    write_whole(folder / "rows.parquet", _file_blocks(source.folder / "rows.parquet"))
    left_out: list[str] = []
    done = [_bring(parts, folder, number, left_out) for number in range(len(plan))]
    return Merged(finish(folder, manifest) if all(done) else manifest, tuple(left_out))


def _bring(parts: list[_Part], folder: Path, number: int, left_out: list[str]) -> bool:
    """Copy a shard from the first part that has it whole."""
    for part in parts:
        record = part.record(number)
        if record is None:
            continue
        wrong = _copy(part, number, record, folder, number, part.manifest["capture"])
        if wrong is None:
            return True
        left_out.append(f"Shard {shard_path(part.folder, number)} {wrong}, and was left out.")
    return False


def _rows_are_whole(part: _Part) -> bool:
    try:
        return file_sha256(part.folder / "rows.parquet") == part.manifest["rows_sha256"]
    except OSError:
        return False


# Captures of different texts


def _join(parts: list[_Part], folder: Path) -> Merged:
    _refuse_misfits(parts)
    manifests = [part.manifest for part in parts]
    manifest = {
        **manifests[0],
        "complete": False,
        "corpus": " + ".join(str(m.get("corpus", "")) for m in manifests),
        **{key: _digest(m.get(key) for m in manifests) for key in _OF_TEXTS},
        "merged": [m["capture"] for m in manifests],
        "shards": [
            {key: s[key] for key in ("rows", "examples")} for m in manifests for s in m["shards"]
        ],
        "n_rows": sum(m["n_rows"] for m in manifests),
        "versions": _versions(parts),
    }
    manifest["capture"] = capture_id(manifest)
    folder.mkdir(parents=True, exist_ok=True)
    manifest["rows_sha256"] = _join_rows(parts, folder)
    write_manifest(folder, manifest)
    number = 0
    for part in parts:
        for own, record in enumerate(part.manifest["shards"]):
            wrong = _copy(part, own, record, folder, number, manifest["capture"])
            if wrong:
                raise StoreError(
                    f"Shard {shard_path(part.folder, own)} {wrong}; {mending(part.manifest)}, "
                    "then merge into a new folder."
                )
            number += 1
    return Merged(finish(folder, manifest), ())


def _refuse_misfits(parts: list[_Part]) -> None:
    first = parts[0]
    seen: dict[str, Path] = {}
    for part in parts:
        manifest = part.manifest
        differing = [
            word for key, word in _COMMON.items() if manifest.get(key) != first.manifest.get(key)
        ]
        if differing:
            raise StoreError(
                f"{first.folder} and {part.folder} cannot be one store: they differ in "
                f"{' and '.join(differing)}."
            )
        if not manifest["complete"]:
            raise StoreError(
                f"The store {part.folder} is half written; end its capture, or merge the parts of "
                "one capture alone."
            )
        texts = str(manifest.get("corpus_digest"))
        if texts in seen:
            raise StoreError(
                f"{seen[texts]} and {part.folder} hold the same texts; merge only one of them."
            )
        seen[texts] = part.folder


def _join_rows(parts: list[_Part], folder: Path) -> str:
    """Write the rows of all parts, examples numbered on; returns the digest of the file."""
    file, offset = folder / "rows.parquet", 0
    with writer(file) as out:
        for part in parts:
            if not _rows_are_whole(part):
                raise StoreError(
                    f"{part.folder}/rows.parquet is missing or broken; {mending(part.manifest)}."
                )
            read = pq.ParquetFile(part.folder / "rows.parquet")
            for batch in read.iter_batches(columns=list(COLUMNS)):
                table = pa.Table.from_batches([batch])
                numbered = pa.array(table.column("example").to_numpy() + offset)
                out.write_table(table.set_column(0, "example", numbered))
            offset += sum(shard["examples"] for shard in part.manifest["shards"])
    return file_sha256(file)


def _digest(parts: Iterator[Any]) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _versions(parts: list[_Part]) -> dict[str, str]:
    """Of each library the versions that took part."""
    every = [dict(part.manifest.get("versions", {})) for part in parts]
    names = dict.fromkeys(name for versions in every for name in versions)
    return {
        name: ", ".join(dict.fromkeys(str(v[name]) for v in every if name in v)) for name in names
    }


# Copying


def _copy(
    part: _Part, own: int, record: Mapping[str, Any], folder: Path, number: int, capture: str
) -> str | None:
    """Copy a shard under another number and capture; else what is wrong with it, in words."""
    manifest = part.manifest
    file = shard_path(part.folder, own)
    rows = manifest["shards"][own]["rows"]
    try:
        with file.open("rb") as opened:
            header = examine(opened, own, manifest["capture"], record, rows, manifest["sites"])
            if isinstance(header, str):
                return header
            head = encode_header(header.tensors, capture=capture, number=number)
            blocks = _rewritten(opened, header, head, record["sha256"])
            write_blocks(folder, number, rows, blocks)
    except FileNotFoundError:
        return "is missing"
    except _ChangedError:
        return "was changed after it was written: its SHA-256 differs"
    return None


class _ChangedError(Exception):
    """A source that does not have the digest that was recorded; raised before it is renamed."""


def _rewritten(opened: Any, header: Header, head: bytes, sha256: str) -> Iterator[bytes]:
    """The new header and the old data, hashed with the old header on the way."""
    opened.seek(0)
    digest = hashlib.sha256(opened.read(header.start))
    yield head
    while block := opened.read(_BLOCK):
        digest.update(block)
        yield block
    if digest.hexdigest() != sha256:
        raise _ChangedError


def _file_blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            yield block
