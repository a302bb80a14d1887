"""The cloud of states at each site: its shape, and how alike the clouds of two sites are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from activations import layer_of
from evidence import Estimate, max_statistic_p
from experiments.compare.bench import Bench
from experiments.compare.inputs import Inputs, Rows
from experiments.results import row
from geometry import (
    GeometryError,
    all_but_the_top,
    anisotropy,
    cka_matrix,
    participation_ratio,
    permuted_cka,
    two_nn,
)

_BLOCKS = 10  # parts of the groups, each left out once for an interval
_LEAST_GROUPS = 4

Statistic = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Cloud:
    """Rows of the corpus whose states are looked at, with the group and the label of each."""

    rows: Rows
    groups: np.ndarray
    labels: np.ndarray

    @property
    def n_groups(self) -> int:
        return len(np.unique(self.groups))


def choose_cloud(inputs: Inputs, *, most: int) -> Cloud:
    """Rows of the variety question, else of the behaviour question: whole groups, at most `most`.

    Of a text that stands there twice one row is kept, since its states would be its own
    neighbours. Where there are too many rows, groups are left out at even steps.
    """
    varieties = inputs.corpus.has_varieties
    rows = inputs.variety_rows if varieties else inputs.behaviour_rows
    frame = inputs.corpus.frame.iloc[rows].assign(row=rows)
    label = "variety" if varieties else "behaviour"
    frame = frame.drop_duplicates("text").sort_values(["group", label], kind="stable")
    names, sizes = np.unique(frame["group"].to_numpy(), return_counts=True)
    if sizes.sum() > most:
        kept = max(_LEAST_GROUPS, int(len(names) * most / sizes.sum()))
        names = names[np.unique(np.linspace(0, len(names) - 1, kept).astype(int))]
        frame = frame[frame["group"].isin(names)]
    columns = (frame[name].to_numpy() for name in ("row", "group", label))
    return Cloud(*columns)


def coordinates(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n m"]:
    """The rows less their mean in at most n coordinates: products of rows stay what they were."""
    centred = x - x.mean(axis=0)
    if centred.shape[1] <= centred.shape[0]:
        return centred
    return np.asarray(np.linalg.qr(centred.T, mode="r")).T


def varies(x: Float[np.ndarray, "n d"]) -> bool:
    """False where all rows agree, as the embedding does at one and the same token."""
    return bool(np.linalg.norm(x - x.mean(axis=0)) > 1e-9 * np.linalg.norm(x))


def shape_rows(
    x: Float[np.ndarray, "n d"], flat: Float[np.ndarray, "n m"], cloud: Cloud, seed: int, site: str
) -> Iterator[dict[str, Any]]:
    """Participation ratio, intrinsic dimension and anisotropy of the states `x` of the cloud.

    Args:
        flat: `coordinates` of `x`, enough for all that centring leaves as it is.
    """
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    directions = x / np.where(lengths > 0, lengths, 1.0)
    where = {"site": site, "layer": layer_of(site)}

    def spectral(part: np.ndarray, groups: np.ndarray) -> float:
        return participation_ratio(part, debiased=True, independent=len(np.unique(groups)))

    def local(part: np.ndarray, groups: np.ndarray) -> float:
        return two_nn(part, groups=groups)

    for measure, statistic in (("participation_ratio", spectral), ("intrinsic_dimension", local)):
        estimate = without_blocks(flat, cloud.groups, statistic, positive=True, seed=seed)
        if estimate is not None:
            yield row(measure, estimate, unit="dimensions", **where)
    estimate = without_blocks(directions, cloud.groups, lambda part, _: anisotropy(part), seed=seed)
    if estimate is not None:
        yield row("anisotropy", estimate, unit="mean cosine", **where)


def without_blocks(
    x: np.ndarray,
    groups: np.ndarray,
    statistic: Statistic,
    *,
    positive: bool = False,
    seed: int,
) -> Estimate | None:
    """A statistic of rows and groups with a jackknife interval; None where it has no value.

    Groups are cut into at most B = 10 random parts, of which each is left out once: Student's t
    with B - 1 degrees of freedom on √((B-1)/B Σ(θ_b - θ̄)²), of the logarithm where the statistic
    is `positive`. A bootstrap would put copies of rows beside each other, which no measure of
    dimension survives.
    """
    value = _value(statistic, x, groups)
    if value is None:
        return None
    names, member = np.unique(groups, return_inverse=True)
    count = min(_BLOCKS, len(names))
    part = np.random.default_rng([seed, 11]).permutation(len(names)) % count
    left = [
        _value(statistic, x[part[member] != b], groups[part[member] != b]) for b in range(count)
    ]
    found = np.array([v for v in left if v is not None])
    if count < 3 or len(found) < count:
        return Estimate(value, n=len(names), seed=seed)
    found = np.log(found) if positive else found
    error = np.sqrt((count - 1) / count * np.sum((found - found.mean()) ** 2))
    half = float(stats.t.ppf(0.975, count - 1) * error)
    if positive:
        low, high = value * np.exp(-half), value * np.exp(half)
    else:
        low, high = value - half, value + half
    return Estimate(value, float(low), float(high), n=len(names), seed=seed)


def _value(statistic: Statistic, x: np.ndarray, groups: np.ndarray) -> float | None:
    """The statistic, or None where these rows do not allow it or nothing bounds it."""
    try:
        value = statistic(x, groups)
    except GeometryError:
        return None
    return value if np.isfinite(value) else None


def exchanged(cloud: Cloud, *, draws: int, seed: int) -> Int[np.ndarray, "draws n"] | None:
    """Orders of rows that exchange whole groups of the same make-up, row for row by label.

    None where no two groups can be exchanged. Rows must be sorted by group and label, as
    `choose_cloud` does. A group with a make-up of its own stays where it is.
    """
    names, starts, sizes = np.unique(cloud.groups, return_index=True, return_counts=True)
    alike: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(names)):
        label = tuple(map(str, cloud.labels[starts[i] : starts[i] + sizes[i]]))
        alike.setdefault(label, []).append(i)
    if max(map(len, alike.values())) < _LEAST_GROUPS:
        return None
    rng = np.random.default_rng([seed, 12])
    orders = np.tile(np.arange(len(cloud.rows)), (draws, 1))
    for make_up, groups in alike.items():
        places = starts[groups][:, None] + np.arange(len(make_up))
        for order in orders:
            order[places] = places[rng.permutation(len(groups))]
    return orders


def cka_rows(
    layers: dict[str, np.ndarray], cloud: Cloud, *, draws: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Debiased CKA of every two sites.

    Beside it the same with groups exchanged at one of the two, and without each site's first
    principal component, on which a few dimensions of great variance weigh most.
    """
    sites, every = list(layers), list(layers.values())
    value = cka_matrix(every)
    without = _without_top(every)
    orders = exchanged(cloud, draws=draws, seed=seed)
    drawn = None if orders is None else permuted_cka(every, orders)
    p = np.full(value.shape, np.nan) if drawn is None else _corrected(value, drawn)
    for a, b in combinations_with_replacement(range(len(sites)), 2):
        where = {
            "site": sites[a],
            "layer": layer_of(sites[a]),
            "reference": sites[b],
            "unit": "debiased CKA",
        }
        yield row("cka", value[a, b], n=cloud.n_groups, p=p[a, b], **where)
        if without is not None:
            told = {"control": "without_top_component", "n": cloud.n_groups}
            yield row("cka", without[a, b], **told, **where)
        if drawn is not None:
            sample = drawn[:, a, b]
            low, high = np.quantile(sample, [0.025, 0.975])
            null = Estimate(float(sample.mean()), float(low), float(high), n=draws, seed=seed)
            yield row("cka", null, control="shuffled_groups", **where)


def _without_top(every: list[np.ndarray]) -> Float[np.ndarray, "l l"] | None:
    """None where some site varies along one direction only."""
    try:
        return cka_matrix([all_but_the_top(x, components=1) for x in every])
    except GeometryError:
        return None


def _corrected(value: np.ndarray, drawn: np.ndarray) -> Float[np.ndarray, "l l"]:
    """P-values of all pairs together; each is first put on the scale of its own null."""
    a, b = np.triu_indices(len(value), 1)
    mean, sd = drawn[:, a, b].mean(axis=0), drawn[:, a, b].std(axis=0)
    p = np.full(value.shape, np.nan)
    tested = sd > 1e-9
    if tested.any():
        a, b, mean, sd = a[tested], b[tested], mean[tested], sd[tested]
        p[a, b] = max_statistic_p((value[a, b] - mean) / sd, (drawn[:, a, b] - mean) / sd)
    return p


def cloud_rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """Shape at every site where the states differ at all, then CKA of every two of those."""
    cloud = choose_cloud(bench.inputs, most=bench.settings.cloud_rows)
    if cloud.n_groups < _LEAST_GROUPS:
        return
    layers, seed = {}, bench.settings.seed
    for site in bench.sites:
        x = bench.states(site)[cloud.rows]
        if not varies(x):
            continue
        layers[site] = coordinates(x)
        yield from shape_rows(x, layers[site], cloud, seed, site)
    if layers:
        yield from cka_rows(layers, cloud, draws=bench.settings.permutations, seed=seed)
