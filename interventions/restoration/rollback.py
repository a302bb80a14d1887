"""Rollback: of the weights just restored, those that the task misses most go back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from interventions.restoration.largest import largest
from interventions.restoration.moves import Moves


def gone_back(moves: Moves, gradients: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Which of the moves to take back: by name true for each that goes, `[moves of the name]`.

    Going back from A's value to F's changes the task's loss by gradient * (F - A) to first order.
    Those where that falls most go, `share` of all moves, or as many as fall at all.

    Args:
        gradients: of the task's loss, after the moves.
    """
    gain = {}
    for name, index in moves.places.items():
        slope = gradients[name].reshape(-1)[index.long().to(gradients[name].device)].cpu().float()
        change = slope * (moves.before[name].float() - moves.after[name].float())
        gain[name] = (-change).clamp(min=0)
    chosen = largest(gain, round(share * moves.count))
    back = {name: torch.zeros(len(one), dtype=torch.bool) for name, one in gain.items()}
    for name, index in chosen.items():
        back[name][index] = True
    return back
