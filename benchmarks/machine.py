"""What every benchmark shares: quiet threads, a fair order of runs, peak memory, the record."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

# Spinning threads starve each other on shared cores; read by OpenMP when torch is imported. All
# sides of a comparison run under the same setting.
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="small sizes, one run each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record there")
    return parser


def machine() -> str:
    """The machine in words."""
    import torch

    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        name = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), name)
    told = f"{name}, {os.cpu_count()} cores, torch {torch.__version__} on {torch.get_num_threads()}"
    if torch.cuda.is_available():
        told += f" threads, {torch.cuda.get_device_name(0)}"
    else:
        told += " threads"
    return told


class PeakMemory:
    """Most memory that was taken while it was open, in bytes above that at its start: the process's
    on a CPU, the allocator's on a GPU.
    """

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.bytes = 0

    def __enter__(self) -> PeakMemory:
        if self.cuda:
            import torch

            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            _give_back()
            self.start = _resident()
            self.ended = threading.Event()
            self.watch = threading.Thread(target=self._sample, daemon=True)
            self.watch.start()
        return self

    def _sample(self) -> None:
        while not self.ended.wait(0.02):
            self.bytes = max(self.bytes, _resident() - self.start)

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            import torch

            self.bytes = torch.cuda.max_memory_allocated() - self.start
        else:
            self.ended.set()
            self.watch.join()


def _give_back() -> None:
    """Return freed memory to the system, so that what comes is seen to be taken."""
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident() -> int:
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0


def timed(
    ways: Mapping[str, Callable[[], object]], *, runs: int, device: str = "cpu"
) -> tuple[dict[str, float], dict[str, int]]:
    """(median seconds, peak bytes) of each way; every round runs each once, after one warm-up."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks = dict.fromkeys(ways, 0)
    for turn in range(runs + 1):
        for name, way in ways.items():
            with PeakMemory(device) as peak:
                began = time.perf_counter()
                way()
                if device.startswith("cuda"):
                    torch.cuda.synchronize()
                took = time.perf_counter() - began
            if turn:
                seconds[name].append(took)
                peaks[name] = max(peaks[name], peak.bytes)
    return {name: statistics.median(found) for name, found in seconds.items()}, peaks


def write_record(file: Path | None, record: Mapping[str, Any]) -> None:
    """The record as JSON, where a file was named."""
    if file is not None:
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"\nwritten to {file}")
