"""How far every two varieties' subspaces lie apart, the tree that follows, and what all share."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from itertools import combinations, combinations_with_replacement, islice
from typing import Any

import numpy as np
from jaxtyping import Float

from activations import layer_of
from evidence import Estimate, benjamini_hochberg
from experiments.compare.bench import Bench
from experiments.compare.subspaces import (
    Pairing,
    around,
    bases_from,
    differences_at,
    halves,
    pair_up,
    resampled_halves,
    spread_of,
)
from experiments.results import row
from geometry import (
    angle_sample,
    clade_support,
    clades,
    compare_distances,
    distance_matrix,
    joint_null,
    joint_subspaces,
    variety_tree,
)

_RADIANS = "radians on the Grassmannian"
_JOINT_DRAWS = 200
_CONFIRMED = 0.5  # squared cosine that a private direction has in the other half, at least


def kinship_rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """Distances, tree, shared and private dimensions at every site with at least two dialects."""
    names = list(bench.inputs.dialects)
    pairing = pair_up(bench)
    if len(names) < 2 or len(pairing.groups) < 4:
        return
    plans = dict(_plans(bench))
    for plan, planted in plans.items():
        unit = "1 - share of features"
        for i, j in combinations(range(len(names)), 2):
            pair = {"variety": names[i], "reference": names[j]}
            yield row("variety_distance", planted[i, j], control=plan, unit=unit, **pair)
    trees: list[tuple[str, str, Estimate]] = []
    for site in bench.sites:
        differences, k = differences_at(bench, pairing, site)
        if k == 0:
            continue
        found = yield from _at_site(bench, pairing, differences, k, site)
        for plan, planted in plans.items():
            agreed = compare_distances(
                planted,
                variety_tree(found),
                draws=bench.settings.null_draws,
                seed=bench.settings.seed,
            )
            trees.append((site, plan, agreed))
    for plan in plans:
        tested = [(site, agreed) for site, of, agreed in trees if of == plan]
        adjusted = benjamini_hochberg([agreed.p for _, agreed in tested])
        for (site, agreed), p in zip(tested, adjusted, strict=True):
            yield row(
                "tree_plan_correlation",
                replace(agreed, p=float(p)),
                site=site,
                layer=layer_of(site),
                reference=plan,
                unit="Spearman rho",
            )


def _plans(bench: Bench) -> Iterator[tuple[str, np.ndarray]]:
    """The planted trees as distances, where the grammar says them and there are pairs to rank."""
    truth, names = bench.inputs.truth, list(bench.inputs.dialects)
    if truth is None or len(names) < 5:
        return
    for plan, similar in (
        ("planted_words", truth.word_similarity),
        ("planted_structure", truth.structure_similarity),
    ):
        yield plan, 1 - similar.loc[names, names].to_numpy(dtype=float)


def _at_site(
    bench: Bench, pairing: Pairing, differences: dict[str, np.ndarray], k: int, site: str
) -> Generator[dict[str, Any], None, np.ndarray]:
    """Rows of one site; returns the distances `[V, V]`, zero on the diagonal."""
    settings, names, n = bench.settings, list(differences), len(pairing.groups)
    where = {"site": site, "layer": layer_of(site)}
    pooled = np.concatenate(list(differences.values()))
    spectrum = np.linalg.eigvalsh(spread_of(pooled))
    d = pooled.shape[1]
    null = joint_null(
        d, [k] * len(names), spectrum=spectrum, draws=_JOINT_DRAWS, seed=settings.seed
    )

    def measure(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        one, two = bases_from(differences, first, k), bases_from(differences, second, k)
        return cross_distances(one, two), confirmed_dimensions(one, two, null)

    split = [measure(*half) for half in islice(halves(n, seed=settings.seed), settings.split_draws)]
    drawn = [
        measure(*half)
        for half in islice(resampled_halves(n, seed=settings.seed), settings.bootstrap_draws)
    ]
    distances, counts = (np.stack(part) for part in zip(*split, strict=True))
    resampled, recounted = (np.stack(part) for part in zip(*drawn, strict=True))
    mean = distances.mean(axis=0)
    for i, j in combinations_with_replacement(range(len(names)), 2):
        estimate = around(mean[i, j], resampled[:, i, j], n, settings.seed)
        told = {"variety": names[i], "reference": names[j], "unit": _RADIANS}
        control = "split_half" if i == j else ""
        yield row("variety_distance", estimate, control=control, **told, **where)
    for control, given in (("random_subspace", None), ("covariance_null", spectrum)):
        angles = angle_sample(
            d, k, k, spectrum=given, draws=settings.null_draws, seed=settings.seed
        )
        chance = _of_draws(np.sqrt(np.sum(angles**2, axis=1)), settings.seed)
        yield row("variety_distance", chance, control=control, unit=_RADIANS, **where)
    found, several = _hollow(mean), np.stack([_hollow(m) for m in resampled])
    yield from _support_rows(found, several, names, n, settings.seed, where)
    by_chance = _chance_dimensions(bench, spectrum, len(names), k, null)
    yield from _dimension_rows(names, counts, recounted, by_chance, n, settings.seed, where, k)
    return found


def cross_distances(
    one: Float[np.ndarray, "v d k"], two: Float[np.ndarray, "v d k"]
) -> Float[np.ndarray, "v v"]:
    """Geodesic distances of subspaces of one half from those of the other, both ways averaged."""
    v = len(one)
    between = distance_matrix(np.concatenate([one, two]))[:v, v:]
    return (between + between.T) / 2


def confirmed_dimensions(
    one: Float[np.ndarray, "v d k"], two: Float[np.ndarray, "v d k"], null: np.ndarray
) -> Float[np.ndarray, " v_and_1"]:
    """Dimensions that all varieties share, then those of each alone, that both halves bear out.

    Found in `one` by `joint_subspaces`. Differences to one standard share its noise, so that a
    direction counts only where it comes out of the bases of other groups, `two`, too: shared ones
    above the same threshold, private ones with half of their length.
    """
    joint = joint_subspaces(one, null=null, seed=0)
    inside = np.einsum("dr,vdk->vrk", joint.shared, two)
    held = np.mean(inside @ inside.transpose(0, 2, 1), axis=0)
    counts = [float(np.sum(np.linalg.eigvalsh(held) > joint.threshold)) if held.size else 0.0]
    for own, other in zip(joint.private, two, strict=True):
        cosines = np.linalg.svd(own.T @ other, compute_uv=False) if own.size else np.empty(0)
        counts.append(float(np.sum(cosines**2 > _CONFIRMED)))
    return np.array(counts)


def _dimension_rows(
    names: list[str],
    counts: np.ndarray,
    recounted: np.ndarray,
    by_chance: np.ndarray,
    n: int,
    seed: int,
    where: dict[str, Any],
    k: int,
) -> Iterator[dict[str, Any]]:
    told = {"unit": "dimensions"} | where
    for i, name in enumerate(["", *names]):
        measure = "private_dimensions" if name else "shared_dimensions"
        estimate = around(counts[:, i].mean(), recounted[:, i], n, seed, most=k)
        yield row(measure, estimate, variety=name, **told)
    for measure, drawn in (
        ("shared_dimensions", by_chance[:, 0]),
        ("private_dimensions", by_chance[:, 1:].mean(axis=1)),
    ):
        yield row(measure, _of_draws(drawn, seed), control="covariance_null", **told)


def _chance_dimensions(
    bench: Bench, spectrum: np.ndarray, varieties: int, k: int, null: np.ndarray
) -> Float[np.ndarray, "draws v_and_1"]:
    """The same count for subspaces drawn from the data's own spread, in its eigenbasis."""
    roots = np.sqrt(np.maximum(spectrum, 0.0))[:, None]
    rng = np.random.default_rng([bench.settings.seed, 13])
    drawn = []
    for _ in range(bench.settings.split_draws):
        columns = roots * rng.standard_normal((2 * varieties, len(roots), k))
        bases = np.linalg.qr(columns)[0]
        drawn.append(confirmed_dimensions(bases[:varieties], bases[varieties:], null))
    return np.stack(drawn)


def _support_rows(
    found: np.ndarray,
    resampled: np.ndarray,
    names: list[str],
    n: int,
    seed: int,
    where: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """How many resamples of the groups have each clade of the tree; the whole is none."""
    tree = variety_tree(found)
    support = clade_support(tree, resampled)
    known = clades(tree)
    members: list[frozenset[int]] = [frozenset([i]) for i in range(len(names))]
    for one, other in tree.linkage[:, :2].astype(int):
        members.append(members[one] | members[other])
    for clade, share in zip(members[len(names) :], support, strict=True):
        if clade in known:
            yield row(
                "clade_support",
                float(share),
                reference="+".join(sorted(names[i] for i in clade)),
                unit="share of resamples",
                n=n,
                seed=seed,
                **where,
            )


def _of_draws(sample: np.ndarray, seed: int) -> Estimate:
    low, high = np.quantile(sample, [0.025, 0.975])
    return Estimate(float(sample.mean()), float(low), float(high), n=len(sample), seed=seed)


def _hollow(matrix: np.ndarray) -> np.ndarray:
    """Distances of different varieties only: from itself each is 0."""
    return matrix * (1 - np.eye(len(matrix)))
