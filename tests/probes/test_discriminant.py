"""Probes made of means and covariances, against scikit-learn and the formulas written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid
from sklearn.utils.estimator_checks import parametrize_with_checks

from geometry import principal_angles
from probes import DifferenceInMeansProbe, LDAProbe, MassMeanProbe, ProbeError

seeds = st.integers(0, 2**31)
ALL = [LDAProbe(), MassMeanProbe(), DifferenceInMeansProbe()]


def made(seed: int, n: int = 60, d: int = 8, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.minimum(np.arange(n) % (classes + 1), classes - 1)  # the last class is twice as large
    mixed = rng.standard_normal((n, d)) @ rng.standard_normal((d, d))
    return mixed + 2 * rng.standard_normal((classes, d))[y], y


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(ALL)
def test_the_probes_are_scikit_learn_estimators(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize(("n", "d"), [(60, 8), (20, 70), (40, 40)])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("gamma", [0.05, 0.5, 1.0])
def test_lda_equals_scikit_learns_at_the_same_shrinkage(
    n: int, d: int, classes: int, gamma: float
) -> None:
    x, y = made(0, n, d, classes)
    own = LDAProbe(gamma).fit(x, y)
    other = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=gamma).fit(x, y)
    centred = (lambda w: w) if classes == 2 else (lambda w: w - w.mean(0))
    np.testing.assert_allclose(centred(own.coef_), centred(other.coef_), atol=1e-9)
    np.testing.assert_allclose(own.predict_proba(x), other.predict_proba(x), atol=1e-9)
    np.testing.assert_array_equal(own.predict(x), other.predict(x))


def test_unshrunk_lda_equals_scikit_learns_svd_solver_in_its_predictions_and_axes() -> None:
    x, y = made(1)
    own, other = LDAProbe(0.0).fit(x, y), LinearDiscriminantAnalysis().fit(x, y)
    assert principal_angles(own.subspace().basis, other.scalings_[:, :2]).max() < 1e-6
    assert (own.predict(x) == other.predict(x)).mean() > 0.98  # its covariance has n - C below


@pytest.mark.parametrize(("n", "d", "classes"), [(60, 8, 2), (20, 70, 2), (60, 8, 4)])
def test_mass_mean_equals_scikit_learns_lda_where_classes_are_of_one_size(
    n: int, d: int, classes: int
) -> None:
    y = np.arange(n) % classes
    x = made(2, n, d)[0] + np.random.default_rng(0).standard_normal((classes, d))[y]
    own = MassMeanProbe(0.3).fit(x, y)
    other = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(x, y)
    np.testing.assert_allclose(own.predict_proba(x), other.predict_proba(x), atol=1e-9)


def test_mass_mean_is_the_papers_formula_whatever_the_class_sizes() -> None:
    x, y = made(3, classes=2)
    theta = x[y == 1].mean(0) - x[y == 0].mean(0)
    middle = (x[y == 1].mean(0) + x[y == 0].mean(0)) / 2
    within = x - np.stack([x[y == c].mean(0) for c in (0, 1)])[y]
    logits = (x - middle) @ np.linalg.solve(within.T @ within / len(x), theta)
    own = MassMeanProbe(0.0).fit(x, y)
    np.testing.assert_allclose(own.decision_function(x), logits, atol=1e-9)
    np.testing.assert_allclose(own.predict_proba(x)[:, 1], expit(logits), atol=1e-9)
    simple = DifferenceInMeansProbe().fit(x, y)
    np.testing.assert_allclose(simple.decision_function(x), (x - middle) @ theta, atol=1e-9)
    np.testing.assert_allclose(simple.center_, middle, atol=1e-12)
    unit = theta / np.linalg.norm(theta)
    np.testing.assert_allclose(simple.subspace().direction, unit, atol=1e-9)
    np.testing.assert_allclose(own.subspace(kind="pattern").direction, unit, atol=1e-9)
    assert own.subspace().direction @ unit < 0.99


@settings(max_examples=15, deadline=None)
@given(seeds, st.integers(2, 5))
def test_differences_in_means_predict_scikit_learns_nearest_centroid(seed: int, c: int) -> None:
    x, y = made(seed, classes=c)
    own, other = DifferenceInMeansProbe().fit(x, y), NearestCentroid().fit(x, y)
    np.testing.assert_array_equal(own.predict(x), other.predict(x))
    assert own.subspace().k <= c - 1


@settings(max_examples=15, deadline=None)
@given(seeds, st.sampled_from([(60, 8), (16, 30)]))
def test_turning_moving_and_scaling_all_states_changes_no_probability(
    seed: int, shape: tuple[int, int]
) -> None:
    x, y = made(seed, *shape)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((shape[1],) * 2))[0]
    moved = 1e6 * (x @ turn) + 3e6
    for probe in (LDAProbe(), MassMeanProbe()):
        one = probe.fit(x, y).predict_proba(x)
        np.testing.assert_allclose(probe.fit(moved, y).predict_proba(moved), one, atol=1e-5)
    simple = DifferenceInMeansProbe()
    one = simple.fit(x, y).decision_function(x)
    two = simple.fit(moved, y).decision_function(moved)
    np.testing.assert_allclose(two / 1e12, one, atol=1e-5)


@pytest.mark.parametrize("probe", ALL, ids=lambda p: type(p).__name__)
def test_the_readout_is_all_that_predictions_depend_on(probe: Any) -> None:
    x, y = made(4)
    space = probe.fit(x, y).subspace(site="blocks.0.hook_resid_post")
    assert space.k == 2 and space.site == "blocks.0.hook_resid_post"
    np.testing.assert_allclose(
        probe.decision_function(space.project(x)), probe.decision_function(x), atol=1e-8
    )
    assert space.provenance["whitened"] == (probe is not ALL[2])
    assert space.provenance["classes"] == ["0", "1", "2"]


@pytest.mark.parametrize("probe", ALL, ids=lambda p: type(p).__name__)
def test_duplicates_change_nothing_and_constant_features_get_no_weight(probe: Any) -> None:
    x, y = made(5)
    probe.set_params(**({"shrinkage": 0.2} if "shrinkage" in probe.get_params() else {}))
    once = probe.fit(x, y).coef_
    np.testing.assert_allclose(probe.fit(np.tile(x, (3, 1)), np.tile(y, 3)).coef_, once, atol=1e-9)
    wide = probe.fit(np.hstack([x, np.full((60, 2), 7.1)]), y)
    spread = wide.coef_ - (wide.coef_.mean(0) if len(wide.coef_) > 1 else 0)
    assert np.abs(spread[:, -2:]).max() < 1e-9


def test_planted_classes_are_found_on_new_rows_and_shuffled_ones_are_not() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.standard_normal((400, 20)), np.arange(400) % 2
    x[:, 0] *= 10  # a feature that varies much and says nothing
    x[:, 1] += 3 * y
    x[:, 0] += 3 * y
    for probe in ALL:
        new, old = slice(200, None), slice(0, 200)
        assert probe.fit(x[old], y[old]).score(x[new], y[new]) > 0.55
        drawn = rng.permutation(y)
        assert abs(probe.fit(x[old], drawn[old]).score(x[new], drawn[new]) - 0.5) < 0.12
    scores = [p.fit(x[old], y[old]).score(x[new], y[new]) for p in (ALL[1], ALL[2])]
    assert scores[0] > 0.9 > scores[1] + 0.1  # the spread must be divided out to see it


@pytest.mark.parametrize("probe", ALL, ids=lambda p: type(p).__name__)
def test_bad_input_is_one_clear_sentence(probe: Any) -> None:
    x, y = made(7)
    with pytest.raises(ProbeError, match="at least two"):
        probe.fit(x, np.zeros(60, int))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        probe.fit(x, y[1:])
    broken = x.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        probe.fit(broken, y)
    if probe is ALL[2]:
        with pytest.raises(ProbeError, match="reads no direction"):
            probe.fit(np.ones((60, 2)), y).subspace()
        return
    with pytest.raises(ValueError, match="means of the classes coincide"):
        type(probe)().fit(np.ones((60, 2)), y)
    with pytest.raises(ValueError, match="do not differ within"):
        type(probe)().fit(np.eye(3)[y], y)
    with pytest.raises(ValueError, match="has no inverse"):
        type(probe)(0.0).fit(x[:6], y[:6])
    with pytest.raises(ValueError, match="'ledoit_wolf' or a number"):
        type(probe)("auto").fit(x, y)
