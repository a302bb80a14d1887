"""What a capture would cost: rows, bytes on disk, memory, and time from a trial of two passes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from activations.batching import length_batches, limits
from activations.job import Job
from activations.streaming import Tuning

if TYPE_CHECKING:
    from activations.model import Model


@dataclass(frozen=True)
class CapturePlan:
    """The cost of a capture; prints as sentences.

    Attributes:
        texts, tokens, rows, sites, shards, batches: how many of each there are.
        padding: share of what passes through the model that is padding.
        disk_bytes: of all shards together.
        memory_bytes: of the buffers on the host, beside the model itself.
        seconds: expected, at the rate at which a batch of middle length passed twice.
    """

    texts: int
    tokens: int
    rows: int
    sites: int
    shards: int
    batches: int
    padding: float
    disk_bytes: int
    memory_bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.texts:,} texts of {self.tokens:,} tokens give {self.rows:,} rows at "
            f"{counted(self.sites, 'site')}.\n"
            f"On disk: {size(self.disk_bytes)} in {counted(self.shards, 'shard')}. "
            f"In memory, beside the model: {size(self.memory_bytes)}.\n"
            f"{counted(self.batches, 'pass', 'passes')}, {self.padding:.1%} of it padding; about "
            f"{duration(self.seconds)}, at the {self.tokens / self.seconds:,.0f} tokens a second "
            "of a trial (writing not counted)."
        )


def plan_of(model: Model, job: Job, tuning: Tuning) -> CapturePlan:
    """Count what there is to do, and time two passes of a batch of middle length."""
    budget, overhead = limits(model.device.type, tuning.token_budget)
    batches = []
    for shard in range(job.shards):
        examples = job.examples(shard)
        lengths = [len(job.ids[i]) for i in examples]
        found = length_batches(lengths, budget=budget, overhead=overhead)
        batches += [[int(examples[i]) for i in batch] for batch in found]
    real = sum(map(len, job.ids))
    padded = [len(b) * max(len(job.ids[i]) for i in b) for b in batches]
    trial = int(np.argsort(padded)[len(padded) // 2])
    rate = _rate(model, job, batches[trial])
    rows = int(job.reading.rows.sum())
    biggest = max(job.shard_rows(k) for k in range(job.shards))
    return CapturePlan(
        texts=len(job.ids),
        tokens=real,
        rows=rows,
        sites=len(job.sites),
        shards=job.shards,
        batches=len(batches),
        padding=1 - real / sum(padded),
        disk_bytes=rows * job.row_bytes,
        memory_bytes=min(2, job.shards) * biggest * job.row_bytes,
        seconds=sum(padded) / rate,
    )


def _rate(model: Model, job: Job, batch: list[int]) -> float:
    """Tokens a second, padding included, in the second of two passes."""
    tokens, mask = model.pad([job.ids[i] for i in batch])
    names = [site.name for site in job.sites]
    began = 0.0
    for _ in range(2):
        began = time.perf_counter()
        model.activations(tokens, mask, names, select=lambda x, site: x[:, :1])
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
    return tokens.numel() / max(time.perf_counter() - began, 1e-9)


def counted(number: int, one: str, many: str = "") -> str:
    """A number and what it counts.

    >>> counted(1, "shard"), counted(2, "pass", "passes")
    ('1 shard', '2 passes')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def size(count: float) -> str:
    """Bytes as a person reads them.

    >>> size(1_500_000)
    '1.5 MB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """A time as a person reads it.

    >>> duration(4000)
    '1 h 7 min'
    """
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
