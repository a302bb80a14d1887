"""The largest of many scores that lie in several tensors, exactly, and without joining them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: Scores looked at together, which bounds what the counts need in memory.
_PIECE = 1 << 24
_HALF = 16


def largest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Where the `count` largest positive scores of all tensors lie, as flat indices by name.

    Ties go to the tensor that comes first, and in it to the lower index, as a stable sort would
    have it; fewer are given where fewer are positive. The bits of a float that is not negative are
    in its order, so two counts, over the upper and then the lower half of the bits, give the
    least score that is taken, exactly. Beside the scores it holds one piece of them at a time.

    Args:
        scores: f32, finite, none negative; 0 marks what cannot be taken.

    Returns:
        By name i64 indices into the flattened tensor, ascending, on the tensor's device; names
        with none are left out.

    >>> largest({"a": torch.tensor([1.0, 0.0, 3.0]), "b": torch.tensor([3.0, 2.0])}, 2)
    {'a': tensor([2]), 'b': tensor([0])}
    """
    upper = torch.zeros(1 << _HALF, dtype=torch.int64)
    for one in scores.values():
        for bits in _pieces(one):
            # Of zeros, which all lie in the first bin, none is ever taken.
            upper += torch.bincount((bits >> _HALF)[bits > 0], minlength=1 << _HALF).cpu()
    wanted = min(count, int(upper.sum()))
    if wanted <= 0:
        return {}
    first, above = _bin(upper, wanted)
    lower = torch.zeros(1 << _HALF, dtype=torch.int64)
    for one in scores.values():
        for bits in _pieces(one):
            there = bits[(bits >> _HALF == first) & (bits > 0)]
            lower += torch.bincount(there & ((1 << _HALF) - 1), minlength=1 << _HALF).cpu()
    second, within = _bin(lower, wanted - above)
    least = (first << _HALF) | second
    ties = wanted - above - within
    found = {}
    for name, one in scores.items():
        places = []
        for number, bits in enumerate(_pieces(one)):
            taken = bits > least
            equal = torch.nonzero(bits == least)[:ties, 0]
            ties -= len(equal)
            taken[equal] = True
            places.append(torch.nonzero(taken)[:, 0] + number * _PIECE)
        joined = torch.cat(places) if places else torch.zeros(0, dtype=torch.int64)
        if len(joined):
            found[name] = joined
    return found


def _pieces(one: Tensor) -> list[Tensor]:
    return list(one.detach().reshape(-1).view(torch.int32).split(_PIECE))


def _bin(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin in which the `wanted`th largest lies, and how many lie in bins above it."""
    down = counts.flip(0).cumsum(0)
    back = int(torch.searchsorted(down, torch.tensor(wanted)))
    above = int(down[back - 1]) if back else 0
    return len(counts) - 1 - back, above
