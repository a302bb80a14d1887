"""How many dimensions one behaviour's directions span over layers and positions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from evidence import Estimate, permutation_p
from geometry.checks import count
from geometry.directions import DirectionGrid
from geometry.errors import GeometryError

_CELLS = 8_000_000  # numbers held at once, 64 MB


class DirectionSpan(NamedTuple):
    """How many dimensions the directions of all places span.

    Attributes:
        singular_values: `[m]`, of the stacked unit directions, divided by √P: squares sum to 1.
        axes: `[d, m]`, what they belong to.
        null_high: `[m]`, the upper quantile of each where only noise makes places differ.
        effective_rank: exp of the entropy of σ/Σσ (Roy & Vetterli 2007), uncentred: 1 where all
            places have one direction. `null` and `p` are those of places that differ by noise
            alone; there is no interval.
    """

    singular_values: Float[np.ndarray, " m"]
    axes: Float[np.ndarray, "d m"]
    null_high: Float[np.ndarray, " m"]
    effective_rank: Estimate


def direction_span(grid: DirectionGrid, *, draws: int = 500, seed: int) -> DirectionSpan:
    """Spectrum of the unit directions of a grid's places, against drift that is only noise.

    The null gives every place the one direction that they have most in common, at the length that
    is left of each place's difference when noise is taken out, and adds the noise of resampled
    groups, the same resample at every place. Ours.

    Raises:
        GeometryError: one place, or no draws.
    """
    draws, p = count(draws, name="draws"), len(grid.places)
    if p < 2:
        raise GeometryError("The grid has one place, so nothing is spanned over places; give more.")
    _, values, axes = np.linalg.svd(grid.directions / np.sqrt(p), full_matrices=False)
    common = axes[0] * np.sign(np.sum(grid.directions @ axes[0]) or 1.0)
    rng = np.random.default_rng(seed)
    signal = np.sqrt(np.clip(np.diag(_split_products(grid, rng)), 0.0, None))
    spectra = np.empty((draws, len(values)))
    weights = grid.grouping.resamples(draws, rng)
    batch = max(1, _CELLS // grid.differences.size)
    for start in range(0, draws, batch):
        part = slice(start, start + batch)
        noise = grid.contrast(weights[part]) - grid.differences[:, None]
        made = signal[:, None, None] * common + noise
        made /= np.linalg.norm(made, axis=-1, keepdims=True) * np.sqrt(p)
        spectra[part] = np.linalg.svd(made.swapaxes(0, 1), compute_uv=False)
    ranks = _effective_rank(spectra)
    seen = float(_effective_rank(values))
    estimate = Estimate(
        seen,
        n=grid.grouping.n,
        level=grid.level,
        null=float(ranks.mean()),
        p=permutation_p(seen, ranks),
        unit="dimensions",
        method=f"{draws} draws of one direction with the noise of resampled groups",
        seed=seed,
    )
    return DirectionSpan(values, axes.T, np.quantile(spectra, grid.level, axis=0), estimate)


def _split_products(grid: DirectionGrid, rng: np.random.Generator) -> Float[np.ndarray, "p p"]:
    """Inner products of the differences of disjoint halves, whose noise does not add up."""
    first = grid.grouping.halves(grid.draws, rng)
    total = np.zeros((len(grid.places),) * 2)
    for half in first:
        one, two = (grid.contrast(side[None].astype(float))[:, 0] for side in (half, ~half))
        total += (one @ two.T + two @ one.T) / 2
    return total / len(first)


def _effective_rank(values: Float[np.ndarray, "*b m"]) -> Float[np.ndarray, "*b"]:
    share = values / values.sum(axis=-1, keepdims=True)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.exp(-np.sum(share * logs, axis=-1))
