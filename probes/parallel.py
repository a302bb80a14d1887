"""Many small pieces of linear algebra at once, one thread to each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Lock
from typing import TypeVar

from threadpoolctl import threadpool_limits

from probes.errors import ProbeError

Piece = TypeVar("Piece")
Found = TypeVar("Found")

# The limit on BLAS holds for the whole process, and whoever takes it gives back what it found.
_ONE_AT_A_TIME = Lock()


def each(
    function: Callable[[Piece], Found], pieces: Iterable[Piece], *, workers: int | None = None
) -> list[Found]:
    """`function` of every piece, in order, `workers` of them at a time: one for each core if None.

    Threads of this process, since NumPy lets others run while it computes: nothing is copied or
    started. BLAS is held to one thread meanwhile, whatever the number of workers: on shared cores
    its own threads wait for one another, and how a sum is rounded must not depend on how many
    pieces there are. Where there is a thread for every core, each is kept on one, on Linux: threads
    that hand Python's lock to one another are at times left on the same core for seconds.

    Raises:
        ProbeError: fewer than one worker.
    """
    if workers is not None and workers < 1:
        raise ProbeError(f"workers is {workers}; it must be 1 or more.")
    todo = list(pieces)
    count = min(workers or cores(), len(todo))
    with _ONE_AT_A_TIME, threadpool_limits(1, user_api="blas"):
        if count <= 1:
            return [function(piece) for piece in todo]
        places: SimpleQueue[int] = SimpleQueue()
        if count == cores() and hasattr(os, "sched_setaffinity"):
            for core in os.sched_getaffinity(0):
                places.put(core)
        with ThreadPoolExecutor(count, initializer=_settle, initargs=(places,)) as crew:
            return list(crew.map(function, todo))


def _settle(places: SimpleQueue[int]) -> None:
    """Keeps this thread on a core of its own, if there are any; and OpenMP's, which each thread
    has for itself, to this one.
    """
    threadpool_limits(1, user_api="openmp")
    if not places.empty():
        os.sched_setaffinity(0, {places.get()})


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
