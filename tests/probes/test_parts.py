"""Folds that share a Gram matrix, against fits to each alone, scikit-learn in f64, and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import probes.batched
from probes import LinearProbe, control_labels, fit_folds, grouped_folds
from probes.matrices import Strips, inverse, inverse_without, spaced
from probes.newton import solve
from probes.spaces import Part, Rows
from probes.splits import Fold


def made(n: int, d: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Fold]]:
    """States with an uneven spectrum and outlying rows, labels and a control, groups, folds."""
    rng = np.random.default_rng(0)
    code = np.arange(n) % classes
    groups = np.arange(n) // (2 * classes)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0] / np.sqrt(np.arange(1, d + 1))[:, None]
    x = (rng.standard_t(4, (n, d)) + 0.4 * rng.standard_normal((classes, d))[code]) @ turn
    x[groups == 1] *= 3
    labelings = np.stack([code, control_labels(code, groups, seed=0)])
    return 1e3 * x + 7, labelings, groups, grouped_folds(code, groups, n_folds=5, seed=0)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[Rows]:
    """The rows that folds shared."""
    found: list[Rows] = []

    class Noted(Rows):
        def __init__(self, z: np.ndarray) -> None:
            super().__init__(z)
            found.append(self)

    monkeypatch.setattr(probes.batched, "Rows", Noted)
    return found


@pytest.mark.parametrize(("n", "d", "classes"), [(160, 170, 2), (330, 350, 4)])
@pytest.mark.parametrize("C", [0.1, 1.0, 10.0])
def test_coefficients_equal_newton_cg_in_double_precision(
    n: int, d: int, classes: int, C: float, shared: list[Rows]
) -> None:
    x, labelings, _, folds = made(n, d, classes)
    fits = fit_folds(x, labelings, folds, C=C)
    assert len(shared) == 1
    assert fits.refitted == 0
    for i, code in enumerate(labelings):
        for f, (train, test) in enumerate(folds):
            centre, scale = x[train].mean(axis=0), x[train].std(axis=0)
            other = LogisticRegression(C=C, solver="newton-cg", tol=1e-12, max_iter=2000)
            other.fit((x[train] - centre) / scale, code[train])
            np.testing.assert_allclose(fits.coef[i, f] * scale, other.coef_, atol=1e-3)
            levels = fits.intercept[i, f] + fits.coef[i, f] @ centre
            np.testing.assert_allclose(levels, other.intercept_, atol=1e-3 * max(1, C))
            logits = x[test] @ fits.coef[i, f].T + fits.intercept[i, f]
            np.testing.assert_allclose(fits.logits[i, test], logits, atol=1e-3)


@pytest.mark.parametrize("classes", [1, 3])
def test_a_part_has_the_solution_of_its_rows_alone(classes: int) -> None:
    rng = np.random.default_rng(1)
    z = rng.standard_normal((50, 70))
    order = rng.permutation(50)
    kept, others = np.sort(order[:38]), np.sort(order[38:])
    factor = rng.uniform(0.6, 1.6, 70)  # further from 1 than folds are
    code = np.arange(38) % max(classes, 2)
    targets = np.eye(max(classes, 2))[code].T[None, -classes:]
    part = solve(Part(Rows(z), kept, others, factor), targets, 1.0, tol=1e-10)
    alone = solve(z[kept] * factor, targets, 1.0, tol=1e-10)
    assert part.gradient.max() <= 1e-10
    np.testing.assert_allclose(part.weights, alone.weights, atol=1e-8)
    np.testing.assert_allclose(part.intercepts, alone.intercepts, atol=1e-8)


def test_a_fold_in_which_a_feature_hardly_varies_is_fitted_alone(shared: list[Rows]) -> None:
    x, labelings, _, folds = made(160, 170, 2)
    test = folds[2][1]
    x[:, 0] = np.random.default_rng(0).standard_normal(160)
    x[test, 0] = 1e5 * np.arange(len(test))
    x[:, 1] = 0.1  # everywhere, which is no reason
    fits = fit_folds(x, labelings, folds)
    assert len(shared) == 1
    for i, code in enumerate(labelings):
        for f, (train, _) in enumerate(folds):
            probe = LinearProbe(tol=1e-9).fit(x[train], code[train])
            np.testing.assert_allclose(
                fits.coef[i, f] * probe.scale_, probe.coef_ * probe.scale_, atol=1e-3
            )


def test_a_class_that_one_fold_lacks_does_not_disturb_the_others(shared: list[Rows]) -> None:
    x, labelings, groups, _ = made(330, 350, 3)
    code = np.where(groups == 0, 2, labelings[0] % 2)  # the third in one group alone
    folds = grouped_folds(labelings[0], groups, n_folds=5, seed=0)
    fits = fit_folds(x, code[None], folds)
    assert len(shared) == 1
    lacking = [f for f, (train, _) in enumerate(folds) if 2 not in code[train]]
    assert len(lacking) == 1
    assert np.isneginf(fits.intercept[0, :, 2]).tolist() == [f in lacking for f in range(5)]
    for train, test in folds:
        probe = LinearProbe(tol=1e-8).fit(x[train], code[train])
        agreed = np.mean(fits.predictions[0, test] == probe.predict(x[test]))
        assert agreed > 0.95


def test_with_many_labelings_or_few_folds_each_fold_has_its_own(shared: list[Rows]) -> None:
    x, labelings, groups, folds = made(160, 170, 2)
    one = fit_folds(x, labelings, folds)
    assert len(shared) == 1
    many = fit_folds(x, np.vstack([labelings] * 3), folds)
    fit_folds(x, labelings, grouped_folds(labelings[0], groups, n_folds=3, seed=0))
    fit_folds(x[:, :100], labelings, folds)
    assert len(shared) == 1
    np.testing.assert_allclose(many.logits[:2], one.logits, atol=2e-3)


@pytest.mark.parametrize(("n", "left_out"), [(5, 1), (70, 20), (333, 100)])
def test_inverses_equal_those_of_numpy(n: int, left_out: int) -> None:
    rng = np.random.default_rng(n)
    half = rng.standard_normal((n, n + 5))
    s = half @ half.T / n + np.eye(n)
    order = rng.permutation(n)
    kept, others = np.sort(order[left_out:]), np.sort(order[:left_out])
    whole = inverse(s)
    np.testing.assert_allclose(whole, np.linalg.inv(s), atol=1e-10)
    part = inverse_without(whole, kept, others)
    np.testing.assert_allclose(part, np.linalg.inv(s[np.ix_(kept, kept)]), atol=1e-10)


@pytest.mark.parametrize("k", [1, 31, 32, 33, 100])
def test_products_with_strips_equal_those_with_the_matrix(k: int) -> None:
    rng = np.random.default_rng(k)
    matrix = spaced(40, k, np.float64)
    matrix[:] = rng.standard_normal((40, k))
    v, w = rng.standard_normal((2, 3, 40)), rng.standard_normal((3, k))
    np.testing.assert_allclose(Strips(matrix).times(v), v @ matrix, atol=1e-12)
    np.testing.assert_allclose(Strips(matrix.T).times(w), w @ matrix.T, atol=1e-12)
