"""A model and its aligned parent, each weight a little different, and what compares weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

HARMFUL = ["a b c d", "e f g", "h i j k l", "m n o", "p q r s"]
TASK = ["t a c", "b d f h", "g i k"]


def changed(hf: Any, seed: int, size: float = 0.1) -> Any:
    """A copy whose every weight is a little different."""
    other = copy.deepcopy(hf)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in other.parameters():
            one += size * torch.randn(one.shape, generator=draw)
    return other


def weights(hf: Any) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in hf.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
