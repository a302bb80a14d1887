"""Batched logistic fits against a plain loop of `LinearProbe`, and against scikit-learn in f64."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from probes import LinearProbe, ProbeError, control_labels, fit_folds, grouped_folds, probe_sites
from probes.newton import solve
from probes.splits import Fold


def made(
    n: int, d: int, classes: int, *, draws: int = 2, effect: float = 0.4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Fold]]:
    """States with an uneven spectrum, labelings (the planted one first), groups, folds."""
    rng = np.random.default_rng(seed)
    code = np.arange(n) % classes
    groups = np.arange(n) // (2 * classes)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0] / np.sqrt(np.arange(1, d + 1))[:, None]
    planted = effect * rng.standard_normal((classes, d))[code]
    shared = rng.standard_normal((groups.max() + 1, d))[groups]
    x = (rng.standard_normal((n, d)) + shared + planted) @ turn
    controls = [control_labels(code, groups, seed=[seed, i]) for i in range(draws)]
    return x, np.stack([code, *controls]), groups, grouped_folds(code, groups, n_folds=3, seed=seed)


def loop(
    x: np.ndarray, labelings: np.ndarray, folds: list[Fold], C: float, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out predictions and training accuracies of one `LinearProbe` after another."""
    found = np.empty_like(labelings)
    fitted = np.full((len(labelings), len(folds)), np.nan)
    for i, code in enumerate(labelings):
        for f, (train, test) in enumerate(folds):
            if len(np.unique(code[train])) < 2:
                found[i, test] = code[train][0]
                continue
            probe = LinearProbe(C).fit(x[train], code[train])
            found[i, test] = probe.predict(x[test])
            right = probe.predict(x[train]) == code[train]
            fitted[i, f] = np.mean([right[code[train] == c].mean() for c in np.unique(code[train])])
    return found, fitted


def assert_equals_the_loop(
    x: np.ndarray, labelings: np.ndarray, folds: list[Fold], C: float = 1.0
) -> None:
    classes = int(labelings.max()) + 1
    fits = fit_folds(x, labelings, folds, C=C)
    found, fitted = loop(x, labelings, folds, C, classes)
    if classes == 2:
        near = np.abs(fits.logits[:, :, 0]) < 5e-3
    else:
        best = np.sort(fits.logits, axis=2)
        near = best[:, :, -1] - best[:, :, -2] < 5e-3
    assert near.mean() < 0.1
    np.testing.assert_array_equal(fits.predictions[~near], found[~near])
    np.testing.assert_allclose(fits.train_accuracy, fitted, atol=0.02)


SHAPES = [(96, 160, 4), (96, 20, 4), (60, 90, 2), (120, 10, 2), (96, 64, 6)]


@pytest.mark.parametrize(("n", "d", "classes"), SHAPES)
@pytest.mark.parametrize("C", [0.1, 1.0])
def test_the_batch_equals_a_loop_over_folds_and_labelings(
    n: int, d: int, classes: int, C: float
) -> None:
    x, labelings, _, folds = made(n, d, classes)
    assert_equals_the_loop(x, labelings, folds, C)


@pytest.mark.parametrize(("n", "d", "classes"), SHAPES)
def test_coefficients_equal_newton_cg_in_double_precision(n: int, d: int, classes: int) -> None:
    x, labelings, _, folds = made(n, d, classes)
    fits = fit_folds(x, labelings, folds)
    assert fits.refitted == 0
    for i, code in enumerate(labelings):
        for f, (train, test) in enumerate(folds):
            centre, scale = x[train].mean(axis=0), x[train].std(axis=0)
            other = LogisticRegression(solver="newton-cg", tol=1e-12, max_iter=2000)
            other.fit((x[train] - centre) / scale, code[train])
            np.testing.assert_allclose(fits.coef[i, f] * scale, other.coef_, atol=1e-3)
            level = fits.intercept[i, f] + fits.coef[i, f] @ centre
            np.testing.assert_allclose(level, other.intercept_, atol=5e-3)
            logits = other.decision_function((x[test] - centre) / scale).reshape(len(test), -1)
            np.testing.assert_allclose(fits.logits[i, test], logits, atol=2e-2)


@pytest.mark.parametrize(("n", "d"), [(96, 160), (96, 20)])
@pytest.mark.parametrize("classes", [2, 4])
def test_the_gradient_vanishes_at_what_was_found(n: int, d: int, classes: int) -> None:
    x, labelings, _, folds = made(n, d, classes)
    fits = fit_folds(x, labelings, folds, C=0.5)
    train, _ = folds[0]
    centre, scale = x[train].mean(axis=0), x[train].std(axis=0)
    z = (x[train] - centre) / scale
    for code, coef, intercept in zip(labelings, fits.coef[:, 0], fits.intercept[:, 0], strict=True):
        logits = x[train] @ coef.T + intercept
        if classes == 2:
            residual = (code[train][:, None] == 1) - 1 / (1 + np.exp(-logits))
        else:
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            residual = np.eye(classes)[code[train]] - odds / odds.sum(axis=1, keepdims=True)
        gradient = residual.T @ z - 2 * coef * scale
        assert np.abs(gradient).max() < 2e-6 * len(train)
        assert np.abs(residual.sum(axis=0)).max() < 2e-6 * len(train)


def test_a_loose_fit_fails_the_checks_above() -> None:
    x, labelings, _, folds = made(96, 160, 4)
    loose, tight = (fit_folds(x, labelings, folds, tol=tol) for tol in (1e-2, 1e-6))
    assert np.abs(loose.coef - tight.coef).max() > 1e-2 * np.abs(tight.coef).max()


def test_unit_and_origin_of_the_states_do_not_matter() -> None:
    x, labelings, _, folds = made(60, 90, 3)
    one = fit_folds(x, labelings, folds).logits
    moved = fit_folds(1e6 * x + 3e6, labelings, folds).logits
    np.testing.assert_allclose(moved, one, atol=1e-3)


def test_constant_and_repeated_features_and_rows_are_fine() -> None:
    x, labelings, _, folds = made(60, 30, 3)
    x = np.hstack([x, np.full((60, 3), 7.1), x[:, :4], x[:, :4] * 1e6])
    assert_equals_the_loop(x, labelings, folds)
    flat = fit_folds(np.ones((60, 5)), labelings, folds)
    assert np.abs(flat.coef).max() == 0.0
    twice = np.repeat(x[::2], 2, axis=0)
    assert_equals_the_loop(twice, np.repeat(labelings[:, ::2], 2, axis=1), folds)


def test_a_feature_that_varies_in_one_fold_only_is_scaled_by_its_own_rows() -> None:
    x, labelings, _, folds = made(96, 30, 3)
    test = folds[0][1]
    x[:, 0] = 1e-3 * np.random.default_rng(0).standard_normal(96)  # tiny where fold 0 trains
    x[test, 0] = 1e6 * np.arange(len(test))
    x[:, 1] = 5.0  # constant there
    x[test, 1] = np.arange(len(test))
    fits = fit_folds(x, labelings, folds)
    train = folds[0][0]
    for i, code in enumerate(labelings):
        probe = LinearProbe(tol=1e-9).fit(x[train], code[train])
        np.testing.assert_allclose(
            fits.coef[i, 0] * probe.scale_, probe.coef_ * probe.scale_, atol=1e-3
        )


def test_rank_deficient_states_and_unequal_classes() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((90, 3)) @ rng.standard_normal((3, 120))
    groups = np.repeat(np.arange(30), 3)
    code = rng.choice(3, 90, p=[0.7, 0.2, 0.1])
    folds = grouped_folds(code, groups, n_folds=3, seed=0)
    labelings = np.stack([code, control_labels(code, groups, seed=1)])
    assert_equals_the_loop(x, labelings, folds)
    assert_equals_the_loop(x[:, :2], labelings, folds)


@pytest.mark.parametrize("C", [1.0, 20.0])
def test_separable_states_have_the_penalised_optimum(C: float) -> None:
    x, labelings, _, folds = made(60, 90, 3, effect=20.0)
    fits = fit_folds(x, labelings[:1], folds, C=C)
    code = labelings[0]
    for f, (train, _) in enumerate(folds):
        scale = x[train].std(axis=0)
        other = LogisticRegression(C=C, solver="newton-cg", tol=1e-12, max_iter=5000)
        other.fit((x[train] - x[train].mean(axis=0)) / scale, code[train])
        np.testing.assert_allclose(
            fits.coef[0, f] * scale, other.coef_, atol=1e-3 * max(1, np.abs(other.coef_).max())
        )


def test_where_single_precision_does_not_suffice_double_takes_over() -> None:
    x, labelings, _, folds = made(60, 90, 3)
    fits = fit_folds(x, labelings, folds, tol=1e-9)
    assert fits.refitted > 0
    train = folds[0][0]
    probe = LinearProbe(tol=1e-10, max_iter=20000).fit(x[train], labelings[0][train])
    np.testing.assert_allclose(fits.coef[0, 0], probe.coef_, atol=1e-6 * np.abs(probe.coef_).max())


def test_what_no_precision_settles_is_left_to_the_probe() -> None:
    x, labelings, _, folds = made(60, 90, 3)
    fits = fit_folds(x, labelings, folds, tol=0.0)
    assert fits.refitted == labelings.size // 60 * len(folds)
    for f, (train, _) in enumerate(folds):
        probe = LinearProbe().fit(x[train], labelings[1][train])
        np.testing.assert_allclose(fits.coef[1, f], probe.coef_)


def test_a_penalty_lost_in_rounding_is_no_error_and_leaves_no_gradient() -> None:
    rng = np.random.default_rng(0)
    code, groups = np.arange(300) % 3, np.arange(300) // 3
    x = 100 * rng.standard_normal((300, 1)) + 1e-3 * rng.standard_normal((300, 100))
    folds = grouped_folds(code, groups, n_folds=3, seed=0)
    fits = fit_folds(x, code[None], folds, C=1e6)  # in f32 hK + λ is not positive
    assert fits.refitted == 3
    train, _ = folds[0]
    centre, scale = x[train].mean(axis=0), x[train].std(axis=0)
    z = (x[train] - centre) / scale
    weights = fits.coef[0, 0] * scale
    logits = z @ weights.T + fits.intercept[0, 0] + fits.coef[0, 0] @ centre
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    residual = np.eye(3)[code[train]] - odds / odds.sum(axis=1, keepdims=True)
    assert np.abs(residual.T @ z - 1e-6 * weights).max() < 2e-6 * len(train)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_a_class_that_a_fold_lacks_is_left_out_as_the_probe_does(classes: int) -> None:
    x, labelings, _, folds = made(48, 20, classes, draws=1)
    scarce = labelings[0].copy()
    scarce[:] = np.where(np.arange(48) % 2, 0, classes - 1)
    scarce[folds[0][0]] = np.where(scarce[folds[0][0]] == classes - 1, 0, 0)  # fold 0: one class
    some = labelings[1].copy()
    some[folds[1][0]] %= classes - 1 or 1
    labelings = np.stack([labelings[0], scarce, some])
    assert_equals_the_loop(x, labelings, folds)
    fits = fit_folds(x, labelings, folds)
    assert np.isnan(fits.train_accuracy[1, 0])
    assert (fits.predictions[1, folds[0][1]] == 0).all()


def test_a_labelling_is_fitted_alike_alone_and_among_others() -> None:
    x, labelings, _, folds = made(96, 160, 4, draws=3)
    together = fit_folds(x, labelings, folds)
    for i in range(len(labelings)):
        alone = fit_folds(x, labelings[i : i + 1], folds)
        np.testing.assert_allclose(
            alone.coef[0], together.coef[i], atol=1e-2 * np.abs(together.coef).max()
        )


def test_the_number_of_workers_changes_nothing() -> None:
    x, labelings, groups, _ = made(96, 40, 3)
    sites = {f"blocks.{i}.hook_resid_post": x + 0.1 * i * x[:, ::-1] for i in range(5)}
    one, two = (
        probe_sites(sites, labelings[0], groups, permutations=20, workers=w, seed=0) for w in (1, 3)
    )
    for a, b in zip(one, two, strict=True):
        assert a.site == b.site
        assert a.accuracy == b.accuracy and a.control == b.control
        assert a.control_train == b.control_train
        np.testing.assert_array_equal(a.predictions, b.predictions)


def test_a_sweep_holds_what_a_loop_of_probes_finds() -> None:
    x, labelings, groups, _ = made(96, 40, 3)
    folds = grouped_folds(labelings[0], groups, seed=3)
    result = probe_sites({"s": x}, labelings[0], groups, control_draws=2, permutations=0, seed=3)[0]
    controls = [control_labels(labelings[0], groups, seed=[3, i]) for i in range(2)]
    found, fitted = loop(x, np.stack([labelings[0], *controls]), folds, 1.0, 3)
    assert (result.predictions != found[0]).sum() <= 1
    assert result.control_train == pytest.approx(fitted[1:].mean(), abs=0.02)
    assert result.control.value == pytest.approx((found[1:] == controls).mean(), abs=0.05)


def test_both_forms_of_the_solver_find_the_same() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((40, 40))
    targets = np.eye(3)[np.arange(40) % 3].T[None].copy()
    wide = np.hstack([z, np.zeros((40, 1))])  # by rows
    tall = np.vstack([z, z])  # by features, every row twice
    by_row = solve(wide, targets, 1.0, tol=1e-10)
    by_feature = solve(tall, np.tile(targets, 2), 2.0, tol=1e-10)
    np.testing.assert_allclose(by_row.weights[..., :40], by_feature.weights, atol=1e-7)


def test_bad_input_is_one_clear_sentence() -> None:
    x, labelings, groups, folds = made(60, 10, 3)
    with pytest.raises(ProbeError, match=r"give class numbers \[labelings, 60\]"):
        fit_folds(x, labelings[:, :50], folds)
    with pytest.raises(ProbeError, match="give class numbers"):
        fit_folds(x, labelings.astype(str), folds)
    with pytest.raises(ProbeError, match="C is 0"):
        fit_folds(x, labelings, folds, C=0.0)
    with pytest.raises(ProbeError, match="at least two classes"):
        fit_folds(x, 0 * labelings, folds)
    with pytest.raises(ProbeError, match="below n_classes"):
        fit_folds(x, labelings, folds, n_classes=2)
    with pytest.raises(ProbeError, match="do not test each of 60 rows once"):
        fit_folds(x, labelings, folds[:2])
    with pytest.raises(ProbeError, match="NaN"):
        fit_folds(np.where(x > 0, np.nan, x), labelings, folds)
    with pytest.raises(ProbeError, match="workers is 0"):
        probe_sites({"s": x}, labelings[0], groups, workers=0, seed=0)
