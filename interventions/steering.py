"""How behaviour follows the amount of a direction that is added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace as with_fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from geometry import Subspace, random_subspace
from interventions.edits import add
from interventions.errors import EditError
from interventions.metrics import refusal_rate

if TYPE_CHECKING:
    from activations import Model


def dose_response(
    model: Model,
    prompts: Sequence[str],
    direction: Subspace | Mapping[str, Subspace],
    groups: Sequence[Any] | None = None,
    *,
    sites: str | Sequence[str] | None = None,
    scales: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
    random_draws: int = 1,
    seed: int = 0,
    max_new_tokens: int = 16,
) -> pd.DataFrame:
    """Refusal rate at each scale of an added direction, beside random directions of equal norm.

    Args:
        direction: as for `add`: with a mean difference, scale 1 moves mean to mean.
        random_draws: how many random directions, each drawn afresh for every site.

    Returns:
        Columns scale, edit ("direction" or "random"), draw, value, low, high, level, n, unit.

    Raises:
        EditError: no scales, or a direction that `add` refuses.
    """
    if not len(scales):
        raise EditError("No scales were given: give at least one, as in scales=(0, 1).")
    given = add(direction, sites)
    spaces = direction if isinstance(direction, Mapping) else dict.fromkeys(given.sites, direction)
    tasks: list[tuple[str, int, dict[str, Subspace]]] = [
        ("direction", 0, {site: spaces[site] for site in given.sites})
    ]
    rng = np.random.default_rng(seed)
    for draw in range(random_draws):
        drawn = {site: _random_like(spaces[site], rng) for site in given.sites}
        tasks.append(("random", draw, drawn))
    rows = []
    for edit, draw, vectors in tasks:
        for scale in scales:
            with model.edited(add(vectors, scale=float(scale), name=f"add({edit})")):
                rate = refusal_rate(model, prompts, groups, max_new_tokens=max_new_tokens)
            row = {"scale": float(scale), "edit": edit, "draw": draw}
            for name in ("value", "low", "high", "level", "n", "unit"):
                row[name] = getattr(rate, name)
            rows.append(row)
    return pd.DataFrame(rows)


def _random_like(space: Subspace, rng: np.random.Generator) -> Subspace:
    chance = random_subspace(space.d, 1, seed=int(rng.integers(2**31)), mean=space.mean)
    return with_fields(chance, singular_values=np.asarray(space.singular_values), site=space.site)
