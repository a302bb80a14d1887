"""Directions by chance, as long as a given one: what any push of that size would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as with_fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from geometry import Subspace
from interventions.errors import EditError


def random_directions(
    like: Subspace, draws: int, *, seed: int | Sequence[int], states: ArrayLike | None = None
) -> list[Subspace]:
    """Directions with the length, mean and site of `like`.

    Args:
        states: `[n, d]`, in whose spread the directions are drawn: Gaussian with their covariance.
            States lie mostly along a few axes, so such a direction moves them much more like a
            real one does. Uniform over all directions where None.

    Raises:
        EditError: something else than one direction, no draws, or states of another width.
    """
    if like.k != 1:
        raise EditError(f"The subspace has {like.k} dimensions: give one direction (k = 1).")
    if draws < 1:
        raise EditError(f"The number of draws is {draws}: give at least 1.")
    rng = np.random.default_rng(seed)
    if states is None:
        drawn: Any = rng.standard_normal((draws, like.d))
    else:
        x = np.asarray(states, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != like.d or len(x) < 2:
            raise EditError(
                f"The states have shape {x.shape} and the direction {like.d} dimensions: give two "
                "or more rows of that width."
            )
        # Random sums of deviations have their covariance, whatever d is.
        drawn = rng.standard_normal((draws, len(x))) @ (x - x.mean(axis=0))
    lengths = np.linalg.norm(drawn, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise EditError("The states are all the same, so no direction lies in their spread.")
    made = {"method": "random", "spread": "uniform" if states is None else "states"}
    return [with_fields(like, basis=unit[:, None], provenance=made) for unit in drawn / lengths]
