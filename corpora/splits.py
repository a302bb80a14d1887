"""Splits that no group crosses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from corpora.errors import CorpusError


def grouped_split(
    groups: Sequence[str] | np.ndarray, *, fraction: float = 0.5, seed: int
) -> np.ndarray:
    """A mask `[n]` of about `fraction` of the groups, each whole; a seed gives one split.

    Which groups are drawn depends on the set of names and the seed, not on the order of rows.

    Raises:
        CorpusError: fewer than two groups, or a fraction outside (0, 1).
    """
    names, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    if not 0.0 < fraction < 1.0:
        raise CorpusError(f"The fraction of groups is {fraction}: give one between 0 and 1.")
    if len(names) < 2:
        raise CorpusError(
            f"There is {len(names)} group to split: at least two are needed, so that no group "
            "stands on both sides."
        )
    count = min(max(round(fraction * len(names)), 1), len(names) - 1)
    chosen = np.zeros(len(names), dtype=bool)
    chosen[np.random.default_rng(seed).permutation(len(names))[:count]] = True
    return chosen[member]


def grouped_halves(
    groups: Sequence[str] | np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two masks `[n]`, one the complement of the other: half of the groups each."""
    first = grouped_split(groups, seed=seed)
    return first, ~first
