"""Code lengths against a brute-force loop, and where the answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from probes import ProbeError, VariationalProbe
from probes.codelength import prequential_code, variational_code


def made(gap: float, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    y = np.tile([0, 1], 60)
    x = rng.standard_normal((120, 4))
    x[:, 0] += gap * (2 * y - 1)
    return x, y, np.repeat(np.arange(30), 4)


def test_the_prequential_code_equals_a_brute_force_loop() -> None:
    x, y, groups = made(1.0)
    reader = LogisticRegression()
    found = prequential_code(x, y, groups, probe=reader, fractions=(0.1, 0.5, 1), orders=1, seed=3)
    order = np.random.default_rng([3, 0]).permutation(30)
    sorted_groups = np.argsort(order)
    total, seen = 12 * np.log(2), list(sorted_groups[:3])
    for until in (15, 30):
        block = list(sorted_groups[len(seen) : until])
        past = np.isin(groups, seen)
        model = LogisticRegression().fit(x[past], y[past])
        for i in np.flatnonzero(np.isin(groups, block)):
            total -= np.log(model.predict_proba(x[i : i + 1])[0, y[i]])
        seen += block
    assert found.nats == pytest.approx(total)
    assert list(found.blocks["uniform"]) == [True, False, False]
    assert found.uniform == pytest.approx(120 * np.log(2))
    assert found.bits == pytest.approx(total / np.log(2))


def test_signal_compresses_and_its_absence_does_not_both_ways() -> None:
    for gap, low, high in ((3.0, 2.0, 100.0), (0.0, 0.0, 1.02)):
        x, y, groups = made(gap)
        assert low < prequential_code(x, y, groups, seed=0).compression < high
        assert low < variational_code(VariationalProbe().fit(x, y)).compression < high


def test_the_variational_code_is_its_kl_and_likelihood_terms_by_a_naive_loop_in_bits() -> None:
    # Two classes, one state dimension: each term as the paper writes it, in bits.
    x, y, _ = made(1.0)
    probe = VariationalProbe(precision=2.0).fit(x[:, :1], y)
    z = np.hstack([(x[:, :1] - x[:, :1].mean(0)) / x[:, :1].std(0), np.ones((120, 1))])
    kl = 0.0
    for m, v, prior in zip(probe.mean_[0], probe.variance_[0], [2.0, 1e-2], strict=True):
        q, p = stats.norm(m, np.sqrt(v)), stats.norm(0, prior**-0.5)
        kl += integrate.quad(
            lambda w: q.pdf(w) * (q.logpdf(w) - p.logpdf(w)) / np.log(2),  # noqa: B023
            m - 10 * np.sqrt(v),
            m + 10 * np.sqrt(v),
        )[0]
    data = 0.0
    for row, label in zip(z, y, strict=True):
        sign, mu, spread = 2 * label - 1, row @ probe.mean_[0], np.sqrt(row**2 @ probe.variance_[0])
        data += integrate.quad(
            lambda t: np.log2(1 + np.exp(-sign * (mu + spread * t))) * stats.norm.pdf(t),  # noqa: B023
            -10,
            10,
        )[0]
    found = variational_code(probe)
    assert probe.kl_ / np.log(2) == pytest.approx(kl, abs=1e-6)
    assert found.bits == pytest.approx(kl + data, abs=1e-6)
    assert found.compression == pytest.approx(120 / (kl + data), rel=1e-7)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_variational_code_is_longer_than_the_grid_evidence_by_what_mean_field_costs(
    classes: int,
) -> None:
    # The shortest code with this prior is -log2 of the evidence, here a sum over a grid.
    rng = np.random.default_rng(1)
    y = np.arange(30) % classes
    x = 0.8 * (y[:, None] - 0.5) + rng.standard_normal((30, 1))
    probe = VariationalProbe(precision=1.0).fit(x, y)
    z = (x[:, 0] - x.mean()) / x.std()
    if classes == 2:
        w = np.linspace(-6, 6, 241)
        axes = np.meshgrid(w, 4 * w, indexing="ij")  # the weight, then the intercept
        log = stats.norm.logpdf(axes[0]) + stats.norm.logpdf(axes[1], scale=10)
        for t, label in zip(z, y, strict=True):
            log -= np.logaddexp(0, (1 - 2 * label) * (axes[0] * t + axes[1]))
        cell = 2 * np.log(0.05) + np.log(4)
    else:
        # Weights and intercepts of three classes matter by their differences alone: of both, the
        # mean over classes has its prior and drops out, and two contrasts remain.
        w, b = np.linspace(-5, 5, 31), np.linspace(-8, 8, 33)
        axes = np.meshgrid(w, w, b, b, indexing="ij", sparse=True)
        contrast = np.array([[1, 1], [-1, 1], [0, -2]]) / np.sqrt([2, 6])
        log = sum(stats.norm.logpdf(a, scale=s) for a, s in zip(axes, (1, 1, 10, 10), strict=True))
        for t, label in zip(z, y, strict=True):
            logits = [
                c[0] * (t * axes[0] + axes[2]) + c[1] * (t * axes[1] + axes[3]) for c in contrast
            ]
            log = log + logits[label] - np.logaddexp(np.logaddexp(*logits[:2]), logits[2])
        cell = 2 * np.log(w[1] - w[0]) + 2 * np.log(b[1] - b[0])
    shortest = -(logsumexp(np.asarray(log)) + cell) / np.log(2)
    # KL of a Gaussian with precision A from the best product of Gaussians, whose precisions are
    # the diagonal of A: (sum log diagonal - log det) / 2.
    design = np.stack([z, np.ones(30)], axis=1)
    p = probe.predict_proba(x)
    if classes == 2:
        curvature, columns = (p[:, 1] * p[:, 0])[:, None, None], 1
    else:
        curvature, columns = np.eye(3) * p[:, :, None] - p[:, :, None] * p[:, None], 3
    a = np.einsum("nij,na,nb->iajb", curvature, design, design).reshape(2 * columns, -1)
    a += np.diag(np.tile([1.0, 1e-2], columns))
    cost = (np.log(np.diag(a)).sum() - np.linalg.slogdet(a)[1]) / 2 / np.log(2)
    longer = variational_code(probe).bits - shortest
    assert longer > 0
    slack = 0.05 if classes == 2 else 0.3  # the posterior is nearly Gaussian
    assert longer == pytest.approx(cost, abs=slack + 3 * probe.elbo_error_ / np.log(2))


def test_a_prefix_without_a_class_is_coded_uniformly() -> None:
    x, y, _ = made(1.0)
    found = prequential_code(x, y, y, fractions=(0.5, 1.0), orders=2, seed=0)
    assert found.compression == pytest.approx(1.0) and found.blocks["uniform"].all()


def test_bad_input_is_one_clear_sentence() -> None:
    x, y, groups = made(1.0)
    with pytest.raises(ProbeError, match="increase from above 0 to 1"):
        prequential_code(x, y, groups, fractions=(0.5, 0.2, 1), seed=0)
    with pytest.raises(ProbeError, match="orders is 0"):
        prequential_code(x, y, groups, orders=0, seed=0)
    with pytest.raises(ProbeError, match="hold NaN"):
        prequential_code(x * np.nan, y, groups, seed=0)
    with pytest.raises(ProbeError, match="at least two"):
        prequential_code(x, y * 0, groups, seed=0)
