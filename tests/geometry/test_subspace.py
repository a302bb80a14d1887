"""Subspaces against projectors, analytic planes and scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from geometry import (
    GeometryError,
    Subspace,
    containment,
    mean_difference,
    overlap,
    paired_differences,
    principal_angles,
    random_subspace,
)

seeds = st.integers(0, 2**31)


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(2, 12), st.data())
def test_angles_equal_scipys_whatever_the_sizes(seed: int, d: int, data: st.DataObject) -> None:
    k1, k2 = data.draw(st.integers(1, d)), data.draw(st.integers(1, d))
    a, b = gaussian(seed, d, k1), gaussian(seed + 1, d, k2)
    np.testing.assert_allclose(
        principal_angles(a, b), scipy.linalg.subspace_angles(a, b)[::-1], atol=1e-7
    )


@pytest.mark.parametrize("theta", [1e-7, 1e-5, 1e-3, 0.1, np.pi / 4, 1.0, np.pi / 2 - 1e-5])
def test_a_rotated_plane_has_the_angle_it_was_rotated_by(theta: float) -> None:
    turn = scipy.linalg.qr(gaussian(0, 9, 9))[0]
    one = np.eye(9)[:, :2]
    two = one.copy()
    two[:, 1] = np.cos(theta) * np.eye(9)[1] + np.sin(theta) * np.eye(9)[5]
    found = principal_angles(turn @ one, turn @ two)
    assert found[0] < 1e-7
    assert found[1] == pytest.approx(theta, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 4), st.integers(1, 4))
def test_overlap_is_the_mean_squared_cosine_and_is_symmetric(seed: int, k1: int, k2: int) -> None:
    a, b = gaussian(seed, 6, k1), gaussian(seed + 1, 6, k2)
    p1, p2 = a @ np.linalg.pinv(a), b @ np.linalg.pinv(b)
    assert overlap(a, b) == pytest.approx(np.trace(p1 @ p2) / min(k1, k2), abs=1e-9)
    assert overlap(a, b) == pytest.approx(overlap(b, a))
    assert containment(a, b) == pytest.approx(np.trace(p1 @ p2) / k1, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(1, 6))
def test_projection_and_rejection_split_every_point_about_the_mean(seed: int, k: int) -> None:
    space = random_subspace(6, k, seed=seed, mean=gaussian(seed, 6))
    x = gaussian(seed + 1, 5, 6)
    p = space.basis @ space.basis.T
    np.testing.assert_allclose(p @ p, p, atol=1e-12)
    np.testing.assert_allclose(space.project(x) + space.reject(x), x + space.mean, atol=1e-12)
    np.testing.assert_allclose(space.project(space.project(x)), space.project(x), atol=1e-12)
    np.testing.assert_allclose(space.coordinates(space.reject(x)), 0, atol=1e-12)


def test_mean_difference_leads_from_the_negative_mean_to_the_positive_one() -> None:
    high, low = gaussian(0, 20, 5) + 3, gaussian(1, 30, 5)
    space = mean_difference(high, low, site="blocks.1.hook_resid_post")
    reached = space.mean + space.singular_values[0] * space.direction
    np.testing.assert_allclose(reached, high.mean(0))
    middle = mean_difference(high, low, mean="midpoint")
    assert middle.coordinates(high.mean(0))[0] == pytest.approx(space.singular_values[0] / 2)


def test_paired_differences_find_the_planted_plane() -> None:
    planted = np.linalg.qr(gaussian(0, 10, 2))[0]
    reference = gaussian(1, 40, 10)
    x = reference + gaussian(2, 40, 2) @ planted.T
    space = paired_differences(x, reference, k=2)
    assert principal_angles(space.basis, planted).max() < 1e-6
    np.testing.assert_allclose(space.mean, reference.mean(0))
    norm = np.linalg.norm(x - reference) ** 2 / 40
    assert np.sum(space.singular_values**2) == pytest.approx(norm)


def test_a_saved_subspace_comes_back_whole(tmp_path: Path) -> None:
    space = mean_difference(gaussian(0, 4, 7), gaussian(1, 4, 7), site="blocks.0.hook_resid_pre")
    back = Subspace.load(space.save(tmp_path / "a" / "direction.safetensors"))
    for name in ("basis", "mean", "singular_values"):
        np.testing.assert_array_equal(getattr(back, name), getattr(space, name))
    assert back.site == space.site and back.provenance == space.provenance


def test_a_file_that_holds_no_subspace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(GeometryError, match="safetensors"):
        Subspace.load(tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="check the path"):
        Subspace.load(tmp_path / "y.safetensors")


def test_bad_input_is_one_clear_sentence() -> None:
    x = gaussian(0, 6, 4)
    broken = x.copy()
    broken[2, 1] = np.nan
    with pytest.raises(GeometryError, match="1 values that are NaN"):
        mean_difference(broken, x)
    with pytest.raises(GeometryError, match="means coincide"):
        mean_difference(x, x)
    with pytest.raises(GeometryError, match="4 columns and negative 3"):
        mean_difference(x, x[:, :3])
    with pytest.raises(GeometryError, match="same rows in the same order"):
        paired_differences(x, x[:4], k=1)
    with pytest.raises(GeometryError, match="k is 5"):
        paired_differences(x, -x, k=5)
    with pytest.raises(GeometryError, match="rank 1"):
        paired_differences(x + 1.0, x, k=2)
    with pytest.raises(GeometryError, match="depend on one another"):
        principal_angles(np.ones((4, 2)), x[:4, :1])
    with pytest.raises(GeometryError, match="transposed"):
        overlap(x.T, x.T)
    with pytest.raises(GeometryError, match="one space"):
        overlap(x[:, :1], x[:4, :1])
    with pytest.raises(GeometryError, match="not orthonormal"):
        Subspace(np.ones((3, 1)), np.zeros(3), np.ones(1))
    with pytest.raises(GeometryError, match="needs \\(3,\\)"):
        Subspace(np.eye(3)[:, :1], np.zeros(2), np.ones(1))
    with pytest.raises(GeometryError, match="no one direction"):
        _ = random_subspace(4, 2, seed=0).direction
    with pytest.raises(GeometryError, match="at most 4"):
        random_subspace(4, 5, seed=0)
