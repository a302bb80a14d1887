"""Shared and private parts against planted ones, closed forms and plain simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from geometry import GeometryError, containment, joint_null, joint_subspaces, principal_angles

seeds = st.integers(0, 2**31)


def planted(
    seed: int, *, shared: int, private: list[int], d: int = 60, noise: float = 0.0
) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Bases that share exactly `shared` directions, each mixed with private ones."""
    rng = np.random.default_rng(seed)
    frame = np.linalg.qr(rng.standard_normal((d, d)))[0]
    common, rest, bases, own = frame[:, :shared], frame[:, shared:], [], []
    for p in private:
        mine, rest = rest[:, :p], rest[:, p:]
        mix = np.linalg.qr(rng.standard_normal((shared + p, shared + p)))[0]
        exact = np.hstack([common, mine]) @ mix
        bases.append(np.linalg.qr(exact + noise * rng.standard_normal(exact.shape))[0])
        own.append(mine)
    return common, own, bases


@given(seeds, st.integers(0, 3), st.lists(st.integers(1, 3), min_size=3, max_size=6))
def test_planted_shared_and_private_parts_are_found(
    seed: int, shared: int, private: list[int]
) -> None:
    common, own, bases = planted(seed, shared=shared, private=private)
    found = joint_subspaces(bases, draws=100, seed=0)
    assert found.shared.shape[1] == shared
    if shared:
        assert principal_angles(found.shared, common).max() < 1e-7
    for i, p in enumerate(private):
        assert found.private[i].shape[1] == p
        assert principal_angles(found.private[i], own[i]).max() < 1e-7
        assert found.shared_energy[i] == pytest.approx(shared / (shared + p))


def test_planted_ranks_survive_noise_in_the_bases() -> None:
    common, _, bases = planted(0, shared=2, private=[1, 2, 2, 3, 1], d=200, noise=0.02)
    found = joint_subspaces(bases, draws=200, seed=0)
    assert found.shared.shape[1] == 2
    assert [p.shape[1] for p in found.private] == [1, 2, 2, 3, 1]
    assert containment(found.shared, common) > 0.95


@given(st.floats(0.05, 1.5))
def test_the_eigenvalues_of_two_lines_are_the_closed_form(theta: float) -> None:
    one = np.array([[1.0], [0.0], [0.0]])
    two = np.array([[np.cos(theta)], [np.sin(theta)], [0.0]])
    values = joint_subspaces([one, two], draws=10, seed=0).eigenvalues
    np.testing.assert_allclose(values, [(1 + np.cos(theta)) / 2, (1 - np.cos(theta)) / 2])


def test_what_two_of_eight_share_is_above_chance_and_yet_not_shared_by_all() -> None:
    _, _, pair = planted(0, shared=1, private=[1, 1], d=300)
    _, _, apart = planted(1, shared=0, private=[2] * 6, d=300)
    found = joint_subspaces([*pair, *apart], draws=200, seed=0)
    assert found.eigenvalues[0] > found.null
    assert found.shared.shape[1] == 0 and found.threshold == 0.5
    wide = joint_subspaces([*pair, *apart], share=0.1, draws=200, seed=0)
    assert wide.shared.shape[1] == 1 and wide.threshold == wide.null


@pytest.mark.parametrize(("d", "sizes"), [(20, [2, 3, 1]), (5, [2, 3, 2])])
def test_the_null_is_that_of_random_bases_drawn_one_by_one(d: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(7)
    plain = []
    for _ in range(800):
        qs = [np.linalg.qr(rng.standard_normal((d, k)))[0] for k in sizes]
        plain.append(np.linalg.eigvalsh(sum(q @ q.T for q in qs) / len(sizes))[-1])
    sample = joint_null(d, sizes, draws=800, seed=0)
    assert stats.ks_2samp(plain, sample).pvalue > 0.001


def test_the_null_with_a_spectrum_is_that_of_a_gaussian_of_that_covariance() -> None:
    spectrum = 1 / np.arange(1, 13.0)
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 12)))[0]
    root = turn * np.sqrt(spectrum)
    rng = np.random.default_rng(1)
    plain = []
    for _ in range(800):
        qs = [np.linalg.qr(root @ rng.standard_normal((12, 2)))[0] for _ in range(3)]
        plain.append(np.linalg.eigvalsh(sum(q @ q.T for q in qs) / 3)[-1])
    sample = joint_null(12, [2, 2, 2], spectrum=spectrum, draws=800, seed=0)
    assert stats.ks_2samp(plain, sample).pvalue > 0.001
    assert sample.mean() > joint_null(12, [2, 2, 2], draws=800, seed=0).mean() + 0.02


def test_random_subspaces_share_as_rarely_as_the_level_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        bases = np.linalg.qr(rng.standard_normal((4, 30, 2)))[0]
        hits += joint_subspaces(bases, share=0.0, draws=100, seed=seed).shared.shape[1] > 0
    assert stats.binomtest(hits, 300, 0.05).pvalue > 0.001


def test_energy_is_counted_by_singular_values_by_hand() -> None:
    axes = np.eye(9)
    bases = [axes[:, [0, 1]], axes[:, [0, 2]], axes[:, [0, 3]]]
    found = joint_subspaces(
        bases, singular_values=[[3.0, 1.0], [1.0, 1.0], [1.0, 2.0]], draws=50, seed=0
    )
    np.testing.assert_allclose(found.shared_energy, [0.9, 0.5, 0.2])


@given(seeds)
def test_rotation_and_order_of_varieties_move_the_parts_along(seed: int) -> None:
    _, _, bases = planted(seed, shared=2, private=[1, 2, 1], d=20, noise=0.02)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((20, 20)))[0]
    one = joint_subspaces(bases, draws=50, seed=0)
    two = joint_subspaces([turn @ b for b in bases[::-1]], draws=50, seed=0)
    np.testing.assert_allclose(two.eigenvalues, one.eigenvalues, atol=1e-10)
    np.testing.assert_allclose(two.shared_energy[::-1], one.shared_energy, atol=1e-9)
    assert principal_angles(turn @ one.shared, two.shared).max() < 1e-6


def test_duplicates_are_shared_wholly() -> None:
    base = np.eye(12)[:, :3]
    found = joint_subspaces([base] * 4, draws=50, seed=0)
    assert found.shared.shape[1] == 3
    assert all(p.shape == (12, 0) for p in found.private)
    np.testing.assert_allclose(found.shared_energy, 1.0)


def test_bad_input_is_one_clear_sentence() -> None:
    base = np.eye(5)[:, :2]
    with pytest.raises(GeometryError, match="fewer than 2"):
        joint_subspaces([base], seed=0)
    with pytest.raises(GeometryError, match="one space"):
        joint_subspaces([base, np.eye(4)[:, :2]], seed=0)
    with pytest.raises(GeometryError, match="level is 1"):
        joint_subspaces([base, base], level=1, seed=0)
    with pytest.raises(GeometryError, match="depend on one another"):
        joint_subspaces([base, np.ones((5, 2))], seed=0)
    with pytest.raises(GeometryError, match="as many numbers"):
        joint_subspaces([base, base], singular_values=[[1.0], [1.0, 2.0]], seed=0)
    with pytest.raises(GeometryError, match="belong to no columns"):
        joint_subspaces([base, 2 * base], singular_values=[[1.0, 1.0]] * 2, seed=0)
    with pytest.raises(GeometryError, match="rank 1"):
        joint_subspaces([base, base], spectrum=[1.0, 0.0], seed=0)
    with pytest.raises(GeometryError, match="negative numbers"):
        joint_subspaces([base, base], spectrum=[1.0, -1.0], seed=0)
    with pytest.raises(GeometryError, match="draws is 0"):
        joint_subspaces([base, base], draws=0, seed=0)
    with pytest.raises(GeometryError, match="NaN"):
        joint_subspaces([base, base * np.nan], seed=0)


def test_a_null_that_is_given_stands_for_the_one_that_would_be_drawn() -> None:
    bases = np.random.default_rng(0).standard_normal((3, 9, 2))
    drawn = joint_subspaces(bases, draws=300, seed=4)
    given = joint_subspaces(bases, null=joint_null(9, [2, 2, 2], draws=300, seed=4), seed=0)
    assert given.null == drawn.null and given.threshold == drawn.threshold
    with pytest.raises(GeometryError, match="null holds 1 values that are NaN"):
        joint_subspaces(bases, null=[0.5, float("nan")], seed=0)
