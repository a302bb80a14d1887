"""Calibration and code length cover planted truth; permuted labels reject at their level.

500 simulations for each rate, with rows in groups that are not independent.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from evidence import max_statistic_p
from probes import (
    ProbeError,
    brier_estimate,
    brier_score,
    calibration_estimate,
    code_estimate,
    expected_calibration_error,
    grouped_folds,
    log_loss,
    log_loss_estimate,
    prequential_code,
    variational_code,
)
from probes.controls import permuted_codes, reader_accuracies, ridge_reader
from probes.variational import VariationalProbe

REPEATS, ROWS = 500, 4
STATED = (0.92, 0.98)


def scored(
    rng: np.random.Generator, groups: int, boast: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Claimed probabilities of two classes, labels and groups, whose errors come together.

    A claimed log-odds of z is worth (1 - boast) z.
    """
    z = np.abs(1.2 + rng.normal(size=(groups, 1)) + 0.8 * rng.normal(size=(groups, ROWS)))
    luck = (rng.normal(size=(groups, 1)) + rng.normal(size=(groups, ROWS))) / np.sqrt(2)
    right = stats.norm.cdf(luck) < 1 / (1 + np.exp(-(1 - boast) * z))
    claimed = 1 / (1 + np.exp(-z.ravel()))
    labels = np.where(right.ravel(), "a", "b")
    return np.stack([claimed, 1 - claimed], 1), labels, np.repeat(np.arange(groups), ROWS)


@pytest.mark.parametrize("boast", [0.0, 0.3, 0.6])
def test_calibration_error_covers_that_of_a_very_large_sample(boast: float) -> None:
    p, labels, _ = scored(np.random.default_rng(0), 100_000, boast)
    truth = expected_calibration_error(p, labels, ["a", "b"]) if boast else 0.0
    plain, found = [], []
    for repeat in range(REPEATS):
        p, labels, groups = scored(np.random.default_rng([repeat, 1]), 60, boast)
        plain.append(expected_calibration_error(p, labels, ["a", "b"]))
        found.append(calibration_estimate(p, labels, ["a", "b"], groups, draws=199, seed=repeat))
    held = np.mean([e.low <= truth <= e.high for e in found])
    assert STATED[0] <= held <= 0.99
    # The control: what is plain is too large, and the estimate less so.
    assert np.mean([e.value for e in found]) - truth < 0.7 * (np.mean(plain) - truth)


def test_calibration_p_rejects_a_calibrated_probe_at_its_level_and_a_boaster_more_often() -> None:
    def rejected(boast: float, by_row: bool = False) -> float:
        wrong = 0
        for repeat in range(REPEATS):
            p, labels, groups = scored(np.random.default_rng([repeat, 2]), 40, boast)
            names = np.arange(len(labels)) if by_row else groups
            found = calibration_estimate(p, labels, ["a", "b"], names, draws=99, seed=repeat)
            wrong += found.p <= 0.05
        return wrong / REPEATS

    assert 0.03 <= rejected(0.0) <= 0.075
    assert rejected(0.6) > 0.5
    assert rejected(0.0, by_row=True) > 0.09


@pytest.mark.parametrize("estimate", [brier_estimate, log_loss_estimate])
def test_scores_cover_those_of_a_very_large_sample(estimate) -> None:
    p, labels, _ = scored(np.random.default_rng(0), 100_000, 0.3)
    plain = brier_score if estimate is brier_estimate else log_loss
    truth = plain(p, labels, ["a", "b"])
    held = by_row = 0
    for repeat in range(REPEATS):
        p, labels, groups = scored(np.random.default_rng([repeat, 3]), 40, 0.3)
        found = estimate(p, labels, ["a", "b"], groups)
        held += found.low <= truth <= found.high
        rows = estimate(p, labels, ["a", "b"], np.arange(len(labels)))
        by_row += rows.low <= truth <= rows.high
        assert found.value == pytest.approx(plain(p, labels, ["a", "b"]))
    assert STATED[0] <= held / REPEATS <= STATED[1]
    assert by_row / REPEATS < 0.9


def test_scores_stand_beside_those_of_equal_probabilities() -> None:
    p, labels = np.full((30, 3), 1 / 3), np.arange(30) % 3
    brier = brier_estimate(p, labels, [0, 1, 2], range(30))
    loss = log_loss_estimate(p, labels, [0, 1, 2], range(30))
    assert brier.null == pytest.approx(brier.value)
    assert loss.null == pytest.approx(loss.value) == pytest.approx(np.log(3))


def test_a_prequential_code_has_an_interval_over_groups_and_a_variational_one_says_why_not() -> (
    None
):
    rng = np.random.default_rng(4)
    labels = np.repeat(rng.permutation(np.arange(40) % 2), 3)
    x = rng.normal(size=(120, 5)) + 1.5 * labels[:, None]
    groups = np.repeat(np.arange(40), 3)
    code = prequential_code(x, labels, groups, orders=3, seed=0)
    found = code_estimate(code, groups)
    assert found.value == pytest.approx(code.nats / 120) and found.n == 40
    assert code.by_row.sum() == pytest.approx(code.nats)
    assert found.low < found.value < found.high < found.null == pytest.approx(np.log(2))
    whole = code_estimate(variational_code(VariationalProbe().fit(x, labels)), groups)
    assert np.isnan(whole.low) and "no interval" in whole.method and whole.n == 40
    with pytest.raises(ProbeError, match="120 rows, but there are 3 groups"):
        code_estimate(code, [0, 1, 2])


def test_too_few_groups_have_no_calibration_and_impossible_labels_no_loss() -> None:
    p, labels, _ = scored(np.random.default_rng(5), 2, 0.0)
    none = calibration_estimate(p, labels, ["a", "b"], [0] * 4 + [1] * 4, seed=0)
    assert np.isnan(none.value) and "2 groups cannot say" in none.method
    with pytest.raises(ProbeError, match="1 labels were held impossible"):
        log_loss_estimate([[0.0, 1.0], [0.5, 0.5]], ["a", "a"], ["a", "b"], [0, 1])
    with pytest.raises(ProbeError, match="one for each row"):
        brier_estimate(p, labels, ["a", "b"], [0, 1])


def rejected(sites: int, *, by_row: bool = False, repeats: int = REPEATS) -> float:
    """How often the best of `sites` ridge readers of states without labels in them has p ≤ 0.05.

    Rows of a group share their label and most of their state.
    """
    wrong = 0
    for repeat in range(repeats):
        rng = np.random.default_rng([repeat, sites])
        groups = np.repeat(np.arange(20), 4)
        code = np.repeat(rng.permutation(np.arange(20) % 2), 4)
        folds = grouped_folds(code, groups, n_folds=4, seed=repeat)
        names = np.arange(80) if by_row else groups
        labelings = np.vstack([code, permuted_codes(code, names, draws=19, seed=repeat)])
        table = []
        for _ in range(sites):
            x = np.repeat(rng.normal(size=(20, 5)), 4, axis=0) + 0.3 * rng.normal(size=(80, 5))
            table.append(reader_accuracies(ridge_reader(x, folds), labelings, 2))
        together = max_statistic_p(np.array(table)[:, 0], np.array(table)[:, 1:].T)
        wrong += together.min() <= 0.05
    return wrong / repeats


@pytest.mark.parametrize("sites", [1, 4])
def test_permuted_labels_of_groups_reject_at_their_level_over_all_sites(sites: int) -> None:
    assert 0.03 <= rejected(sites) <= 0.07


def test_permuted_labels_of_rows_would_reject_too_often() -> None:
    assert rejected(1, by_row=True, repeats=150) > 0.12
