"""Contrast-consistent search against a planted feature, a grid in the plane, and differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.base import clone

from probes import ContrastProbe, ProbeError
from probes.contrast import contrast_loss


def planted(
    seed: int, n: int = 200, d: int = 12, strength: float = 4.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs with a truth along one axis, a word along another, and what both sides share."""
    rng = np.random.default_rng(seed)
    # Every feature takes an equal part in the truth, so that dividing by spread turns nothing.
    axis = rng.choice([-1.0, 1.0], d) / np.sqrt(d)
    y = rng.integers(0, 2, n)
    shared = rng.standard_normal((n, d))
    truth = strength / 2 * np.outer(2 * y - 1, axis)
    word = 5 * rng.standard_normal(d) / np.sqrt(d)
    noise = 0.3 * rng.standard_normal((2, n, d))
    return shared + truth + word + noise[0], shared - truth - word + noise[1], y, axis


def plain_loss(theta: np.ndarray, b: float, high: np.ndarray, low: np.ndarray) -> float:
    total = 0.0
    for one, two in zip(high, low, strict=True):
        p, q = expit(one @ theta + b), expit(two @ theta + b)
        total += (p - (1 - q)) ** 2 + min(p, q) ** 2
    return total / len(high)


def test_a_planted_truth_is_found_and_the_word_that_marks_the_sides_is_not() -> None:
    high, low, y, truth = planted(0, n=800)
    probe = ContrastProbe(seed=1).fit(high, low)
    assert abs(probe.subspace().direction @ truth) > 0.99
    # The word parts the sides further than truth does, and yet moves no probability.
    assert np.linalg.norm(high.mean(0) - low.mean(0)) > 2 * 4
    np.testing.assert_allclose(
        ContrastProbe(seed=1).fit(high + 9.0, low - 9.0).predict_proba(high + 9.0, low - 9.0),
        probe.predict_proba(high, low),
        atol=1e-4,
    )
    scores = probe.compare(high, low, y)
    assert scores.ccs > 0.99 and scores.principal_component > 0.99
    half = ContrastProbe(seed=1).fit(high[:400], low[:400])
    assert half.compare(high[400:], low[400:], y[400:]).ccs > 0.99
    assert probe.spread_ < 0.05 and probe.losses_.shape == (10,)


def test_without_a_truth_accuracy_is_near_what_the_better_of_two_coins_gives() -> None:
    high, low, y, _ = planted(2, strength=0.0)
    scores = ContrastProbe().fit(high, low).compare(high, low, y)
    assert scores.ccs < 0.62 and scores.principal_component < 0.62
    assert (scores.restarts >= 0.5).all()
    with_truth = planted(2)
    assert ContrastProbe().fit(*with_truth[:2]).compare(*with_truth[:3]).ccs > 0.99


def test_in_the_plane_the_loss_is_the_least_on_a_grid() -> None:
    high, low, _, _ = planted(3, n=40, d=2, strength=3.0)
    probe = ContrastProbe(decay=0.02, restarts=8).fit(high, low)
    a, b = ((side - side.mean(0)) / side.std(0) for side in (high, low))

    def penalised(at: np.ndarray) -> float:
        return plain_loss(at[:2], at[2], a, b) + 0.01 * float(at[:2] @ at[:2])

    grid = np.linspace(-6, 6, 31)
    points = [np.array([u, v, w]) for u in grid for v in grid[15:] for w in (-0.5, 0.0, 0.5)]
    start = min(points, key=penalised)
    # From the best of the grid without derivatives, which the probe's own solver uses.
    best = scipy.optimize.minimize(penalised, start, method="Nelder-Mead", tol=1e-10).fun
    assert probe.loss_ == pytest.approx(best, abs=1e-6)
    theta = probe.coef_[0] * probe.scale_[0]
    own = plain_loss(theta, probe.intercept_, a, b) + 0.01 * theta @ theta
    assert probe.loss_ == pytest.approx(own, abs=1e-12)


def test_the_gradient_equals_scipys_finite_differences() -> None:
    rng = np.random.default_rng(4)
    high, low, at = rng.standard_normal((20, 3)), rng.standard_normal((20, 3)), rng.normal(size=4)
    loss, slope = contrast_loss(at, high, low, 0.1)
    assert loss == pytest.approx(plain_loss(at[:-1], at[-1], high, low) + 0.05 * at[:3] @ at[:3])
    numeric = scipy.optimize.approx_fprime(at, lambda p: contrast_loss(p, high, low, 0.1)[0], 1e-7)
    np.testing.assert_allclose(slope, numeric, atol=1e-6)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000))
def test_units_and_origin_of_each_side_change_nothing(seed: int) -> None:
    high, low, _, _ = planted(seed, n=60, d=5)
    units = np.random.default_rng(seed).uniform(0.1, 10, 5)
    one = ContrastProbe(restarts=2).fit(high, low).predict_proba(high, low)
    moved = 1e6 * high * units + 3e6, low * units - 7
    two = ContrastProbe(restarts=2).fit(*moved).predict_proba(*moved)
    np.testing.assert_allclose(two, one, atol=1e-3)


def test_exchanging_the_sides_turns_every_probability_round() -> None:
    high, low, _, _ = planted(5)
    probe = ContrastProbe().fit(high, low)
    p = probe.predict_proba(high, low)
    np.testing.assert_array_equal(probe.predict(high, low), (p > 0.5).astype(int))
    other = ContrastProbe().fit(low, high).predict_proba(low, high)
    # The sign is free, so the exchanged probe gives either p or its opposite throughout.
    assert min(np.abs(other - p).max(), np.abs(1 - other - p).max()) < 1e-3


def test_more_dimensions_than_pairs_and_constant_features_are_fine_and_restarts_spread() -> None:
    high, low, _, _ = planted(6, n=20, d=100)
    constant = np.full((20, 2), 7.1)
    wide = np.hstack([high, constant]), np.hstack([low, constant])
    probe = ContrastProbe(restarts=5).fit(*wide)
    assert probe.loss_ < 0.2 and np.abs(probe.coef_[:, -2:]).max() < 1e-9
    noise = np.random.default_rng(0).standard_normal((2, 20, 100))
    assert ContrastProbe(restarts=5, decay=1e-4).fit(*noise).spread_ > 0.1
    full = planted(6, n=200, d=5)[:2]
    assert ContrastProbe(restarts=5).fit(*full).spread_ < 0.01


def test_the_direction_of_each_side_gives_its_logits() -> None:
    high, low, _, _ = planted(7)
    probe = ContrastProbe().fit(high, low)
    sides = [(high, "positive"), (low, "negative")]
    logits = []
    for x, side in sides:
        space = probe.subspace(side=side, site="blocks.0.hook_resid_post")  # pyright: ignore[reportArgumentType]
        assert space.k == 1 and space.provenance["whitened"] is False
        logits.append(space.coordinates(x)[:, 0] * space.singular_values[0] + probe.intercept_)
    expected = (expit(logits[0]) + 1 - expit(logits[1])) / 2
    np.testing.assert_allclose(probe.predict_proba(high, low), expected, atol=1e-10)


def test_the_same_seed_gives_the_same_probe_and_parameters_survive_a_clone() -> None:
    high, low, _, _ = planted(8)
    probe = ContrastProbe(restarts=3, decay=0.02, seed=5).fit(high, low)
    again = clone(probe)
    assert again.get_params() == probe.get_params() and not hasattr(again, "coef_")
    np.testing.assert_array_equal(again.fit(high, low).directions_, probe.directions_)


def test_bad_input_is_one_clear_sentence() -> None:
    high, low, _, _ = planted(9, n=20)
    with pytest.raises(ProbeError, match="same rows in the same order"):
        ContrastProbe().fit(high, low[1:])
    with pytest.raises(ProbeError, match="do not differ once each is normalised"):
        ContrastProbe().fit(high, high + 3.0)
    with pytest.raises(ProbeError, match="at least two"):
        ContrastProbe().fit(high[:1], low[:1])
    bad: list[tuple[dict[str, Any], str]] = [
        ({"restarts": 0}, "whole number above 0"),
        ({"decay": -1.0}, "at least 0"),
        ({"decay": 1e6}, "lower decay"),
    ]
    for parameters, message in bad:
        with pytest.raises(ProbeError, match=message):
            ContrastProbe(**parameters).fit(high, low)
    probe = ContrastProbe(restarts=1).fit(high, low)
    assert np.isnan(probe.spread_)
    with pytest.raises(ProbeError, match="3 features, but this probe was fitted to 12"):
        probe.predict(high[:, :3], low[:, :3])
    with pytest.raises(ProbeError, match="3 classes"):
        probe.compare(high, low, np.arange(20) % 3)
    with pytest.raises(ProbeError, match="'positive' or 'negative'"):
        probe.subspace(side="both")  # pyright: ignore[reportArgumentType]
    high[0, 0] = np.nan
    with pytest.raises(ProbeError, match="NaN or infinite"):
        ContrastProbe().fit(high, low)
