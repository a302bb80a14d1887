"""Ridge against scikit-learn's Ridge, refitted for every group, fold, penalty and labelling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeClassifier, RidgeCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes import ProbeError, RidgePath, RidgeProbe, grouped_folds, ridge_labelings
from probes.controls import permuted_codes

ALPHAS = (1e-3, 1e-1, 1e1)


def made(
    seed: int, n: int = 60, d: int = 8, classes: int = 3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y, groups = np.arange(n) % classes, np.arange(n) // 4
    shared = rng.standard_normal((n, d))[groups]
    return shared + rng.standard_normal((n, d)) + rng.standard_normal((classes, d))[y], y, groups


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([RidgeProbe(), RidgeProbe(0.1, scale=False)])
def test_the_probe_is_a_scikit_learn_estimator(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize(("n", "d"), [(60, 8), (20, 50), (30, 30)])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("alpha", [1e-4, 1.0, 100.0])
def test_the_fit_equals_scikit_learns_ridge_classifier(
    n: int, d: int, classes: int, alpha: float
) -> None:
    x, y, _ = made(0, n, d, classes)
    z = (x - x.mean(0)) / x.std(0)
    other = RidgeClassifier(alpha=alpha * np.mean(np.sum(z**2, axis=1))).fit(z, y)
    own = RidgeProbe(alpha).fit(x, y)
    np.testing.assert_allclose(own.coef_ * x.std(0), np.atleast_2d(other.coef_), atol=1e-8)
    np.testing.assert_allclose(own.decision_function(x), other.decision_function(z), atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from([(40, 5), (24, 40), (20, 20)]), st.sampled_from(ALPHAS)
)
def test_residuals_for_groups_left_out_equal_scikit_learns_refits(
    seed: int, shape: tuple[int, int], alpha: float
) -> None:
    x, y, _ = made(seed, *shape)
    groups = np.random.default_rng(seed).integers(0, 6, len(x))  # of unequal size, out of order
    z, targets = x - x.mean(0), 2.0 * np.eye(3)[y] - 1
    path = RidgePath(z)
    expected = np.empty_like(targets)
    for g in np.unique(groups):
        out = groups == g
        model = Ridge(alpha=alpha * path.level, solver="svd").fit(x[~out], targets[~out])
        expected[out] = targets[out] - model.predict(x[out])
    np.testing.assert_allclose(path.left_out(targets, groups, alpha), expected, atol=1e-8)


def test_single_rows_left_out_equal_scikit_learns_ridge_cv() -> None:
    x, y, _ = made(1)
    path, t = RidgePath(x - x.mean(0)), 2.0 * (y == 1) - 1
    other = RidgeCV(alphas=[a * path.level for a in ALPHAS], store_cv_results=True).fit(x, t)
    own = path.errors(t[:, None], np.arange(60), ALPHAS)[:, 0]
    np.testing.assert_allclose(own, other.cv_results_.mean(axis=0), rtol=1e-8)


def test_twins_would_be_read_if_groups_were_not_left_out_whole() -> None:
    rng = np.random.default_rng(2)
    x, y = np.repeat(rng.standard_normal((20, 60)), 2, axis=0), np.repeat(np.arange(20) % 2, 2)
    apart, whole = (RidgeProbe().fit(x, y, groups=g) for g in (None, np.repeat(np.arange(20), 2)))
    assert apart.errors_.min() < 0.1  # a row's twin gives its label away
    assert whole.errors_.min() > 0.8 and whole.alpha_ > apart.alpha_


def test_the_chosen_penalty_has_the_least_error_by_refits_of_scikit_learn() -> None:
    x, y, groups = made(3, 40, 30)
    own = RidgeProbe(alphas=ALPHAS[::-1], scale=False).fit(x, y, groups=groups)
    level, targets = np.mean(np.sum((x - x.mean(0)) ** 2, axis=1)), 2.0 * np.eye(3)[y] - 1
    errors = []
    for alpha in ALPHAS:
        left = np.concatenate([
            targets[groups == g] - Ridge(alpha=alpha * level)
            .fit(x[groups != g], targets[groups != g]).predict(x[groups == g])
            for g in np.unique(groups)
        ])  # fmt: skip
        errors.append(np.mean(left**2))
    np.testing.assert_allclose(own.errors_, errors, rtol=1e-7)
    assert own.alpha_ == ALPHAS[int(np.argmin(errors))]
    np.testing.assert_array_equal(own.alphas_, ALPHAS)


def test_many_labelings_at_once_equal_a_loop_of_nested_refits() -> None:
    x, y, groups = made(4, 48, 10)
    labelings = permuted_codes(y, groups, draws=5, seed=0)
    labelings[0] = y
    both = ridge_labelings(x, labelings, groups, n_folds=4, alphas=ALPHAS, seed=1)
    folds = grouped_folds(y, groups, n_folds=4, seed=1)
    for b, code in enumerate(labelings):
        for f, (train, test) in enumerate(folds):
            one = RidgeProbe(alphas=ALPHAS).fit(x[train], code[train], groups=groups[train])
            assert both.alphas[b, f] == one.alpha_
            np.testing.assert_allclose(
                both.scores[b, test], one.decision_function(x[test]), atol=1e-9
            )
        right = both.predictions[b] == code
        share = np.mean([right[code == c].mean() for c in set(y)])
        assert both.accuracies[b] == pytest.approx(share)


def test_planted_classes_are_found_and_permuted_ones_are_at_chance() -> None:
    x, y, groups = made(5, 240, 20)
    x = x + 2 * np.eye(20)[y]
    labelings = np.vstack([y, permuted_codes(y, groups, draws=30, seed=0)])
    accuracies = ridge_labelings(x, labelings, groups, seed=0).accuracies
    assert accuracies[0] > 0.8
    drawn = accuracies[1:]
    assert abs(drawn.mean() - 1 / 3) < 3 * drawn.std() / np.sqrt(30) + 0.01


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(60, 8), (16, 30)]))
def test_units_and_origin_of_the_states_do_not_matter(seed: int, shape: tuple[int, int]) -> None:
    x, y, _ = made(seed, *shape)
    units = np.random.default_rng(seed).uniform(0.1, 10, shape[1])
    one = RidgeProbe(0.1).fit(x, y).decision_function(x)
    moved = 1e6 * x * units + 3e6
    two = RidgeProbe(0.1).fit(moved, y).decision_function(moved)
    np.testing.assert_allclose(two, one, atol=1e-6)


def test_rank_deficient_and_constant_states_are_fine() -> None:
    x, y, groups = made(6)
    wide = np.hstack([x, x[:, :3], np.full((60, 2), 7.1)])
    own = RidgeProbe().fit(np.vstack([wide, wide]), np.tile(y, 2), groups=np.tile(groups, 2))
    assert np.abs(own.coef_[:, -2:]).max() < 1e-12
    assert own.subspace().k == 2 and own.subspace().provenance["groups"] == 15
    np.testing.assert_allclose(
        own.decision_function(own.subspace().project(wide)), own.decision_function(wide), atol=1e-9
    )
    flat = RidgeProbe().fit(np.ones((60, 3)), y)
    np.testing.assert_allclose(flat.decision_function(np.ones((1, 3))), -1 / 3, atol=1e-12)


def test_bad_input_is_one_clear_sentence() -> None:
    x, y, groups = made(7)
    with pytest.raises(ProbeError, match="at least two"):
        RidgeProbe().fit(x, np.zeros(60))
    with pytest.raises(ProbeError, match="All rows are of one group"):
        RidgeProbe().fit(x, y, groups=np.zeros(60))
    with pytest.raises(ProbeError, match="60 rows but 59 groups"):
        RidgeProbe().fit(x, y, groups=groups[1:])
    for alpha in (0.0, -1.0, np.nan):
        with pytest.raises(ProbeError, match="finite numbers above 0"):
            RidgeProbe(alpha).fit(x, y)
    with pytest.raises(ProbeError, match="'grouped' or a number"):
        RidgeProbe("loo").fit(x, y)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ProbeError, match=r"give \[labelings, 60\]"):
        ridge_labelings(x, y, groups, seed=0)
    with pytest.raises(ProbeError, match="different classes"):
        ridge_labelings(x, [y, y + 1], groups, seed=0)
    with pytest.raises(ProbeError, match="is 1 group for 5"):
        ridge_labelings(x, [y], np.zeros(60), seed=0)
    x[0, 0] = np.nan
    with pytest.raises(ProbeError, match="NaN or infinite"):
        ridge_labelings(x, [y], groups, seed=0)
    with pytest.raises(ValueError, match="NaN"):
        RidgeProbe().fit(x, y)
