"""The harmful direction over depth: how sure it is, how far it turns, whether it stands alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from activations import layer_of
from evidence import Estimate, benjamini_hochberg
from experiments.compare.bench import Bench
from experiments.inputs import Rows
from experiments.results import row
from geometry import (
    DirectionCount,
    DirectionGrid,
    GeometryError,
    cosine_null,
    direction_grid,
    independent_directions,
)

_ALPHA = 0.05

Sides = tuple[Rows, Rows]


def over_layers(bench: Bench, train: Sides, test: Sides) -> Iterator[dict[str, Any]]:
    """Reliability, cosines between layers, drift and count, from harmful and harmless rows.

    Corrected p-values hold over the sites (for cosines, over the pairs) of one measure.
    """
    sites = [s for s in bench.sites if _differs(bench.states(s), train)]
    counts = {s: found for s in sites if (found := _counted(bench, s, train, test)) is not None}
    yield from _count_rows(counts)
    for path in _paths(bench, sites):
        try:
            grid = _grid(bench, path, train)
        except GeometryError:
            return  # groups too few to be halved
        yield from _reliability_rows(grid)
        yield from _cosine_rows(grid)
        yield from _drift_rows(grid)


def _differs(x: np.ndarray, sides: Sides) -> bool:
    return bool(np.any(x[sides[0]].mean(0) - x[sides[1]].mean(0)))


def _paths(bench: Bench, sites: list[str]) -> list[list[str]]:
    """Sites of one kind, in order of depth; the embedding is where the residual stream begins."""
    paths: dict[str, list[str]] = {}
    for site in sites:
        start = site == bench.model.embedding_site
        paths.setdefault("hook_resid_post" if start else site.rsplit(".", 1)[-1], []).append(site)
    return list(paths.values())


def _grid(bench: Bench, sites: list[str], rows: Sides) -> DirectionGrid:
    settings = bench.settings
    return direction_grid(
        {s: (bench.states(s)[rows[0]], bench.states(s)[rows[1]]) for s in sites},
        groups=_groups(bench, rows),
        draws=settings.split_draws,
        resamples=settings.bootstrap_draws,
        seed=settings.seed,
    )


def _groups(bench: Bench, rows: Sides) -> tuple[np.ndarray, np.ndarray]:
    names = bench.inputs.corpus.frame["group"].to_numpy()
    return names[rows[0]], names[rows[1]]


def _counted(bench: Bench, site: str, train: Sides, test: Sides) -> DirectionCount | None:
    """The count at one site, or None where the requests are too few or too alike for it."""
    sides = [np.concatenate([t, h]) for t, h in zip(train, test, strict=True)]
    known = [np.arange(len(s)) < len(t) for s, t in zip(sides, train, strict=True)]
    x = bench.states(site)
    try:
        return independent_directions(
            x[sides[0]],
            x[sides[1]],
            groups=_groups(bench, (sides[0], sides[1])),
            train=(known[0], known[1]),
            alpha=_ALPHA,
            permutations=bench.settings.permutations,
            resamples=bench.settings.bootstrap_draws,
            seed=bench.settings.seed,
        )
    except GeometryError:
        return None


def _count_rows(counts: dict[str, DirectionCount]) -> Iterator[dict[str, Any]]:
    """The count by the corrected p-values, which are never below those that the rounds stop at."""
    kept = dict.fromkeys(counts, 0)
    for removed in range(max((len(c.rounds) for c in counts.values()), default=0)):
        here = {s: c.rounds[removed] for s, c in counts.items() if len(c.rounds) > removed}
        corrected = benjamini_hochberg([r.separation.p for r in here.values()])
        for (site, found), p in zip(here.items(), corrected, strict=True):
            kept[site] += int(kept[site] == removed and p <= _ALPHA)
            where = {"position": removed, **_where(site)}
            yield row("direction_separation", found.separation, **where | {"p": float(p)})
            low, high = np.quantile(found.null, [0.025, 0.975])
            chance = Estimate(
                float(found.null.mean()), float(low), float(high), n=len(found.null), unit="AUC"
            )
            yield row("direction_separation", chance, control="shuffled_labels", **where)
    for site, found in counts.items():
        n = found.rounds[0].separation.n
        yield row("direction_count", kept[site], n=n, unit="directions", **_where(site))


def _reliability_rows(grid: DirectionGrid) -> Iterator[dict[str, Any]]:
    found = [grid.cosines.estimate(s, s, kind="split_half") for s in grid.places]
    for site, estimate, p in zip(grid.places, found, _corrected(found), strict=True):
        yield row("direction_reliability", estimate, **_where(site) | {"p": p})
        yield from _nulls("direction_reliability", grid, (site, site), _where(site))


def _cosine_rows(grid: DirectionGrid) -> Iterator[dict[str, Any]]:
    pairs = [(a, b) for i, a in enumerate(grid.places) for b in grid.places[i + 1 :]]
    found = [grid.cosines.estimate(a, b, kind="split_half") for a, b in pairs]
    for pair, estimate, p in zip(pairs, found, _corrected(found), strict=True):
        where = {**_where(pair[0]), "reference": pair[1]}
        yield row("direction_layer_cosine", estimate, **where | {"p": p})
        yield from _nulls("direction_layer_cosine", grid, pair, where)


def _drift_rows(grid: DirectionGrid) -> Iterator[dict[str, Any]]:
    """Each site with the one before it, free of noise; nothing where the noise is all there is."""
    steps = list(pairwise(grid.places))
    found = [grid.cosines.estimate(here, before) for before, here in steps]
    for (before, here), estimate, p in zip(steps, found, _corrected(found), strict=True):
        if np.isnan(estimate.value):
            continue
        where = {**_where(here), "reference": before}
        yield row("direction_drift", estimate, **where | {"p": p})
        yield from _nulls("direction_drift", grid, (here, before), where)


def _nulls(
    measure: str, grid: DirectionGrid, pair: tuple[Any, Any], where: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Absolute cosines by chance: mean, and from zero to where 95% of them lie."""
    uniform, at = cosine_null(grid.d), tuple(grid.places.index(s) for s in pair)
    shown = {
        "random_subspace": (uniform.mean, uniform.quantile),
        "covariance_null": (grid.cosines.null[at], grid.cosines.null_high[at]),
    }
    for control, (mean, high) in shown.items():
        estimate = Estimate(float(mean), 0.0, float(high), seed=grid.seed)
        yield row(measure, estimate, control=control, unit="absolute cosine", **where)


def _corrected(found: list[Estimate]) -> list[float]:
    return benjamini_hochberg([e.p for e in found]).tolist()


def _where(site: Any) -> dict[str, Any]:
    return {"site": site, "layer": layer_of(site), "behaviour": "harmful"}
