"""What every engine offers: a table of sites, and a forward pass that is read and edited there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from activations.places import Site

Read = Callable[[Tensor], Tensor]
"""From states `[batch, pos, ...]` to what is kept of them."""
Change = Callable[[Tensor], Tensor]
"""From states `[batch, pos, ...]` to new ones."""
End = Callable[[Any], Tensor]
"""From what the model returned to what is kept of it."""


@dataclass(frozen=True)
class Table:
    """What a look at a model found.

    Attributes:
        sites: by name, in the order in which a forward pass reaches them.
        faults: why sites that one might ask for are not among them.
        is_causal: whether a token sees only those before it.
        has_head: whether the model gives logits.
    """

    sites: Mapping[str, Site]
    faults: Mapping[str, str]
    n_layers: int
    d_model: int
    is_causal: bool
    has_head: bool


class Engine(Protocol):
    """Runs one model. Sites are in the order in which a forward pass reaches them."""

    name: str
    sites: Mapping[str, Site]
    faults: Mapping[str, str]
    n_layers: int
    d_model: int
    is_causal: bool
    has_head: bool
    device: torch.device
    """Where `run` takes its inputs."""

    def run(
        self,
        inputs: Mapping[str, Any],
        *,
        edits: Sequence[tuple[str, Change]] = (),
        reads: Mapping[str, Read] | None = None,
        stop: bool = False,
        end: End | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """One pass, with edits in their order and then reads: (the model's output, what was read).

        Args:
            inputs: of the Hugging Face model's forward; `input_ids` `[batch, pos]` among them.
            stop: end the pass after the last read; the output is then None.
            end: what of the output is wanted, so that no more of it need travel; all if None.
        """
        ...

    def digest(self) -> str:
        """What names the weights: see `weights_digest`."""
        ...
