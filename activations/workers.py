"""Shards of a capture shared among other processes, on this machine or on a Ray cluster.

A shard is an independent piece: whoever computes it writes its file, and the capture is done when
all files are there. A worker that dies loses its shard and nothing else.
"""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from activations.errors import CaptureError, ModelError, SiteError, StoreError
from activations.job import Job
from activations.shards import write_shard
from activations.streaming import Tuning, stream_shards

if TYPE_CHECKING:
    from activations.model import Model

#: A shard that kills this many workers is not tried again.
MOST_LOSSES = 3


@dataclass(frozen=True)
class Workers:
    """Who computes the shards.

    Attributes:
        count: how many processes.
        engine: `process` on this machine, or `ray` (the extra `cluster`) on any number of them,
            which need the same packages, the model under the same name and the same file system.
        devices: given to the processes in turn, as ("cuda:0", "cuda:1"); the model's own if empty.
            On Ray a worker on a GPU takes a whole one, or as many as the model is spread over.
        threads: of each process; as many as this one has if 0. The number decides how sums are
            rounded: with the same number, the store is bit-identical to one process's.
        address: of a running Ray cluster; a local one is started if empty.
    """

    count: int
    engine: Literal["process", "ray"] = "process"
    devices: tuple[str, ...] = ()
    threads: int = 0
    address: str = ""

    def run(
        self,
        model: Model,
        job: Job,
        shards: Sequence[int],
        folder: Path,
        capture: str,
        tuning: Tuning,
        advance: Callable[[int], object],
    ) -> None:
        """Compute the shards; `advance` is told the tokens of each.

        Raises:
            CaptureError: a model that only this process has, or a shard that keeps killing workers.
        """
        if self.count < 1:
            raise CaptureError(f"{self.count} workers can do nothing; give at least 1.")
        if model.origin is None:
            raise CaptureError(
                "Workers open the model by its name, and this one was given as a module: save it "
                "to a folder and open that, or capture without workers."
            )
        spread = model.origin.get("device_map") or model.origin.get("remote")
        if spread and self.devices:
            raise CaptureError(
                "The model is spread over devices or run by NDIF, so its workers cannot be given "
                "devices; leave `devices` out."
            )
        task = Task(
            origin=json.dumps(model.origin),
            digest=model.digest,
            job=job,
            folder=folder.absolute(),
            capture=capture,
            tuning=tuning,
            threads=self.threads or torch.get_num_threads(),
            gpus=_gpus(model) or int(any(d.startswith("cuda") for d in self.devices)),
        )
        if self.engine == "ray":
            from activations.ray_workers import run_on_ray

            run_on_ray(self, task, shards, lambda k: advance(job.shard_tokens(k)))
        else:
            _run_processes(self, task, shards, lambda k: advance(job.shard_tokens(k)))


@dataclass(frozen=True, eq=False)
class Task:
    """What a worker is told, once, before it is given shards; `origin` opens the model, in JSON,
    which takes `gpus` GPUs.
    """

    origin: str
    digest: str
    job: Job
    folder: Path
    capture: str
    tuning: Tuning
    threads: int
    gpus: int

    def compute(self, shard: int, device: str = "") -> None:
        """Compute and write one shard, in the process that calls."""
        torch.set_num_threads(self.threads)
        model = _opened(self.origin, device)
        if model.digest != self.digest:
            raise CaptureError(
                f"A worker opened {model.name} and found other weights than the capture began "
                "with; give it the same model."
            )
        stream_shards(
            model,
            self.job,
            [shard],
            lambda k, states: write_shard(self.folder, k, states, capture=self.capture),
            tuning=self.tuning,
        )


@lru_cache(maxsize=1)
def _opened(origin: str, device: str) -> Model:
    from activations.loading import open_model

    options = json.loads(origin)
    if device:
        options["device"] = device
    return open_model(options.pop("model"), **options)


def _gpus(model: Model) -> int:
    """How many GPUs the model lies on."""
    if model.device.type == "meta":
        return 0
    return len({p.device for p in model.hf.parameters() if p.device.type == "cuda"})


class _Process:
    """One worker process and the line to it."""

    def __init__(self, task: Task, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.line, theirs = context.Pipe()
        self.shard: int | None = None
        self.device = device
        self.process = context.Process(target=_serve, args=(task, device, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, shard: int) -> None:
        self.shard = shard
        self.line.send(shard)

    def end(self) -> None:
        self.line.close()
        self.process.terminate()
        self.process.join()


def _serve(task: Task, device: str, line: Connection) -> None:
    while True:
        try:
            shard = line.recv()
        except EOFError:  # the one who gives work is gone
            return
        try:
            task.compute(shard, device)
            line.send(None)
        except (CaptureError, ModelError, SiteError, StoreError) as error:
            line.send(error)


def _run_processes(
    workers: Workers, task: Task, shards: Sequence[int], done: Callable[[int], object]
) -> None:
    todo, losses = list(shards), Counter[int]()
    devices = workers.devices or ("",)
    count = min(workers.count, len(todo))
    crew = [_Process(task, devices[i % len(devices)]) for i in range(count)]
    try:
        for member in crew:
            member.give(todo.pop(0))
        while any(member.shard is not None for member in crew):
            busy = [m for m in crew if m.shard is not None]
            ready = wait([m.line for m in busy])
            for member in [m for m in busy if m.line in ready]:
                shard = member.shard
                assert shard is not None
                try:
                    answer = member.line.recv()
                except (EOFError, OSError):  # it died: its shard is done again by another
                    losses[shard] += 1
                    _refuse_deadly(shard, losses[shard])
                    todo.insert(0, shard)
                    member.end()
                    crew.remove(member)
                    member = _Process(task, member.device)
                    crew.append(member)
                else:
                    if answer is not None:
                        raise answer
                    done(shard)
                    member.shard = None
                if todo:
                    member.give(todo.pop(0))
    finally:
        for member in crew:
            member.end()


def _refuse_deadly(shard: int, losses: int) -> None:
    if losses >= MOST_LOSSES:
        raise CaptureError(
            f"Shard {shard} ended {losses} workers, most likely for want of memory; run fewer "
            "workers or a smaller token budget. What was captured is kept."
        )
