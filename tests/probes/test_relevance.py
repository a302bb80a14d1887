"""Relevance determination against planted components, grids, scikit-learn and known error rates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from geometry import principal_angles
from probes import ProbeError, RelevanceProbe, relevant_dimensions

WHICH = (1, 4, 9)


def components(seed: int, n: int, r: int) -> np.ndarray:
    """`[n, r]`, exactly white: columns of mean zero, orthogonal, of variance one."""
    x = np.random.default_rng(seed).standard_normal((n, r))
    return np.linalg.qr(x - x.mean(0))[0] * np.sqrt(n)


def planted(
    seed: int, n: int = 400, r: int = 30, d: int = 40, classes: int = 2, weight: float = 1.2
) -> tuple[Any, Any, Any]:
    """States whose components `WHICH` alone decide the label, and a basis of the components."""
    rng = np.random.default_rng([seed, 1])
    z = components(seed, n, r)
    weights = np.zeros((classes, r))
    if classes == 2:
        weights[1, WHICH] = weight * np.array([1, -1, 1])
    else:
        contrasts = rng.standard_normal((classes, 3))
        contrasts -= contrasts.mean(axis=0)
        weights[:, WHICH] = 2 * weight * contrasts / np.linalg.norm(contrasts, axis=0)
    logits = z @ weights.T
    y = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    axes = np.linalg.qr(rng.standard_normal((d, r)))[0]
    return z * np.geomspace(5, 0.1, r) @ axes.T + 3.0, y, axes


@parametrize_with_checks([RelevanceProbe()])
def test_the_probe_passes_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("classes", [2, 4])
def test_planted_components_are_recovered_and_no_others(classes: int) -> None:
    for seed in range(5):
        x, y, axes = planted(seed, classes=classes)
        probe = RelevanceProbe().fit(x, y)
        assert tuple(np.flatnonzero(np.isfinite(probe.relevance_))) == WHICH, seed
        assert probe.n_dimensions_ == 3 and 2.5 < probe.effective_dimensions_ <= 3
        assert (probe.gains_[list(WHICH)] > probe.price_).all() and probe.gains_[0] == 0
        span = probe.subspace(kind="components")
        assert span.k == 3 and principal_angles(span.basis, axes[:, WHICH]).max() < 1e-5
        readout = probe.subspace()
        assert readout.k == min(classes - 1, 3)
        assert principal_angles(readout.basis, span.basis).max() < 1e-5


@pytest.mark.parametrize("classes", [2, 3])
def test_weights_are_scikit_learns_map_under_the_precisions_found(classes: int) -> None:
    x, y, _ = planted(7, classes=classes)
    probe = RelevanceProbe().fit(x, y)
    assert probe.n_dimensions_ >= 2
    kept = np.isfinite(probe.relevance_)
    z = (x - x.mean(0)) @ probe.axes_[kept].T / probe.deviations_[kept]
    scaled = z / np.sqrt(probe.relevance_[kept])
    fitted = LogisticRegression(C=1.0, tol=1e-10, max_iter=5000).fit(scaled, y)
    mine = probe.coef_ @ probe.axes_[kept].T * probe.deviations_[kept]
    np.testing.assert_allclose(
        mine, fitted.coef_ / np.sqrt(probe.relevance_[kept]), atol=2e-3, rtol=0
    )
    np.testing.assert_allclose(probe.predict_proba(x), fitted.predict_proba(scaled), atol=2e-3)


def log_evidence(z: np.ndarray, y: np.ndarray, precisions: np.ndarray) -> float:
    """log p(y) of two classes by a grid over one or two weights and the intercept."""
    axes = [np.linspace(-4.5, 4.5, 46)] * (len(precisions) + 1)
    mesh = np.meshgrid(*axes, indexing="ij", sparse=True)
    scales = [*(precisions**-0.5), 10.0]
    log: Any = sum(stats.norm.logpdf(m, scale=s) for m, s in zip(mesh, scales, strict=True))
    for row, label in zip(z, y, strict=True):
        logit = sum(v * m for v, m in zip([*row, 1.0], mesh, strict=True))
        log = log - np.logaddexp(0, -(2 * label - 1) * logit)
    return float(logsumexp(log) + len(axes) * np.log(axes[0][1] - axes[0][0]))


@pytest.mark.parametrize("r", [1, 2])
def test_evidence_and_precisions_equal_those_of_a_grid(r: int) -> None:
    z = components(0, 80, r)
    y = (np.random.default_rng(1).random(80) < expit(z @ np.array([1.5, -1.0])[:r])).astype(int)
    probe = RelevanceProbe().fit(z * np.array([2.0, 1.0])[:r], y)
    assert probe.n_dimensions_ == r
    white = z * np.sign(np.sum(probe.axes_, axis=1))
    grid = log_evidence(white, y, probe.relevance_)
    assert probe.log_evidence_ == pytest.approx(grid, abs=0.1)
    for j in range(r):
        # No other precision of this component has more evidence.
        others = np.tile(probe.relevance_, (4, 1))
        others[:, j] *= [0.1, 0.4, 2.5, 10]
        values = [log_evidence(white, y, other) for other in others]
        assert max(values) < grid + 0.03 and min(values) < grid - 0.3
    # Without the last component, the evidence falls by its gain, to the order of Laplace.
    if r == 2:
        alone = RelevanceProbe(components=1).fit(z * np.array([2.0, 1.0]), y)
        without = log_evidence(white[:, :1], y, alone.relevance_)
        assert grid - without == pytest.approx(probe.gains_[1], abs=1.0)


def test_a_component_of_noise_stays_in_a_third_of_the_time_without_a_price_and_hardly_with_it() -> (
    None
):
    # One component gains evidence where its score statistic, chi-squared with one degree of
    # freedom, is above 1.
    y = np.arange(300) % 2
    free, priced = [], []
    for seed in range(8):
        z = components(seed, 300, 40)
        free.append(RelevanceProbe(price=0.0).fit(z, y).n_dimensions_ / 40)
        priced.append(RelevanceProbe().fit(z, y).n_dimensions_)
    assert np.mean(free) == pytest.approx(stats.chi2(1).sf(1), abs=0.07)
    assert sum(priced) <= 1


def test_rotation_scale_and_origin_of_the_states_do_not_matter() -> None:
    x, y, _ = planted(3)
    q = np.linalg.qr(np.random.default_rng(5).standard_normal((40, 40)))[0]
    one, two = RelevanceProbe().fit(x, y), RelevanceProbe().fit(200 * x @ q - 50, y)
    np.testing.assert_allclose(one.relevance_, two.relevance_, rtol=1e-3)
    np.testing.assert_allclose(one.predict_proba(x), two.predict_proba(200 * x @ q - 50), atol=1e-6)
    assert one.log_evidence_ == pytest.approx(two.log_evidence_, abs=1e-6)
    assert two.basis_ == "principal components, whitened"
    assert two.subspace().provenance["basis"] == two.basis_


def test_separated_labels_and_more_features_than_rows_have_finite_weights() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 200))
    y = np.arange(60) % 2
    x[:, 0] += 40 * y
    probe = RelevanceProbe().fit(x, y)
    assert probe.n_dimensions_ == 1 and 1e-2 <= probe.relevance_.min() < 0.1
    assert probe.score(x, y) == 1.0 and len(probe.relevance_) == 59
    assert abs(probe.subspace().direction[0]) > 0.99


def test_the_number_of_dimensions_stands_beside_its_null() -> None:
    x, y, _ = planted(2, n=240, r=12, d=12)
    groups = np.arange(240) // 2
    found = relevant_dimensions(x, y, groups, permutations=39, seed=0)
    assert found.value == RelevanceProbe().fit(x, y).n_dimensions_ == 3
    assert found.p == pytest.approx(1 / 40) and found.null < 0.5 and found.n == 120
    assert np.isnan(found.low) and found.unit == "dimensions"
    # Rows that repeat their group's state and label, of a label without meaning: the probe alone
    # takes them for evidence, the null does not.
    z = np.repeat(np.random.default_rng(0).standard_normal((30, 6)), 20, axis=0)
    shared = np.repeat(np.random.default_rng(3).permutation(30) % 2, 20)
    assert RelevanceProbe().fit(z, shared).n_dimensions_ >= 2
    assert relevant_dimensions(z, shared, np.arange(600) // 20, permutations=39, seed=0).p > 0.05


def test_bad_input_is_one_clear_sentence() -> None:
    x, y, _ = planted(0)
    with pytest.raises(ProbeError, match="price is -1"):
        RelevanceProbe(price=-1).fit(x, y)
    with pytest.raises(ProbeError, match="components is 0"):
        RelevanceProbe(components=0).fit(x, y)
    with pytest.raises(ProbeError, match="must be a whole number"):
        RelevanceProbe(components=2.5).fit(x, y)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ProbeError, match="worth the price"):
        RelevanceProbe(price=1e6).fit(x, y).subspace()
    with pytest.raises(ProbeError, match="'readout' or 'components'"):
        RelevanceProbe().fit(x, y).subspace(kind="pattern")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ProbeError, match="permutations is 0"):
        relevant_dimensions(x, y, y, permutations=0, seed=0)
    with pytest.raises(ProbeError, match="worth the price"):
        RelevanceProbe().fit(np.ones((10, 3)), np.arange(10) % 2).subspace()
