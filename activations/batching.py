"""Batches of texts of like length, under a budget of tokens, so that little is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

#: Tokens in a pass, and what a further pass costs in tokens: a GPU is idle between small passes.
_BUDGET = {"cpu": 2048, "cuda": 32768}
_OVERHEAD = {"cpu": 64, "cuda": 4096}


def limits(device: str, token_budget: int | None = None) -> tuple[int, int]:
    """(tokens in one pass, what a further pass costs in tokens) on a kind of device."""
    kind = device if device in _BUDGET else "cpu"
    return token_budget or _BUDGET[kind], _OVERHEAD[kind]


def length_batches(
    lengths: Sequence[int], *, budget: int, overhead: int | None = None
) -> list[list[int]]:
    """Indices in batches, longest texts last; `longest * size <= budget` unless one text is longer.

    Args:
        overhead: what a further pass costs, in tokens; a batch is closed where one more text would
            bring its padding above that.

    >>> length_batches([3, 1, 2], budget=4)
    [[1, 2], [0]]
    >>> length_batches([9, 1, 1, 1, 9], budget=99, overhead=10)
    [[1, 2, 3], [0, 4]]
    """
    batches: list[list[int]] = []
    real = 0  # tokens of the last batch that are no padding
    for index in np.argsort(np.asarray(lengths), kind="stable").tolist():
        length = lengths[index]
        padded = (len(batches[-1]) + 1) * length if batches else budget + 1
        if padded <= budget and (overhead is None or padded - real - length <= overhead):
            batches[-1].append(index)
            real += length
        else:
            batches.append([index])
            real = length
    return batches


def full_batches(lengths: Sequence[int], *, budget: int) -> list[list[int]]:
    """Indices in batches of at most `budget` tokens in all, for texts that are not padded.

    >>> full_batches([3, 1, 2], budget=4)
    [[1, 2], [0]]
    """
    batches: list[list[int]] = []
    held = 0
    for index in np.argsort(np.asarray(lengths), kind="stable").tolist():
        if batches and held + lengths[index] <= budget:
            batches[-1].append(index)
            held += lengths[index]
        else:
            batches.append([index])
            held = lengths[index]
    return batches


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; a CPU's allocator raises a plain RuntimeError that says so."""
    known = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, known) or "allocate memory" in str(error)
