"""Calibration against hand-worked cases and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from probes import ProbeError
from probes.calibration import brier_score, expected_calibration_error, log_loss, reliability_curve


def test_a_hand_worked_case_has_its_hand_worked_figures() -> None:
    p = [[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]
    y = ["a", "b", "b", "b"]
    curve = reliability_curve(p, y, ["a", "b"], bins=10)
    assert list(curve["n"]) == [2, 2]
    assert list(curve["accuracy"]) == [1.0, 0.5]
    assert expected_calibration_error(p, y, ["a", "b"]) == pytest.approx((0.4 + 0.4) / 2)
    assert brier_score(p, y, ["a", "b"]) == pytest.approx((0.02 + 1.62 + 0.32 + 0.32) / 4)
    assert log_loss(p, y, ["a", "b"]) == pytest.approx(
        -(np.log(0.9) + np.log(0.1) + 2 * np.log(0.6)) / 4
    )


def test_curve_and_scores_equal_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 400)
    y = rng.integers(0, 3, 400)
    curve = reliability_curve(p, y, [0, 1, 2], bins=8)
    true, claimed = calibration_curve(p.argmax(1) == y, p.max(1), n_bins=8)
    np.testing.assert_allclose(curve["accuracy"], true)
    np.testing.assert_allclose(curve["confidence"], claimed)
    assert log_loss(p, y, [0, 1, 2]) == pytest.approx(metrics.log_loss(y, p))
    two = np.stack([1 - p[:, 0], p[:, 0]], axis=1)
    assert brier_score(two, y == 0, [False, True]) == pytest.approx(
        2 * metrics.brier_score_loss(y == 0, p[:, 0])
    )


def test_true_probabilities_are_calibrated_and_sharpened_ones_are_not() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(3), 20000)
    y = (p.cumsum(1) < rng.random((20000, 1))).sum(1)
    sharp = p**3 / (p**3).sum(1, keepdims=True)
    assert expected_calibration_error(p, y, [0, 1, 2]) < 0.02
    assert expected_calibration_error(sharp, y, [0, 1, 2]) > 0.1
    assert brier_score(p, y, [0, 1, 2]) < brier_score(sharp, y, [0, 1, 2])


def test_bad_input_is_one_clear_sentence() -> None:
    with pytest.raises(ProbeError, match=r"give \[rows, 2\]"):
        brier_score([[1.0]], ["a"], ["a", "b"])
    with pytest.raises(ProbeError, match="sum to 1"):
        log_loss([[0.5, np.nan]], ["a"], ["a", "b"])
    with pytest.raises(ProbeError, match="'c' is not one"):
        log_loss([[0.5, 0.5]], ["c"], ["a", "b"])
    with pytest.raises(ProbeError, match="bins is 0"):
        reliability_curve([[0.5, 0.5]], ["a"], ["a", "b"], bins=0)
    assert log_loss([[0.0, 1.0]], ["a"], ["a", "b"]) == np.inf
