"""Class subspaces and the covariance within classes, against scikit-learn, scipy and projectors."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf_shrinkage

from geometry import (
    GeometryError,
    containment,
    linear_discriminants,
    mean_difference,
    mean_differences,
    principal_angles,
    probe_weights,
)
from geometry.within import within_covariance

seeds = st.integers(0, 2**31)


def made(seed: int, n: int = 60, d: int = 6, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    mixed = rng.standard_normal((n, d)) @ rng.standard_normal((d, d))
    return mixed + 3 * rng.standard_normal((classes, d))[y], y


def plain_covariance(x: np.ndarray, y: np.ndarray, gamma: float) -> np.ndarray:
    s = sum(np.cov(x[y == c].T, bias=True) * np.mean(y == c) for c in np.unique(y))
    return (1 - gamma) * s + gamma * np.trace(s) / len(s) * np.eye(len(s))


@pytest.mark.parametrize(("n", "d"), [(60, 6), (20, 50), (30, 30)])
def test_the_covariance_and_its_inverse_equal_the_dense_formula(n: int, d: int) -> None:
    x, y = made(0, n, d)
    within = within_covariance(x, y, shrinkage=0.3)
    dense = plain_covariance(x, y, 0.3)
    b = np.random.default_rng(1).standard_normal((d, 4))
    np.testing.assert_allclose(within.apply(b), dense @ b, atol=1e-9)
    np.testing.assert_allclose(within.solve(b), np.linalg.solve(dense, b), atol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(60, 6), (20, 50), (40, 1)])
def test_ledoit_wolfs_shrinkage_equals_scikit_learns(n: int, d: int) -> None:
    x, y = made(2, n, d)
    within = within_covariance(x, y)
    expected = ledoit_wolf_shrinkage(within.deviations, assume_centered=True)
    assert within.shrinkage == pytest.approx(expected, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 4))
def test_discriminants_equal_scipys_generalised_eigenvectors(seed: int, classes: int) -> None:
    x, y = made(seed, classes=classes)
    sigma = plain_covariance(x, y, 0.1)
    means = np.stack([x[y == c].mean(0) for c in range(classes)])
    s_b = np.cov(means.T, bias=True, fweights=np.bincount(y))
    kappa, u = scipy.linalg.eigh(s_b, sigma)
    k = classes - 1
    space = linear_discriminants(x, y, shrinkage=0.1)
    assert space.k == k
    assert principal_angles(space.basis, u[:, -k:]).max() < 1e-6
    assert principal_angles(space.basis[:, :1], u[:, -1:]).max() < 1e-6
    np.testing.assert_allclose(space.singular_values**2, kappa[::-1][:k], rtol=1e-7)
    pattern = linear_discriminants(x, y, shrinkage=0.1, kind="pattern")
    assert principal_angles(pattern.basis, sigma @ u[:, -k:]).max() < 1e-6
    assert principal_angles(pattern.basis, mean_differences(x, y).basis).max() < 1e-6


def test_mean_differences_span_the_means_and_hold_their_spread() -> None:
    x, y = made(3, 61)
    space = mean_differences(x, y)
    means = np.stack([x[y == c].mean(0) for c in range(3)])
    centred = means[y] - x.mean(0)
    assert space.k == 2
    np.testing.assert_allclose(space.project(x.mean(0) + centred), x.mean(0) + centred)
    assert np.sum(space.singular_values**2) == pytest.approx(np.sum(centred**2) / len(x))


def test_two_classes_give_the_one_direction_to_the_second() -> None:
    x, y = made(4, classes=2)
    one = mean_difference(x[y == 1], x[y == 0]).direction
    np.testing.assert_allclose(mean_differences(x, y).direction, one, atol=1e-9)
    np.testing.assert_allclose(linear_discriminants(x, y, kind="pattern").direction, one, atol=1e-9)
    lda = linear_discriminants(x, y).direction
    assert lda @ one > 0
    np.testing.assert_allclose(linear_discriminants(x, 1 - y).direction, -lda, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_whitened_axes_turn_with_the_states_and_unshrunk_ones_map_inversely(seed: int) -> None:
    x, y = made(seed)
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    shifted = 1e6 * (x @ turn) + 1e6
    assert principal_angles(
        linear_discriminants(shifted, y).basis, turn.T @ linear_discriminants(x, y).basis
    ).max() < 1e-5  # fmt: skip
    mix = turn @ np.diag(rng.uniform(0.5, 2, 6))
    one = linear_discriminants(x, y, shrinkage=0.0)
    two = linear_discriminants(x @ mix, y, shrinkage=0.0)
    assert principal_angles(mix @ two.basis, one.basis).max() < 1e-5


def test_rank_deficient_states_duplicates_and_constant_features_are_fine() -> None:
    x, y = made(5, 20, 30, 2)
    wide = np.hstack([x, x[:, :3], np.full((20, 2), 7.1)])
    for make in (mean_differences, linear_discriminants):
        space = make(np.vstack([wide, wide]), np.tile(y, 2))
        assert space.k == 1
        assert np.abs(space.basis[-2:]).max() < 1e-12
    assert space.provenance["whitened"] and not mean_differences(x, y).provenance["whitened"]


def test_probe_weights_span_what_predictions_depend_on() -> None:
    w = np.random.default_rng(6).standard_normal((3, 5))
    space = probe_weights(w + 4.0, np.zeros(5))
    assert space.k == 2
    assert containment((w[1:] - w[0]).T, space.basis) == pytest.approx(1)
    np.testing.assert_allclose(
        probe_weights(w[:1], np.zeros(5)).direction, w[0] / np.linalg.norm(w[0])
    )


def test_bad_input_is_one_clear_sentence() -> None:
    x, y = made(7)
    with pytest.raises(GeometryError, match="at least two classes"):
        mean_differences(x, np.zeros(60))
    with pytest.raises(GeometryError, match="60 rows but the labels have shape \\(59,\\)"):
        mean_differences(x, y[1:])
    with pytest.raises(GeometryError, match="1 of the labels are missing"):
        mean_differences(x, [np.nan, *y[1:]])
    with pytest.raises(GeometryError, match="has no inverse"):
        linear_discriminants(x[:6], y[:6], shrinkage=0.0)
    with pytest.raises(GeometryError, match="has no inverse"):
        linear_discriminants(np.hstack([x, x]), y, shrinkage=0.0)
    with pytest.raises(GeometryError, match="between 0 and 1"):
        linear_discriminants(x, y, shrinkage=1.5)
    with pytest.raises(GeometryError, match="means of the classes coincide"):
        mean_differences(np.ones((60, 3)), y)
    with pytest.raises(GeometryError, match="do not differ within"):
        linear_discriminants(np.eye(3)[y], y)
    with pytest.raises(GeometryError, match="'readout' or 'pattern'"):
        linear_discriminants(x, y, kind="axes")  # pyright: ignore[reportArgumentType]
    x[0, 0] = np.nan
    with pytest.raises(GeometryError, match="1 values that are NaN"):
        mean_differences(x, y)
    with pytest.raises(GeometryError, match="reads no direction"):
        probe_weights(np.zeros((2, 3)), np.zeros(3))
