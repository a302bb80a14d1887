"""Distances of subspaces against projectors, scipy, closed forms and planted angles."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st

from geometry import (
    GeometryError,
    angle_matrix,
    containment,
    containment_matrix,
    distance_matrix,
    overlap,
    overlap_matrix,
    principal_angles,
    subspace_distance,
)
from geometry.distances import Metric

seeds = st.integers(0, 2**31)
METRICS = get_args(Metric)


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def planes(*thetas: float) -> tuple[np.ndarray, np.ndarray]:
    """Two subspaces of 2·len(thetas) dimensions with exactly these angles."""
    k = len(thetas)
    one = np.eye(2 * k)[:, :k]
    return one, np.vstack([np.diag(np.cos(thetas)), np.diag(np.sin(thetas))])


@given(seeds, st.integers(1, 4), st.integers(1, 4))
def test_projection_distances_equal_the_norms_of_projectors(seed: int, k1: int, k2: int) -> None:
    a, b = gaussian(seed, 9, k1), gaussian(seed + 1, 9, k2)
    gap = a @ np.linalg.pinv(a) - b @ np.linalg.pinv(b)
    frobenius = subspace_distance(a, b, metric="projection_frobenius")
    assert frobenius == pytest.approx(np.linalg.norm(gap), abs=1e-7)
    operator = subspace_distance(a, b, metric="projection_operator")
    assert operator == pytest.approx(np.linalg.norm(gap, 2), abs=1e-7)
    if k1 == k2:
        chordal = subspace_distance(a, b, metric="chordal")
        assert chordal == pytest.approx(np.linalg.norm(gap) / np.sqrt(2), abs=1e-7)


@given(seeds, st.integers(1, 4))
def test_distances_equal_their_formulas_on_scipys_angles(seed: int, k: int) -> None:
    a, b = gaussian(seed, 9, k), gaussian(seed + 1, 9, k)
    t = scipy.linalg.subspace_angles(a, b)
    one, two = np.linalg.qr(a)[0], np.linalg.qr(b)[0]
    u, _, vt = np.linalg.svd(one.T @ two)
    expected = {
        "geodesic": np.linalg.norm(t),
        "martin": np.sqrt(-np.log(np.linalg.det(one.T @ two @ two.T @ one))),
        "fubini_study": np.arccos(abs(np.linalg.det(one.T @ two))),
        "procrustes": np.linalg.norm(one @ u - two @ vt.T),
    }
    for metric, value in expected.items():
        assert subspace_distance(a, b, metric=metric) == pytest.approx(value, rel=1e-6)


@given(seeds, st.sampled_from(METRICS))
def test_rotation_scale_and_change_of_basis_leave_distances_alone(seed: int, metric: str) -> None:
    a, b = gaussian(seed, 7, 3), gaussian(seed + 1, 7, 2)
    turn = np.linalg.qr(gaussian(seed + 2, 7, 7))[0]
    plain = subspace_distance(a, b, metric=metric, unequal="contained")
    moved = turn @ a @ gaussian(seed + 3, 3, 3) * 1e6
    again = subspace_distance(turn @ -b, moved, metric=metric, unequal="contained")
    assert again == pytest.approx(plain, rel=1e-5)


@given(seeds, st.sampled_from([m for m in METRICS if m != "martin"]))
def test_completed_distances_obey_the_triangle_whatever_the_dimensions(
    seed: int, metric: str
) -> None:
    three = [gaussian(seed + i, 6, 1 + (seed + i) % 4) for i in range(3)]
    found = distance_matrix(three, metric=metric)
    assert found[0, 2] <= found[0, 1] + found[1, 2] + 1e-9


@pytest.mark.parametrize("metric", [m for m in METRICS if m != "projection_operator"])
@pytest.mark.parametrize("theta", [1e-9, 1.07e-8, 1.083e-5, 1e-2, 0.1])
def test_a_tiny_planted_angle_is_found_to_nine_digits(metric: str, theta: float) -> None:
    one, two = planes(theta, 0.0)
    turn = np.linalg.qr(gaussian(0, 4, 4))[0]
    closed = {
        "chordal": np.sin(theta),
        "projection_frobenius": np.sqrt(2) * np.sin(theta),
        "martin": np.sqrt(-np.log1p(-(np.sin(theta) ** 2))),
        "procrustes": 2 * np.sin(theta / 2),
    }
    found = subspace_distance(turn @ one, turn @ two, metric=metric)
    assert found == pytest.approx(closed.get(metric, theta), rel=1e-6)
    exact = subspace_distance(one, two, metric=metric)
    assert exact == pytest.approx(closed.get(metric, theta), rel=1e-9)


def test_unequal_dimensions_are_those_of_ye_and_lim_by_hand() -> None:
    line, plane = np.eye(4)[:, :1], np.eye(4)[:, :2]
    missing = {
        "geodesic": np.pi / 2,
        "chordal": 1.0,
        "projection_frobenius": 1.0,
        "projection_operator": 1.0,
        "martin": np.inf,
        "fubini_study": np.pi / 2,
        "procrustes": np.sqrt(2),
    }
    for metric, value in missing.items():
        assert subspace_distance(line, plane, metric=metric) == pytest.approx(value)
        assert subspace_distance(line, plane, metric=metric, unequal="contained") == 0.0


def test_orthogonal_subspaces_are_infinitely_far_by_martin() -> None:
    turn = np.linalg.qr(gaussian(0, 5, 5))[0]
    assert subspace_distance(turn[:, :2], turn[:, 2:4], metric="martin") == np.inf
    assert subspace_distance(turn[:, :2], turn[:, 2:4], metric="fubini_study") == pytest.approx(
        np.pi / 2
    )


def test_matrices_equal_the_loop_over_pairs_and_layers() -> None:
    bases = gaussian(0, 3, 4, 8, 2)
    bases[1, 2] = bases[1, 0] + 1e-6 * bases[1, 1]  # one pair that needs the sines
    angles, shared = angle_matrix(bases), overlap_matrix(bases)
    inside = containment_matrix(bases)
    for layer in range(3):
        for a in range(4):
            for b in range(4):
                if a != b:
                    one, two = bases[layer, a], bases[layer, b]
                    np.testing.assert_allclose(
                        angles[layer, a, b], principal_angles(one, two), rtol=1e-8
                    )
                assert shared[layer, a, b] == pytest.approx(
                    overlap(bases[layer, a], bases[layer, b])
                )
                assert inside[layer, a, b] == pytest.approx(shared[layer, a, b])
    assert np.all(np.diagonal(angles, axis1=1, axis2=2) == 0)


@given(seeds)
def test_a_list_of_unequal_dimensions_equals_the_loop_over_pairs(seed: int) -> None:
    bases = [gaussian(seed + i, 9, k) for i, k in enumerate((3, 1, 4, 3))]
    bases[3] = np.hstack([bases[0][:, :2], bases[3][:, :1]])
    angles, inside, shared = angle_matrix(bases), containment_matrix(bases), overlap_matrix(bases)
    for a in range(4):
        for b in range(4):
            assert inside[a, b] == pytest.approx(containment(bases[a], bases[b]))
            assert shared[a, b] == pytest.approx(overlap(bases[a], bases[b]))
            least = min(bases[a].shape[1], bases[b].shape[1])
            assert np.isnan(angles[a, b, least:]).all()
            if a != b:
                np.testing.assert_allclose(
                    angles[a, b, :least], principal_angles(bases[a], bases[b]), atol=1e-9
                )


def test_more_dimensions_than_fit_apart_still_meet() -> None:
    a, b = gaussian(0, 5, 4), gaussian(1, 5, 4)  # two of 4 in 5 share 3 dimensions
    assert np.all(angle_matrix([a, b])[0, 1, :3] < 1e-12)


def test_bad_input_is_one_clear_sentence() -> None:
    x = gaussian(0, 6, 2)
    broken = x.copy()
    broken[0, 0] = np.nan
    with pytest.raises(GeometryError, match="1 values that are NaN"):
        distance_matrix([x, broken])
    with pytest.raises(GeometryError, match="metric is 'cosine'"):
        subspace_distance(x, x, metric="cosine")  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match="unequal is 'pad'"):
        subspace_distance(x, x, unequal="pad")  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match="depend on one another"):
        distance_matrix(np.ones((2, 4, 2)))
    with pytest.raises(GeometryError, match="one space"):
        distance_matrix([x, x[:4]])
    with pytest.raises(GeometryError, match=r"pass \[V, d, k\]"):
        distance_matrix(x)
    with pytest.raises(GeometryError, match="bases is empty"):
        angle_matrix([])
    with pytest.raises(GeometryError, match="transposed"):
        overlap_matrix([x.T, x.T])
