"""A store's life: begun with a plan of its shards, continued as often as needed, finished once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from activations.atomic import file_sha256, is_partial, remove_partials, write_whole
from activations.errors import StoreError
from activations.rows import as_table, encode, rows_digest
from activations.shards import (
    DTYPES,
    FORMAT,
    check_shard,
    is_record,
    read_record,
    record_path,
    shard_path,
    write_record,
)

#: Facts that must agree before a store is continued, reused or joined, and how to call them.
IDENTITY = {
    "model_digest": "weights",
    "model_dtype": "precision of the forward pass",
    "corpus_digest": "texts",
    "tokens": "token rule",
    "sites": "sites",
    "dtype": "dtype",
    "rendered": "chat template",
    "positions_digest": "positions",
    "rows_digest": "tokens",
}
#: Facts that follow from the others, and are worth a word only where those agree.
_FOLLOWING = ("positions_digest", "rows_digest")
_THREADS = min(8, os.cpu_count() or 1)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store, whole or half written.

    Raises:
        StoreError: nothing there, of another format, or broken.
    """
    file = folder / "manifest.json"
    if not file.is_file():
        raise StoreError(f"There is no store at {folder}: it has no manifest.json.")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise StoreError(f"{file} is broken: it is not valid JSON; delete the store.") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise StoreError(f"{file} is not the manifest of a store; name another folder.")
    if manifest["format"] != FORMAT:
        raise StoreError(
            f"{file} is of format {manifest['format']}, and this version reads format {FORMAT}; "
            "capture into a new folder."
        )
    fault = _fault(manifest)
    if fault:
        raise StoreError(f"{file} is broken: {fault}; delete the store.")
    return manifest


def _fault(manifest: Mapping[str, Any]) -> str | None:
    """What makes a manifest of this format unusable."""
    sites, shards = manifest.get("sites"), manifest.get("shards")
    complete = manifest.get("complete")
    if not isinstance(sites, dict) or not all(isinstance(row, list) for row in sites.values()):
        return "it does not say which sites there are"
    if not isinstance(shards, list) or not all(
        isinstance(s, dict)
        and isinstance(s.get("rows"), int)
        and isinstance(s.get("examples"), int)
        for s in shards
    ):
        return "it does not say how many rows and examples each shard has"
    if manifest.get("n_rows") != sum(shard["rows"] for shard in shards):
        return "its rows and its shards' rows do not add up"
    if manifest.get("dtype") not in DTYPES:
        return f"it names the unknown dtype {manifest.get('dtype')!r}"
    if not isinstance(manifest.get("capture"), str) or "rows_sha256" not in manifest:
        return "it does not say of which capture it is"
    if not isinstance(complete, bool) or (complete and not all(map(is_record, shards))):
        return "it calls itself complete without a digest for each shard"
    return None


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_whole(folder / "manifest.json", [(json.dumps(manifest, indent=1) + "\n").encode()])


def capture_id(manifest: Mapping[str, Any]) -> str:
    """Names a capture by what it is of and how it is cut: the same on every machine."""
    facts = {key: manifest.get(key) for key in IDENTITY}
    facts["plan"] = [shard["rows"] for shard in manifest["shards"]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def begin(folder: Path, manifest: Mapping[str, Any], rows: pd.DataFrame) -> dict[str, Any]:
    """Begin a store, or find what there is of the same capture; returns the manifest on disk.

    `manifest` brings the facts of `IDENTITY`, `versions`, and in `shards` the plan: for each
    shard its `rows` and `examples`. `rows` are all rows in the order of the shards. What is on
    disk keeps its own plan. What dead writers left unfinished is removed.

    Raises:
        StoreError: the folder holds something else, named, or cannot be made.
    """
    if folder.is_file():
        raise StoreError(f"{folder} is a file; name a folder for the store.")
    table = as_table(rows)
    data = encode(table)
    planned = {
        **manifest,
        "format": FORMAT,
        "complete": False,
        "rows_digest": rows_digest(table),
        "rows_sha256": hashlib.sha256(data).hexdigest(),
        "n_rows": table.num_rows,
    }
    planned.setdefault("capture", capture_id(planned))
    fault = _fault(json.loads(json.dumps(planned)))
    if fault:
        raise StoreError(f"The capture cannot be kept in {folder}: {fault}.")
    try:
        if _is_new(folder):
            (folder / "shards").mkdir(parents=True, exist_ok=True)
            write_manifest(folder, planned)
        elif not (folder / "manifest.json").exists():
            raise StoreError(f"{folder} is not empty and not a store; name another folder.")
        _remove_unfinished(folder)
        found = read_manifest(folder)
        _refuse_other(folder, found, planned)
        if found["complete"]:
            _remove_records(folder, found)
        return _mend_rows(folder, found, planned, data)
    except OSError as error:
        raise StoreError(
            f"A store cannot be made at {folder} ({error.strerror}); name another folder."
        ) from None


def _is_new(folder: Path) -> bool:
    """Nothing there but what a writer killed at its very beginning leaves."""
    shards = folder / "shards"
    return not folder.exists() or (
        not (shards.exists() and any(shards.iterdir()))
        and all(file == shards or is_partial(file) for file in folder.iterdir())
    )


def _refuse_other(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise unless both are of the same capture, naming what differs."""
    same = json.loads(json.dumps(wanted))  # as it comes back from disk: lists for tuples
    differing: list[str] = []
    for key, word in IDENTITY.items():
        if found.get(key) != same.get(key) and not (differing and key in _FOLLOWING):
            differing.append(word)
    if differing:
        raise StoreError(
            f"The store {folder} was made with other {' and other '.join(differing)}; "
            "name another folder for this capture."
        )


def _mend_rows(
    folder: Path, found: dict[str, Any], planned: Mapping[str, Any], data: Any
) -> dict[str, Any]:
    """Write `rows.parquet` where it is not there or not whole."""
    file = folder / "rows.parquet"
    if file.exists() and file_sha256(file) == found["rows_sha256"]:
        return found
    write_whole(file, [data])
    if found["rows_sha256"] != planned["rows_sha256"]:  # another version of Parquet wrote it
        found["rows_sha256"] = planned["rows_sha256"]
        write_manifest(folder, found)
    return found


def missing(folder: Path, manifest: Mapping[str, Any], *, threads: int = _THREADS) -> list[int]:
    """Numbers of the shards that are still to be made: not there, or not whole to the last bit.

    If the store was complete, it is half written from here on, so that a kill while it is being
    mended leaves nothing that calls itself whole. Whole shards stay as they are.
    """
    wrong = faults(folder, manifest, threads=threads)
    if wrong and manifest["complete"]:
        for number, shard in enumerate(manifest["shards"]):
            if number not in wrong:
                record = {key: shard[key] for key in ("rows", "bytes", "sha256")}
                write_record(folder, number, record)
        plan = [{key: shard[key] for key in ("rows", "examples")} for shard in manifest["shards"]]
        write_manifest(folder, {**manifest, "complete": False, "shards": plan})
    return sorted(wrong)


def faults(folder: Path, manifest: Mapping[str, Any], *, threads: int = _THREADS) -> dict[int, str]:
    """For each shard that is not whole, what is wrong with it; all are read to the last bit."""

    def check(number: int) -> str | None:
        shard = manifest["shards"][number]
        record = shard if manifest["complete"] else read_record(folder, number)
        return check_shard(
            folder, number, manifest["capture"], record, shard["rows"], manifest["sites"]
        )

    with ThreadPoolExecutor(threads) as pool:
        found = dict(enumerate(pool.map(check, range(len(manifest["shards"])))))
    return {number: wrong for number, wrong in found.items() if wrong}


def finish(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Take all records into the manifest, which is then complete; returns it.

    Raises:
        StoreError: naming the shards that are not there, or another capture in the folder.
    """
    found = read_manifest(folder)
    if found["capture"] != manifest["capture"]:
        raise StoreError(f"The store {folder} is of another capture by now; name another folder.")
    if not found["complete"]:
        lacks = undone(folder, found)
        records = [read_record(folder, number) for number in range(len(found["shards"]))]
        if lacks or not all(records):
            found = read_manifest(folder)
            if not found["complete"]:  # else the same capture ended in another process just now
                told = name_shards(undone(folder, found), len(found["shards"]))
                raise StoreError(f"The store {folder} lacks {told}; {mending(found)}.")
        else:
            shards = [
                {**plan, **(r or {})} for plan, r in zip(found["shards"], records, strict=True)
            ]
            found = {**found, "complete": True, "shards": shards}
            write_manifest(folder, found)
    _remove_records(folder, found)
    _remove_unfinished(folder)
    return found


def _remove_unfinished(folder: Path) -> None:
    """What writers that were killed left of a file; another has written it since, or will."""
    remove_partials(folder)
    remove_partials(folder / "shards")


def _remove_records(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Of a complete store: its manifest says what they said."""
    for number in range(len(manifest["shards"])):
        record_path(folder, number).unlink(missing_ok=True)


def undone(folder: Path, manifest: Mapping[str, Any]) -> list[int]:
    """Numbers of the shards that are not there or that no record vouches for; reads no states."""
    return [
        number
        for number in range(len(manifest["shards"]))
        if not shard_path(folder, number).exists()
        or not (manifest["complete"] or read_record(folder, number))
    ]


def name_shards(numbers: Sequence[int], n_shards: int) -> str:
    """As `3 of 10 shards (2, 5, 7)`; of many only the first few are named."""
    told = ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
    return f"{len(numbers)} of {n_shards} shards ({told})"


def problems(folder: Path, *, threads: int = _THREADS) -> list[str]:
    """Everything that is wrong with a store, one sentence each; empty if it is whole.

    Raises:
        StoreError: there is no manifest to compare the store with.
    """
    manifest = read_manifest(folder)
    told = []
    rows = folder / "rows.parquet"
    mend = mending(manifest)
    try:
        if file_sha256(rows) != manifest["rows_sha256"]:
            told.append(f"{rows} was changed after it was written; {mend}.")
    except OSError:
        told.append(f"{rows} is missing; {mend}.")
    wrong = faults(folder, manifest, threads=threads)
    if not manifest["complete"]:
        lacks = undone(folder, manifest)
        missed = f": it lacks {name_shards(lacks, len(manifest['shards']))}" if lacks else ""
        told.append(f"The store {folder} is half written{missed}; {mend}.")
        # What was never made is no damage of its own.
        wrong = {
            k: what
            for k, what in wrong.items()
            if read_record(folder, k) or shard_path(folder, k).exists()
        }
    told += [f"Shard {shard_path(folder, k)} {what}; {mend}." for k, what in wrong.items()]
    planned = {shard_path(folder, k).name for k in range(len(manifest["shards"]))}
    found = sorted((folder / "shards").glob("*.safetensors"))
    told += [f"{f} is no shard of this store; remove it." for f in found if f.name not in planned]
    return told


def mending(manifest: Mapping[str, Any]) -> str:
    """How a store with this manifest is made whole."""
    if manifest.get("merged"):
        return "merge its parts again into a new folder"
    return "capture again to mend it" if manifest["complete"] else "run the same capture to end it"
