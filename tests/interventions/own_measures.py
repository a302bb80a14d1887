"""A metric and an alignment of a user's own, at the top of a module that other processes import."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor


def gap_of_largest(logits: Tensor, source: Tensor, base: Tensor) -> Tensor:
    """Logit of the source's likeliest token less that of the base's."""
    return logits[:, source.argmax()] - logits[:, base.argmax()]


def from_the_end(base: Sequence[int], source: Sequence[int]) -> np.ndarray:
    """Positions correspond by their distance from the end."""
    aligned = np.arange(len(base)) + len(source) - len(base)
    return np.where(aligned < 0, -1, aligned)
