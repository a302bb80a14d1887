"""Files that are whole or not there, whoever is killed while writing them."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

#: An unfinished file of a writer on another machine is left for so long before it counts as dead.
_ABANDONED = 24 * 3600.0
_PARTIAL = re.compile(r"\.(?P<node>[^.]*)-(?P<pid>\d+)\.partial$")


def write_whole(file: Path, blocks: Iterable[Any]) -> tuple[int, str]:
    """Write `blocks` (bytes-like) under this writer's own name, then rename; bytes and SHA-256.

    Readers see the file whole or not at all, also after a power cut.
    """
    partial = file.with_name(f"{file.name}.{_node()}-{os.getpid()}.partial")
    digest, size = hashlib.sha256(), 0
    try:
        with partial.open("wb") as out:
            for block in blocks:
                digest.update(block)
                size += out.write(block)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(file.parent)
    return size, digest.hexdigest()


def is_partial(file: Path) -> bool:
    """Whether a file is one that `write_whole` did not come to rename."""
    return bool(_PARTIAL.search(file.name))


def remove_partials(folder: Path) -> None:
    """Remove what dead writers left in `folder`; files of living ones stay."""
    for file in folder.glob("*.partial"):
        if is_partial(file) and _is_dead(file):
            file.unlink(missing_ok=True)


def file_sha256(file: Path) -> str:
    """SHA-256 of a file, read block by block; other threads run meanwhile."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _is_dead(partial: Path) -> bool:
    found = _PARTIAL.search(partial.name)
    assert found
    # Signal 0 asks without touching, but only on POSIX; on Windows it would end the process.
    if os.name == "posix" and found["node"] == _node():
        return not _runs(int(found["pid"]))
    try:
        return time.time() - partial.stat().st_mtime > _ABANDONED
    except FileNotFoundError:
        return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs, as somebody else's
        return True
    return True


def _node() -> str:
    """This machine's name, so that writers with one process id on two machines do not meet."""
    return re.sub(r"[^\w]", "_", platform.node())[:40]


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
