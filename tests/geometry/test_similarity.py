"""CKA, RSA and Procrustes against definitions, scipy and invariances."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import pdist

from geometry import (
    GeometryError,
    cka_matrix,
    debiased_cka,
    dissimilarities,
    linear_cka,
    procrustes_angle,
    procrustes_distance,
    rsa,
    similarity,
)

seeds = st.integers(0, 2**31)


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def orthogonal(seed: int, d: int) -> np.ndarray:
    return np.linalg.qr(gaussian(seed, d, d))[0]


def hsic_by_quadruples(k: np.ndarray, el: np.ndarray) -> float:
    """The U-statistic as it is defined: a mean over all ordered quadruples of distinct rows."""
    terms = [
        k[i, j] * el[i, j] + k[i, j] * el[q, r] - 2 * k[i, j] * el[i, q]
        for i, j, q, r in permutations(range(len(k)), 4)
    ]
    return float(np.mean(terms))


def test_debiased_cka_equals_brute_force_over_quadruples() -> None:
    x, y = gaussian(0, 7, 3), gaussian(1, 7, 4) + gaussian(0, 7, 3) @ gaussian(2, 3, 4)
    k, el = x @ x.T, y @ y.T
    expected = hsic_by_quadruples(k, el) / np.sqrt(
        hsic_by_quadruples(k, k) * hsic_by_quadruples(el, el)
    )
    assert debiased_cka(x, y) == pytest.approx(expected, rel=1e-9)


@given(seeds)
def test_linear_cka_equals_the_feature_form_of_covariances(seed: int) -> None:
    x, y = gaussian(seed, 12, 3), gaussian(seed + 1, 12, 5)
    whole = np.cov(x, y, rowvar=False)
    xx, yy, xy = whole[:3, :3], whole[3:, 3:], whole[:3, 3:]
    expected = np.sum(xy**2) / (np.linalg.norm(xx) * np.linalg.norm(yy))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-9)


@given(seeds, st.floats(1e-6, 1e6))
def test_rotation_scale_shift_and_order_of_rows_change_nothing(seed: int, scale: float) -> None:
    x, y = gaussian(seed, 12, 4), gaussian(seed + 1, 12, 3)
    order = np.random.default_rng(seed).permutation(12)
    moved = scale * (x @ orthogonal(seed, 4) + 50.0)
    for measure in (linear_cka, debiased_cka, procrustes_distance, procrustes_angle):
        assert measure(moved[order], y[order]) == pytest.approx(measure(x, y), abs=1e-6)
    for measure in ("euclidean", "sqeuclidean"):
        found = rsa(moved[order], y[order], measure=measure)
        assert found == pytest.approx(rsa(x, y, measure=measure), abs=1e-6)


def test_independent_gaussians_reach_the_known_bias_and_none_when_debiased() -> None:
    x, y = gaussian(0, 200, 300), gaussian(1, 200, 300)
    assert linear_cka(x, y) == pytest.approx(300 / 500, abs=0.01)
    many = [debiased_cka(gaussian(s, 50, 60), gaussian(s + 999, 50, 60)) for s in range(100)]
    assert abs(np.mean(many)) < 3 * np.std(many) / 10
    assert min(many) < 0


@pytest.mark.parametrize("debiased", [False, True])
def test_the_matrix_equals_the_loop_and_blocks_of_rows_change_nothing(
    debiased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [gaussian(s, 11, 3 + s) for s in range(3)]
    others = [layers[0] + 0.5 * gaussian(9, 11, 3), gaussian(8, 11, 20)]
    one = debiased_cka if debiased else linear_cka
    whole = cka_matrix(layers, others, debiased=debiased)
    np.testing.assert_allclose(whole, [[one(x, y) for y in others] for x in layers], atol=1e-12)
    own = cka_matrix(np.stack([layers[0], layers[0] ** 2]), debiased=debiased)
    np.testing.assert_allclose(np.diag(own), 1)
    np.testing.assert_allclose(own, own.T)
    monkeypatch.setattr(similarity, "_CELLS", 11 * 5 * 4)
    np.testing.assert_allclose(cka_matrix(layers, others, debiased=debiased), whole, atol=1e-12)


@pytest.mark.parametrize("measure", ["correlation", "cosine", "euclidean", "sqeuclidean"])
def test_dissimilarities_are_scipys_pdist_and_rsa_its_correlations(measure: str) -> None:
    x, y = gaussian(0, 9, 5), gaussian(1, 9, 6)
    np.testing.assert_allclose(dissimilarities(x, measure=measure), pdist(x, measure))
    one, two = pdist(x, measure), pdist(y, measure)
    assert rsa(x, y, measure=measure) == pytest.approx(stats.spearmanr(one, two).statistic)
    pearson = rsa(x, y, measure=measure, correlation="pearson")
    assert pearson == pytest.approx(stats.pearsonr(one, two).statistic)


@given(seeds, st.integers(1, 6), st.integers(3, 8))
def test_procrustes_equals_scipys_orthogonal_procrustes(seed: int, d: int, n: int) -> None:
    x, y = gaussian(seed, n, d), gaussian(seed + 1, n, d)
    one, two = x - x.mean(0), y - y.mean(0)
    one, two = one / np.linalg.norm(one), two / np.linalg.norm(two)
    turn, nuclear = scipy.linalg.orthogonal_procrustes(one, two)
    expected = np.linalg.norm(one @ turn - two)
    assert procrustes_distance(x, y) == pytest.approx(expected, abs=1e-9)
    assert procrustes_angle(x, y) == pytest.approx(np.arccos(min(nuclear, 1)), abs=1e-6)


def test_procrustes_of_other_widths_fills_up_with_zeros_also_with_few_rows() -> None:
    x, y = gaussian(0, 6, 3), gaussian(1, 6, 20)
    padded = np.hstack([x, np.zeros((6, 17))])
    assert procrustes_distance(x, y) == pytest.approx(procrustes_distance(padded, y))
    assert procrustes_distance(x, np.hstack([x @ orthogonal(2, 3), np.zeros((6, 9))])) < 1e-12


@pytest.mark.parametrize("size", [1e-9, 1e-6, 0.1])
def test_a_planted_procrustes_angle_is_found_however_tiny(size: float) -> None:
    x = gaussian(0, 20, 5)
    axes = np.linalg.qr(x - x.mean(0))[0]
    moved = np.hstack([axes[:, :4], size * axes[:, 4:]]) @ orthogonal(1, 5)
    # No rotation reaches the fifth axis, so the cosine is 4 / (√4 √(4 + size²)).
    assert procrustes_angle(axes[:, :4], moved) == pytest.approx(np.arctan(size / 2), rel=1e-6)
    assert procrustes_angle(x, x) < 1e-14


@given(seeds)
def test_the_procrustes_measures_obey_the_triangle(seed: int) -> None:
    x, y, z = (gaussian(seed + i, 7, 2 + i) for i in range(3))
    for measure in (procrustes_distance, procrustes_angle):
        assert measure(x, z) <= measure(x, y) + measure(y, z) + 1e-9


def test_constant_features_and_duplicate_rows_are_no_trouble() -> None:
    x, y = gaussian(0, 8, 3), gaussian(1, 8, 3)
    wide = np.hstack([x, np.full((8, 2), 1e6)])
    for measure in (linear_cka, debiased_cka, procrustes_distance):
        assert measure(wide, y) == pytest.approx(measure(x, y), abs=1e-7)
        assert np.isfinite(measure(np.vstack([x, x]), np.vstack([y, y])))


def test_bad_input_is_one_clear_sentence() -> None:
    x = gaussian(0, 6, 3)
    with pytest.raises(GeometryError, match="does not vary"):
        linear_cka(np.ones((6, 2)) * 1e6 / 3, x)
    with pytest.raises(GeometryError, match="same rows"):
        debiased_cka(x, x[:5])
    with pytest.raises(GeometryError, match="3 rows; at least 4"):
        debiased_cka(x[:3], x[:3])
    with pytest.raises(GeometryError, match="NaN"):
        cka_matrix([x, x * np.nan])
    with pytest.raises(GeometryError, match=r"list of arrays"):
        cka_matrix([])
    with pytest.raises(GeometryError, match="constant over features"):
        rsa(np.ones((6, 3)), x)
    with pytest.raises(GeometryError, match="is zero, so"):
        rsa(np.zeros((6, 3)), x, measure="cosine")
    with pytest.raises(GeometryError, match="equally unlike"):
        rsa(np.eye(6), x, measure="euclidean")
    with pytest.raises(GeometryError, match="measure is 'l1'"):
        rsa(x, x, measure="l1")  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match="correlation is 'tau'"):
        rsa(x, x, correlation="tau")  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match="at least 3"):
        rsa(x[:2], x[:2])
    with pytest.raises(GeometryError, match="different rows"):
        rsa(x, x[:5])
    with pytest.raises(GeometryError, match="6 rows and y 5"):
        procrustes_distance(x, x[:5])
    with pytest.raises(GeometryError, match="does not vary"):
        procrustes_angle(x, np.ones((6, 3)))
