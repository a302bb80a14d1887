"""A capture's shards as pieces that other processes compute."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from activations.errors import CaptureError
from activations.job import Job
from activations.reopening import ModelTask
from activations.shards import write_shard
from activations.streaming import Tuning, stream_shards


@dataclass(frozen=True, eq=False)
class CaptureTask(ModelTask):
    """What a worker needs to compute shards of a capture into its store's `folder`."""

    job: Job
    folder: Path
    capture: str
    tuning: Tuning

    def compute(self, piece: int, device: str) -> None:
        """See `Task.compute`."""
        stream_shards(
            self.model.open(device),
            self.job,
            [piece],
            lambda k, states: write_shard(self.folder, k, states, capture=self.capture),
            tuning=self.tuning,
        )

    def lost(self, piece: int, how: str) -> None:
        """See `Task.lost`."""
        raise CaptureError(
            f"Shard {piece} {how}, most likely for want of memory; run fewer workers or a smaller "
            "token budget. What was captured is kept."
        )
