"""The count of directions against planted numbers, its level and enumeration; samples of a cone."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from geometry import (
    DirectionCount,
    GeometryError,
    cone_sample,
    independent_directions,
    principal_angles,
)


def counted(high: np.ndarray, low: np.ndarray, seed: int = 0, **options: Any) -> DirectionCount:
    groups = np.arange(len(high)), len(high) + np.arange(len(low))
    told: dict[str, Any] = {"groups": groups, "permutations": 199, "resamples": 2, "seed": seed}
    return independent_directions(high, low, **(told | options))


def cone_case(
    seed: int,
    k: int,
    *,
    n: int = 100,
    d: int = 16,
    spread: np.ndarray | float = 1.0,
    divided: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positives that each depart along their own positive mix of k directions; negatives do not.

    Divided, the mixes sum to the same for all, and most rows are nearly on one of the directions.
    """
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((d, k)))[0]
    mix = 12 * rng.dirichlet(np.full(k, 0.3), n) if divided else 4 * rng.exponential(size=(n, k))
    high, low = rng.standard_normal((2, n, d)) * spread
    return high + mix @ basis.T + 9.0, low + 9.0, basis


def test_noise_alone_counts_a_direction_as_often_as_the_level_says() -> None:
    rejected = 0
    for seed in range(500):
        high, low = np.random.default_rng(seed).standard_normal((2, 40, 5))
        rejected += counted(high, low, seed, permutations=99, most=1).count > 0
    assert 0.03 <= rejected / 500 <= 0.07


@pytest.mark.parametrize("d", [5, 250])
def test_one_direction_of_uneven_strength_is_seldom_taken_for_two(d: int) -> None:
    """What the projection misses varies with the strength, which would pass for a second one."""
    found = []
    for seed in range(120):
        high, low, _ = cone_case(seed, 1, n=60, d=d)
        found.append(counted(high, low, seed, permutations=99, most=2).count)
    assert np.mean(np.array(found) >= 1) > 0.95
    assert np.mean(np.array(found) == 2) <= 0.1


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_cone_of_planted_directions_is_counted_and_spanned(k: int) -> None:
    exact = 0
    for seed in range(12):
        high, low, basis = cone_case(seed, k, n=200)
        found = counted(high, low, seed)
        exact += found.count == k
        if found.count == k:
            assert np.degrees(principal_angles(found.basis, basis).max()) < 30
    assert exact >= 10


def test_in_few_rows_and_many_uneven_dimensions_few_directions_are_added() -> None:
    """Quiet dimensions show what little of a strong direction a projection leaves behind."""
    more = 0
    for seed in range(40):
        spread = np.arange(1, 201) ** -0.7
        high, low, _ = cone_case(seed, 2, n=60, d=200, spread=spread, divided=True)
        found = counted(high, low, seed, permutations=99, most=3)
        more += found.count > 2
        assert found.subspace().k == found.count
    assert more <= 10


def test_a_shift_that_all_rows_share_is_one_direction_whatever_it_is_made_of() -> None:
    rng = np.random.default_rng(0)
    high, low = rng.standard_normal((2, 150, 12))
    assert counted(high + 3 * (np.arange(12) < 3), low).count == 1


def test_fewer_rows_than_dimensions_are_enough_for_a_strong_direction() -> None:
    rng = np.random.default_rng(1)
    high, low = rng.standard_normal((2, 20, 300))
    high[:, 0] += 25
    found = counted(high, low)
    assert found.count == 1 and abs(found.basis[0, 0]) > 0.8


def test_directions_are_orthonormal_and_the_frame_ends_with_the_failed_round() -> None:
    high, low, _ = cone_case(0, 3, n=200)
    found = counted(high, low)
    frame = found.frame()
    assert len(frame) == found.count + 1 and not found.exhausted
    assert (frame["p"][: found.count] <= 0.05).all() and frame["p"].iloc[-1] > 0.05
    every = np.stack([r.direction for r in found.rounds], axis=1)
    np.testing.assert_allclose(every.T @ every, np.eye(len(frame)), atol=1e-10)


def test_a_difference_of_scale_runs_out_of_rounds_and_says_so() -> None:
    rng = np.random.default_rng(0)
    high, low = rng.standard_normal((2, 300, 8))
    found = counted(3 * high + 2, low, most=4)
    assert found.count == 4 and found.exhausted


def test_the_first_p_of_paired_groups_is_that_of_all_label_swaps() -> None:
    rng = np.random.default_rng(4)
    shared = rng.standard_normal((28, 6))
    high, low = shared + rng.standard_normal((2, 28, 6)) + np.array([[[0.35]], [[0.0]]])
    train = np.arange(28) < 20
    found = counted(
        high, low, groups=(np.arange(28),) * 2, train=(train, train), permutations=20000, most=1
    ).rounds[0]
    scores = high[~train] @ found.reading, low[~train] @ found.reading
    labels, areas = [1] * 8 + [0] * 8, []
    for swap in product([False, True], repeat=8):
        one, two = np.where(swap, scores[1], scores[0]), np.where(swap, scores[0], scores[1])
        areas.append(roc_auc_score(labels, np.concatenate([one, two])))
    observed = roc_auc_score(labels, np.concatenate(scores))
    exact = float(np.mean(np.array(areas) >= observed - 1e-12))
    assert found.separation.value == pytest.approx(observed)
    assert found.separation.p == pytest.approx(exact, abs=4 * np.sqrt(exact / 20000))


def test_rows_of_one_group_do_not_count_as_many() -> None:
    """Noise, but each text ten times: as groups it is noise, as rows of their own it is found."""
    kept = cut = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        high, low = (np.repeat(rng.standard_normal((8, 4)), 10, axis=0) for _ in range(2))
        names = np.repeat(np.arange(8), 10)
        train = names < 4
        told: dict[str, Any] = {"train": (train, train), "permutations": 99, "most": 1}
        kept += counted(high, low, groups=(names, 8 + names), **told).count
        cut += counted(high, low, **told).count
    assert kept <= 8 < 15 <= cut


def test_samples_of_a_cone_are_unit_positive_mixes_and_uniform_for_an_orthonormal_basis() -> None:
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((9, 2)))[0]
    made = cone_sample(basis, 2000, seed=0)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1.0)
    mix = made @ basis
    np.testing.assert_allclose(mix @ basis.T, made, atol=1e-12)
    assert mix.min() >= 0
    angles = np.arctan2(mix[:, 1], mix[:, 0])
    assert stats.kstest(angles, stats.uniform(0, np.pi / 2).cdf).pvalue > 0.001
    np.testing.assert_array_equal(made, cone_sample(basis, 2000, seed=0))


def test_lengths_of_the_basis_do_not_move_the_samples_and_one_column_is_itself() -> None:
    basis = np.random.default_rng(1).standard_normal((6, 3))
    np.testing.assert_allclose(
        cone_sample(basis, 5, seed=2), cone_sample(basis * [1.0, 9.0, 0.1], 5, seed=2)
    )
    only = cone_sample(basis[:, :1], 2, seed=0)
    np.testing.assert_allclose(only, np.tile(basis[:, 0] / np.linalg.norm(basis[:, 0]), (2, 1)))


def test_bad_input_is_one_clear_sentence() -> None:
    high, low = np.random.default_rng(0).standard_normal((2, 12, 4))
    names = np.arange(12)
    half = names < 6
    with pytest.raises(GeometryError, match="both sides of train"):
        counted(high, low, groups=(names, names), train=(half, ~half))
    with pytest.raises(GeometryError, match="True or False for each of 12 rows"):
        counted(high, low, train=(half[:5], half))
    with pytest.raises(GeometryError, match="has 0 rows on one side of the split"):
        counted(high, low, train=(names < 12, half))
    with pytest.raises(GeometryError, match="cannot be halved"):
        counted(high, low, groups=(names * 0, names + 1))
    with pytest.raises(GeometryError, match="positive has 4 columns and negative 3"):
        counted(high, low[:, :3])
    with pytest.raises(GeometryError, match="two means coincide"):
        counted(np.tile(high[:1], (12, 1)), np.tile(high[:1], (12, 1)))
    with pytest.raises(GeometryError, match="negative training rows do not differ"):
        counted(high, np.tile(low[:1], (12, 1)))
    with pytest.raises(GeometryError, match="positive holds 48 values that are NaN"):
        counted(np.full((12, 4), np.nan), low)
    with pytest.raises(GeometryError, match="alpha is 0"):
        counted(high, low, alpha=0)
    with pytest.raises(GeometryError, match="so they span nothing"):
        counted(high, low, alpha=1e-9).subspace()
    with pytest.raises(GeometryError, match="column of zeros"):
        cone_sample(np.eye(3)[:, :2] * [1, 0], 2, seed=0)
    with pytest.raises(GeometryError, match="make no cone"):
        cone_sample(np.array([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]), 2, seed=0)
    with pytest.raises(GeometryError, match="draws is 0"):
        cone_sample(np.eye(3), 0, seed=0)
