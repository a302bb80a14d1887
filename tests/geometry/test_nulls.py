"""Chance overlaps against moments, distributions and plain simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg, stats

from geometry import (
    GeometryError,
    angle_sample,
    cosine_null,
    covariance_overlap_sample,
    haar_overlap,
    haar_overlap_sample,
    overlap,
    random_subspace,
)


@pytest.mark.parametrize(("d", "k1", "k2"), [(10, 1, 1), (12, 3, 3), (9, 2, 5), (5, 5, 2)])
def test_sampled_overlaps_have_the_moments_of_the_formula(d: int, k1: int, k2: int) -> None:
    sample = haar_overlap_sample(d, k1, k2, draws=6000, seed=0)
    mean, sd = haar_overlap(d, k1, k2)
    assert sample.mean() == pytest.approx(mean, abs=4 * sd / np.sqrt(6000) + 1e-9)
    assert sample.std() == pytest.approx(sd, rel=0.08, abs=1e-9)


def test_sampled_overlaps_are_those_of_random_subspaces() -> None:
    bases = [random_subspace(8, 2, seed=s).basis for s in range(800)]
    plain = [overlap(a, b) for a, b in zip(bases[::2], bases[1::2], strict=True)]
    sample = haar_overlap_sample(8, 2, 2, draws=2000, seed=1)
    assert stats.ks_2samp(plain, sample).pvalue > 0.001


def test_one_against_a_plane_is_beta() -> None:
    sample = haar_overlap_sample(7, 1, 3, draws=2000, seed=0)
    assert stats.kstest(sample, stats.beta(1.5, 2.0).cdf).pvalue > 0.001


def test_the_identity_covariance_is_the_uniform_null() -> None:
    sample = covariance_overlap_sample(np.eye(10), 2, 3, draws=4000, seed=0)
    mean, sd = haar_overlap(10, 2, 3)
    assert sample.mean() == pytest.approx(mean, abs=4 * sd / np.sqrt(4000))


def test_an_uneven_covariance_equals_a_plain_loop_and_exceeds_the_uniform_null() -> None:
    turn = random_subspace(12, 12, seed=3).basis
    covariance = turn @ np.diag(1 / np.arange(1, 13)) @ turn.T
    rng = np.random.default_rng(5)
    root = np.linalg.cholesky(covariance)
    plain = [
        overlap(root @ rng.standard_normal((12, 2)), root @ rng.standard_normal((12, 2)))
        for _ in range(600)
    ]
    sample = covariance_overlap_sample(covariance, 2, 2, draws=3000, seed=0)
    assert stats.ks_2samp(plain, sample).pvalue > 0.001
    assert sample.mean() > 1.3 * haar_overlap(12, 2, 2).mean


@pytest.mark.parametrize("k", [1, 3])
def test_the_cosine_null_is_that_of_the_sample(k: int) -> None:
    cosines = np.sqrt(haar_overlap_sample(20, 1, k, draws=8000, seed=0))
    null = cosine_null(20, k)
    assert cosines.mean() == pytest.approx(null.mean, rel=0.03)
    assert cosines.std() == pytest.approx(null.sd, rel=0.05)
    assert np.mean(cosines > null.quantile) == pytest.approx(0.05, abs=0.012)


def test_the_same_seed_draws_the_same() -> None:
    one, two = (haar_overlap_sample(6, 2, 2, draws=50, seed=9) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_bad_input_is_one_clear_sentence() -> None:
    with pytest.raises(GeometryError, match="k2 is 9"):
        haar_overlap(8, 2, 9)
    with pytest.raises(GeometryError, match="rank 1"):
        covariance_overlap_sample(np.ones((4, 4)), 2, 2, draws=5, seed=0)
    with pytest.raises(GeometryError, match="must be square"):
        covariance_overlap_sample(np.ones((4, 3)), 1, 1, draws=5, seed=0)
    with pytest.raises(GeometryError, match="not symmetric"):
        covariance_overlap_sample(np.triu(np.ones((4, 4))), 1, 1, draws=5, seed=0)
    with pytest.raises(GeometryError, match="negative eigenvalues"):
        covariance_overlap_sample(-np.eye(4), 1, 1, draws=5, seed=0)
    with pytest.raises(GeometryError, match="draws is 0"):
        haar_overlap_sample(8, 2, 2, draws=0, seed=0)
    with pytest.raises(GeometryError, match="every cosine is 1"):
        cosine_null(3, 3)


def test_the_angle_of_two_random_lines_has_a_squared_cosine_of_beta() -> None:
    sample = angle_sample(7, 1, 1, draws=2000, seed=0)[:, 0]
    assert stats.kstest(np.cos(sample) ** 2, stats.beta(0.5, 3.0).cdf).pvalue > 0.001


@pytest.mark.parametrize("spectrum", [None, [8.0, 4.0, 2.0, 1.0, 0.5, 0.0]])
def test_sampled_angles_are_those_of_scipy_on_plain_draws(spectrum: list[float] | None) -> None:
    rng = np.random.default_rng(4)
    root = np.sqrt(np.ones(6) if spectrum is None else np.array(spectrum))[:, None]
    plain = np.array(
        [
            linalg.subspace_angles(
                root * rng.standard_normal((6, 3)), root * rng.standard_normal((6, 2))
            )[::-1]
            for _ in range(600)
        ]
    )
    sample = angle_sample(6, 3, 2, spectrum=spectrum, draws=2500, seed=0)
    assert sample.shape == (2500, 2) and (np.diff(sample, axis=1) >= 0).all()
    for found, wanted in zip(sample.T, plain.T, strict=True):
        assert stats.ks_2samp(found, wanted).pvalue > 0.001


def test_sampled_angles_and_overlaps_are_of_the_same_draws() -> None:
    spectrum = 1.0 / np.arange(1, 9)
    angles = angle_sample(8, 2, 3, spectrum=np.sort(spectrum), draws=50, seed=3)
    sample = covariance_overlap_sample(np.diag(spectrum), 2, 3, draws=50, seed=3)
    np.testing.assert_allclose((np.cos(angles) ** 2).mean(axis=1), sample, rtol=1e-9)


def test_a_spectrum_without_enough_directions_is_refused() -> None:
    with pytest.raises(GeometryError, match="rank 1, so no 2 dimensions"):
        angle_sample(5, 2, 2, spectrum=[1.0, 0.0, 0.0], draws=5, seed=0)
    with pytest.raises(GeometryError, match="negative"):
        angle_sample(5, 1, 1, spectrum=[1.0, -1.0], draws=5, seed=0)
