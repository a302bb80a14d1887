"""Estimates of CKA, dimension, retrieval and canonical correlation against planted truth.

500 simulations for each rate, with rows in groups that share half of the variance.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest

from evidence import Estimate, EvidenceError
from geometry import (
    GeometryError,
    canonical_estimate,
    cka_estimate,
    debiased_cka,
    dimension_estimate,
    effective_rank,
    effective_rank_estimate,
    participation_ratio_estimate,
    retrieval_estimate,
    retrieve,
    two_nn,
)
from geometry.distinct import GroupGram, mean_product

REPEATS, ROWS, ICC = 500, 3, 0.5
STATED = (0.92, 0.98)


def grouped(rng: np.random.Generator, groups: int, width: int, kind: str = "normal") -> np.ndarray:
    """Rows `[groups ROWS, width]` of mean 0 and variance 1, of which groups share ICC."""

    def drawn(*shape: int) -> np.ndarray:
        return rng.exponential(size=shape) - 1 if kind == "skewed" else rng.normal(size=shape)

    shared = np.repeat(drawn(groups, width), ROWS, axis=0)
    return np.sqrt(ICC) * shared + np.sqrt(1 - ICC) * drawn(groups * ROWS, width)


def coverage(estimate: Callable[[np.random.Generator], Estimate], truth: float) -> float:
    held = 0
    for repeat in range(REPEATS):
        found = estimate(np.random.default_rng(repeat))
        held += found.low <= truth <= found.high
    return held / REPEATS


def of_groups(groups: int) -> np.ndarray:
    return np.repeat(np.arange(groups), ROWS)


WAYS = np.random.default_rng(0).normal(size=(2, 4, 10))
SHARED = np.diag([1.0, 1.0, 0.0, 0.0])


def related(rng: np.random.Generator, groups: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Two representations in 10 dimensions that share two of four latent variables."""
    z = grouped(rng, groups, 6, kind)
    noise = rng.normal(size=(2, len(z), 10))
    return z[:, :4] @ WAYS[0] + noise[0], z[:, [0, 1, 4, 5]] @ WAYS[1] + noise[1]


def true_cka() -> float:
    own = [way.T @ way + np.eye(10) for way in WAYS]
    across = WAYS[0].T @ SHARED @ WAYS[1]
    return float(np.sum(across**2) / np.sqrt(np.sum(own[0] ** 2) * np.sum(own[1] ** 2)))


@pytest.mark.parametrize("kind", ["normal", "skewed"])
@pytest.mark.parametrize("groups", [20, 60])
def test_cka_covers_its_closed_form(groups: int, kind: str) -> None:
    def estimate(rng: np.random.Generator) -> Estimate:
        return cka_estimate(*related(rng, groups, kind), of_groups(groups), draws=0, seed=0)

    assert STATED[0] <= coverage(estimate, true_cka()) <= STATED[1]


def test_cka_of_rows_taken_for_groups_is_biased_and_does_not_cover() -> None:
    def estimate(rng: np.random.Generator) -> Estimate:
        return cka_estimate(*related(rng, 20, "normal"), np.arange(20 * ROWS), draws=0, seed=0)

    assert coverage(estimate, true_cka()) < 0.9


SPREAD = 1 / np.sqrt(np.arange(1, 13))


@pytest.mark.parametrize("groups", [20, 60])
def test_participation_ratio_covers_its_closed_form(groups: int) -> None:
    truth = np.sum(SPREAD**2) ** 2 / np.sum(SPREAD**4)

    def estimate(rng: np.random.Generator) -> Estimate:
        return participation_ratio_estimate(grouped(rng, groups, 12) * SPREAD, of_groups(groups))

    assert STATED[0] <= coverage(estimate, truth) <= STATED[1]


def test_participation_ratio_of_rows_taken_for_groups_does_not_cover() -> None:
    truth = np.sum(SPREAD**2) ** 2 / np.sum(SPREAD**4)

    def estimate(rng: np.random.Generator) -> Estimate:
        return participation_ratio_estimate(grouped(rng, 20, 12) * SPREAD, range(20 * ROWS))

    assert coverage(estimate, truth) < 0.9


def test_effective_rank_covers_where_rows_are_many_and_warns_where_they_are_few() -> None:
    p = SPREAD / SPREAD.sum()
    truth = np.exp(-np.sum(p * np.log(p)))

    def estimate(rng: np.random.Generator) -> Estimate:
        return effective_rank_estimate(grouped(rng, 40, 12) * SPREAD, of_groups(40), most=20)

    assert STATED[0] <= coverage(estimate, float(truth)) <= STATED[1]
    rng = np.random.default_rng(0)
    x, member = grouped(rng, 8, 12) * SPREAD, of_groups(8)
    few = effective_rank_estimate(x, member)
    assert "24 rows are few for 12 columns" in few.method
    assert few.value > effective_rank(x)


def test_cka_permutation_rejects_at_its_level_for_groups_and_not_for_rows() -> None:
    def rejected(names: np.ndarray, repeats: int) -> float:
        p = []
        for repeat in range(repeats):
            rng = np.random.default_rng([repeat, 1])
            x, y = (
                np.repeat(rng.lognormal(size=(12, 4)), 2, axis=0) + 0.5 * rng.normal(size=(24, 4))
                for _ in range(2)
            )
            p.append(cka_estimate(x, y, names, draws=19, seed=repeat).p)
        return float(np.mean(np.array(p) <= 0.05))

    assert 0.03 <= rejected(np.repeat(np.arange(12), 2), 500) <= 0.07
    assert rejected(np.arange(24), 100) > 0.2


def test_related_representations_are_told_from_permuted_ones() -> None:
    found = cka_estimate(*related(np.random.default_rng(0), 60, "normal"), of_groups(60), seed=0)
    assert found.p == 1 / 200 and abs(found.null) < 0.02 and found.low > 0.1
    assert found.n == 60 and "null 0.00" in str(found)


def brute_force(x: np.ndarray, y: np.ndarray, member: np.ndarray) -> float:
    """The mean of K_ij L_ij - 2 K_ij L_iq + K_ij L_qr over rows of four different groups."""
    k, el = x @ x.T, y @ y.T
    rows = [np.flatnonzero(member == g) for g in np.unique(member)]
    total = []
    for a, b, c, d in permutations(rows, 4):
        ab = k[np.ix_(a, b)]
        total.append(
            np.mean(ab * el[np.ix_(a, b)])
            - 2 * np.mean(ab.mean(axis=1) * el[np.ix_(a, c)].mean(axis=1))
            + ab.mean() * el[np.ix_(c, d)].mean()
        )
    return float(np.mean(total))


def test_products_of_groups_equal_the_mean_over_all_quadruples() -> None:
    rng = np.random.default_rng(0)
    member = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4, 5])
    x, y = rng.normal(size=(10, 3)) + 5, rng.normal(size=(10, 4))
    found = GroupGram(x, member).product(GroupGram(y, member))
    assert found.value == pytest.approx(brute_force(x, y, member))
    for group in range(6):
        left = member != group
        assert found.without[group] == pytest.approx(brute_force(x[left], y[left], member[left]))


def test_one_row_a_group_is_the_debiased_cka_and_the_unbiased_variance() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(25, 6))
    y = x[:, :3] + rng.normal(size=(25, 3))
    assert cka_estimate(x, y, range(25), seed=0).value == pytest.approx(debiased_cka(x, y))
    trace = GroupGram(x, np.arange(25)).trace()
    assert trace.value == pytest.approx(np.trace(np.cov(x, rowvar=False)))
    assert trace.without[3] == pytest.approx(np.trace(np.cov(np.delete(x, 3, 0), rowvar=False)))


def test_mean_products_leave_out_what_a_group_shares_with_itself() -> None:
    u, v = np.random.default_rng(2).normal(size=(2, 7, 3))
    found = mean_product(u, v)
    pairs = [u[i] @ v[j] for i in range(7) for j in range(7) if i != j]
    assert found.value == pytest.approx(np.mean(pairs))
    less = mean_product(np.delete(u, 2, 0), np.delete(v, 2, 0))
    assert found.without[2] == pytest.approx(less.value)


def test_retrieval_is_the_mean_of_both_ways_and_covers_its_mean_over_samples() -> None:
    def sample(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        x = grouped(rng, 20, 5)
        return x, x + rng.normal(size=x.shape)

    x, y = sample(np.random.default_rng(0))
    plain = retrieve(x, y, at=(1,))
    found = retrieval_estimate(x, y, of_groups(20))
    assert found.value == pytest.approx((plain.forward[0] + plain.backward[0]) / 2)
    assert found.null == pytest.approx(1 / 60) and "pool of 60" in found.method
    every = [
        retrieval_estimate(*sample(np.random.default_rng(r)), of_groups(20)) for r in range(REPEATS)
    ]
    truth = np.mean([e.value for e in every])
    assert STATED[0] <= np.mean([e.low <= truth <= e.high for e in every]) <= STATED[1]


def test_held_out_canonical_correlation_is_near_zero_for_nothing_and_high_for_something() -> None:
    rng = np.random.default_rng(3)
    x, y, member = grouped(rng, 60, 8), grouped(rng, 60, 8), of_groups(60)
    nothing = canonical_estimate(x, y, member, components=8, seed=0)
    assert nothing.low < 0 < nothing.high
    y[:, 0] = x[:, 5] + 0.3 * rng.normal(size=len(x))
    something = canonical_estimate(x, y, member, components=8, seed=0)
    assert something.low > 0.8 and something.p < 1e-6
    assert "too narrow by what other training groups would change" in something.method


def test_intrinsic_dimension_has_no_interval_and_says_why() -> None:
    x = np.random.default_rng(4).normal(size=(90, 3))
    found = dimension_estimate(x, of_groups(30))
    assert found.value == two_nn(x, groups=of_groups(30))
    assert np.isnan(found.low) and np.isnan(found.high) and found.n == 30
    assert "no interval" in found.method


def test_few_groups_with_much_of_the_variance_are_said_to_be_so() -> None:
    x = np.random.default_rng(5).normal(size=(40, 5))
    calm = participation_ratio_estimate(x, range(40))
    x[3] *= 30
    assert "too narrow" in participation_ratio_estimate(x, range(40)).method
    assert "too narrow" not in calm.method


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: cka_estimate(x, x[1:], range(12), seed=0), GeometryError, "12 rows and y 11"),
        (lambda x: cka_estimate(x, x, [0, 1, 2] * 4, seed=0), GeometryError, "3 groups, too few"),
        (lambda x: cka_estimate(x, x, [0] * 7, seed=0), GeometryError, "give one each"),
        (lambda x: cka_estimate(x, x, [None] + [1] * 11, seed=0), GeometryError, "1 of the groups"),
        (lambda x: cka_estimate(x * np.nan, x, range(12), seed=0), GeometryError, "NaN"),
        (lambda x: cka_estimate(x * 0, x, range(12), seed=0), GeometryError, "does not vary"),
        (
            lambda x: cka_estimate(x, x, [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 5], seed=0),
            EvidenceError,
            None,
        ),
        (
            lambda x: canonical_estimate(x, x, range(12), components=9, seed=0),
            GeometryError,
            "at most",
        ),
        (
            lambda x: canonical_estimate(x, x, range(12), components=1, folds=1, seed=0),
            GeometryError,
            "folds is 1",
        ),
        (lambda x: participation_ratio_estimate(x[:, :0], range(12)), GeometryError, "nothing"),
        (lambda x: dimension_estimate(x, range(12), method="pca"), GeometryError, "'pca'"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, error, message: str | None) -> None:
    x = np.random.default_rng(0).normal(size=(12, 4))
    if message is None:  # two groups of one row can change places, so this is no error
        assert 0 < call(x).p <= 1
        return
    with pytest.raises(error, match=message):
        call(x)
