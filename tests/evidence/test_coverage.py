"""Intervals hold the planted truth as often as they say, in 500 simulations for each case.

Each claim has a control: the same simulation with rows taken for groups, or without the correction.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from evidence import (
    Estimate,
    balanced_accuracy_interval,
    cluster_bootstrap,
    cluster_mean,
    grouped_bootstrap,
    grouped_jackknife,
)

REPEATS, ROWS = 500, 8
STATED = (0.92, 0.98)


def coverage(found: Iterator[tuple[Estimate, float]]) -> float:
    return float(np.mean([e.low <= truth <= e.high for e, truth in found]))


def drawn(kind: str, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Independent figures of mean 0 and variance 1."""
    if kind == "normal":
        return rng.normal(size=shape)
    return (rng.lognormal(size=shape) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)


def samples(kind: str, icc: float, groups: int) -> Iterator[np.ndarray]:
    """Figures `[groups, ROWS]` of mean 0, of which groups share `icc` of the variance."""
    rng = np.random.default_rng([groups, int(10 * icc), kind == "normal"])
    for _ in range(REPEATS):
        shared = drawn(kind, rng, (groups, 1))
        yield np.sqrt(icc) * shared + np.sqrt(1 - icc) * drawn(kind, rng, (groups, ROWS))


def means(kind: str, icc: float, groups: int, **options) -> Iterator[tuple[Estimate, float]]:
    member = np.repeat(np.arange(groups), ROWS)
    for y in samples(kind, icc, groups):
        yield cluster_mean(y.ravel(), member, **options), 0.0


@pytest.mark.parametrize("kind", ["normal", "lognormal"])
@pytest.mark.parametrize("icc", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("groups", [20, 60])
def test_the_mean_of_groups_covers(kind: str, icc: float, groups: int) -> None:
    assert STATED[0] <= coverage(means(kind, icc, groups)) <= STATED[1]


@pytest.mark.parametrize("icc", [0.0, 0.2, 0.5])
def test_eight_groups_cover_too_unless_skewed_and_say_that_they_are_few(icc: float) -> None:
    assert STATED[0] <= coverage(means("normal", icc, 8)) <= STATED[1]
    found = list(means("lognormal", icc, 8))
    assert coverage(iter(found)) > 0.88
    assert all("too narrow where groups are skewed, since 8 groups" in e.method for e, _ in found)


def test_rows_taken_for_groups_do_not_cover() -> None:
    rows = ((cluster_mean(y.ravel(), range(y.size)), 0.0) for y in samples("normal", 0.5, 20))
    assert coverage(rows) < 0.8


def test_without_the_correction_skewed_groups_do_not_cover() -> None:
    assert coverage(means("lognormal", 0.5, 20, method="t")) < STATED[0]


def test_very_skewed_groups_say_that_the_interval_may_be_too_narrow() -> None:
    rng = np.random.default_rng(0)
    wild = [cluster_mean(rng.lognormal(sigma=2.0, size=40), range(40)) for _ in range(200)]
    assert np.mean(["too narrow, since the groups are very skewed" in e.method for e in wild]) > 0.5
    calm = [cluster_mean(rng.normal(size=40), range(40)) for _ in range(200)]
    assert not any("too narrow" in e.method for e in calm)


def test_p_is_below_five_per_cent_just_where_the_interval_leaves_the_null_out() -> None:
    rng = np.random.default_rng(1)
    for bounds in (None, (0, 1)):
        for _ in range(300):
            y = rng.beta(0.3, 0.1, size=12)
            found = cluster_mean(y, range(12), null=0.6, bounds=bounds)
            assert (found.p < 0.05) == (not found.low <= 0.6 <= found.high)


@pytest.mark.parametrize("groups", [20, 60])
def test_a_ratio_of_sums_covers(groups: int) -> None:
    """Loss per token: groups of unequal length, each with a level of its own."""
    rng = np.random.default_rng(groups)

    def losses() -> Iterator[tuple[Estimate, float]]:
        for _ in range(REPEATS):
            tokens = rng.integers(5, 40, groups)
            level = rng.gamma(2.0, 1.0, groups)
            sums = np.stack([level * tokens, tokens], axis=1)
            yield cluster_bootstrap(sums, lambda s: s[..., 0] / s[..., 1], seed=0), 2.0

    assert STATED[0] <= coverage(losses()) <= STATED[1]


def classified(
    share: float, icc: float, groups: int, *, within: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Hits, labels and groups of rows whose groups are right with Beta-distributed chances."""
    rng = np.random.default_rng([groups, int(100 * share), int(10 * icc)])
    member = np.repeat(np.arange(groups), ROWS)
    label = np.arange(groups * ROWS) % 2 if within else member % 2
    size = 1 / icc - 1
    for _ in range(REPEATS):
        chance = rng.beta(share * size, (1 - share) * size, groups)
        yield rng.random(len(member)) < chance[member], label, member


def accuracies(share: float, icc: float, groups: int, *, within: bool, by_row: bool = False):
    for hit, label, member in classified(share, icc, groups, within=within):
        names = np.arange(len(hit)) if by_row else member
        yield balanced_accuracy_interval(hit, label, names, seed=0), share


@pytest.mark.parametrize("within", [True, False], ids=["classes within groups", "classes apart"])
@pytest.mark.parametrize("groups", [20, 60])
@pytest.mark.parametrize("icc", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("share", [0.6, 0.75, 0.9, 0.97])
def test_balanced_accuracy_covers(share: float, icc: float, groups: int, within: bool) -> None:
    held = coverage(accuracies(share, icc, groups, within=within))
    # Where half of the samples hold an error or two, no interval can come out at 95%.
    most = 1.0 if (share, groups) == (0.97, 20) else 0.985
    assert STATED[0] <= held <= most


def test_balanced_accuracy_of_rows_taken_for_groups_does_not_cover() -> None:
    assert coverage(accuracies(0.75, 0.5, 60, within=True, by_row=True)) < 0.8


def scatter(y: np.ndarray) -> float:
    return float(np.mean((y - y.mean()) ** 2))


def of_rows(method, statistic, groups: int, truth: float, **options):
    member = np.repeat(np.arange(groups), ROWS)
    for table in samples("normal", 0.5, groups):
        y = table.ravel()
        yield method(lambda rows, y=y: statistic(y[rows]), member, **options), truth


@pytest.mark.parametrize("groups", [20, 60])
def test_a_jackknife_of_a_biased_statistic_covers(groups: int) -> None:
    assert STATED[0] <= coverage(of_rows(grouped_jackknife, np.var, groups, 1.0)) <= STATED[1]


@pytest.mark.parametrize("groups", [20, 41])
def test_halves_cover_for_a_median(groups: int) -> None:
    found = of_rows(grouped_bootstrap, np.median, groups, 0.0, draws=100, seed=0)
    assert STATED[0] <= coverage(found) <= STATED[1]
