"""Each variety's subspace at each site, and how much every two of them share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, islice
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from evidence import Estimate, spearman_permutation
from experiments.compare.bench import Bench
from experiments.inputs import Pairing
from experiments.results import row
from geometry import (
    Subspace,
    angle_sample,
    covariance_overlap_sample,
    haar_overlap_sample,
    paired_differences,
    principal_angles,
)

_ROUNDING = 1e-5  # of the first singular value: below it lies what float32 states round off


def pair_up(bench: Bench, varieties: tuple[str, ...] | None = None) -> Pairing:
    """The groups that hold the standard and each of `varieties` (all dialects, if not said)."""
    return bench.inputs.parallel(varieties)


def variety_subspace(
    bench: Bench, site: str, variety: str, *, k: int | None = None, train_only: bool = False
) -> Subspace:
    """Top-k of the differences between a variety's states and the standard's, pair by pair."""
    pairing = pair_up(bench, (variety,))
    own, other = pairing.rows[variety], pairing.rows[bench.inputs.standard]
    if train_only:
        kept = bench.inputs.train[own]
        own, other = own[kept], other[kept]
    x = bench.states(site)
    rank = _rank(bench, len(own))
    return paired_differences(x[own], x[other], k=min(k or rank, rank), site=site)


def differences_at(
    bench: Bench, pairing: Pairing, site: str
) -> tuple[dict[str, Float[np.ndarray, "groups d"]], int]:
    """Each dialect's states less the standard's, and the dimensions of their subspaces.

    None at the embedding of a neutral token, by design: nothing differs there.
    """
    x = bench.states(site)
    standard = x[pairing.rows[bench.inputs.standard]]
    differences = {v: x[pairing.rows[v]] - standard for v in bench.inputs.dialects}
    rank = min(int(np.linalg.matrix_rank(d, rtol=_ROUNDING)) for d in differences.values())
    return differences, min(_rank(bench, len(pairing.groups)), rank)


def compare_subspaces(bench: Bench) -> Iterator[dict[str, Any]]:
    """Rows of overlap and angle for every two varieties at every site, beside their nulls."""
    if not bench.inputs.corpus.has_varieties:
        return
    pairing = pair_up(bench)
    if len(pairing.groups) < 4:
        return
    text = _text_overlaps(bench, pairing)
    for site in bench.sites:
        yield from _at_site(bench, pairing, site, text)


def _rank(bench: Bench, n_groups: int) -> int:
    """k, or what few groups allow."""
    return max(1, min(bench.settings.k, bench.model.d_model, n_groups // 2))


def _text_overlaps(bench: Bench, pairing: Pairing) -> dict[tuple[str, str], float]:
    """The overlaps that the text alone gives: the same measure on character n-gram counts."""
    if bench.inputs.truth is None:
        return {}
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows = np.concatenate(list(pairing.rows.values()))
    counts = TfidfVectorizer(analyzer="char", ngram_range=(1, 4)).fit_transform(
        bench.inputs.corpus.frame["text"].iloc[rows]
    )
    size = min(bench.model.d_model, min(counts.shape) - 1)
    x = TruncatedSVD(size, random_state=bench.settings.seed).fit_transform(counts)
    parts = dict(zip(pairing.rows, np.split(x, len(pairing.rows)), strict=True))
    standard = parts.pop(bench.inputs.standard)
    differences = {v: part - standard for v, part in parts.items()}
    k = _rank(bench, len(pairing.groups))
    return split_half_overlaps(differences, k, bench.settings.split_draws, bench.settings.seed)


def _at_site(
    bench: Bench, pairing: Pairing, site: str, text: dict[tuple[str, str], float]
) -> Iterator[dict[str, Any]]:
    from activations import layer_of

    settings = bench.settings
    differences, k = differences_at(bench, pairing, site)
    if k == 0:
        return
    where = {"site": site, "layer": layer_of(site)}
    shared = split_half_overlaps(differences, k, settings.split_draws, settings.seed)
    spread = bootstrap_overlaps(differences, k, settings.bootstrap_draws, settings.seed)
    n = len(pairing.groups)
    for pair, value in shared.items():
        estimate = around(value, spread[pair], n, settings.seed, most=1.0)
        control = "split_half" if pair[0] == pair[1] else ""
        yield row(
            "subspace_overlap",
            estimate,
            variety=pair[0],
            reference=pair[1],
            control=control,
            unit="mean squared cosine",
            **where,
        )
    yield from _angles(differences, k, where, n)
    yield from _nulls(bench, np.concatenate(list(differences.values())), k, where)
    yield from _against_plan(bench, shared, text, where)


def bases_from(
    differences: dict[str, np.ndarray], groups: np.ndarray, k: int
) -> Float[np.ndarray, "varieties d k"]:
    """Top-k subspace of each variety's differences in the given groups only."""
    stacked = np.stack([d[groups] for d in differences.values()])
    turned = stacked.transpose(0, 2, 1)
    if stacked.shape[1] > stacked.shape[2]:
        return np.linalg.eigh(turned @ stacked)[1][:, :, -k:]
    # Few groups in many dimensions: from their Gram matrix, whatever d is.
    left = np.linalg.eigh(stacked @ turned)[1][:, :, -k:]
    return np.linalg.qr(turned @ left)[0]


def spread_of(differences: np.ndarray) -> np.ndarray:
    """The covariance of the differences, or where it is smaller their Gram matrix.

    Both have the same eigenvalues but for zeros, and those are all that the nulls depend on.
    """
    n, d = differences.shape
    return (differences.T @ differences if d <= n else differences @ differences.T) / n


def halves(n: int, *, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random halves of n groups, without end."""
    rng = np.random.default_rng([seed, 1])
    while True:
        order = rng.permutation(n)
        yield order[: n // 2], order[n // 2 :]


def resampled_halves(n: int, *, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Bootstrap draws of groups: split first, resample inside each half, so no group leaks."""
    rng = np.random.default_rng([seed, 2])
    while True:
        first, second = np.array_split(rng.permutation(n), 2)
        yield rng.choice(first, len(first)), rng.choice(second, len(second))


def _half_overlaps(
    differences: dict[str, np.ndarray], first: np.ndarray, second: np.ndarray, k: int
) -> Float[np.ndarray, "varieties varieties"]:
    """Overlaps with each member of a pair from its own half of the groups.

    Two varieties' differences share the standard's states, so that on the same groups even pure
    noise overlaps; disjoint halves do not.
    """
    one, two = bases_from(differences, first, k), bases_from(differences, second, k)
    squared = np.einsum("adk,bdl->abkl", one, two) ** 2
    between = squared.sum(axis=(2, 3)) / k
    return (between + between.T) / 2


def _named(values: np.ndarray, names: list[str]) -> dict[tuple[str, str], float]:
    return {
        (names[i], names[j]): float(values[i, j])
        for i in range(len(names))
        for j in range(i, len(names))
    }


def split_half_overlaps(
    differences: dict[str, np.ndarray], k: int, draws: int, seed: int
) -> dict[tuple[str, str], float]:
    """Mean over random halves; a variety with itself is the reliability of its estimate."""
    n = len(next(iter(differences.values())))
    total = np.zeros((len(differences),) * 2)
    for first, second in islice(halves(n, seed=seed), draws):
        total += _half_overlaps(differences, first, second, k)
    return _named(total / draws, list(differences))


def bootstrap_overlaps(
    differences: dict[str, np.ndarray], k: int, draws: int, seed: int
) -> dict[tuple[str, str], np.ndarray]:
    """Overlaps of resampled groups."""
    n = len(next(iter(differences.values())))
    drawn = [
        _half_overlaps(differences, first, second, k)
        for first, second in islice(resampled_halves(n, seed=seed), draws)
    ]
    stacked, names = np.stack(drawn), list(differences)
    return {
        (names[i], names[j]): stacked[:, i, j]
        for i in range(len(names))
        for j in range(i, len(names))
    }


def around(value: float, drawn: np.ndarray, n: int, seed: int, *, most: float = np.inf) -> Estimate:
    """A bootstrap interval of the draws' own spread, laid around the value, from 0 to `most`.

    It is for what halves of the groups show on average, noise and all.

    Without an interval where nothing varies, as for a count that is the same in every draw.
    """
    if np.ptp(drawn) == 0:
        return Estimate(float(value), n=n, seed=seed)
    low, high = np.quantile(drawn - drawn.mean(), [0.025, 0.975]) + value
    return Estimate(float(value), max(float(low), 0.0), min(float(high), most), n=n, seed=seed)


def _angles(
    differences: dict[str, np.ndarray], k: int, where: dict[str, Any], n: int
) -> Iterator[dict[str, Any]]:
    """Principal angles in degrees, smallest first, `position` counting them."""
    order = np.arange(n)
    one, two = (bases_from(differences, order[i::2], k) for i in (0, 1))
    names = list(differences)
    for i, j in combinations(range(len(names)), 2):
        for rank, angle in enumerate(np.degrees(principal_angles(one[i], two[j]))):
            yield row(
                "principal_angle",
                angle,
                variety=names[i],
                reference=names[j],
                position=rank,
                unit="degrees",
                n=n,
                **where,
            )


def _nulls(
    bench: Bench, differences: np.ndarray, k: int, where: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """What two subspaces share by chance: any two, and any two drawn from the data's own spread."""
    draws, seed, d = bench.settings.null_draws, bench.settings.seed, differences.shape[1]
    covariance = spread_of(differences)
    samples = {
        "random_subspace": haar_overlap_sample(d, k, k, draws=draws, seed=seed),
        "covariance_null": covariance_overlap_sample(covariance, k, k, draws=draws, seed=seed),
    }
    for control, sample in samples.items():
        low, high = np.quantile(sample, [0.025, 0.975])
        estimate = Estimate(float(np.mean(sample)), float(low), float(high), n=draws, seed=seed)
        yield row(
            "subspace_overlap", estimate, control=control, unit="mean squared cosine", **where
        )
    spectra = {"random_subspace": None, "covariance_null": np.linalg.eigvalsh(covariance)}
    for control, spectrum in spectra.items():
        angles = np.degrees(angle_sample(d, k, k, spectrum=spectrum, draws=draws, seed=seed))
        for rank, sample in enumerate(angles.T):
            low, high = np.quantile(sample, [0.025, 0.975])
            estimate = Estimate(float(sample.mean()), low, high, n=draws, seed=seed)
            yield row(
                "principal_angle",
                estimate,
                control=control,
                position=rank,
                unit="degrees",
                **where,
            )


def _matrix(values: dict[tuple[str, str], float], names: tuple[str, ...]) -> np.ndarray:
    return np.array([[values.get((a, b), values.get((b, a), 1.0)) for b in names] for a in names])


def _against_plan(
    bench: Bench,
    shared: dict[tuple[str, str], float],
    text: dict[tuple[str, str], float],
    where: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Rank correlation with what the grammar planted, and what of it goes beyond the words."""
    truth, names = bench.inputs.truth, bench.inputs.dialects
    if truth is None or len(names) < 5:
        return

    def planted(frame: pd.DataFrame) -> np.ndarray:
        return frame.loc[list(names), list(names)].to_numpy(dtype=float)

    similar, words, structure = map(
        planted, (truth.similarity, truth.word_similarity, truth.structure_similarity)
    )
    seen = _matrix(text, names)
    plans = {
        "planted_similarity": (similar, None),
        "planted_word_similarity": (words, None),
        "planted_structure_similarity": (structure, None),
        "planted_structure_given_words": (structure, words),
        "planted_similarity_given_text": (similar, seen),
        "text_overlap": (seen, None),
    }
    for reference, (wanted, held) in plans.items():
        estimate = spearman_permutation(
            _matrix(shared, names),
            wanted,
            control=held,
            draws=bench.settings.null_draws,
            seed=bench.settings.seed,
        )
        yield row(
            "overlap_plan_correlation",
            estimate,
            reference=reference,
            unit="Spearman rho",
            **where,
        )
