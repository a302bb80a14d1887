"""How another process opens the model that this one has open, and knows it for the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from activations.errors import CaptureError

if TYPE_CHECKING:
    from activations.model import Model
    from activations.workers import Workers


@dataclass(frozen=True)
class Reopening:
    """A model by its name and its weights.

    Attributes:
        origin: what `open_model` is told, in JSON.
        digest: of the weights.
        threads: that a process which opens it computes with.
        gpus: that it takes.
    """

    origin: str
    digest: str
    threads: int
    gpus: int

    @classmethod
    def of(cls, model: Model, workers: Workers) -> Reopening:
        """Of a model for these workers.

        Raises:
            CaptureError: a model that only this process has, or devices that do not go with it.
        """
        workers.check()
        if model.origin is None:
            raise CaptureError(
                "Workers open the model by its name, and this one was given as a module: save it "
                "to a folder and open that, or work without workers."
            )
        spread = model.origin.get("device_map") or model.origin.get("remote")
        if spread and workers.devices:
            raise CaptureError(
                "The model is spread over devices or run by NDIF, so its workers cannot be given "
                "devices; leave `devices` out."
            )
        if model._edits:
            raise CaptureError(
                "Edits of the model are open, which its workers would not make; work without "
                "workers, or after the edits."
            )
        return cls(
            origin=json.dumps(model.origin),
            digest=model.digest,
            threads=workers.threads or torch.get_num_threads(),
            gpus=_gpus(model) or int(any(d.startswith("cuda") for d in workers.devices)),
        )

    def open(self, device: str = "") -> Model:
        """The model in this process, on its own device if none is named; opened once.

        Raises:
            CaptureError: by that name there are other weights here.
        """
        torch.set_num_threads(self.threads)
        model = _opened(self.origin, device)
        if model.digest != self.digest:
            raise CaptureError(
                f"A worker opened {model.name} and found other weights than the work began with; "
                "give it the same model."
            )
        return model


@dataclass(frozen=True, eq=False)
class ModelTask:
    """The part of a `Task` that says what a process which opens `model` takes."""

    model: Reopening

    @property
    def threads(self) -> int:
        """See `Task`."""
        return self.model.threads

    @property
    def gpus(self) -> int:
        """See `Task`."""
        return self.model.gpus


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
