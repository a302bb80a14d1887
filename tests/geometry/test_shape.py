"""Shape measures against closed forms, scipy, scikit-learn and planted dimensions."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from geometry import (
    GeometryError,
    anisotropy,
    effective_rank,
    fisher_ratio,
    mle_dimension,
    participation_ratio,
    shape,
    trace_ratio,
    two_nn,
)

seeds = st.integers(0, 2**31)


def gaussian(seed: int, *size: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size)


def orthogonal(seed: int, d: int) -> np.ndarray:
    return np.linalg.qr(gaussian(seed, d, d))[0]


@given(seeds)
def test_ranks_are_the_entropies_of_sklearns_pca(seed: int) -> None:
    x = gaussian(seed, 20, 6) * [5, 3, 2, 1, 1, 0.1]
    pca = PCA(svd_solver="full").fit(x)
    sigma, variances = pca.singular_values_, pca.explained_variance_
    assert effective_rank(x) == pytest.approx(np.exp(stats.entropy(sigma)))
    assert effective_rank(x, of="variances") == pytest.approx(np.exp(stats.entropy(variances)))
    ratio = variances.sum() ** 2 / (variances**2).sum()
    assert participation_ratio(x) == pytest.approx(ratio)


def test_k_equal_directions_have_rank_k_by_closed_form() -> None:
    x = np.vstack([np.eye(7)[:4], -np.eye(7)[:4]])
    for measure in (effective_rank, participation_ratio):
        assert measure(x) == pytest.approx(4)
        assert measure(x[[0, 4]]) == pytest.approx(1)


def test_the_debiased_participation_ratio_is_near_the_truth_with_few_rows() -> None:
    scales = 1 / np.sqrt(np.arange(1, 101))
    truth = np.sum(scales**2) ** 2 / np.sum(scales**4)
    found = [gaussian(s, 60, 100) * scales for s in range(60)]
    raw = np.mean([participation_ratio(x) for x in found])
    fair = np.mean([participation_ratio(x, debiased=True) for x in found])
    assert abs(fair - truth) < 0.1 * truth < abs(raw - truth)
    twice = np.repeat(found[0], 2, axis=0)
    grouped = participation_ratio(twice, debiased=True, independent=60)
    assert grouped == pytest.approx(participation_ratio(found[0], debiased=True))


@given(seeds, st.floats(1e-6, 1e6))
def test_rotation_scale_shift_and_order_change_nothing(seed: int, scale: float) -> None:
    x, labels = gaussian(seed, 30, 4), np.arange(30) % 3
    order = np.random.default_rng(seed).permutation(30)
    moved = (scale * (x @ orthogonal(seed, 4) + 10.0))[order]
    measures = (effective_rank, participation_ratio, two_nn, mle_dimension)
    for measure in measures:
        assert measure(moved) == pytest.approx(measure(x), rel=1e-6)
    for measure in (trace_ratio, fisher_ratio):
        found = measure(moved, labels[order]).value
        assert found == pytest.approx(measure(x, labels).value, rel=1e-6)
    assert anisotropy(scale * x @ orthogonal(seed, 4)) == pytest.approx(anisotropy(x), abs=1e-9)


@given(seeds)
def test_anisotropy_is_the_mean_of_sklearns_cosines(seed: int) -> None:
    x = gaussian(seed, 9, 4) + 1
    table = cosine_similarity(x)
    assert anisotropy(x) == pytest.approx(table[~np.eye(9, dtype=bool)].mean())


@given(seeds)
def test_two_nn_is_sklearns_regression_on_its_neighbours(seed: int) -> None:
    x = gaussian(seed, 50, 3)
    r = NearestNeighbors(n_neighbors=3).fit(x).kneighbors(x)[0]
    log_mu = np.sort(np.log(r[:, 2] / r[:, 1]))[:45]
    height = -np.log(1 - np.arange(45) / 50)
    slope = LinearRegression(fit_intercept=False).fit(log_mu[:, None], height).coef_[0]
    assert two_nn(x) == pytest.approx(slope)


@given(seeds)
def test_the_mle_is_the_triple_loop(seed: int) -> None:
    x = gaussian(seed, 25, 3)
    logs = []
    for i in range(25):
        t = sorted(np.linalg.norm(x[i] - x[j]) for j in range(25) if j != i)
        logs += [np.log(t[4] / t[j]) for j in range(4)]
    assert mle_dimension(x, neighbours=5) == pytest.approx(1 / np.mean(logs))


@pytest.mark.parametrize("d", [2, 5])
def test_a_cube_bent_into_many_dimensions_has_its_planted_dimension(d: int) -> None:
    cube = np.random.default_rng(0).uniform(size=(2000, d))
    x = np.hstack([cube, np.zeros((2000, 30 - d))]) @ orthogonal(0, 30) + 1e3
    assert two_nn(x) == pytest.approx(d, rel=0.1)
    assert mle_dimension(x) == pytest.approx(d, rel=0.15)


def test_twins_from_one_group_mislead_unless_groups_are_given() -> None:
    cube = np.random.default_rng(0).uniform(size=(600, 4))
    twins = np.vstack([cube, cube + 1e-5 * gaussian(1, 600, 4)])
    groups = np.tile(np.arange(600), 2)
    assert two_nn(twins) < 1.5
    assert two_nn(twins, groups=groups) == pytest.approx(two_nn(cube), rel=0.01)
    assert mle_dimension(twins, groups=groups) == pytest.approx(mle_dimension(cube), rel=0.01)


def test_neighbours_of_other_groups_equal_a_plain_loop_with_groups_of_any_size() -> None:
    x = gaussian(0, 40, 3)
    groups = np.random.default_rng(1).integers(0, 12, 40)
    logs = []
    for i in range(40):
        nearest = sorted(
            min(np.linalg.norm(x[i] - x[j]) for j in np.flatnonzero(groups == g))
            for g in set(groups) - {groups[i]}
        )
        logs += [np.log(nearest[4] / nearest[j]) for j in range(4)]
    found = mle_dimension(x, neighbours=5, groups=groups)
    assert found == pytest.approx(1 / np.mean(logs))


def test_blocks_of_rows_change_nothing_also_with_fewer_rows_than_features(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = gaussian(0, 40, 90)
    whole = two_nn(x), mle_dimension(x, neighbours=4)
    t = np.sort(cdist(x, x), axis=1)[:, 1:5]
    assert whole[1] == pytest.approx(1 / np.log(t[:, 3:] / t[:, :3]).mean())
    monkeypatch.setattr(shape, "_CELLS", 1000)
    assert (two_nn(x), mle_dimension(x, neighbours=4)) == pytest.approx(whole)


@given(seeds)
def test_of_one_feature_both_ratios_are_scipys_f(seed: int) -> None:
    x, labels = gaussian(seed, 20, 1), np.arange(20) % 3
    f = stats.f_oneway(*[x[labels == c, 0] for c in range(3)]).statistic
    for measure in (trace_ratio, fisher_ratio):
        assert measure(x, labels).value == pytest.approx(f * 2 / 17)


@given(seeds)
def test_fishers_ratio_is_the_sum_of_scipys_generalised_eigenvalues(seed: int) -> None:
    x, labels = gaussian(seed, 30, 4), np.array(["a", "b", "c"])[np.arange(30) % 3]
    x[labels == "b"] += 1
    within = sum(np.cov(x[labels == c].T, bias=True) * 10 for c in "abc")
    between = np.cov(x.T, bias=True) * 30 - within
    expected = scipy.linalg.eigh(between, within, eigvals_only=True).sum()
    assert fisher_ratio(x, labels).value == pytest.approx(expected)
    assert trace_ratio(x, labels).value == pytest.approx(np.trace(between) / np.trace(within))
    mixed = 1e6 * x @ (gaussian(seed, 4, 4) + 3 * np.eye(4))
    assert fisher_ratio(mixed, labels).value == pytest.approx(expected, rel=1e-5)


def test_chance_is_what_meaningless_labels_give_on_average() -> None:
    labels = np.arange(40) % 4
    found = np.array(
        [
            [m(gaussian(s, 40, 10), labels).value for m in (fisher_ratio, trace_ratio)]
            for s in range(400)
        ]
    )
    chance = [m(gaussian(0, 40, 10), labels).chance for m in (fisher_ratio, trace_ratio)]
    error = 4 * found.std(axis=0) / 20
    off = np.abs(found.mean(axis=0) - chance)
    assert off[0] < error[0] and off[1] < error[1] + 0.002


def test_constant_features_are_right_or_refused() -> None:
    x, labels = gaussian(0, 30, 3), np.arange(30) % 2
    wide = np.hstack([x, np.full((30, 2), 1e6 / 3)])
    for measure in (effective_rank, participation_ratio, two_nn, mle_dimension):
        assert measure(wide) == pytest.approx(measure(x), rel=1e-4)
    assert trace_ratio(wide, labels).value == pytest.approx(trace_ratio(x, labels).value, rel=1e-6)
    with pytest.raises(GeometryError, match="rank 3 in 5 dimensions"):
        fisher_ratio(wide, labels)


def test_bad_input_is_one_clear_sentence() -> None:
    x = gaussian(0, 12, 3)
    for measure in (effective_rank, participation_ratio, two_nn, mle_dimension, anisotropy):
        with pytest.raises(GeometryError, match="NaN"):
            measure(x * np.nan)
    for measure in (effective_rank, participation_ratio):
        with pytest.raises(GeometryError, match="does not vary"):
            measure(np.full((5, 2), 1e6 / 3))
        with pytest.raises(GeometryError, match="at least 2"):
            measure(x[:1])
    with pytest.raises(GeometryError, match="of is 'values'"):
        effective_rank(x, of="values")  # type: ignore[arg-type]
    assert participation_ratio(np.eye(5), debiased=True) == np.inf
    with pytest.raises(GeometryError, match="independent is 1"):
        participation_ratio(x, debiased=True, independent=1)
    with pytest.raises(GeometryError, match="2 rows of x equal another"):
        two_nn(np.vstack([x, x[:1]]))
    with pytest.raises(GeometryError, match="12 rows, too few for 20"):
        mle_dimension(x)
    with pytest.raises(GeometryError, match="1 groups, too few for 2 neighbours; add groups"):
        two_nn(x, groups=np.zeros(12))
    with pytest.raises(GeometryError, match="groups has shape"):
        two_nn(x, groups=np.zeros(3))
    with pytest.raises(GeometryError, match="as on a lattice"):
        two_nn(np.eye(6))
    with pytest.raises(GeometryError, match="equally far"):
        mle_dimension(np.eye(6), neighbours=3)
    with pytest.raises(GeometryError, match="neighbours is 1"):
        mle_dimension(x, neighbours=1)
    with pytest.raises(GeometryError, match="discard is 1"):
        two_nn(x, discard=1)
    with pytest.raises(GeometryError, match="all zeros"):
        anisotropy(np.zeros((3, 2)))
    with pytest.raises(GeometryError, match="one class"):
        trace_ratio(x, np.zeros(12))
    with pytest.raises(GeometryError, match="labels has shape"):
        fisher_ratio(x, [0, 1])
    with pytest.raises(GeometryError, match="one row"):
        trace_ratio(x, np.arange(12))
    with pytest.raises(GeometryError, match="ratio is infinite"):
        trace_ratio(np.repeat(np.eye(2), 3, axis=0), [0, 0, 0, 1, 1, 1])
