"""The Bayesian probe against quadrature, grids, finite differences and scikit-learn's MAP."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import expit, logsumexp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from geometry import principal_angles
from probes import ProbeError, VariationalProbe, expectations, fit_many, grouped_folds
from probes.precision import double


def made(
    seed: int = 0, n: int = 60, d: int = 5, classes: int = 2, gap: float = 1.0
) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    return rng.standard_normal((n, d)) + gap * rng.standard_normal((classes, d))[y], y


def standard(x: np.ndarray) -> np.ndarray:
    return np.hstack([(x - x.mean(0)) / x.std(0), np.ones((len(x), 1))])


def prior(d: int, precision: float = 1.0) -> np.ndarray:
    return np.append(np.full(d, precision), 1e-2)


def binary_elbo(z: np.ndarray, y: np.ndarray, m: np.ndarray, v: np.ndarray, a: np.ndarray) -> float:
    """By adaptive quadrature, one integral a row."""
    total = 0.0
    for row, label in zip(z, y, strict=True):
        mu, sd = row @ m, np.sqrt(row**2 @ v)
        sign = 1.0 if label else -1.0
        total -= integrate.quad(
            lambda t: np.logaddexp(0, -sign * (mu + sd * t)) * stats.norm.pdf(t),  # noqa: B023
            -12,
            12,
            epsabs=1e-12,
        )[0]
    return total - 0.5 * np.sum(a * (m**2 + v) - 1 - np.log(a * v))


def gaussian_mean(function: Any, mu: float, variance: float) -> float:
    """E f(z) of z ~ N(mu, variance) by adaptive quadrature, cut where logistic functions turn."""
    reach = 12 * np.sqrt(variance)
    turns = [t for t in (-40, -10, -3, 0, 3, 10, 40) if abs(t - mu) < reach]
    cuts = sorted({mu - reach, *turns, mu, mu + reach})
    return sum(
        integrate.quad(
            lambda z: function(z) * stats.norm.pdf(z, mu, np.sqrt(variance)), *ends, epsabs=1e-13
        )[0]
        for ends in itertools.pairwise(cuts)
    )


@parametrize_with_checks([VariationalProbe()])
def test_the_probe_passes_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_the_binary_elbo_equals_adaptive_quadrature() -> None:
    x, y = made(n=30)
    probe = VariationalProbe().fit(x, y)
    by_hand = binary_elbo(standard(x), y, probe.mean_[0], probe.variance_[0], prior(5))
    assert probe.elbo_ == pytest.approx(by_hand, abs=1e-6) and probe.elbo_error_ == 0


@pytest.mark.parametrize("variance", [1e-3, 1.0, 25.0, 1000.0])
def test_expectations_of_one_logit_equal_adaptive_quadrature_at_any_variance(
    variance: float,
) -> None:
    for mu in (0.0, 2.0, -30.0):
        with double():
            found = expectations.logistic_moments(np.array(mu), variance)
            quick = expectations.logistic_moments(np.array(mu), variance, exact=False)
        true = [
            gaussian_mean(f, mu, variance)
            for f in (
                expit,
                lambda z: expit(z) * expit(-z),
                lambda z: np.logaddexp(0, z),
            )
        ]
        np.testing.assert_allclose(found, true, rtol=0, atol=1e-10)
        np.testing.assert_allclose(quick, true, rtol=0, atol=4e-6)


@pytest.mark.parametrize("variance", [1.0, 400.0])
def test_expectations_of_three_logits_equal_plain_monte_carlo(variance: float) -> None:
    mu = np.sqrt(variance) * np.array([[0.5, 0.0, -1.0]])
    spread = variance * np.array([[1.0, 0.3, 2.0]])
    z = mu + np.sqrt(spread) * np.random.default_rng(0).standard_normal((400_000, 3))
    p = np.exp(z - logsumexp(z, axis=1, keepdims=True))
    with double():
        at = expectations.nodes(3, draws=1024, seed=1)
        first, curvature = expectations.expected_moments(mu, spread, at)
        own = expectations.log_likelihoods(mu, spread, np.eye(3)[[2]], at).mean()
    np.testing.assert_allclose(first[0], p.mean(0), atol=3e-3)
    np.testing.assert_allclose(curvature[0], (p * (1 - p)).mean(0), atol=2e-3)
    assert own == pytest.approx(np.log(p[:, 2]).mean(), rel=0.01)


def test_no_small_step_from_the_binary_posterior_raises_the_quadrature_elbo() -> None:
    x, y = made(1, n=20, d=2)
    probe = VariationalProbe(tol=1e-9).fit(x, y)
    z, a, m, v = standard(x), prior(2), probe.mean_[0], probe.variance_[0]
    step = 1e-4
    for j in range(3):
        e = step * np.eye(3)[j]
        for values in (
            [binary_elbo(z, y, m + s * e, v, a) for s in (1, -1)],
            [binary_elbo(z, y, m, v * np.exp(s * e), a) for s in (1, -1)],
        ):
            assert abs(values[0] - values[1]) / (2 * step) < 1e-5


def test_the_elbo_is_below_the_grid_log_evidence_and_near_it() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 1))
    y = (x[:, 0] + rng.standard_normal(40) > 0).astype(int)
    probe = VariationalProbe().fit(x, y)
    z = standard(x)
    w, b = np.meshgrid(np.linspace(-8, 8, 801), np.linspace(-8, 8, 801), indexing="ij")
    log = stats.norm.logpdf(w) + stats.norm.logpdf(b, scale=10)
    for row, label in zip(z, y, strict=True):
        log -= np.logaddexp(0, -(2 * label - 1) * (row[0] * w + row[1] * b))
    evidence = np.log(np.sum(np.exp(log - log.max()))) + log.max() + 2 * np.log(16 / 800)
    assert evidence - 0.1 < probe.elbo_ < evidence
    # The posterior's own mean and spread, from the same grid.
    p = np.exp(log - log.max()) / np.exp(log - log.max()).sum()
    mean = (p * w).sum()
    assert probe.mean_[0, 0] == pytest.approx(mean, abs=0.03)
    assert np.sqrt(probe.variance_[0, 0]) == pytest.approx(
        np.sqrt((p * (w - mean) ** 2).sum()), rel=0.1
    )


def test_predictive_probabilities_equal_quadrature_over_the_posterior() -> None:
    x, y = made(2, n=40, d=3)
    probe = VariationalProbe(precision=0.1).fit(x, y)
    found = probe.predictive(x[:5])
    for i, row in enumerate(standard(x)[:5]):
        mu, sd = row @ probe.mean_[0], np.sqrt(row**2 @ probe.variance_[0])

        def moment(power: int, mu: float = mu, sd: float = sd) -> float:
            return integrate.quad(
                lambda t: (1 / (1 + np.exp(-mu - sd * t))) ** power * stats.norm.pdf(t), -10, 10
            )[0]

        assert found.probabilities[i, 1] == pytest.approx(moment(1), abs=1e-6)
        assert found.spread[i, 1] == pytest.approx(np.sqrt(moment(2) - moment(1) ** 2), abs=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_with_much_data_means_are_scikit_learns_map(classes: int) -> None:
    # Small variance: every row sixty times over.
    x, y = made(3, n=80, d=4, classes=classes, gap=0.7)
    x, y = np.tile(x, (60, 1)), np.tile(y, 60)
    probe = VariationalProbe().fit(x, y)
    z = (x - x.mean(0)) / x.std(0)
    fitted = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(z, y)
    mine = probe.mean_[:, :-1]
    np.testing.assert_allclose(mine - mine.mean(0) * (classes > 2), fitted.coef_, atol=0.02)
    np.testing.assert_allclose(probe.predict_proba(x[:80]), fitted.predict_proba(z[:80]), atol=5e-3)


def test_the_multinomial_elbo_equals_plain_monte_carlo_and_no_seed_matters_much() -> None:
    x, y = made(4, n=60, d=4, classes=3)
    one, two = (VariationalProbe(random_state=s).fit(x, y) for s in (0, 1))
    rng = np.random.default_rng(9)
    w = one.mean_ + np.sqrt(one.variance_) * rng.standard_normal((40000, *one.mean_.shape))
    logits = np.einsum("kcd,nd->knc", w, standard(x))
    logits -= logits.max(-1, keepdims=True)
    total = (logits[:, np.arange(60), y] - np.log(np.exp(logits).sum(-1))).sum(1)
    m, v, a = one.mean_, one.variance_, prior(4)
    by_hand = total.mean() - 0.5 * np.sum(a * (m**2 + v) - 1 - np.log(a * v))
    error = total.std() / 200
    assert abs(one.elbo_ - by_hand) < 4 * np.hypot(error, one.elbo_error_)
    assert abs(one.elbo_ - two.elbo_) < 0.5
    np.testing.assert_allclose(one.predict_proba(x), two.predict_proba(x), atol=0.02)


def test_a_compiled_grid_of_fits_equals_single_fits() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 60, 80))
    labels = np.stack([np.tile(["a", "b"], 30), np.repeat(["a", "b"], 30)])
    groups = np.repeat(np.arange(30), 2)
    folds = grouped_folds(labels[0], groups, n_folds=3, seed=0)
    train = np.zeros((3, 60), dtype=bool)
    for fold, (rows, _) in enumerate(folds):
        train[fold, rows] = True
    for spread in (False, True):
        many = fit_many(x, labels, train, precision=20.0, spread=spread)
        assert many.probabilities.shape == (2, 2, 1, 60, 2)
        for layer, which, fold in [(0, 0, 0), (1, 1, 2), (1, 0, 1)]:
            rows, held = train[fold], ~train[fold]
            one = VariationalProbe(20.0).fit(x[layer][rows], labels[which][rows])
            at = (layer, which, fold, 0)
            np.testing.assert_allclose(many.mean[at], one.mean_, atol=2e-5)
            np.testing.assert_allclose(many.variance[at], one.variance_, rtol=1e-4)
            assert many.elbo[at] == pytest.approx(one.elbo_, abs=1e-4)
            np.testing.assert_allclose(
                many.probabilities[layer, which, 0][held],
                one.predict_proba(x[layer][held]),
                atol=1e-5,
            )


@pytest.mark.parametrize("classes", [2, 4])
def test_a_weak_prior_on_many_features_converges_in_few_steps_to_the_true_optimum(
    classes: int,
) -> None:
    # Logit variances are near 300, where 64 Gauss-Hermite points are off by nats and never settle.
    x, y = made(3, n=80, d=400, classes=classes, gap=0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        probe = VariationalProbe().fit(x, y)
    assert probe.n_iter_ <= 150 and probe.gradient_ < 1e-6
    z, m, v = standard(x), probe.mean_, probe.variance_
    assert (z**2 @ v.T).mean() > 200
    if classes == 2:
        p = [gaussian_mean(expit, mu, s) for mu, s in zip(z @ m[0], z**2 @ v[0], strict=True)]
        np.testing.assert_allclose(z.T @ (y - p), prior(400) * m[0], atol=1e-3)
        curvature = [
            gaussian_mean(lambda t: expit(t) * expit(-t), mu, s)
            for mu, s in zip(z @ m[0], z**2 @ v[0], strict=True)
        ]
        np.testing.assert_allclose(1 / v[0], prior(400) + (z**2).T @ curvature, rtol=1e-4)
    else:
        draws = np.random.default_rng(0).standard_normal((4000, 80, classes))
        logits = z @ m.T + np.sqrt(z**2 @ v.T) * draws
        own = logits[:, np.arange(80), y] - logsumexp(logits, axis=-1)
        total = own.mean(0).sum() - 0.5 * np.sum(
            prior(400) * (m**2 + v) - 1 - np.log(prior(400) * v)
        )
        error = np.sqrt(own.var(0).sum() / 4000)
        assert abs(probe.elbo_ - total) < 4 * np.hypot(error, probe.elbo_error_)


def test_too_few_steps_are_one_clear_warning() -> None:
    x, y = made(1, n=40, d=60)
    with pytest.warns(ConvergenceWarning, match="did not converge in 10 steps") as caught:
        VariationalProbe(max_iter=10).fit(x, y)
    assert caught[0].filename == __file__
    train = np.arange(40)[None] % 4 > 1
    with pytest.warns(ConvergenceWarning, match="2 of 2 fits did not converge"):
        many = fit_many(np.stack([x, x]), y[None], train, max_iter=10)
    assert many.converged.shape == (2, 1, 1, 1) and not many.converged.any()


def test_a_grid_of_three_classes_equals_single_fits_within_the_error_of_draws() -> None:
    x, y = made(5, n=90, d=6, classes=3)
    train = np.arange(90)[None] % 5 != np.arange(5)[:, None]
    many = fit_many(x[None], y[None], train, seeds=(0, 1))
    one = VariationalProbe().fit(x[train[2]], y[train[2]])
    np.testing.assert_allclose(many.mean[0, 0, 2, 1], one.mean_, atol=0.05)
    assert not np.array_equal(many.mean[0, 0, 2, 0], many.mean[0, 0, 2, 1])
    single = fit_many(x[None], y[None], train, seeds=(0, 1), dtype="float32", tol=1e-5)
    np.testing.assert_allclose(single.probabilities, many.probabilities, atol=1e-3)


def test_units_origin_constants_and_spare_dimensions_do_not_matter() -> None:
    x, y = made(6, n=20, d=30)
    one = VariationalProbe().fit(x, y).predict_proba(x)
    moved = np.hstack([1e6 * x + 3e6, np.full((20, 2), 7.1)])
    np.testing.assert_allclose(
        VariationalProbe().fit(moved, y).predict_proba(moved), one, atol=1e-4
    )


def test_uncertainty_falls_with_data_and_rises_away_from_it() -> None:
    x, y = made(7, n=2000, d=3)
    few, all_ = VariationalProbe().fit(x[:20], y[:20]), VariationalProbe().fit(x, y)
    assert few.predictive(x).information.mean() > 3 * all_.predictive(x).information.mean()
    assert (few.predictive(x).information <= few.predictive(x).entropy + 1e-12).all()
    far = few.predictive(x.mean(0) + 50 * np.eye(3))
    assert far.spread.max() > few.predictive(x.mean(0)[None]).spread.max()


def test_the_readout_holds_the_planted_directions() -> None:
    rng = np.random.default_rng(0)
    planted = np.linalg.qr(rng.standard_normal((20, 2)))[0]
    y = np.arange(3000) % 3
    x = rng.standard_normal((3000, 20)) + np.array([[1, 0], [-1, 1], [0, -1]])[y] @ planted.T
    probe = VariationalProbe().fit(x, y)
    space = probe.subspace(site="blocks.0.hook_resid_post")
    assert space.k == 2 and space.site and space.provenance["method"] == "variational_probe"
    few = VariationalProbe().fit(x[:300], y[:300]).subspace()
    near, far = (principal_angles(s.basis, planted).max() for s in (space, few))
    assert near < 0.25 and 1.8 < far / near < 6  # as n^-1/2: about 3.2
    assert probe.subspace(1).k == 1 and (space.singular_values > np.sqrt(20)).all()
    plain = np.linalg.svd(probe.coef_ - probe.coef_.mean(0))[2][:2].T
    assert principal_angles(space.basis, plain).max() < 1e-6
    x, y = made(8)
    assert (
        VariationalProbe().fit(x, y).subspace().direction @ (x[y == 1].mean(0) - x[y == 0].mean(0))
        > 0
    )


def test_bad_input_is_one_clear_sentence() -> None:
    x, y = made()
    train = np.arange(60)[None] % 2 != np.arange(2)[:, None]
    with pytest.raises(ProbeError, match="at least two"):
        VariationalProbe().fit(x, np.zeros(60, int))
    with pytest.raises(ProbeError, match="must be positive"):
        VariationalProbe(0.0).fit(x, y)
    with pytest.raises(ValueError, match="NaN"):
        VariationalProbe().fit(np.where(x > 1, np.nan, x), y)
    with pytest.raises(ProbeError, match="has 1 contrasts"):
        VariationalProbe().fit(x, y).subspace(2)
    with pytest.raises(ProbeError, match="reads no direction"):
        VariationalProbe().fit(np.ones((6, 2)), y[:6]).subspace()
    with pytest.raises(ProbeError, match=r"give \[layers, rows, features\]"):
        fit_many(x, y[None], train)
    with pytest.raises(ProbeError, match="at layer 0 hold NaN"):
        fit_many(np.where(x > 1, np.nan, x)[None], y[None], train)
    with pytest.raises(ProbeError, match=r"have \[2, 3\] classes"):
        fit_many(x[None], np.stack([y, np.arange(60) % 3]), train)
    with pytest.raises(ProbeError, match="fold 0 lack a class"):
        fit_many(x[None], y[None], train)
    with pytest.raises(ProbeError, match="hold out the same row"):
        fit_many(x[None], y[None], np.zeros((2, 60), bool))
    with pytest.raises(ProbeError, match="true for each fold's"):
        fit_many(x[None], y[None], train.astype(int))
