"""States of reference texts: which are drawn for an update, and one plain pass over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from activations.batching import length_batches
from interventions.block_outputs import block_outputs
from interventions.decoupling.reference import Reference
from interventions.errors import EditError

_TOKENS = 8192  # in one pass


@dataclass(frozen=True)
class States:
    """Reference states by layer, `[n, d]` in f64, and of each its variety, label and text."""

    layers: dict[int, Float[np.ndarray, "n d"]]
    variety: Int[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]
    text: Int[np.ndarray, " n"]


class Reader:
    """Draws reference texts and runs them up to the last layer that is wanted."""

    def __init__(
        self,
        model: Any,
        blocks: dict[int, torch.nn.Module],
        reference: Reference,
        *,
        standard: str,
        shuffled: bool,
        seed: int,
    ) -> None:
        self.varieties = tuple(sorted(set(reference.varieties)))
        if standard not in self.varieties or len(self.varieties) < 2:
            raise EditError(
                f"The reference has texts in {', '.join(self.varieties)}; it needs some in the "
                f"standard, {standard!r}, and some in another variety."
            )
        self._model, self._blocks, self._reference, self._seed = model, blocks, reference, seed
        code = {name: number for number, name in enumerate(self.varieties)}
        self._variety = np.array([code[name] for name in reference.varieties])
        names = reference.groups or tuple(str(row) for row in range(len(reference)))
        self._members: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            self._members.setdefault(name, []).append(row)
        self._is_standard = self._variety == code[standard]
        self._grouped = reference.groups is not None
        self._label = self._dealt() if shuffled else self._variety

    def drawn(self, count: int, draw: int) -> list[int]:
        """At least `count` texts, as far as there are; the same for the same number of the draw."""
        rng = np.random.default_rng([self._seed, 1, draw])
        if self._grouped:
            rows: list[int] = []
            for number in rng.permutation(len(self._members)):
                both = {bool(self._is_standard[row]) for row in rows}
                if len(rows) >= count and len(both) == 2:
                    break
                rows += list(self._members.values())[number]
            return rows
        standard, others = np.flatnonzero(self._is_standard), np.flatnonzero(~self._is_standard)
        half = max(1, count // 2)
        return [
            int(row)
            for side, size in ((standard, half), (others, max(1, count - half)))
            for row in rng.permutation(side)[:size]
        ]

    @torch.no_grad()
    def states(self, rows: Sequence[int]) -> States:
        """The states of some texts."""
        reference = self._reference
        device = next(self._model.parameters()).device
        counted = reference.counted
        lengths = reference.mask.sum(dim=1).tolist()
        kept: dict[int, list[np.ndarray]] = {layer: [] for layer in self._blocks}
        text: list[int] = []
        with as_in_use(self._model):
            for batch in length_batches([int(lengths[row]) for row in rows], budget=_TOKENS):
                chosen = [rows[i] for i in batch]
                longest = int(reference.mask[chosen].any(dim=0).nonzero().max()) + 1
                wanted = counted[chosen, :longest]
                text += [chosen[i] for i in wanted.nonzero()[:, 0].tolist()]
                inputs = {
                    "input_ids": reference.ids[chosen, :longest].to(device),
                    "attention_mask": reference.mask[chosen, :longest].to(device),
                    "use_cache": False,
                }
                found = block_outputs(self._model, self._blocks, inputs)
                for layer, states in found.items():
                    one = states[wanted.to(states.device)]
                    kept[layer].append(one.double().cpu().numpy())
        layers = {layer: np.concatenate(parts) for layer, parts in kept.items()}
        at = np.array(text, dtype=np.int64)
        return States(layers, self._variety[at], self._label[at], at)

    def _dealt(self) -> np.ndarray:
        """Varieties dealt to texts at random, once; within a group where groups are known."""
        rng = np.random.default_rng([self._seed, 2])
        label = self._variety.copy()
        pools = list(self._members.values()) if self._grouped else [list(range(len(label)))]
        for rows in pools:
            label[rows] = label[rng.permutation(rows)]
        return label


@contextmanager
def as_in_use(model: torch.nn.Module) -> Iterator[None]:
    """The model without dropout, each module's training flag restored after."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
