"""Trees against scipy, hand-worked ones, ultrametrics and full enumeration."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform

from geometry import (
    GeometryError,
    clade_support,
    clades,
    compare_clades,
    compare_distances,
    nested_distances,
    variety_tree,
)

seeds = st.integers(0, 2**31)
GIVEN = (((0, 1), 2), (3, 4, 5))


def points(seed: int, v: int = 7) -> np.ndarray:
    return squareform(pdist(np.random.default_rng(seed).standard_normal((v, 3))))


def average_linkage_by_hand(distances: np.ndarray) -> set[frozenset[int]]:
    """Join the two clusters with the least mean distance between members, until one is left."""
    clusters = [frozenset([i]) for i in range(len(distances))]
    found = set()
    while len(clusters) > 1:
        pairs = [(a, b) for a in clusters for b in clusters if min(a) < min(b)]
        a, b = min(pairs, key=lambda p: distances[np.ix_(list(p[0]), list(p[1]))].mean())
        clusters = [c for c in clusters if c not in (a, b)] + [a | b]
        found.add(a | b)
    return found


@given(seeds)
def test_clades_equal_average_linkage_by_brute_force(seed: int) -> None:
    matrix = points(seed)
    everything = frozenset(range(7))
    assert clades(variety_tree(matrix)) == average_linkage_by_hand(matrix) - {everything}


@given(seeds)
def test_the_correlation_is_scipys_cophenet_and_the_leaves_do_not_cross(seed: int) -> None:
    matrix = points(seed)
    tree = variety_tree(matrix)
    expected, _ = hierarchy.cophenet(tree.linkage, squareform(matrix))
    assert tree.correlation == pytest.approx(expected)
    place = {int(leaf): i for i, leaf in enumerate(tree.leaves)}
    for clade in clades(tree):
        where = sorted(place[i] for i in clade)
        assert where == list(range(where[0], where[0] + len(where)))


@given(seeds, st.floats(1e-6, 1e6))
def test_scale_and_order_of_varieties_leave_the_tree_alone(seed: int, scale: float) -> None:
    matrix = points(seed)
    order = np.random.default_rng(seed).permutation(7)
    moved = variety_tree(scale * matrix[np.ix_(order, order)])
    renamed = frozenset(frozenset(int(order[i]) for i in c) for c in clades(moved))
    assert renamed == clades(variety_tree(matrix))


def test_a_given_trees_own_distances_are_held_wholly() -> None:
    matrix = nested_distances((((0, 1), 2), (3, 4)))
    by_hand = [[0, 1, 2, 3, 3], [1, 0, 2, 3, 3], [2, 2, 0, 3, 3], [3, 3, 3, 0, 1], [3, 3, 3, 1, 0]]
    np.testing.assert_array_equal(matrix, by_hand)
    tree = variety_tree(matrix)
    np.testing.assert_allclose(tree.cophenetic, matrix)
    assert tree.correlation == pytest.approx(1)
    assert compare_clades(tree, (((0, 1), 2), (3, 4))).distance == 0


def test_shared_clades_are_counted_as_by_hand() -> None:
    found = compare_clades(GIVEN, (((0, 2), 1), ((3, 4), 5)))
    assert found.shared == {frozenset({0, 1, 2}), frozenset({3, 4, 5})}
    assert found.first_only == {frozenset({0, 1})}
    assert found.second_only == {frozenset({0, 2}), frozenset({3, 4})}
    assert found.distance == 3


@given(seeds, seeds)
def test_the_clade_distance_is_a_metric(one: int, two: int) -> None:
    a, b, c = (variety_tree(points(s)) for s in (one, two, one ^ two))
    assert compare_clades(a, a).distance == 0
    assert compare_clades(a, b).distance == compare_clades(b, a).distance
    ac = compare_clades(a, c).distance
    assert ac <= compare_clades(a, b).distance + compare_clades(b, c).distance


def test_mantels_p_is_that_of_full_enumeration_with_scipys_rho() -> None:
    x = points(3, 6)
    y = x + 0.8 * points(4, 6)
    upper = np.triu_indices(6, 1)
    observed = stats.spearmanr(x[upper], y[upper]).statistic
    every = [
        stats.spearmanr(x[np.ix_(o, o)][upper], y[upper]).statistic
        for o in map(list, permutations(range(6)))
    ]
    found = compare_distances(x, y, seed=0)
    assert found.value == pytest.approx(observed)
    assert found.p == pytest.approx(np.mean(np.array(every) >= observed - 1e-12))
    tree = variety_tree(y)
    of_tree = compare_distances(x, tree, seed=0)
    rho = stats.spearmanr(x[upper], tree.cophenetic[upper]).statistic
    assert of_tree.value == pytest.approx(rho)


def test_support_is_the_share_of_resampled_trees_and_finds_the_planted_clade() -> None:
    rng = np.random.default_rng(0)
    truth = nested_distances((((0, 1), 2), (3, 4)))
    noise = np.triu(rng.uniform(-0.8, 0.8, (200, 5, 5)), 1)
    resampled = truth + noise + noise.transpose(0, 2, 1)
    resampled[:, range(5), range(5)] = 0
    tree = variety_tree(truth)
    support = clade_support(tree, resampled)
    plain = [average_linkage_by_hand(m) for m in resampled]
    joined = [frozenset({0, 1}), frozenset({3, 4}), frozenset({0, 1, 2}), frozenset(range(5))]
    expected = {c: np.mean([c in p for p in plain]) for c in joined}
    heights = {1.0: joined[:2], 2.0: joined[2:3], 3.0: joined[3:]}
    for row, found in zip(tree.linkage, support, strict=True):
        assert any(found == pytest.approx(expected[c]) for c in heights[row[2]])
    assert support[-1] == 1 and 0.5 < support.min() < 1


def test_duplicates_meet_at_once_and_equal_distances_have_no_correlation() -> None:
    matrix = points(0, 4)
    twice = np.ix_([0, 1, 2, 3, 3], [0, 1, 2, 3, 3])
    assert frozenset({3, 4}) in clades(variety_tree(matrix[twice]))
    assert np.isnan(variety_tree(1 - np.eye(4)).correlation)


def test_bad_input_is_one_clear_sentence() -> None:
    matrix = points(0, 4)
    with pytest.raises(GeometryError, match="must be square"):
        variety_tree(matrix[:3])
    with pytest.raises(GeometryError, match="not symmetric"):
        variety_tree(np.triu(matrix))
    with pytest.raises(GeometryError, match="not similarities"):
        variety_tree(np.eye(3))
    with pytest.raises(GeometryError, match="negative"):
        variety_tree(-matrix)
    with pytest.raises(GeometryError, match="NaN"):
        variety_tree(matrix * np.nan)
    with pytest.raises(GeometryError, match="each number from 0 once"):
        clades(((0, 1), (1, 2)))
    with pytest.raises(GeometryError, match="each number from 0 once"):
        nested_distances((0, "a"))
    with pytest.raises(GeometryError, match="4 and 6 varieties"):
        compare_clades(variety_tree(matrix), GIVEN)
    with pytest.raises(GeometryError, match="same varieties"):
        compare_distances(matrix, points(0, 5), seed=0)
    with pytest.raises(GeometryError, match="at least 3"):
        compare_distances(matrix[:2, :2], matrix[:2, :2], seed=0)
    with pytest.raises(GeometryError, match=r"pass \[B, V, V\]"):
        clade_support(variety_tree(matrix), np.zeros((2, 5, 5)))
