"""One shard: a safetensors file that says whose it is, and the record that vouches for it."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from activations.atomic import write_whole
from activations.errors import StoreError

if TYPE_CHECKING:
    import torch

FORMAT = 2
#: dtype of a store -> its name in a safetensors header, and bytes a number.
DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
_BLOCK = 1 << 22
#: Pages asked for at once; of a longer wish Linux brings the beginning, and no more.
_FETCHED = 32
_LONGEST_HEADER = 100_000_000  # the limit of safetensors itself


@dataclass(frozen=True)
class Extent:
    """Where one site's `[rows, ...]` states lie in a shard, counted from where its data start."""

    dtype: str
    shape: tuple[int, ...]
    first: int
    last: int


@dataclass(frozen=True)
class Header:
    """What a shard says of itself, and where in the file its data start."""

    tensors: dict[str, Extent]
    metadata: dict[str, str]
    start: int


def shard_path(folder: Path, number: int) -> Path:
    return folder / "shards" / f"{number:05d}.safetensors"


def record_path(folder: Path, number: int) -> Path:
    return folder / "shards" / f"{number:05d}.json"


# Writing


def write_shard(
    folder: Path, number: int, states: Mapping[str, torch.Tensor | np.ndarray], *, capture: str
) -> dict[str, Any]:
    """Write `[rows, ...]` states of every site, then the record, each whole or not at all.

    The tensors must be on the CPU. They go to disk block by block while they are hashed, so that
    no second copy of them is made. The same states always give the same bytes.

    Returns:
        The record: `rows`, `bytes`, `sha256`.

    Raises:
        StoreError: numbers that a store cannot hold, sites with different rows, or a full disk.
    """
    tensors: dict[str, Extent] = {}
    at = 0
    for site in sorted(states):
        dtype, shape = _dtype(states[site]), tuple(states[site].shape)
        size = math.prod(shape) * DTYPES[dtype][1]
        tensors[site] = Extent(DTYPES[dtype][0], shape, at, at + size)
        at += size
    counts = {tensor.shape[0] for tensor in tensors.values()}
    if len(counts) != 1:
        raise StoreError(f"Shard {number} has sites with different numbers of rows: {counts}.")
    head = encode_header(tensors, capture=capture, number=number)
    return write_blocks(folder, number, counts.pop(), _blocks(head, states))


def write_blocks(
    folder: Path, number: int, rows: int, blocks: Iterator[bytes | memoryview]
) -> dict[str, Any]:
    """Write a shard's bytes, and its record once they are safe; returns the record."""
    file = shard_path(folder, number)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        size, digest = write_whole(file, blocks)
        record = {"rows": rows, "bytes": size, "sha256": digest}
        write_record(folder, number, record)
    except OSError as error:
        raise StoreError(
            f"Shard {file} cannot be written ({error.strerror}); make room or name another folder, "
            "then capture again: finished shards are kept."
        ) from None
    return record


def write_record(folder: Path, number: int, record: Mapping[str, Any]) -> None:
    """Put down that a shard is there, with how many rows and bytes and which digest."""
    write_whole(record_path(folder, number), [(json.dumps(record) + "\n").encode()])


def encode_header(tensors: Mapping[str, Extent], *, capture: str, number: int) -> bytes:
    """The bytes before a shard's data, padded so that these start on a multiple of 64."""
    told: dict[str, Any] = {
        "__metadata__": {"format": str(FORMAT), "capture": capture, "shard": str(number)}
    }
    for site, t in tensors.items():
        told[site] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": (t.first, t.last)}
    text = json.dumps(told, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return len(text).to_bytes(8, "little") + text


def _dtype(x: torch.Tensor | np.ndarray) -> str:
    name = str(x.dtype).removeprefix("torch.")
    if name not in DTYPES:  # also an array of the other byte order, whose name begins with > or <
        raise StoreError(f"Stores hold {', '.join(DTYPES)}, not {name}; name one of them as dtype.")
    return name


def _blocks(
    head: bytes, states: Mapping[str, torch.Tensor | np.ndarray]
) -> Iterator[bytes | memoryview]:
    yield head
    for site in sorted(states):
        x = states[site]
        rows = max(1, _BLOCK // max(1, math.prod(x.shape[1:]) * 4))
        for at in range(0, len(x), rows):
            yield _bytes(x[at : at + rows])


def _bytes(x: torch.Tensor | np.ndarray) -> memoryview:
    """The memory of a contiguous array itself; of any other, a copy."""
    if isinstance(x, np.ndarray):
        return np.ascontiguousarray(x).reshape(-1).view(np.uint8).data
    import torch

    return x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


# Checking


def read_record(folder: Path, number: int) -> dict[str, Any] | None:
    """What was put down when the shard was finished; None where nothing whole is there."""
    try:
        record = json.loads(record_path(folder, number).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if is_record(record) else None


def is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("rows"), int)
        and isinstance(record.get("bytes"), int)
        and isinstance(record.get("sha256"), str)
    )


def read_header(opened: BinaryIO) -> Header:
    """What the safetensors file says of itself.

    Raises:
        ValueError: what is there is no header.
    """
    opened.seek(0)
    length = int.from_bytes(opened.read(8), "little")
    if not 2 <= length <= _LONGEST_HEADER:
        raise ValueError("no header")
    told = json.loads(opened.read(length))
    if not isinstance(told, dict):
        raise ValueError("no header")
    metadata = told.pop("__metadata__", {})
    try:
        tensors = {
            site: Extent(t["dtype"], tuple(map(int, t["shape"])), *map(int, t["data_offsets"]))
            for site, t in told.items()
        }
    except (KeyError, TypeError) as error:
        raise ValueError("no header") from error
    return Header(tensors, metadata if isinstance(metadata, dict) else {}, 8 + length)


def check_shard(
    folder: Path,
    number: int,
    capture: str,
    record: Mapping[str, Any] | None,
    expected_rows: int,
    sites: Mapping[str, Sequence[int]],
) -> str | None:
    """None if the shard is whole, to the last bit; else what is wrong, as `is truncated: …`."""
    file = shard_path(folder, number)
    try:
        with file.open("rb") as opened:
            found = examine(opened, number, capture, record, expected_rows, sites)
            if isinstance(found, str):
                return found
            assert record is not None
            opened.seek(0)
            if hashlib.file_digest(opened, "sha256").hexdigest() != record["sha256"]:
                return "was changed after it was written: its SHA-256 differs"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def examine(
    opened: BinaryIO,
    number: int,
    capture: str,
    record: Mapping[str, Any] | None,
    expected_rows: int,
    sites: Mapping[str, Sequence[int]],
) -> Header | str:
    """The header of a shard that is what and where it should be; else what is wrong, in words.

    Looks at the header and the size alone: bits that flipped among the states need the digest.
    """
    if record is None:
        return "has no record, so that nothing vouches for it"
    size, planned = os.fstat(opened.fileno()).st_size, record["bytes"]
    truncated = f"is truncated: it has {size} of {planned} bytes"
    try:
        header = read_header(opened)
    except ValueError:
        return truncated if size < planned else "has a broken header"
    told = header.metadata
    if told.get("format") != str(FORMAT):
        return f"is no shard of format {FORMAT}"
    if told.get("capture") != capture:
        return "belongs to another capture"
    if told.get("shard") != str(number):
        return f"holds shard {told.get('shard')}"
    if size < planned:
        return truncated
    if size > planned:
        return f"has {size} bytes, where {planned} were written"
    if header.tensors.keys() != sites.keys():
        return "holds other sites"
    if record["rows"] != expected_rows:
        return f"has {record['rows']} rows, where {expected_rows} are planned"
    at = 0  # sites must lie one after another, so that none is read from outside of the file
    for site, extent in sorted(header.tensors.items(), key=lambda item: item[1].first):
        if extent.shape != (expected_rows, *sites[site]):
            return f"holds {extent.shape} at {site}, not {(expected_rows, *sites[site])}"
        if extent.first != at or extent.last - at != math.prod(extent.shape) * _width(extent.dtype):
            return "has a broken header"
        at = extent.last
    return header if header.start + at == size else "has a broken header"


def _width(name: str) -> int:
    """Bytes a number of a dtype as safetensors calls it; 0 for those that no store holds."""
    return next((size for known, size in DTYPES.values() if known == name), 0)


# Reading


class MappedShard:
    """A shard mapped into memory: pages are read as rows are taken. Safe for threads."""

    def __init__(self, opened: BinaryIO, header: Header) -> None:
        self._header = header
        self._map = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        # Else a fault brings its neighbours, which for rows that lie apart is mostly waste.
        self._advise("MADV_RANDOM", 0, len(self._map) // mmap.PAGESIZE + 1)

    def take(self, site: str, rows: np.ndarray) -> np.ndarray:
        """`[rows, ...]` of one site, for row numbers in rising order; bfloat16 as float32.

        May be a view of the file, which the caller copies.
        """
        extent = self._header.tensors[site]
        dtype = np.dtype({"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[extent.dtype])
        start, size = self._header.start + extent.first, math.prod(extent.shape[1:])
        whole = np.frombuffer(self._map, dtype, extent.shape[0] * size, start)
        self._fetch(start, size * dtype.itemsize, rows)
        together = len(rows) > 1 and bool((np.diff(rows) == 1).all())
        taken = whole.reshape(extent.shape)[slice(rows[0], rows[-1] + 1) if together else rows]
        return widen(taken) if extent.dtype == "BF16" else taken

    def _fetch(self, start: int, size: int, rows: np.ndarray) -> None:
        """Ask for all pages of the rows at once: faults would each wait for the disk in turn."""
        if size == 0 or not len(rows):
            return
        first = (start + rows * size) // mmap.PAGESIZE
        last = (start + (rows + 1) * size - 1) // mmap.PAGESIZE
        begins = np.concatenate([[True], first[1:] > last[:-1] + 1])
        ends = np.concatenate([begins[1:], [True]])
        for begin, end in zip(first[begins].tolist(), last[ends].tolist(), strict=True):
            for page in range(begin, end + 1, _FETCHED):
                self._advise("MADV_WILLNEED", page, min(_FETCHED, end + 1 - page))

    def _advise(self, advice: str, page: int, pages: int) -> None:
        if hasattr(mmap, advice):  # a hint, which not every system takes
            at, length = page * mmap.PAGESIZE, pages * mmap.PAGESIZE
            self._map.madvise(getattr(mmap, advice), at, min(length, len(self._map) - at))


def widen(bits: np.ndarray) -> np.ndarray:
    """bfloat16, given as its 16 bits, as the same numbers in float32."""
    out = bits.astype(np.uint32)
    out <<= 16
    return out.view(np.float32)
