"""The CCA family against scikit-learn, scipy, closed forms and invariances."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA

from geometry import GeometryError, canonical_correlations, cca_similarity, pwcca, svcca

seeds = st.integers(0, 2**31)


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def related(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    common = gaussian(seed, n, 2)
    return (
        common @ gaussian(seed + 1, 2, 4) + 0.5 * gaussian(seed + 2, n, 4),
        common @ gaussian(seed + 3, 2, 3) + 0.5 * gaussian(seed + 4, n, 3),
    )


@given(seeds)
def test_correlations_are_scipys_cosines_between_column_spaces(seed: int) -> None:
    x, y = related(seed)
    angles = scipy.linalg.subspace_angles(x - x.mean(0), y - y.mean(0))
    np.testing.assert_allclose(canonical_correlations(x, y), np.cos(angles)[::-1], atol=1e-9)
    assert cca_similarity(x, y) == pytest.approx(np.cos(angles).mean())


def test_the_variates_of_sklearns_cca_have_these_correlations_and_pwcca_weighs_them() -> None:
    x, y = related(0, n=200)
    u, v = CCA(n_components=3, max_iter=20000, tol=1e-13).fit_transform(x, y)
    rho = np.array([np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(3)])
    np.testing.assert_allclose(canonical_correlations(x, y), rho, atol=1e-6)
    h = u / np.linalg.norm(u, axis=0)
    alpha = np.abs(h.T @ (x - x.mean(0))).sum(axis=1)
    assert pwcca(x, y) == pytest.approx(alpha @ rho / alpha.sum(), abs=1e-5)


@given(seeds, st.sampled_from([0.6, 0.9, 0.99]))
def test_svcca_is_cca_of_sklearns_principal_components(seed: int, variance: float) -> None:
    x, y = related(seed)
    one, two = (PCA(variance, svd_solver="full").fit_transform(m) for m in (x, y))
    assert svcca(x, y, variance=variance) == pytest.approx(cca_similarity(one, two), abs=1e-9)
    assert svcca(x, y, variance=1.0) == pytest.approx(cca_similarity(x, y), abs=1e-9)


@given(seeds)
def test_invertible_maps_leave_cca_alone_and_rotations_svcca_and_pwcca_of_y(seed: int) -> None:
    x, y = related(seed)
    mix = gaussian(seed + 9, 4, 4) + 3 * np.eye(4)
    assert cca_similarity(1e6 * x @ mix - 7, y) == pytest.approx(cca_similarity(x, y), abs=1e-6)
    turn = np.linalg.qr(gaussian(seed, 4, 4))[0]
    assert svcca(1e6 * x @ turn + 5, y) == pytest.approx(svcca(x, y), abs=1e-6)
    assert pwcca(y, x @ mix) == pytest.approx(pwcca(y, x), abs=1e-6)


def test_one_column_each_is_pearsons_correlation() -> None:
    x, y = gaussian(0, 30, 1), gaussian(1, 30, 1)
    expected = abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1])
    assert canonical_correlations(x, y) == pytest.approx([expected])
    for measure in (cca_similarity, svcca, pwcca):
        assert measure(x, y) == pytest.approx(expected)


def test_constant_duplicate_and_dependent_features_do_not_count() -> None:
    x, y = related(3)
    wide = np.hstack([x, x[:, :1], x @ gaussian(5, 4, 2), np.full((40, 1), 1e6 / 3)])
    np.testing.assert_allclose(
        canonical_correlations(wide, y), canonical_correlations(x, y), atol=1e-9
    )


def test_bad_input_is_one_clear_sentence() -> None:
    x, y = related(0, n=8)
    with pytest.raises(GeometryError, match="8 rows for ranks 4 and 4"):
        canonical_correlations(x, gaussian(1, 8, 4))
    with pytest.raises(GeometryError, match="whatever the data"):
        svcca(gaussian(0, 10, 30), gaussian(1, 10, 30))
    with pytest.raises(GeometryError, match="same rows"):
        cca_similarity(x, y[:7])
    with pytest.raises(GeometryError, match="y does not vary"):
        pwcca(x, np.full((8, 2), 1e6 / 3))
    with pytest.raises(GeometryError, match="does not vary"):
        svcca(x, np.full((8, 2), 1e6 / 3))
    with pytest.raises(GeometryError, match="variance is 0"):
        svcca(x, y, variance=0)
    with pytest.raises(GeometryError, match="NaN"):
        cca_similarity(x * np.nan, y)
