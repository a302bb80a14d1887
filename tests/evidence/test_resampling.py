"""Jackknife, halves and permutations of groups against closed forms and enumeration."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence import (
    Estimate,
    EvidenceError,
    cluster_mean,
    grouped_bootstrap,
    grouped_jackknife,
    grouped_permutation,
    jackknife_estimate,
    permuted_groups,
)
from evidence.interval import _inverse, _transformed


def test_the_jackknife_of_a_mean_is_the_interval_on_group_means() -> None:
    y = np.random.default_rng(0).lognormal(size=(30, 4))
    member = np.repeat(np.arange(30), 4)
    ours = grouped_jackknife(lambda rows: y.ravel()[rows].mean(), member)
    theirs = cluster_mean(y.ravel(), member)
    for name in ("value", "low", "high"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name))
    assert ours.n == 30


def test_the_jackknife_takes_the_whole_bias_off_a_variance() -> None:
    """Closed form: it turns the sum of squares over G into that over G - 1."""
    y = np.random.default_rng(1).normal(size=25)
    found = grouped_jackknife(lambda rows: np.var(y[rows]), np.arange(25))
    assert found.value == pytest.approx(np.var(y, ddof=1))
    kept = grouped_jackknife(lambda rows: np.var(y[rows]), np.arange(25), debias=False)
    assert kept.value == pytest.approx(np.var(y))


def test_halves_take_the_bias_off_a_variance_for_even_and_odd_counts() -> None:
    for count in (30, 41):
        y = np.random.default_rng(2).normal(size=count)
        found = grouped_bootstrap(lambda r, y=y: np.var(y[r]), range(count), draws=4000, seed=0)
        assert found.value == pytest.approx(np.var(y, ddof=1), rel=0.005)


def test_halves_of_a_mean_vary_as_students_interval_says() -> None:
    for count in (30, 41):
        y = np.random.default_rng(3).normal(size=count)
        ours = grouped_bootstrap(lambda r, y=y: y[r].mean(), range(count), draws=8000, seed=0)
        theirs = cluster_mean(y, range(count), method="t")
        assert ours.high - ours.low == pytest.approx(theirs.high - theirs.low, rel=0.03)
        assert ours.value == pytest.approx(y.mean(), abs=0.01)


def test_many_groups_are_left_out_by_blocks_and_count_as_groups() -> None:
    y = np.random.default_rng(4).normal(size=400)
    calls = []
    found = grouped_jackknife(
        lambda rows: calls.append(len(rows)) or y[rows].mean(), range(400), most=40
    )
    whole = cluster_mean(y, range(400))
    assert len(calls) == 41 and min(calls) == 390
    assert found.n == 400 and "40 blocks of 400 groups" in found.method
    assert found.high - found.low == pytest.approx(whole.high - whole.low, rel=0.3)


def test_an_undefined_jackknife_has_a_value_and_says_why_there_is_no_interval() -> None:
    found = jackknife_estimate(0.5, [0.4, np.nan, 0.6])
    assert found.value == 0.5 and np.isnan(found.low)
    assert "undefined without 1 groups" in found.method
    assert np.isnan(grouped_jackknife(lambda rows: 1.0, ["a", "a"]).high)
    assert "too few" in grouped_bootstrap(lambda rows: 1.0, range(3), seed=0).method


@given(st.floats(-8, 8), st.floats(-1.5, 1.5))
def test_the_transform_of_t_has_its_inverse(reached: float, lean: float) -> None:
    assert _transformed(_inverse(reached, lean), lean) == pytest.approx(reached, abs=1e-6)


@given(st.lists(st.integers(0, 5), min_size=4, max_size=30), st.integers(0, 99))
def test_permuted_groups_move_as_wholes_into_places_of_their_size(groups, seed: int) -> None:
    member = np.array(groups)
    sizes = np.unique(member, return_counts=True)[1]
    if len(np.unique(sizes)) == len(sizes):
        with pytest.raises(EvidenceError, match="none can change places"):
            permuted_groups(member, draws=1, seed=seed)
        return
    for order in permuted_groups(member, draws=3, seed=seed):
        assert sorted(order) == list(range(len(member)))
        for group in np.unique(member):
            source = order[member == group]
            assert len(set(member[source])) == 1
            assert list(source) == sorted(source)


def test_permutation_of_groups_agrees_with_enumeration() -> None:
    rng = np.random.default_rng(5)
    member = np.repeat(np.arange(5), 3)
    x = np.repeat(rng.normal(size=5), 3) + 0.3 * rng.normal(size=15)
    y = x + np.repeat(rng.normal(size=5), 3)
    table = y.reshape(5, 3)
    every = [float(x @ table[list(order)].ravel()) for order in permutations(range(5))]
    exact = np.mean(np.array(every) >= x @ y - 1e-12)
    found = grouped_permutation(lambda rows: x @ y[rows], member, draws=4000, seed=0)
    assert found.value == pytest.approx(x @ y)
    assert found.p == pytest.approx(exact, abs=0.02)
    assert found.null == pytest.approx(np.mean(every), abs=0.15 * np.std(every))


def rejections(by_row: bool) -> float:
    """Of rows that share a level in their group, on both sides, without any relation."""
    rng = np.random.default_rng(6)
    member = np.repeat(np.arange(15), 6)
    wrong = 0
    for repeat in range(500):
        x, y = (np.repeat(rng.normal(size=15), 6) + 0.5 * rng.normal(size=90) for _ in range(2))
        names = np.arange(90) if by_row else member
        found = grouped_permutation(
            lambda rows, x=x, y=y: x @ y[rows], names, draws=99, seed=repeat
        )
        wrong += found.p <= 0.05
    return wrong / 500


def test_permutation_of_groups_rejects_at_its_level_and_that_of_rows_does_not() -> None:
    assert 0.03 <= rejections(by_row=False) <= 0.07
    assert rejections(by_row=True) > 0.15


def test_equal_estimates_are_equal_whatever_nan_they_hold() -> None:
    assert Estimate(1.0, float("nan")) == Estimate(1.0, np.float64("nan"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jackknife_estimate(np.nan, [1.0, 2.0]), "on the data themselves"),
        (lambda: jackknife_estimate(1.0, []), r"one for each, \[G\]"),
        (lambda: grouped_jackknife(lambda rows: 1.0, []), "no rows"),
        (lambda: grouped_jackknife(lambda rows: 1.0, range(5), most=1), "most is 1"),
        (lambda: grouped_bootstrap(lambda rows: 1.0, [], seed=0), "no rows"),
        (lambda: grouped_bootstrap(lambda rows: 1.0, range(9), draws=1, seed=0), "draws is 1"),
        (lambda: permuted_groups(range(5), draws=0, seed=0), "draws is 0"),
        (lambda: cluster_mean([1.0, 2.0], [0, 1], method="z"), "method is 'z'"),
        (
            lambda: grouped_bootstrap(
                lambda rows: 1.0 if len(rows) == 9 else np.nan, range(9), seed=0
            ),
            "400 of 400 halves",
        ),
    ],
)
def test_what_has_no_estimate_is_refused(call, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        call()
