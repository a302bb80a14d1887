"""Numbered pieces of work shared among other processes, on this machine or on a Ray cluster.

A piece is independent of the others: whoever computes it writes its file, and the work is done when
all files are there. A worker that dies loses its piece and nothing else. Shards of a capture, parts
of a patching sweep and runs of a batch are shared so.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal, Protocol

from activations.errors import CaptureError

#: A piece that kills this many workers is not tried again.
MOST_LOSSES = 3


class Task(Protocol):
    """What a worker is told, once, before it is given pieces. It is sent by pickle.

    Attributes:
        threads: of the process that computes; gpus: whole ones that a piece takes.
    """

    @property
    def threads(self) -> int: ...
    @property
    def gpus(self) -> int: ...

    def compute(self, piece: int, device: str) -> Any:
        """Compute and write one piece, in the process that calls; on its own device if empty.

        What it returns, and what it raises, reaches the process that shares out the work.
        """
        ...

    def lost(self, piece: int, how: str) -> None:
        """Raise, or put down, that a piece `how` each time; called where the work is shared out."""
        ...


@dataclass(frozen=True)
class Workers:
    """Who computes the pieces.

    Attributes:
        count: how many processes.
        engine: `process` on this machine, or `ray` (the extra `cluster`) on any number of them,
            which need the same packages, the model under the same name and the same file system.
        devices: given to the processes in turn, as ("cuda:0", "cuda:1"); the model's own if empty.
            On Ray a worker on a GPU takes a whole one, or as many as the model is spread over.
        threads: of each process; as many as this one has if 0. The number decides how sums are
            rounded: with the same number, the files are bit-identical to one process's.
        address: of a running Ray cluster; a local one is started if empty.
    """

    count: int
    engine: Literal["process", "ray"] = "process"
    devices: tuple[str, ...] = ()
    threads: int = 0
    address: str = ""

    def check(self) -> None:
        """Raise `CaptureError` where they can do nothing."""
        if self.count < 1:
            raise CaptureError(f"{self.count} workers can do nothing; give at least 1.")
        if self.engine not in ("process", "ray"):
            raise CaptureError(f"There is no engine {self.engine!r} for workers: process or ray.")

    def share(self, task: Task, pieces: Sequence[int], done: Callable[[int, Any], object]) -> None:
        """Have the pieces computed; `done` is told each one's number and what it returned.

        Raises:
            CaptureError: workers that can do nothing, or a Ray that is not there.
            Exception: what a piece raised. Pieces that are done stand.
        """
        self.check()
        if self.engine == "ray":
            from activations.ray_workers import share_on_ray

            share_on_ray(self, task, pieces, done)
        else:
            _share_processes(self, task, pieces, done)


class _Process:
    """One worker process and the line to it."""

    def __init__(self, task: Task, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.piece: int | None = None
        self.device = device
        self.process = context.Process(target=_serve, args=(task, device, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, piece: int) -> None:
        self.piece = piece
        with suppress(OSError):  # it died before it was asked: `recv` will say so
            self.line.send(piece)

    def end(self) -> None:
        self.line.close()
        self.process.terminate()
        self.process.join()


def _serve(task: Task, device: str, line: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            piece = line.recv()
        except EOFError:  # the one who gives work is gone
            return
        try:
            line.send((True, task.compute(piece, device)))
        except Exception as error:
            if _is_want_of_memory(error):
                raise  # the process goes, and its memory with it: another may have enough
            line.send((False, portable(error)))


def _end_with_parent() -> None:
    """A piece that nobody waits for is not computed to its end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _is_want_of_memory(error: Exception) -> bool:
    from activations.batching import out_of_memory

    return out_of_memory(error)


def portable(error: Exception) -> Exception:
    """The error, or where it cannot be sent to another process, what it said."""
    error.add_note(f"In a worker:\n{traceback.format_exc()}")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its own code makes of being copied
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _share_processes(
    workers: Workers, task: Task, pieces: Sequence[int], done: Callable[[int, Any], object]
) -> None:
    todo, losses = list(pieces), Counter[int]()
    devices = workers.devices or ("",)
    count = min(workers.count, len(todo))
    crew = [_Process(task, devices[i % len(devices)]) for i in range(count)]
    try:
        for member in crew:
            member.give(todo.pop(0))
        while any(member.piece is not None for member in crew):
            busy = [m for m in crew if m.piece is not None]
            ready = wait([m.line for m in busy])
            for member in [m for m in busy if m.line in ready]:
                piece = member.piece
                assert piece is not None
                try:
                    well, answer = member.line.recv()
                except (EOFError, OSError):  # it died: its piece is done again by another
                    losses[piece] += 1
                    if losses[piece] >= MOST_LOSSES:
                        task.lost(piece, f"ended {losses[piece]} workers")
                    else:
                        todo.insert(0, piece)
                    member.end()
                    crew.remove(member)
                    member = _Process(task, member.device)
                    crew.append(member)
                else:
                    if not well:
                        raise answer
                    done(piece, answer)
                    member.piece = None
                if todo:
                    member.give(todo.pop(0))
    finally:
        for member in crew:
            member.end()
