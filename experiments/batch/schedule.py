"""Who runs what of a batch: each run in a process of its own, below workers here or on Ray."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from experiments.batch.folder import BatchFolder, State
from experiments.batch.grid import Planned
from experiments.batch.one import TAKEN
from experiments.settings import ConfigError

if TYPE_CHECKING:
    from activations import Workers

#: A run that ends by one of these was stopped, and goes on when the batch does.
_STOPPED = (signal.SIGINT, signal.SIGTERM)
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_batch(
    runs: Sequence[Planned],
    folder: BatchFolder,
    *,
    workers: Workers | None = None,
    retry: bool = False,
    say: Callable[[str], object] = lambda line: None,
) -> dict[str, State]:
    """Run what is not done; what fails is put down, and the others go on.

    Args:
        workers: how many at a time, on which devices (given to them in turn), where; one at a time
            if None. `threads` is for each run, by default its share of the cores.
        retry: run again what failed before.
        say: told a line for each run that ends.

    Returns:
        How far each run has come, by name.

    Raises:
        ConfigError: devices that contradict the runs' own.
        CaptureError: workers that can do nothing, or a Ray that is not there.
    """
    from activations import Workers

    crew = workers or Workers(1)
    check_workers(runs, crew)
    skipped = (State.done,) if retry else (State.done, State.failed)
    todo = [i for i, run in enumerate(runs) if folder.state(run) not in skipped]
    crew = replace(crew, threads=crew.threads or _share_of_cores(crew.count))
    gpus = int(any(device.startswith("cuda") for device in crew.devices))
    task = BatchTask(tuple(runs), folder, os.getcwd(), crew.threads, gpus)
    ended = 0

    def done(number: int, told: str) -> None:
        nonlocal ended
        ended += 1
        say(f"[{ended}/{len(todo)}] {runs[number].name}: {told}")

    if todo:
        crew.share(task, todo, done)
    return {run.name: folder.state(run) for run in runs}


def check_workers(runs: Sequence[Planned], workers: Workers) -> None:
    """Refuse workers that could run none of these, before anything is made for them.

    Raises:
        ConfigError, CaptureError: as `run_batch`.
    """
    workers.check()
    for run in runs:
        if workers.devices and re.search(r"\d", run.settings.device):
            raise ConfigError(
                f"{run.name} names device {run.settings.device!r}, and --devices says which run is "
                'on which: leave the grid\'s device out, or say device = "cuda".'
            )
    visible = _visible()
    for device in workers.devices:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise ConfigError(f"There is no device {device!r}: give cpu, cuda, or cuda:0,cuda:1.")
        number = int(device.partition(":")[2] or 0)
        if visible and workers.engine == "process" and number >= len(visible):
            raise ConfigError(
                f"There is no device {device}: CUDA_VISIBLE_DEVICES shows {len(visible)}."
            )


@dataclass(frozen=True, eq=False)
class BatchTask:
    """Runs as pieces that workers take; a worker only waits for the process that it starts."""

    runs: tuple[Planned, ...]
    folder: BatchFolder
    cwd: str
    threads: int
    gpus: int

    def compute(self, piece: int, device: str) -> str:
        """See `Task.compute`; returns how the run ended."""
        run, began = self.runs[piece], time.perf_counter()
        self.folder.status_file(run).unlink(missing_ok=True)
        told = {
            "experiment": run.experiment,
            "settings": run.settings.model_dump(),
            "root": str(self.folder.root),
        }
        # -P: a folder of the user's own that is called as one of ours is not taken for it.
        command = [sys.executable, "-P", "-c", "from experiments.batch.one import main; main()"]
        with self.folder.log(run).open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.cwd,
                env=_environment(device, self.threads),
            )
            try:
                assert process.stdin is not None
                process.stdin.write((json.dumps(told) + "\n").encode())
                process.stdin.flush()
                code = process.wait()  # its input stays open: while this process lives, it runs
            except BrokenPipeError:
                code = process.wait()
            finally:
                process.kill()
        return self._ended(run, code, time.perf_counter() - began)

    def lost(self, piece: int, how: str) -> None:
        """See `Task.lost`: the run has failed, and the others go on."""
        self._failed(self.runs[piece], f"The run {how}.", 0.0)

    def _ended(self, run: Planned, code: int, seconds: float) -> str:
        if code == TAKEN:
            return "is being run by another process"
        if code < 0 and -code in _STOPPED:
            return "stopped"
        if code < 0:
            name = signal.Signals(-code).name
            why = ", most likely for want of memory" if -code == signal.SIGKILL else ""
            return self._failed(run, f"The run was ended by {name}{why}.", seconds)
        if self.folder.state(run) is State.to_do:
            said = f"The run's process ended with exit code {code}; see {self.folder.log(run)}."
            return self._failed(run, said, seconds)
        status = self.folder.status(run)
        told = f"{status.get('state')} in {status.get('seconds', 0):.0f} s"
        return f"{told}: {status['error']}" if "error" in status else told

    def _failed(self, run: Planned, error: str, seconds: float) -> str:
        status = {"state": State.failed, "error": error, "seconds": round(seconds, 2)}
        self.folder.put_down(run, status)
        return f"failed: {error}"


def _environment(device: str, threads: int) -> dict[str, str]:
    """For a run that has some threads and, where one is named, one device to itself."""
    found = dict(os.environ)
    found |= {name: str(threads) for name in _THREADS}
    found["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if device == "cpu":
        found["CUDA_VISIBLE_DEVICES"] = ""
    elif device.startswith("cuda:"):
        number = int(device.removeprefix("cuda:"))
        visible = _visible()
        found["CUDA_VISIBLE_DEVICES"] = visible[number] if visible else str(number)
    return found


def _visible() -> list[str]:
    """The GPUs that this process was given; empty where nobody said."""
    return [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]


def _share_of_cores(workers: int) -> int:
    """What the user says OMP may have, else an equal share of the cores that this process has."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdigit() and int(said):
        return int(said)
    known = getattr(os, "sched_getaffinity", None)
    cores = len(known(0)) if known else os.cpu_count() or 1
    return max(1, cores // workers)
