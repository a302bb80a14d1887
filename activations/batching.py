"""Batches of texts of like length, under a budget of tokens, so that little is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def length_batches(lengths: Sequence[int], *, budget: int) -> list[list[int]]:
    """Indices in batches, longest texts last; `longest * size <= budget` unless one text is longer.

    >>> length_batches([3, 1, 2], budget=4)
    [[1, 2], [0]]
    """
    batches: list[list[int]] = []
    for index in np.argsort(np.asarray(lengths), kind="stable").tolist():
        if batches and (len(batches[-1]) + 1) * lengths[index] <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
