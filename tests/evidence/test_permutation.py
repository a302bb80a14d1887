"""Permutation p-values agree with complete enumeration, and hold their level under the null."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evidence import (
    EvidenceError,
    benjamini_hochberg,
    max_statistic_p,
    permutation_p,
    spearman_permutation,
)


def _random_symmetric(items: int, seed: int) -> np.ndarray:
    half = np.triu(np.random.default_rng(seed).normal(size=(items, items)), 1)
    return half + half.T


def test_p_counts_the_draws_at_least_as_extreme() -> None:
    null = [0, 1, 2, 3]
    assert permutation_p(3, null) == 2 / 5
    assert permutation_p(9, null) == 1 / 5
    assert permutation_p(0, null, alternative="less") == 2 / 5
    assert permutation_p(3, null, alternative="two-sided") == 4 / 5
    assert permutation_p(1.5, null, alternative="two-sided") == 1.0


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.floats(-5, 5))
def test_p_is_a_probability_and_never_zero(null: list[float], observed: float) -> None:
    for alternative in ("greater", "less", "two-sided"):
        assert 0 < permutation_p(observed, null, alternative=alternative) <= 1


def test_max_statistic_agrees_with_enumerated_sign_flips() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(8, 4)) + np.array([1.5, 0.3, 0.0, 0.0])
    flips = np.array(list(product([1, -1], repeat=8)))
    null = np.abs(flips @ x) / 8
    observed = np.abs(x.mean(axis=0))
    direct = [(1 + sum(row.max() >= t - 1e-12 for row in null)) / 257 for t in observed]
    assert max_statistic_p(observed, null) == pytest.approx(direct)


def test_max_statistic_is_no_smaller_than_the_p_of_one_test() -> None:
    rng = np.random.default_rng(2)
    observed, null = rng.normal(size=5) + 1, rng.normal(size=(200, 5))
    alone = [permutation_p(observed[i], null[:, i]) for i in range(5)]
    assert np.all(max_statistic_p(observed, null) >= alone)
    assert max_statistic_p(observed[:1], null[:, :1])[0] == alone[0]


def test_max_statistic_holds_the_familywise_level() -> None:
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(500):
        wrong += max_statistic_p(rng.normal(size=10), rng.normal(size=(199, 10))).min() <= 0.05
    assert 0.03 <= wrong / 500 <= 0.07


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_benjamini_hochberg_is_the_running_minimum_from_the_top(p: list[float]) -> None:
    order = np.argsort(p)
    scaled = np.array(p)[order] * len(p) / np.arange(1, len(p) + 1)
    expected = np.empty(len(p))
    expected[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    assert benjamini_hochberg(p) == pytest.approx(expected)


def test_unknown_p_values_do_not_count_as_tests() -> None:
    adjusted = benjamini_hochberg([[0.01, np.nan], [0.04, np.nan]])
    assert adjusted[:, 0] == pytest.approx([0.02, 0.04]) and np.isnan(adjusted[:, 1]).all()
    with pytest.raises(EvidenceError, match="outside"):
        benjamini_hochberg([1.2])


def test_mantel_agrees_with_exact_enumeration() -> None:
    x, y = _random_symmetric(6, 0), _random_symmetric(6, 1)
    y += 0.7 * x
    pairs = np.triu_indices(6, 1)
    rho = stats.spearmanr(x[pairs], y[pairs]).statistic
    null = []
    for order in permutations(range(6)):
        shuffled = x[np.ix_(order, order)]
        null.append(stats.spearmanr(shuffled[pairs], y[pairs]).statistic)
    exact = np.mean(np.array(null) >= rho - 1e-12)
    every = spearman_permutation(x, y, draws=720, seed=0)
    assert every.value == pytest.approx(rho)
    assert every.p == pytest.approx(exact)
    assert every.null == pytest.approx(np.mean(null), abs=1e-9)
    some = spearman_permutation(x, y, draws=719, seed=0)
    assert some.p == pytest.approx(exact, abs=0.03)
    assert "all 720" in every.method and some.value == every.value and every.n == 6


def test_partial_mantel_agrees_with_the_formula_and_removes_the_control() -> None:
    x, y, z = (_random_symmetric(7, seed) for seed in (0, 1, 2))
    x, y = x + 2 * z, y + 2 * z
    pairs = np.triu_indices(7, 1)
    r = stats.spearmanr(np.stack([x[pairs], y[pairs], z[pairs]], axis=1)).statistic
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    partial = spearman_permutation(x, y, control=z, draws=200, seed=0)
    assert partial.value == pytest.approx(expected)
    assert partial.value < spearman_permutation(x, y, draws=200, seed=0).value


def test_a_control_that_is_the_data_leaves_nothing() -> None:
    x, y = _random_symmetric(6, 0), _random_symmetric(6, 1)
    assert np.isnan(spearman_permutation(x, y, control=x, draws=50, seed=0).value)
    constant = spearman_permutation(np.ones((6, 6)), y, draws=50, seed=0)
    assert np.isnan(constant.value) and "no variation" in constant.method


def test_relabelling_both_sides_alike_changes_nothing() -> None:
    x, y = _random_symmetric(6, 0), _random_symmetric(6, 1)
    order = np.random.default_rng(0).permutation(6)
    one = spearman_permutation(x, y, draws=720, seed=0)
    two = spearman_permutation(x[np.ix_(order, order)], y[np.ix_(order, order)], draws=720, seed=0)
    assert (one.value, one.p) == pytest.approx((two.value, two.p))


def test_mantel_holds_its_level_under_the_null() -> None:
    p = [
        spearman_permutation(
            _random_symmetric(8, 2 * s), _random_symmetric(8, 2 * s + 1), draws=99, seed=s
        ).p
        for s in range(500)
    ]
    assert 0.03 <= np.mean(np.array(p) <= 0.05) <= 0.07


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: permutation_p(0, []), "holds no draws"),
        (lambda: permutation_p(np.nan, [1.0]), "not finite"),
        (lambda: permutation_p(0, [1.0], alternative="both"), "choose from 'greater'"),
        (lambda: max_statistic_p([1.0, 2.0], [[1.0]]), r"give \[L\] and \[B, L\]"),
        (lambda: spearman_permutation(np.ones((2, 3)), np.ones((2, 3)), draws=9, seed=0), "square"),
        (
            lambda: spearman_permutation(np.ones((2, 2)), np.ones((2, 2)), draws=9, seed=0),
            "least 3",
        ),
        (
            lambda: spearman_permutation(np.tri(4), np.ones((4, 4)), draws=9, seed=0),
            "not symmetric",
        ),
    ],
)
def test_what_cannot_be_tested_is_refused(call, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        call()
