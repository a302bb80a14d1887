"""Means of subspaces against angle means, scipy's minimiser, midpoints and projectors."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from geometry import (
    GeometryError,
    karcher_mean,
    principal_angles,
    projector_mean,
    running_projector_mean,
)

seeds = st.integers(0, 2**31)


def around(seed: int, m: int, d: int, k: int, spread: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centre = np.linalg.qr(rng.standard_normal((d, k)))[0]
    return np.linalg.qr(centre + spread * rng.standard_normal((m, d, k)) / np.sqrt(d))[0]


@given(st.lists(st.floats(-0.7, 0.7), min_size=1, max_size=6))
def test_of_lines_in_a_plane_it_is_the_mean_of_the_angles(angles: list[float]) -> None:
    lines = [np.array([[np.cos(a)], [np.sin(a)]]) for a in angles]
    mean = karcher_mean(lines)
    found = np.arctan(mean.basis[1, 0] / mean.basis[0, 0])
    assert found == pytest.approx(np.mean(angles), abs=1e-9)
    assert mean.variance == pytest.approx(np.var(angles), abs=1e-9)


@given(seeds)
def test_of_two_it_is_halfway_whatever_the_dimensions(seed: int) -> None:
    bases = around(seed, 2, 9, 3)
    mean = karcher_mean(bases)
    whole = np.linalg.norm(principal_angles(*bases))
    np.testing.assert_allclose(mean.distances, whole / 2, rtol=1e-7)
    assert mean.variance == pytest.approx(whole**2 / 4)


def test_no_subspace_is_nearer_by_scipys_minimiser() -> None:
    bases = around(3, 5, 5, 2, spread=0.8)
    weights = np.array([1.0, 2.0, 1.0, 3.0, 1.0])

    def cost(flat: np.ndarray) -> float:
        q = flat.reshape(5, 2)
        each = [np.sum(scipy.linalg.subspace_angles(q, b) ** 2) for b in bases]
        return float(weights @ each / weights.sum())

    best = scipy.optimize.minimize(cost, bases[0].ravel(), method="BFGS", tol=1e-9)
    mean = karcher_mean(bases, weights=weights)
    assert mean.variance == pytest.approx(best.fun, rel=1e-6)
    assert principal_angles(mean.basis, best.x.reshape(5, 2)).max() < 1e-3
    assert cost(mean.basis.ravel()) == pytest.approx(mean.variance, rel=1e-9)


@given(seeds)
def test_the_projector_mean_is_the_top_of_the_mean_projector_by_eigh(seed: int) -> None:
    bases = around(seed, 4, 8, 2)
    average = np.mean([b @ b.T for b in bases], axis=0)
    values, axes = np.linalg.eigh(average)
    mean = projector_mean(bases)
    np.testing.assert_allclose(mean.eigenvalues, values[::-1], atol=1e-12)
    assert principal_angles(mean.basis, axes[:, -2:]).max() < 1e-7
    assert mean.gap == pytest.approx(values[-2] - values[-3])
    chordal = [np.sum(np.sin(principal_angles(mean.basis, b)) ** 2) for b in bases]
    assert mean.variance == pytest.approx(np.mean(chordal))


def test_the_running_mean_is_the_averaged_projector_by_eigh() -> None:
    rng = np.random.default_rng(3)
    bases = [np.linalg.qr(rng.standard_normal((9, 2)))[0] for _ in range(4)]
    projector, average = bases[0] @ bases[0].T, None
    for step, basis in enumerate(bases):
        projector = 0.7 * projector + 0.3 * basis @ basis.T if step else projector
        average = running_projector_mean(average, basis, smooth=0.7, most=8)
    assert average is not None
    axes, weights = average
    values, vectors = np.linalg.eigh(projector)
    np.testing.assert_allclose(weights, values[::-1][:8], atol=1e-12)
    top = vectors[:, -2:]
    np.testing.assert_allclose(axes[:, :2] @ axes[:, :2].T, top @ top.T, atol=1e-9)


@given(seeds)
def test_a_projector_mean_of_unequal_dimensions_varies_as_projectors_do(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bases = [np.linalg.qr(rng.standard_normal((7, k)))[0] for k in (1, 3, 2)]
    mean = projector_mean(bases, k=2)
    gaps = [np.linalg.norm(mean.basis @ mean.basis.T - b @ b.T) ** 2 / 2 for b in bases]
    assert mean.variance == pytest.approx(np.mean(gaps))


@given(seeds)
def test_rotation_order_and_change_of_basis_move_the_mean_along(seed: int) -> None:
    bases = around(seed, 4, 6, 2)
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    moved = [turn @ b @ rng.standard_normal((2, 2)) * 1e6 for b in bases[::-1]]
    for mean in (karcher_mean, projector_mean):
        one, two = mean(bases), mean(moved)
        assert principal_angles(turn @ one.basis, two.basis).max() < 1e-6
        assert two.variance == pytest.approx(one.variance, rel=1e-6)


def test_duplicates_have_themselves_as_mean_and_no_variance() -> None:
    base = around(0, 1, 5, 2)[0]
    for mean in (karcher_mean, projector_mean):
        found = mean([base] * 4)
        assert principal_angles(found.basis, base).max() < 1e-10
        assert found.variance == pytest.approx(0, abs=1e-20)


def test_it_says_whether_the_mean_is_the_only_one() -> None:
    near = [np.array([[np.cos(a)], [np.sin(a)]]) for a in (-0.2, 0.2)]
    far = [np.array([[np.cos(a)], [np.sin(a)]]) for a in (-0.785, -0.78, 0.8)]
    assert karcher_mean(near).unique and not karcher_mean(far).unique
    assert karcher_mean(far).residual <= 1e-10


def test_a_spread_set_in_many_dimensions_settles() -> None:
    mean = karcher_mean(around(0, 12, 40, 5, spread=1.0))
    assert mean.residual <= 1e-10
    assert mean.basis.T @ mean.basis == pytest.approx(np.eye(5), abs=1e-12)


def test_bad_input_is_one_clear_sentence() -> None:
    line, other = np.eye(3)[:, :1], np.eye(3)[:, 1:2]
    with pytest.raises(GeometryError, match="right angles to the mean"):
        karcher_mean([line, line, other])
    with pytest.raises(GeometryError, match=r"have \[1, 2\] dimensions; a Karcher mean"):
        karcher_mean([line, np.eye(3)[:, :2]])
    with pytest.raises(GeometryError, match="say how many"):
        projector_mean([line, np.eye(3)[:, :2]])
    with pytest.raises(GeometryError, match="k is 3, but at most 2"):
        projector_mean([line, other], k=3)
    with pytest.raises(GeometryError, match="weights must be 2 numbers"):
        karcher_mean([line, line], weights=[1.0, -1.0])
    with pytest.raises(GeometryError, match="bases is empty"):
        karcher_mean([])
    with pytest.raises(GeometryError, match="one space"):
        karcher_mean([line, np.eye(4)[:, :1]])
    with pytest.raises(GeometryError, match="did not settle in 1 steps"):
        karcher_mean(around(3, 5, 5, 2, spread=0.8), steps=1)
    with pytest.raises(GeometryError, match="NaN"):
        karcher_mean([line, line * np.nan])
