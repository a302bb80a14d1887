"""The harmful and the refusal direction at each site, their angle, and theirs with each variety."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from activations import layer_of
from evidence import Estimate
from experiments.compare.bench import Bench
from experiments.compare.layers import over_layers
from experiments.compare.subspaces import variety_subspace
from experiments.inputs import Rows
from experiments.results import row
from geometry import Subspace, covariance_overlap_sample, haar_overlap_sample, mean_difference

#: Rows of a side; with fewer a mean difference says nothing.
LEAST = 4


def request_rows(bench: Bench, *, train: bool) -> tuple[Rows, Rows]:
    """Harmful and harmless rows of one side of the split."""
    most = bench.settings.max_requests
    return (
        bench.inputs.requests("harmful", train=train, most=most),
        bench.inputs.requests("harmless", train=train, most=most),
    )


def harmful_direction(bench: Bench, site: str) -> Subspace:
    """Mean of harmful minus mean of harmless requests, on the train side (Arditi et al. 2024)."""
    harmful, harmless = request_rows(bench, train=True)
    x = bench.states(site)
    return mean_difference(x[harmful], x[harmless], mean="negative", site=site)


def by_answer(bench: Bench) -> tuple[Rows, Rows]:
    """Train requests that the model refused, and those that it answered."""
    rows = np.concatenate(request_rows(bench, train=True))
    refused = np.array([bench.answers[int(r)] for r in rows], dtype=bool)
    return rows[refused], rows[~refused]


def compare_directions(bench: Bench) -> Iterator[dict[str, Any]]:
    """Cosines between the directions and with the variety subspaces, at every site."""
    if not bench.inputs.corpus.has_behaviours:
        return
    refused, answered = by_answer(bench)
    both = min(len(refused), len(answered)) >= LEAST
    for site in bench.sites:
        x = bench.states(site)
        harmful, harmless = request_rows(bench, train=True)
        if not np.any(x[harmful].mean(0) - x[harmless].mean(0)):
            continue  # the embedding of one and the same template token
        where = {"site": site, "layer": layer_of(site)}
        pooled = np.cov(np.concatenate([x[harmful], x[harmless]]), rowvar=False)
        if both:
            yield from _between(bench, x, (harmful, harmless), (refused, answered), where)
            yield from cosine_nulls(bench.settings, "direction_cosine", pooled, 1, where)
        if bench.inputs.corpus.has_varieties:
            yield from _with_varieties(bench, site, pooled, where)
    yield from over_layers(bench, request_rows(bench, train=True), request_rows(bench, train=False))


def _between(
    bench: Bench,
    x: np.ndarray,
    by_request: tuple[Rows, Rows],
    by_reply: tuple[Rows, Rows],
    where: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    groups = bench.inputs.corpus.frame["group"].to_numpy()

    def cosine(weight: np.ndarray) -> float:
        return cosine_of(contrast(x, by_request, weight), contrast(x, by_reply, weight))

    estimate = group_bootstrap(cosine, groups, np.concatenate(by_request), len(x), bench.settings)
    yield row(
        "direction_cosine",
        estimate,
        variety="refusal",
        reference="harmful",
        unit="cosine",
        **where,
    )


def _with_varieties(
    bench: Bench, site: str, pooled: np.ndarray, where: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    x = bench.states(site)
    rows = request_rows(bench, train=True)
    groups = bench.inputs.corpus.frame["group"].to_numpy()
    basis = np.zeros((0, 0))
    for variety in bench.inputs.dialects:
        try:
            basis = variety_subspace(bench, site, variety).basis
        except ValueError:
            continue  # nothing differs at this site, so there is no subspace to compare with

        def share(weight: np.ndarray, basis: np.ndarray = basis) -> float:
            direction = contrast(x, rows, weight)
            return float(np.linalg.norm(basis.T @ direction) / np.linalg.norm(direction))

        estimate = group_bootstrap(share, groups, np.concatenate(rows), len(x), bench.settings)
        yield row(
            "direction_subspace_cosine",
            estimate,
            variety=variety,
            reference="harmful",
            unit="cosine",
            **where,
        )
    if basis.size:
        yield from cosine_nulls(
            bench.settings, "direction_subspace_cosine", pooled, basis.shape[1], where
        )


def cosine_nulls(
    settings: Any, measure: str, covariance: np.ndarray, k: int, where: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """What a direction and a subspace of k dimensions share by chance, as absolute cosines."""
    draws, seed = settings.null_draws, settings.seed
    d = len(covariance)
    k = min(k, int(np.linalg.matrix_rank(covariance)))
    samples = {
        "random_subspace": haar_overlap_sample(d, 1, k, draws=draws, seed=seed),
        "covariance_null": covariance_overlap_sample(covariance, 1, k, draws=draws, seed=seed),
    }
    for control, sample in samples.items():
        cosines = np.sqrt(sample)
        low, high = np.quantile(cosines, [0.025, 0.975])
        estimate = Estimate(float(cosines.mean()), float(low), float(high), n=draws, seed=seed)
        yield row(measure, estimate, control=control, unit="absolute cosine", **where)


def contrast(x: np.ndarray, rows: tuple[Rows, Rows], weight: np.ndarray) -> np.ndarray:
    """Difference of weighted means."""
    high, low = rows
    return np.average(x[high], axis=0, weights=weight[high]) - np.average(
        x[low], axis=0, weights=weight[low]
    )


def cosine_of(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of two vectors."""
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def group_bootstrap(
    statistic: Callable[[np.ndarray], float],
    groups: np.ndarray,
    rows: Rows,
    n_rows: int,
    settings: Any,
) -> Estimate:
    """Percentile interval of a statistic of row weights, resampling whole groups of `rows`."""
    rng = np.random.default_rng([settings.seed, 3])
    names, place = np.unique(groups[rows], return_inverse=True)
    drawn = []
    for _ in range(settings.bootstrap_draws):
        counts = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        weight = np.zeros(n_rows)
        weight[rows] = counts[place] + 1e-9  # a side may lose all its groups in one draw
        drawn.append(statistic(weight))
    low, high = np.quantile(drawn, [0.025, 0.975])
    whole = np.ones(n_rows)
    return Estimate(statistic(whole), float(low), float(high), n=len(names), seed=settings.seed)
