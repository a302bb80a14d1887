"""The streaming posterior against plain loops, closed forms and planted, drifting directions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes import OnlineVariationalProbe, ProbeError, VariationalProbe, tracking_lag


def drawn(seed: int, steps: int, b: int, direction: Any, *, gap: float = 1.5) -> tuple[Any, Any]:
    """Batches `[steps, b, d]` whose classes lie apart along `direction` `[steps or 1, d]`."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, (steps, b))
    y[:, :2] = [0, 1]
    noise = rng.standard_normal((steps, b, direction.shape[-1]))
    return noise + gap * (2 * y - 1)[..., None] * direction[:, None, :], y


@parametrize_with_checks([OnlineVariationalProbe()])
def test_the_probe_passes_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def hermite_loop(z: Any, y: Any, rho: float) -> tuple[Any, Any, float]:
    """The binary update written plainly, by solving each batch to the end with Newton's method."""
    t, w = np.polynomial.hermite_e.hermegauss(100)
    w = w / w.sum()
    base = np.append(np.ones(z.shape[2] - 1), 1e-2)
    narrow, pull, nats = base.copy(), np.zeros_like(base), 0.0

    def expect(x: Any, mean: Any, tight: Any) -> tuple[Any, Any]:
        p = 1 / (1 + np.exp(-(x @ mean)[:, None] - np.sqrt(x**2 @ (1 / tight))[:, None] * t))
        return p @ w, (p * (1 - p)) @ w

    for x, labels in zip(z, y, strict=True):
        p, _ = expect(x, pull / narrow, narrow)
        nats -= np.log(np.where(labels == 1, p, 1 - p)).sum()
        prior, centre = (
            rho * narrow + (1 - rho) * base,
            rho * pull / (rho * narrow + (1 - rho) * base),
        )
        mean, tight = centre.copy(), prior.copy()
        for _ in range(200):
            p, c = expect(x, mean, tight)
            hessian = np.diag(prior) + (x * c[:, None]).T @ x
            mean = mean + np.linalg.solve(hessian, x.T @ (labels - p) - prior * (mean - centre))
            tight = 0.5 * tight + 0.5 * (prior + (x**2).T @ c)
        narrow, pull = tight, tight * mean
    return narrow, pull / narrow, nats


@pytest.mark.parametrize("rho", [1.0, 0.9])
def test_steps_and_code_equal_a_plain_newton_loop(rho: float) -> None:
    x, y = drawn(0, 12, 8, np.eye(4)[:1])
    probe = OnlineVariationalProbe(forget=rho, sweeps=150)
    for batch, labels in zip(x, y, strict=True):
        probe.partial_fit(batch, labels, classes=[0, 1])
    z = np.concatenate([(x - x[0].mean(0)) / x[0].std(0), np.ones((12, 8, 1))], axis=2)
    narrow, mean, nats = hermite_loop(z, y, rho)
    np.testing.assert_allclose(1 / probe.variance_[0], narrow, rtol=1e-6)
    np.testing.assert_allclose(probe.mean_[0], mean, atol=1e-6)
    assert probe.code_length_ == pytest.approx(nats, abs=1e-5)
    assert probe.step_codes_.sum() * 8 == pytest.approx(nats, abs=1e-5)


def test_one_batch_from_the_base_prior_is_the_batch_posterior() -> None:
    x, y = drawn(1, 1, 64, np.eye(5)[:1])
    online = OnlineVariationalProbe(sweeps=2000).partial_fit(x[0], y[0])
    batch = VariationalProbe(tol=1e-9).fit(x[0], y[0])
    np.testing.assert_allclose(online.mean_, batch.mean_, atol=1e-4)
    np.testing.assert_allclose(online.variance_, batch.variance_, rtol=1e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_compiled_stream_equals_single_steps(classes: int) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, classes, (20, 6))
    x = rng.standard_normal((20, 6, 4)) + rng.standard_normal((classes, 4))[y]
    one, two = (
        OnlineVariationalProbe(forget=0.95).partial_fit(x[0], y[0], classes=range(classes))
        for _ in range(2)
    )
    one.stream(x[1:], y[1:])
    for batch, labels in zip(x[1:], y[1:], strict=True):
        two.partial_fit(batch, labels)
    np.testing.assert_allclose(one.mean_, two.mean_, atol=1e-10)
    np.testing.assert_allclose(one.variance_, two.variance_, rtol=1e-10)
    assert one.code_length_ == pytest.approx(two.code_length_, abs=1e-9)
    assert one.online_accuracy_ == two.online_accuracy_ and len(one.step_codes_) == 20


@pytest.mark.parametrize("rho", [1.0, 0.999])
def test_after_100_000_steps_precisions_have_not_drifted(rho: float) -> None:
    # Rows that are zero but for the intercept, one of each class: logits stay symmetric, so the
    # intercept's mean is 0 and its precision obeys a scalar recursion, in extended precision here.
    steps = 100_000
    x, y = np.zeros((steps, 2, 16)), np.tile([0, 1], (steps, 1))
    probe = OnlineVariationalProbe(forget=rho, scale=False, sweeps=5)
    probe.partial_fit(x[0], y[0]).stream(x[1:], y[1:])
    wide = np.linspace(-12, 12, 4001)
    few, narrow = np.polynomial.hermite_e.hermegauss(64), np.longdouble(1e-2)
    for step in range(steps):
        # Gauss-Hermite points stand too far apart while the intercept's spread is large.
        t, w = few if step > 50 else (wide, np.exp(-(wide**2) / 2))
        w = w / w.sum()
        prior = rho * narrow + (1 - np.longdouble(rho)) * np.longdouble(1e-2)
        narrow = prior
        for _ in range(5):
            p = 1 / (1 + np.exp(-t / np.sqrt(float(narrow))))
            narrow = prior + 2 * float((p * (1 - p)) @ w)
    assert 1 / probe.variance_[0, -1] == pytest.approx(float(narrow), rel=1e-9)
    # Features that never varied stand at the base prior, exactly where forgetting leaves them.
    np.testing.assert_allclose(probe.variance_[0, :-1], 1.0, rtol=1e-9)
    np.testing.assert_allclose(probe.mean_, 0.0, atol=1e-9)
    if rho < 1:  # the stationary value: base + what a step adds / (1 - rho)
        assert 1 / probe.variance_[0, -1] == pytest.approx(1e-2 + 0.5 / (1 - rho), rel=2e-3)


def test_100_000_steps_of_data_stay_finite_and_beat_the_uniform_code() -> None:
    x, y = drawn(2, 100_000, 4, np.eye(8)[:1], gap=1.0)
    for rho in (1.0, 0.999):
        probe = OnlineVariationalProbe(forget=rho).partial_fit(x[0], y[0]).stream(x[1:], y[1:])
        assert np.isfinite(probe.mean_).all() and (probe.variance_ > 0).all()
        assert probe.n_steps_ == 100_000 and probe.n_rows_ == 400_000
        # Bayes: logit 2 gap x_1, so error is P(N(0, 1) > 1).
        assert probe.online_accuracy_ == pytest.approx(0.8413, abs=0.005)
        assert probe.code_length_ < 0.6 * probe.uniform_length_
        direction = probe.subspace(smoothed=False).direction
        assert direction[0] > 0.99


def drift(rho: float, smooth: float) -> Any:
    """Largest-angle lag behind a direction that turns through 1.5 radians over 600 steps."""
    angle = np.linspace(0, 1.5, 600)
    planted = np.zeros((600, 10))
    planted[:, 0], planted[:, 1] = np.cos(angle), np.sin(angle)
    x, y = drawn(3, 600, 32, planted)
    probe, found = OnlineVariationalProbe(forget=rho, smooth=smooth), []
    for batch, labels in zip(x, y, strict=True):
        found.append(probe.partial_fit(batch, labels).subspace())
    return probe, tracking_lag(found[::5], planted[::5, :, None], every=5, longest=60)


def test_a_drifting_direction_is_followed_and_forgetting_says_how_fast() -> None:
    probe, quick = drift(0.97, 0.8)
    assert probe.memory_ == pytest.approx(1 / 0.03)
    assert probe.smoothing_memory_ == pytest.approx(5)
    _, never = drift(1.0, 0.8)
    assert quick.angle < 0.35 and quick.steps <= 3 * (probe.memory_ + probe.smoothing_memory_)
    assert quick.angle_at_lag <= quick.angle
    assert never.steps > 2 * quick.steps and never.angle > 1.5 * quick.angle


def test_smoothing_is_the_top_of_the_averaged_projectors_of_a_plain_loop() -> None:
    x, y = drawn(4, 15, 6, np.eye(12)[:1], gap=0.3)
    probe, plain = OnlineVariationalProbe(smooth=0.8), None
    for batch, labels in zip(x, y, strict=True):
        probe.partial_fit(batch, labels)
        q = probe.subspace(smoothed=False).basis
        plain = q @ q.T if plain is None else 0.8 * plain + 0.2 * q @ q.T
    values, vectors = np.linalg.eigh(plain)
    space = probe.subspace()
    assert abs(vectors[:, -1] @ space.direction) > 1 - 1e-3
    assert space.singular_values[0] == pytest.approx(values[-1], abs=1e-3)
    assert space.provenance["eigen_gap"] == pytest.approx(values[-1] - values[-2], abs=5e-3)


def test_a_lag_that_is_planted_is_measured() -> None:
    from geometry import Subspace

    turn = [np.array([[np.cos(a)], [np.sin(a)]]) for a in np.linspace(0, 1.5, 80)]
    late = [Subspace(turn[max(t - 7, 0)], np.zeros(2), np.ones(1)) for t in range(80)]
    lag = tracking_lag(late, turn, every=10, longest=20)
    assert lag.steps == 70 and lag.angle_at_lag < 1e-6
    assert lag.angle == pytest.approx(7 * 1.5 / 79)
    with pytest.raises(ProbeError, match="runs of the same length"):
        tracking_lag(late[:5], turn, longest=3)


def test_bad_input_is_one_clear_sentence() -> None:
    x, y = drawn(0, 2, 8, np.eye(4)[:1])
    for name in ("forget", "precision", "sweeps"):
        with pytest.raises(ProbeError, match=f"{name} is 0"):
            OnlineVariationalProbe(**{name: 0}).partial_fit(x[0], y[0])
    with pytest.raises(ProbeError, match="smooth is 1"):
        OnlineVariationalProbe(smooth=1).fit(x[0], y[0])
    with pytest.raises(ProbeError, match="name at least two"):
        OnlineVariationalProbe().partial_fit(x[0], np.zeros(8, int))
    with pytest.raises(ProbeError, match="'7' is none of the classes"):
        OnlineVariationalProbe().partial_fit(x[0], y[0]).partial_fit(
            x[1], y[1] + 7 * (y[1] > 0) - (y[1] > 0)
        )
    with pytest.raises(ProbeError, match=r"give \[steps, rows, 4\]"):
        OnlineVariationalProbe().partial_fit(x[0], y[0]).stream(x[0], y[0])
    with pytest.raises(ProbeError, match="hold NaN"):
        OnlineVariationalProbe().partial_fit(x[0], y[0]).stream(x * np.nan, y)
    with pytest.raises(ValueError, match="NaN"):
        OnlineVariationalProbe().partial_fit(x[0] * np.nan, y[0])
    with pytest.raises(ProbeError, match="reads no direction"):
        OnlineVariationalProbe().partial_fit(np.ones((4, 2)), [0, 1, 0, 1]).subspace()
