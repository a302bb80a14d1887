"""Pieces on threads: in order, each thread on a core of its own, and nothing left behind."""

from __future__ import annotations

import os
import threading

import pytest
from threadpoolctl import threadpool_info

from probes import ProbeError
from probes.parallel import cores, each


@pytest.mark.parametrize("workers", [1, 2, None])
def test_results_are_those_of_a_loop_in_order(workers: int | None) -> None:
    assert each(lambda i: i * i, range(20), workers=workers) == [i * i for i in range(20)]
    assert each(lambda i: i, [], workers=workers) == []


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or cores() < 2, reason="needs two cores, on Linux"
)
def test_a_thread_for_each_core_stays_there_and_the_caller_is_left_alone() -> None:
    before = os.sched_getaffinity(0)
    met = threading.Barrier(cores(), timeout=60)  # every thread takes a piece

    def place(_: int) -> tuple[int, ...]:
        met.wait()
        return tuple(os.sched_getaffinity(0))

    found = each(place, range(cores()), workers=cores())
    assert sorted(found) == [(core,) for core in sorted(before)]
    assert os.sched_getaffinity(0) == before
    # Fewer threads than cores may go wherever there is room.
    more = each(lambda _: os.sched_getaffinity(0), range(cores()), workers=cores() - 1)
    assert all(place == before for place in more)


def test_a_worker_that_starts_threads_of_its_own_starts_none() -> None:
    found = each(lambda _: [i["num_threads"] for i in threadpool_info()], range(2), workers=2)
    assert all(count == 1 for counts in found for count in counts)


def test_no_workers_are_refused() -> None:
    with pytest.raises(ProbeError, match="workers is 0"):
        each(lambda i: i, [1], workers=0)
