"""The cloud of states at each site: its shape, and how alike the clouds of two sites are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from activations import layer_of
from evidence import Estimate, grouped_jackknife, max_statistic_p
from experiments.compare.bench import Bench
from experiments.inputs import Inputs, Rows
from experiments.results import row
from geometry import (
    GeometryError,
    LayerCKA,
    all_but_the_top,
    anisotropy,
    dimension_estimate,
    layer_cka,
    participation_ratio_estimate,
)

_LEAST_GROUPS = 5


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
    measured: dict[str, tuple[str, Callable[[], Estimate]]] = {
        "participation_ratio": (
            "dimensions",
            lambda: participation_ratio_estimate(flat, cloud.groups),
        ),
        "intrinsic_dimension": ("dimensions", lambda: dimension_estimate(flat, cloud.groups)),
        "anisotropy": (
            "mean cosine",
            lambda: grouped_jackknife(
                lambda rows: anisotropy(directions[rows]),
                cloud.groups,
                debias=False,
                seed=seed,
                bounds=(-1, 1),
            ),
        ),
    }
    for measure, (unit, estimate) in measured.items():
        try:
            found = estimate()
        except GeometryError:
            continue  # these rows do not allow it, as where two texts have one state
        yield row(measure, found, site=site, layer=layer_of(site), unit=unit)


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
    """CKA of every two sites, from rows of different groups.

    Beside it the same with groups exchanged at one of the two, and without each site's first
    principal component, on which a few dimensions of great variance weigh most.
    """
    sites, every = list(layers), list(layers.values())
    orders = exchanged(cloud, draws=draws, seed=seed)
    found = layer_cka(every, cloud.groups, orders=orders)
    without = _without_top(every, cloud)
    p = _corrected(found)
    for a, b in combinations_with_replacement(range(len(sites)), 2):
        where = {
            "site": sites[a],
            "layer": layer_of(sites[a]),
            "reference": sites[b],
            "unit": "CKA",
        }
        yield row("cka", _cell(found, a, b, cloud.n_groups, p[a, b]), **where)
        if without is not None:
            cell = _cell(without, a, b, cloud.n_groups)
            yield row("cka", cell, control="without_top_component", **where)
        if orders is not None:
            sample = found.permuted[:, a, b]
            low, high = np.quantile(sample, [0.025, 0.975])
            null = Estimate(float(sample.mean()), float(low), float(high), n=draws, seed=seed)
            yield row("cka", null, control="shuffled_groups", **where)


def _cell(found: LayerCKA, a: int, b: int, n: int, p: float = np.nan) -> Estimate:
    """One pair of sites; a site with itself is 1 and has no interval."""
    if a == b:
        return Estimate(1.0, n=n)
    return Estimate(found.value[a, b], found.low[a, b], found.high[a, b], n=n, p=p)


def _without_top(every: list[np.ndarray], cloud: Cloud) -> LayerCKA | None:
    """None where some site varies along one direction only."""
    try:
        return layer_cka([all_but_the_top(x, components=1) for x in every], cloud.groups)
    except GeometryError:
        return None


def _corrected(found: LayerCKA) -> Float[np.ndarray, "l l"]:
    """P-values of all pairs together; each is first put on the scale of its own null."""
    a, b = np.triu_indices(len(found.value), 1)
    p = np.full(found.value.shape, np.nan)
    drawn, value = found.permuted[:, a, b], found.value[a, b]
    if drawn.size == 0:
        return p
    mean, sd = drawn.mean(axis=0), drawn.std(axis=0)
    tested = sd > 1e-9
    if tested.any():
        score = ((value - mean) / np.where(tested, sd, 1))[tested]
        null = ((drawn - mean) / np.where(tested, sd, 1))[:, tested]
        p[a[tested], b[tested]] = max_statistic_p(score, null)
    return p


def _varies_between(x: np.ndarray, cloud: Cloud) -> bool:
    """Whether groups differ by more than the noise of their rows."""
    try:
        layer_cka([x], cloud.groups)
    except GeometryError:
        return False
    return True


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
        flat = coordinates(x)
        yield from shape_rows(x, flat, cloud, seed, site)
        if _varies_between(flat, cloud):
            layers[site] = flat
    if layers:
        yield from cka_rows(layers, cloud, draws=bench.settings.permutations, seed=seed)
