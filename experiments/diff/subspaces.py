"""Where varieties lie in two models, what every two of them share, and whether that moved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from activations import layer_of
from evidence import Estimate
from experiments.compare.subspaces import bootstrap_overlaps, split_half_overlaps
from experiments.diff.observing import Observed
from experiments.diff.pairs import LEAST_GROUPS, corrected, three
from experiments.diff.probing import shared_sites
from experiments.diff.settings import DiffSettings
from experiments.inputs import Inputs, Pairing
from experiments.results import row
from geometry import GeometryError, overlap_estimate

_UNIT = "mean squared cosine"
_ROUNDING = 1e-5  # of the first singular value: below it lies what f32 states round off


def subspaces(
    before: Observed, after: Observed, inputs: Inputs, settings: DiffSettings, label: str
) -> Iterator[dict[str, Any]]:
    """Overlaps of every two dialects in each model, and of each dialect with itself between them.

    Every overlap is of subspaces from disjoint halves of the groups; both models have the same
    halves and the same resamples.
    """
    if not inputs.corpus.has_varieties:
        return
    pairing = inputs.parallel()
    if len(pairing.groups) < LEAST_GROUPS:
        return
    for site in shared_sites(before, after):
        both = [differences(model, inputs, pairing, site) for model in (before, after)]
        k = min(_dimensions(d, settings.k) for d in both)
        if k == 0:
            continue  # no text differs there, as at the embedding of one and the same token
        yield from _between_varieties(both, k, len(pairing.groups), settings, label, site)
        if before.d_model == after.d_model:
            yield from _between_models(both, k, pairing, settings, label, site)


def differences(
    model: Observed, inputs: Inputs, pairing: Pairing, site: str
) -> dict[str, np.ndarray]:
    """Each dialect's states less the standard's, `[groups, d]`."""
    x = model.states(site)
    standard = x[pairing.rows[inputs.standard]]
    return {v: x[pairing.rows[v]] - standard for v in inputs.dialects}


def _dimensions(found: dict[str, np.ndarray], k: int) -> int:
    """k, or what few groups and small differences allow."""
    ranks = [int(np.linalg.matrix_rank(d, rtol=_ROUNDING)) for d in found.values()]
    groups = len(next(iter(found.values())))
    # Halves of the groups less one that is left out must span it.
    return max(0, min(k, groups // 2 - 1, *ranks))


def _between_varieties(
    both: list[dict[str, np.ndarray]],
    k: int,
    n: int,
    settings: DiffSettings,
    label: str,
    site: str,
) -> Iterator[dict[str, Any]]:
    seed = settings.seed
    shared = [split_half_overlaps(d, k, settings.split_draws, seed) for d in both]
    spread = [bootstrap_overlaps(d, k, settings.bootstrap_draws, seed) for d in both]
    where = {"site": site, "layer": layer_of(site), "unit": _UNIT}
    changes: dict[tuple[str, str], tuple[Estimate, Estimate, Estimate]] = {}
    for pair in shared[0]:
        one, two = (
            _interval(s[pair], d[pair], (0.0, 1.0), n, seed)
            for s, d in zip(shared, spread, strict=True)
        )
        moved = spread[1][pair] - spread[0][pair]
        change = _interval(shared[1][pair] - shared[0][pair], moved, (-1.0, 1.0), n, seed)
        changes[pair] = one, two, change
    for (own, other), found in changes.items():
        control = "split_half" if own == other else ""
        told = {"variety": own, "reference": other, "control": control, **where}
        yield from three("subspace_overlap", *found, label, **told)
    pairs = [pair for pair in shared[0] if pair[0] != pair[1]]
    if len(pairs) > 1:
        means = [float(np.mean([s[p] for p in pairs])) for s in shared]
        drawn = [np.mean([d[p] for p in pairs], axis=0) for d in spread]
        found = (
            _interval(means[0], drawn[0], (0.0, 1.0), n, seed),
            _interval(means[1], drawn[1], (0.0, 1.0), n, seed),
            _interval(means[1] - means[0], drawn[1] - drawn[0], (-1.0, 1.0), n, seed),
        )
        yield from three("mean_subspace_overlap", *found, label, **where)


def _interval(
    value: float, drawn: np.ndarray, bounds: tuple[float, float], n: int, seed: int
) -> Estimate:
    """Quantiles of the draws moved onto the value: resampling alone lowers overlaps."""
    low, high = np.quantile(drawn - drawn.mean(), [0.025, 0.975]) + value
    return Estimate(value, max(float(low), bounds[0]), min(float(high), bounds[1]), n=n, seed=seed)


def _between_models(
    both: list[dict[str, np.ndarray]],
    k: int,
    pairing: Pairing,
    settings: DiffSettings,
    label: str,
    site: str,
) -> Iterator[dict[str, Any]]:
    """Overlap of a dialect's subspace before with that after, freed of the noise of both."""
    groups, where = np.array(pairing.groups), {"site": site, "layer": layer_of(site)}
    found: dict[str, Estimate] = {}
    for variety in both[0]:
        one, two = (d[variety] for d in both)
        try:
            found[variety] = overlap_estimate(
                one,
                two,
                np.zeros_like(one),
                groups,
                k=k,
                null="haar",
                draws=settings.null_draws,
                seed=settings.seed,
            )
        except GeometryError:
            continue  # halves of these pairs span too little
    for variety, estimate in zip(found, corrected(list(found.values())), strict=True):
        told = {"variety": variety, "edit": label, "unit": _UNIT, **where}
        yield row("model_subspace_overlap", estimate, **told)
        chance = Estimate(estimate.null, n=settings.null_draws, seed=settings.seed)
        yield row("model_subspace_overlap", chance, control="random_subspace", **told)
