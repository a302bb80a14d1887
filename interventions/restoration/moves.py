"""Weights that were given other values: sparse, exact both ways, and kept in a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from activations.atomic import write_whole
from interventions.errors import EditError

if TYPE_CHECKING:
    from activations import Model
    from interventions.restoration.reference import Reference

_NARROW = torch.iinfo(torch.int32).max


@dataclass(frozen=True, eq=False)
class Moves:
    """What one step moved, by name of the weight, on the CPU.

    Attributes:
        places: flat indices, ascending.
        before, after: the values that were and are there, in the model's dtype.
    """

    places: Mapping[str, Tensor]
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]

    @property
    def count(self) -> int:
        """How many single weights moved."""
        return sum(len(one) for one in self.places.values())

    def without(self, back: Mapping[str, Tensor]) -> Moves:
        """All but those that are true in `back`."""
        keep = {name: ~back[name] for name in self.places if bool((~back[name]).any())}
        parts = (
            {name: one[kept] for name, kept in keep.items() for one in [table[name]]}
            for table in (self.places, self.before, self.after)
        )
        return Moves(*parts)

    def save(self, file: Path) -> None:
        """Write whole, then rename."""
        from safetensors.torch import save

        tables = (("place", self.places), ("before", self.before), ("after", self.after))
        held = {f"{kind}|{name}": one for kind, table in tables for name, one in table.items()}
        write_whole(file, [save(held)])

    @classmethod
    def load(cls, file: Path) -> Moves:
        """What `save` wrote.

        Raises:
            EditError: a file that is missing or broken.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            held = load_file(str(file))
        except (OSError, SafetensorError) as error:
            raise EditError(
                f"{file} is missing or broken ({error}): give a new folder as `record`."
            ) from error
        tables: dict[str, dict[str, Tensor]] = {"place": {}, "before": {}, "after": {}}
        for key, one in held.items():
            kind, _, name = key.partition("|")
            tables[kind][name] = one
        return cls(tables["place"], tables["before"], tables["after"])


def make_moves(hf: Any, chosen: Mapping[str, Tensor], reference: Reference) -> Moves:
    """Give the chosen weights the reference's values at once, one tensor after another."""
    named = dict(hf.named_parameters())
    places, before, after = {}, {}, {}
    with torch.no_grad():
        for name, index in chosen.items():
            own = named[name]
            theirs = reference.read(name, own).take(index)
            # On a GPU the sorted index keeps its width there; the record is narrower.
            narrow = torch.int32 if own.numel() <= _NARROW else torch.int64
            places[name] = index.to("cpu", narrow)
            before[name], after[name] = own.take(index).cpu(), theirs.cpu()
            own.put_(index, theirs)
    return Moves(places, before, after)


def put(hf: Any, places: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write values at flat indices."""
    named = dict(hf.named_parameters())
    with torch.no_grad():
        for name, index in places.items():
            own = named[name]
            own.put_(index.to(own.device, torch.int64), values[name].to(own.device))


def undo(hf: Any, moves: Sequence[Moves]) -> None:
    """Take moves back, the last first."""
    for one in reversed(moves):
        put(hf, one.places, one.before)


@contextmanager
def moved(model: Model, moves: Sequence[Moves]) -> Iterator[Model]:
    """The model with the moves made; as before on leaving, to the bit.

    Holds the model's lock, so that other threads wait.
    """
    with model.lock:
        try:
            for one in moves:
                put(model.hf, one.places, one.after)
            forget(model)
            yield model
        finally:
            undo(model.hf, moves)
            forget(model)


@contextmanager
def replaced(model: Model, reference: Reference, names: Sequence[str]) -> Iterator[Model]:
    """The model with the aligned model's values of whole weights; as before on leaving.

    The model's own values lie on the CPU meanwhile, so that the device never holds two of them.
    """
    named = dict(model.hf.named_parameters())
    kept: dict[str, Tensor] = {}
    with model.lock, torch.no_grad():
        try:
            for name in names:
                theirs = reference.read(name, named[name])
                kept[name] = named[name].detach().to("cpu", copy=True)
                named[name].copy_(theirs)
            forget(model)
            yield model
        finally:
            for name, values in kept.items():
                named[name].copy_(values)
            forget(model)


def forget(model: Model) -> None:
    """Let the model find its digest anew, which names its weights in stores."""
    vars(model).pop("digest", None)
