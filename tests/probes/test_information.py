"""The bottleneck and usable information against closed forms, naive loops and the plain probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import entr, expit
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

from geometry import principal_angles
from probes import (
    BottleneckProbe,
    LinearProbe,
    ProbeError,
    bottleneck_curve,
    grouped_folds,
    usable_information,
)


def gaussian(
    gap: float, n: int = 240, d: int = 4, classes: int = 2, per_group: int = 4, seed: int = 0
) -> tuple[Any, Any, Any]:
    """Unit Gaussians whose means are `gap` apart, along one direction or two; labels; groups."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    means = np.zeros((classes, d))
    if classes == 2:
        means[:, 0] = [-gap / 2, gap / 2]
    else:
        turns = 2 * np.pi * np.arange(classes) / classes
        means[:, :2] = gap / np.sqrt(3) * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    return rng.standard_normal((n, d)) + means[y], y, np.arange(n) // per_group


def held_out_bits(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, *, seed: int, n_folds: int = 5
) -> np.ndarray:
    """-log2 p of each label by a plain probe that has not seen its group."""
    found = np.empty(len(y))
    for train, test in grouped_folds(y, groups, n_folds=n_folds, seed=seed):
        p = LinearProbe().fit(x[train], y[train]).predict_proba(x[test])
        found[test] = -np.log2(p[np.arange(len(test)), y[test]])
    return found


@parametrize_with_checks([BottleneckProbe(max_iter=300)])
def test_the_probe_passes_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("classes", [2, 3])
def test_rates_and_losses_equal_naive_loops_over_the_channel(classes: int) -> None:
    x, y, _ = gaussian(2.0, classes=classes, n=60)
    probe = BottleneckProbe(0.05).fit(x, y)
    c = probe.channel_
    rng = np.random.default_rng(0)
    for row, label, rate, loss in zip(x, y, probe.rates(x), probe.losses(x, y), strict=True):
        z = (row - probe.center_) / probe.scale_
        total, mean, spread = 0.0, [], []
        for k in range(classes - 1):
            mu = float(z @ c.mean[:, k] + c.mean_level[k])
            variance = float(np.exp(z @ c.log_variance[:, k] + c.log_variance_level[k]))
            # The integral of q log q/p, not the closed form of it.
            q, p = stats.norm(mu, np.sqrt(variance)), stats.norm()
            total += integrate.quad(
                lambda t, q=q, p=p: q.pdf(t) * (q.logpdf(t) - p.logpdf(t)) / np.log(2),
                mu - 10 * np.sqrt(variance),
                mu + 10 * np.sqrt(variance),
            )[0]
            mean.append(mu)
            spread.append(np.sqrt(variance))
        assert rate == pytest.approx(total, abs=1e-6)
        codes = np.array(mean) + np.array(spread) * rng.standard_normal((20000, classes - 1))
        logits = codes @ c.read + c.level
        if classes == 2:
            logits = np.hstack([np.zeros_like(logits), logits])
        cost = (np.logaddexp.reduce(logits, axis=1) - logits[:, label]) / np.log(2)
        assert loss == pytest.approx(cost.mean(), abs=0.01 + 5 * cost.std() / np.sqrt(20000))


@pytest.mark.parametrize("classes", [2, 3])
def test_from_cheap_to_dear_the_curve_runs_from_the_plain_probe_to_the_label_entropy(
    classes: int,
) -> None:
    x, y, groups = gaussian(2.5, classes=classes)
    curve = bottleneck_curve(x, y, groups, betas=(1.5, 0.5, 0.1, 0.01, 3e-4), n_folds=3, seed=0)
    plain = held_out_bits(x, y, groups, seed=0, n_folds=3).mean()
    assert curve["cross_entropy"].iloc[0] == pytest.approx(plain, abs=0.003)
    assert list(curve["beta"]) == [3e-4, 0.01, 0.1, 0.5, 1.5]
    assert (np.diff(curve["rate"]) < 0).all() and (np.diff(curve["cross_entropy"]) > 0).all()
    last = curve.iloc[-1]
    assert last["collapsed"] and last["rate"] < 1e-6 and not curve["collapsed"].iloc[:-2].any()
    assert last["cross_entropy"] == pytest.approx(last["label_entropy"], abs=1e-4)
    assert last["label_entropy"] == pytest.approx(np.log2(classes), abs=0.01)
    # What is read cannot exceed what was passed (on average; here with room to spare).
    read = curve["label_entropy"] - curve["cross_entropy"]
    assert (read <= curve["rate"] + 0.02).all()
    assert (curve["rate_low"] <= curve["rate"]).all() and (curve["n"] == 60).all()


def test_no_other_channel_nearby_has_a_lower_objective() -> None:
    x, y, _ = gaussian(2.0, n=80, d=2)
    beta, n = 0.1, 80
    probe = BottleneckProbe(beta, tol=1e-8).fit(x, y)
    z = (x - x.mean(0)) / x.std(0)
    t, w = np.polynomial.hermite_e.hermegauss(60)
    w = w / w.sum()

    def objective(v: np.ndarray) -> float:
        mean, log = z @ v[:2] + v[2], z @ v[3:5] + v[5]
        logits = (mean + np.exp(log / 2) * t[:, None]) * v[6] + v[7]
        loss = w @ np.logaddexp(0, -(2 * y - 1) * logits)
        rate = (mean**2 + np.exp(log) - 1 - log) / 2
        shrink = np.sum((v[:2] * v[6]) ** 2) + np.sum(v[3:5] ** 2)
        return float(np.mean(loss + beta * rate) + shrink / (2 * n))

    c = probe.channel_
    at = np.concatenate([np.ravel(part) for part in c])
    here = objective(at)
    for step in 0.02 * np.random.default_rng(0).standard_normal((50, 8)):
        assert objective(at + step) > here - 1e-9
    for j in range(8):
        e = 1e-4 * np.eye(8)[j]
        assert abs(objective(at + e) - objective(at - e)) / 2e-4 < 1e-4


def test_with_many_classes_no_code_beats_what_theory_allows_on_draws_that_it_has_not_seen() -> None:
    # loss + rate cannot be below the labels' entropy, and an empty code reaches it at beta = 1.
    # A decoder that had turned to where its few draws are short would be far above it here.
    rng = np.random.default_rng(0)
    y = np.arange(240) % 6
    x = rng.standard_normal((240, 12)) + 3 * np.eye(6, 12)[y]
    probe = BottleneckProbe(1.0).fit(x, y)
    assert np.log2(6) - 1e-6 < probe.loss_ + probe.rate_ < np.log2(6) + 0.03
    cheap = BottleneckProbe(0.05).fit(x, y)
    codes = cheap.encode(x) + np.exp(
        ((x - cheap.center_) / cheap.scale_ @ cheap.channel_.log_variance) / 2
        + cheap.channel_.log_variance_level / 2
    ) * rng.standard_normal((400, 240, 5))
    logits = codes @ cheap.channel_.read + cheap.channel_.level
    own = logits[:, np.arange(240), y] - np.logaddexp.reduce(logits, axis=2)
    assert cheap.loss_ == pytest.approx(-own.mean() / np.log(2), abs=0.02)


def test_more_dimensions_than_the_decoder_reads_hardly_help() -> None:
    x, y, _ = gaussian(2.0, n=120, d=3)
    one, many = BottleneckProbe(0.1).fit(x, y), BottleneckProbe(0.1, size=16).fit(x, y)
    cost = [p.loss_ + 0.1 * p.rate_ for p in (one, many)]
    assert cost[1] == pytest.approx(cost[0], abs=0.002)
    assert one.encode(x).shape == (120, 1) and many.encode(x).shape == (120, 16)


def test_the_readout_points_where_the_plain_probe_does() -> None:
    x, y, _ = gaussian(2.0, n=600, d=6)
    probe = BottleneckProbe(1e-4).fit(3 * x + 7, y)
    plain = LinearProbe().fit(3 * x + 7, y)
    assert principal_angles(probe.subspace().basis, plain.subspace().basis).max() < 0.01
    assert probe.subspace().provenance["method"] == "bottleneck_probe"
    np.testing.assert_allclose(
        probe.predict_proba(3 * x + 7), plain.predict_proba(3 * x + 7), atol=0.01
    )
    x, y, _ = gaussian(2.0, n=300, classes=3)
    few = BottleneckProbe(0.05).fit(x, y)
    assert few.subspace().k == 2
    assert (few.predict(x) == few.predict_proba(x).argmax(1)).all()


def test_usable_information_of_two_gaussians_equals_the_closed_form() -> None:
    # Bayes' logit is linear, gap * x, so all the mutual information is usable: one bit less the
    # mean entropy of expit(gap x), an integral over x.
    gap = 1.5
    truth = (
        1
        - integrate.quad(
            lambda t: (
                stats.norm.pdf(t, gap / 2)
                * (entr(expit(gap * t)) + entr(expit(-gap * t)))
                / np.log(2)
            ),
            -10,
            12,
        )[0]
    )
    x, y, groups = gaussian(gap, n=8000, d=3, per_group=2, seed=1)
    found = usable_information(x, y, groups, Cs=(0.01, 1.0), seed=0)
    assert found.estimate.value == pytest.approx(truth, abs=0.025)
    assert found.estimate.low < truth < found.estimate.high
    assert found.estimate.p < 1e-10 and found.estimate.n == 4000 and found.estimate.unit == "bits"
    assert found.label_entropy == pytest.approx(1.0, abs=1e-3)
    # Pointwise: what Bayes' rule says of each row.
    bayes = 1 + np.log2(expit((2 * y - 1) * gap * x[:, 0]))
    assert np.corrcoef(bayes, found.pointwise)[0, 1] > 0.995
    assert found.estimate.value == pytest.approx(bayes.mean(), abs=0.002)


def test_usable_information_is_the_difference_of_a_naive_loops_cross_entropies() -> None:
    x, y, groups = gaussian(1.5, classes=3)
    y = np.where(np.arange(240) % 5 == 0, 0, y)  # classes of unequal size
    found = usable_information(x, y, groups, Cs=(1.0,), seed=3)
    told = held_out_bits(x, y, groups, seed=3)
    blank = np.empty(240)
    for train, test in grouped_folds(y, groups, seed=3):
        for i in test:
            blank[i] = -np.log2(np.mean(y[train] == y[i]))
    np.testing.assert_allclose(found.pointwise, blank - told, atol=1e-4)
    assert found.estimate.value == pytest.approx(np.mean(blank - told), abs=1e-5)
    assert found.label_entropy - found.conditional_entropy == pytest.approx(found.estimate.value)


def test_without_information_the_estimate_is_near_zero_and_is_not_clipped() -> None:
    values = []
    for seed in range(8):
        x, y, groups = gaussian(0.0, n=120, d=40, seed=seed)
        found = usable_information(x, y, groups, seed=seed)
        values.append(found.estimate.value)
        assert found.estimate.value < 0.05 and found.estimate.low < 0.05
    assert min(values) < 0
    # A penalty that is too small costs bits, which the choice within the folds saves.
    loose = usable_information(x, y, groups, Cs=(100.0,), seed=7)
    assert loose.estimate.value < values[-1] - 0.5


def test_information_unlike_accuracy_counts_how_sure_a_probe_can_be() -> None:
    x, y, groups = gaussian(1.0, n=2000, d=2)
    low = usable_information(x, y, groups, Cs=(1.0,), seed=0)
    x, y, groups = gaussian(4.0, n=2000, d=2)
    high = usable_information(x, y, groups, Cs=(1.0,), seed=0)
    assert 0.1 < low.estimate.value < 0.25 and high.estimate.value > 0.8


def test_bad_input_is_one_clear_sentence() -> None:
    x, y, groups = gaussian(1.0)
    for keyword in ("beta", "C", "size"):
        with pytest.raises(ProbeError, match=f"{keyword} is 0"):
            BottleneckProbe(**{keyword: 0}).fit(x, y)
    with pytest.raises(ProbeError, match=r"size is 1\.5; it must be a whole"):
        BottleneckProbe(size=1.5).fit(x, y)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ProbeError, match="'2' is none of the classes"):
        BottleneckProbe(1.0).fit(x[:40], y[:40]).losses(x, y + 1)
    with pytest.warns(ConvergenceWarning, match="did not converge in 3 steps") as caught:
        BottleneckProbe(max_iter=3).fit(x, y)
    assert caught[0].filename == __file__
    with pytest.raises(ProbeError, match="reads no direction; lower beta"):
        BottleneckProbe(1.0).fit(x, y).subspace()
    with pytest.raises(ProbeError, match="betas is"):
        bottleneck_curve(x, y, groups, betas=(0.0, 1.0), seed=0)
    with pytest.raises(ProbeError, match="hold NaN"):
        bottleneck_curve(x * np.nan, y, groups, seed=0)
    with pytest.raises(ProbeError, match="penalties are"):
        usable_information(x, y, groups, Cs=(), seed=0)
    with pytest.raises(ProbeError, match="at least two classes"):
        usable_information(x, 0 * y, groups, seed=0)
    with pytest.raises(ProbeError, match="groups for 5 folds"):
        usable_information(x, y, groups % 3, seed=0)
