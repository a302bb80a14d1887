"""The probe against scikit-learn's checks, another solver and its own first-order condition."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import check_estimator

from probes import LinearProbe, ProbeError


def made(seed: int = 0, n: int = 60, d: int = 8, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return rng.standard_normal((n, d)) + rng.standard_normal((classes, d))[y], y


def test_the_probe_is_a_scikit_learn_estimator() -> None:
    check_estimator(LinearProbe())


@pytest.mark.parametrize(("n", "d", "classes"), [(60, 8, 3), (20, 70, 3), (30, 80, 2)])
def test_coefficients_equal_another_solvers(n: int, d: int, classes: int) -> None:
    x, y = made(0, n, d, classes)
    probe = LinearProbe(C=0.5, tol=1e-9).fit(x, y)
    z = (x - x.mean(0)) / x.std(0)
    other = LogisticRegression(C=0.5, solver="newton-cg", tol=1e-12, max_iter=2000).fit(z, y)
    np.testing.assert_allclose(probe.coef_ * x.std(0), other.coef_, atol=1e-5)
    np.testing.assert_allclose(probe.predict_proba(x), other.predict_proba(z), atol=1e-5)


def test_the_gradient_vanishes_at_the_default_tolerance() -> None:
    x, y = made(1)
    probe = LinearProbe().fit(x, y)
    z = (x - probe.center_) / probe.scale_
    residual = np.eye(3)[y] - probe.predict_proba(x)
    gradient = residual.T @ z - probe.coef_ * probe.scale_
    assert np.abs(gradient).max() < 1e-5 * len(x)


def test_units_and_origin_of_the_states_do_not_matter() -> None:
    x, y = made(2)
    one = LinearProbe().fit(x, y).predict_proba(x)
    moved = 1e6 * x + 3e6
    np.testing.assert_allclose(LinearProbe().fit(moved, y).predict_proba(moved), one, atol=1e-4)


def test_constant_features_get_no_weight() -> None:
    x, y = made(3)
    probe = LinearProbe().fit(np.hstack([x, np.full((len(x), 2), 7.1)]), y)
    assert np.abs(probe.coef_[:, -2:]).max() < 1e-6
    same = LinearProbe().fit(np.ones((len(x), 3)), y)
    np.testing.assert_allclose(same.predict_proba(np.ones((1, 3))), 1 / 3, atol=1e-4)


def test_the_readout_is_all_that_predictions_depend_on() -> None:
    x, y = made(4)
    probe = LinearProbe().fit(x, y)
    space = probe.subspace(site="blocks.0.hook_resid_post")
    assert space.k == 2
    np.testing.assert_allclose(
        probe.predict_proba(space.project(x)), probe.predict_proba(x), atol=1e-9
    )
    x, y = made(5, classes=2)
    probe = LinearProbe().fit(x, y)
    assert (probe.subspace().direction @ (x[y == 1].mean(0) - x[y == 0].mean(0))) > 0


def test_bad_input_is_a_value_error() -> None:
    x, y = made()
    with pytest.raises(ProbeError, match="at least two"):
        LinearProbe().fit(x, np.zeros(len(x), int))
    x[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        LinearProbe().fit(x, y)
    with pytest.raises(ProbeError, match="reads no direction"):
        LinearProbe().fit(np.ones((6, 2)), y[:6]).subspace()
