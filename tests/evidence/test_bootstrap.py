"""Intervals agree with independent implementations, and cover as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from evidence import (
    Estimate,
    EvidenceError,
    balanced_accuracy_interval,
    cluster_bootstrap,
    cluster_mean,
)


def _ratio(summed: np.ndarray) -> np.ndarray:
    return summed[..., 0] / summed[..., 1]


@pytest.fixture
def sums() -> np.ndarray:
    rng = np.random.default_rng(3)
    weights = rng.integers(1, 9, 60).astype(float)
    return np.stack([rng.gamma(2.0, 1.0, 60) * weights, weights], axis=1)


@pytest.mark.parametrize(("method", "name"), [("bca", "BCa"), ("percentile", "percentile")])
def test_bootstrap_agrees_with_scipy_over_group_numbers(
    sums: np.ndarray, method: str, name: str
) -> None:
    ours = cluster_bootstrap(sums, _ratio, draws=20_000, seed=0, method=method)

    def of_indices(index: np.ndarray, axis: int = -1) -> np.ndarray:
        drawn = sums[index.astype(int)]
        return drawn[..., 0].sum(axis=axis) / drawn[..., 1].sum(axis=axis)

    theirs = stats.bootstrap(
        (np.arange(60),), of_indices, method=name, n_resamples=20_000, rng=1, vectorized=True
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * width)
    assert ours.value == pytest.approx(sums[:, 0].sum() / sums[:, 1].sum())
    assert ours.n == 60 and ours.method.startswith(name)


def test_a_statistic_of_one_sum_at_a_time_gives_the_same_interval(sums: np.ndarray) -> None:
    def scalar(summed: np.ndarray) -> float:
        a, b = summed
        return float(a) / float(b)

    assert cluster_bootstrap(sums, scalar, draws=200, seed=4) == cluster_bootstrap(
        sums, _ratio, draws=200, seed=4
    )


def test_same_seed_same_interval_and_another_seed_another(sums: np.ndarray) -> None:
    one = cluster_bootstrap(sums, _ratio, draws=300, seed=1, method="bca")
    assert one == cluster_bootstrap(sums, _ratio, draws=300, seed=1, method="bca")
    assert one.low != cluster_bootstrap(sums, _ratio, draws=300, seed=2, method="bca").low
    assert cluster_bootstrap(sums, _ratio, seed=1) == cluster_bootstrap(sums, _ratio, seed=2)


def test_no_spread_gives_an_interval_of_no_width() -> None:
    estimate = cluster_bootstrap(np.ones((30, 2)), _ratio, draws=100, seed=0)
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)


def test_uncorrected_cluster_mean_is_students_interval_on_group_means() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(25), rng.integers(1, 6, 25))
    values = rng.normal(size=len(groups))
    means = np.array([values[groups == g].mean() for g in range(25)])
    theirs = stats.ttest_1samp(means, 0.1)
    interval = theirs.confidence_interval(0.9)
    ours = cluster_mean(values, groups, level=0.9, null=0.1, method="t")
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.n == 25 and "approximate" not in ours.method


@given(st.integers(2, 40), st.integers(0, 99))
def test_copying_the_rows_of_a_group_is_no_new_evidence(count: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=count)
    groups = np.arange(count)
    once = cluster_mean(values, groups)
    often = cluster_mean(np.repeat(values, 7), np.repeat(groups, 7))
    assert (once.low, once.high) == pytest.approx((often.low, often.high), abs=1e-9)
    assert often.n == count


def test_few_groups_are_said_to_be_few() -> None:
    assert "approximate" in cluster_mean(np.arange(19.0), range(19)).method
    assert "approximate" in cluster_bootstrap(np.arange(19.0), np.sum, draws=50, seed=0).method
    assert "approximate" not in cluster_mean(np.arange(20.0), range(20)).method


def test_one_group_has_a_value_and_no_interval() -> None:
    estimate = cluster_mean([1.0, 2.0], ["a", "a"])
    assert estimate.value == 1.5 and np.isnan(estimate.low) and estimate.n == 1
    share = cluster_mean([1.0, 1.0], ["a", "a"], bounds=(0, 1))
    assert (share.low, share.high) == pytest.approx((0.025, 1.0))


def test_balanced_accuracy_agrees_with_sklearn_and_holds_its_value() -> None:
    rng = np.random.default_rng(5)
    labels = rng.choice(["a", "b", "c"], 300, p=[0.6, 0.3, 0.1])
    guesses = np.where(rng.random(300) < 0.7, labels, rng.choice(["a", "b", "c"], 300))
    groups = np.arange(300) // 5
    estimate = balanced_accuracy_interval(guesses == labels, labels, groups, seed=0)
    assert estimate.value == pytest.approx(balanced_accuracy_score(labels, guesses))
    assert estimate.low < estimate.value < estimate.high
    assert estimate.null == pytest.approx(1 / 3) and estimate.n == 60


def test_balanced_accuracy_survives_resamples_that_lack_a_class() -> None:
    labels = ["a"] * 30 + ["b"]
    estimate = balanced_accuracy_interval([1] * 31, labels, range(31), seed=0)
    assert estimate.value == estimate.high == 1.0 and estimate.low < 1.0


@pytest.mark.parametrize("count", [5, 60])
def test_a_share_that_never_varied_is_not_certain(count: int) -> None:
    """The oracle is the exact binomial interval, and what holds for 1 holds mirrored for 0."""
    exact = stats.binomtest(count, count).proportion_ci(0.95, method="exact")
    ones, groups = np.ones(3 * count), np.repeat(np.arange(count), 3)
    for estimate in (
        cluster_mean(ones, groups, bounds=(0, 1)),
        balanced_accuracy_interval(ones, ["a", "b", "b"] * count, groups, seed=0),
    ):
        assert (estimate.low, estimate.high) == pytest.approx((exact.low, exact.high))
    zeros = cluster_mean(1 - ones, groups, bounds=(0, 1))
    assert (zeros.low, zeros.high) == pytest.approx((0.0, 1 - exact.low))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_bounded_intervals_stay_inside_their_bounds(values: list[float]) -> None:
    estimate = cluster_mean(values, range(len(values)), bounds=(0, 1))
    assert 0 <= estimate.low <= estimate.value + 1e-12
    assert estimate.value - 1e-12 <= estimate.high <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cluster_mean([1.0, np.nan], [0, 1]), "1 of 2 values are not finite"),
        (lambda: cluster_mean([], []), "at least one"),
        (lambda: cluster_mean([0.5, 2.0], [0, 1], bounds=(0, 1)), "outside"),
        (lambda: cluster_mean([1.0], [0, 1]), "1 values and 2 groups"),
        (lambda: cluster_mean([1.0, 2.0], [0, 1], level=95), "level is 95"),
        (lambda: cluster_bootstrap(np.zeros((0, 2)), _ratio, seed=0), "one row for each group"),
        (lambda: cluster_bootstrap(np.zeros((9, 2)), _ratio, seed=0), "on the data themselves"),
        (lambda: cluster_bootstrap(np.ones((9, 2)), _ratio, seed=0, draws=0), "draws is 0"),
    ],
)
def test_data_without_an_estimate_are_refused(call, message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        call()


def test_an_estimate_reads_as_a_sentence_part() -> None:
    assert str(Estimate(0.93, 0.88, 0.97, n=60)) == "0.93 [0.88, 0.97] (95%, n = 60 groups)"
    assert str(Estimate(0.5)) == "0.50"
    assert str(Estimate(1e-5, n=1, p=0.003)) == "1e-05 (n = 1 group, p = 0.003)"
    row = Estimate(0.5, n=3, unit="nats").as_row()
    assert list(row) == ["value", "low", "high", "level", "n", "p", "unit", "seed"]


def _coverage(icc: float, groups: int, repeats: int, kind: str) -> float:
    """How often the interval holds the true mean 0, with 8 rows a group and unit variance."""
    rng = np.random.default_rng([groups, int(10 * icc)])
    member = np.repeat(np.arange(groups), 8)
    held = 0
    for repeat in range(repeats):
        shared = rng.normal(scale=np.sqrt(icc), size=groups)
        y = shared[member] + rng.normal(scale=np.sqrt(1 - icc), size=len(member))
        if kind == "t":
            estimate = cluster_mean(y, member)
        else:
            sums = np.stack([np.bincount(member, weights=y), np.full(groups, 8.0)], axis=1)
            estimate = cluster_bootstrap(sums, _ratio, draws=600, seed=repeat)
        held += estimate.low <= 0 <= estimate.high
    return held / repeats


@pytest.mark.slow
@pytest.mark.parametrize("icc", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("groups", [8, 20, 60])
def test_t_interval_covers_at_its_level(icc: float, groups: int) -> None:
    # Three standard errors of 500 Bernoulli trials at 0.95.
    assert _coverage(icc, groups, 500, "t") == pytest.approx(0.95, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "least"), [(8, 0.83), (20, 0.89), (60, 0.92)])
def test_bootstrap_coverage_rises_to_its_level_with_groups(groups: int, least: float) -> None:
    assert least <= _coverage(0.5, groups, 500, "bca") <= 0.98


def test_ignoring_groups_would_not_cover() -> None:
    """The positive control: rows taken for groups cover far less than they say."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        y = np.repeat(rng.normal(size=10), 8) + 0.1 * rng.normal(size=80)
        estimate = cluster_mean(y, np.arange(80))
        held += estimate.low <= 0 <= estimate.high
    assert held / 200 < 0.7
