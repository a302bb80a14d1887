"""What class probabilities are on average when logits are independent Gaussians, in JAX.

The logistic function is a mixture of normal distribution functions, sigma(z) = E Phi(z / 2K) with
K of Kolmogorov's distribution (Andrews & Mallows 1974; Stefanski 1991). Over a Gaussian logit z
each of them has its mean in closed form, so E sigma, E sigma(1 - sigma) and E log(1 + e^z) are
short sums, as exact at variance 1000 as at 0: Gauss-Hermite points stand too far apart there.

Of three classes or more, one logit is averaged so and the others by draws: p_c = sigma(z_c - l),
with l the log of the sum of exp over the other logits.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DRAWS = 16
# K between these values, in steps of equal ratio: within 1e-10, and within 2e-6.
_EXACT = (0.2, 8.0, 32)
_QUICK = (0.34, 2.2, 8)


class Nodes(NamedTuple):
    """Draws of standardised logits: points `[K, n or 1, C]` and weights `[K]`."""

    points: Any
    weights: Any


class Moments(NamedTuple):
    """E sigma(z), E sigma(z)(1 - sigma(z)) and E log(1 + e^z) of Gaussian logits z."""

    probability: Any
    curvature: Any
    softplus: Any


def nodes(n_columns: int, *, n: int = 1, draws: int = DRAWS, seed: int | list[int] = 0) -> Nodes:
    """Nodes for `n` rows with `n_columns` logits each.

    One logit (two classes) needs no draws and gets a placeholder. More: Sobol' points shifted by a
    random amount for each row (Cranley & Patterson 1976), so that errors of rows are independent
    and of mean zero.
    """
    if n_columns == 1:
        return Nodes(np.zeros((1, 1, 1)), np.ones(1))
    from scipy.special import ndtri
    from scipy.stats import qmc

    rng = np.random.default_rng(seed)
    base = qmc.Sobol(n_columns, scramble=True, rng=rng).random(draws)
    shifted = (base[:, None, :] + rng.random((1, n, n_columns))) % 1.0
    return Nodes(ndtri(np.clip(shifted, 1e-12, 1 - 1e-12)), np.full(draws, 1 / draws))


@cache
def _mixture(low: float, high: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations and weights of the normals: the trapezoid rule over log K."""
    from scipy.stats import kstwobign

    k = np.geomspace(low, high, count)
    weights = k * kstwobign.pdf(k)
    return 2 * k, weights / weights.sum()


def _normal_cdf(u: Any, bell: Any) -> Any:
    """Phi(u) within 7.5e-8, given exp(-u^2/2) (Abramowitz & Stegun 1964, 26.2.17)."""
    t = 1 / (1 + 0.2316419 * jnp.abs(u))
    series = 0.319381530 + t * (
        -0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))
    )
    tail = bell * t * series / math.sqrt(2 * math.pi)
    return jnp.where(u > 0, 1 - tail, tail)


def _normal_moments(mu: Any, variance: Any, scale: Any, *, exact: bool) -> Moments:
    """As `logistic_moments`, with Phi(z / scale) in place of sigma(z)."""
    spread = jnp.sqrt(scale**2 + variance)
    u = mu / spread
    bell = jnp.exp(-0.5 * u * u)
    below = jax.scipy.special.ndtr(u) if exact else _normal_cdf(u, bell)
    density = bell / math.sqrt(2 * math.pi)
    return Moments(below, density / spread, mu * below + spread * density)


def logistic_moments(mu: Any, variance: Any, *, exact: bool = True) -> Moments:
    """Moments of a logit N(mu, variance), within 1e-10; not `exact`, within 2e-6, much faster."""
    scales, weights = _mixture(*(_EXACT if exact else _QUICK))
    if exact:
        wide = jnp.asarray(scales, jnp.result_type(mu)).reshape(-1, *(1,) * jnp.ndim(mu))
        each = _normal_moments(mu, variance, wide, exact=True)
        return Moments(*(jnp.tensordot(jnp.asarray(weights, a.dtype), a, 1) for a in each))
    # Written out, so that all of it is one loop over the draws and no array is ten times as large.
    terms = [_normal_moments(mu, variance, float(s), exact=False) for s in scales]
    return Moments(
        *(sum(float(w) * a for w, a in zip(weights, part)) for part in zip(*terms, strict=True))
    )


def probabilities(z: Any) -> Any:
    """Class probabilities of logits `[..., C]`; of one logit, the second class's `[..., 1]`."""
    return jax.nn.sigmoid(z) if z.shape[-1] == 1 else jax.nn.softmax(z, axis=-1)


def _others(z: Any) -> Any:
    """log sum of exp over the other logits, for each of `z` `[..., C]`."""
    top = z.max(axis=-1, keepdims=True)
    rest = jnp.exp(z - top) @ (1 - jnp.eye(z.shape[-1], dtype=z.dtype))
    return top + jnp.log(jnp.maximum(rest, jnp.finfo(z.dtype).tiny))


def expected_moments(mu: Any, variance: Any, at: Nodes) -> tuple[Any, Any]:
    """E[p] and E[p(1 - p)] `[n, C]` under logits N(mu, variance)."""
    if mu.shape[-1] == 1:
        one = logistic_moments(mu, variance)
        return one.probability, one.curvature
    gap = mu - _others(mu + jnp.sqrt(variance) * at.points)
    each = logistic_moments(gap, variance, exact=False)
    weights = at.weights[:, None, None]
    first = (weights * each.probability).sum(axis=0)
    # Classes were averaged apart; what their sum is off by would pull all weights one way.
    return first / first.sum(axis=-1, keepdims=True), (weights * each.curvature).sum(axis=0)


def log_likelihoods(mu: Any, variance: Any, y: Any, at: Nodes) -> Any:
    """E log p(y | z) in nats: `[1, n]` of one logit, else `[K, n]`, one for each draw."""
    if mu.shape[-1] == 1:
        return (y * mu - logistic_moments(mu, variance).softplus)[None, :, 0]
    gap = (y * (mu - _others(mu + jnp.sqrt(variance) * at.points))).sum(axis=-1)
    own = (y * variance).sum(axis=-1)
    return -logistic_moments(-gap, own, exact=False).softplus


@jax.jit
def expected_probabilities(mu: Any, variance: Any, at: Nodes) -> Any:
    """E[p] `[n, classes]` of every class, for two classes too; of more, the mean over the draws."""
    if mu.shape[-1] == 1:
        first = logistic_moments(mu, variance).probability
        return jnp.concatenate([1 - first, first], axis=1)
    return jnp.einsum("k,knc->nc", at.weights, probabilities(mu + jnp.sqrt(variance) * at.points))


@jax.jit
def expected_uncertainty(mu: Any, variance: Any, at: Nodes) -> tuple[Any, Any]:
    """The standard deviation of p `[n, classes]`, and the mean entropy of the label `[n]`."""
    if mu.shape[-1] == 1:
        one = logistic_moments(mu, variance)
        p, curvature = one.probability, one.curvature
        square = jnp.maximum(p * (1 - p) - curvature, 0.0)
        # The entropy is log(1 + e^z) - z sigma(z), and E z sigma(z) = mu E sigma + v E sigma'.
        entropy = (one.softplus - mu * p - variance * curvature)[:, 0]
        return jnp.sqrt(jnp.concatenate([square, square], axis=1)), entropy
    z = mu + jnp.sqrt(variance) * at.points
    p = probabilities(z)
    mean = jnp.einsum("k,knc->nc", at.weights, p)
    spread = jnp.sqrt(jnp.einsum("k,knc->nc", at.weights, (p - mean) ** 2))
    entropy = jax.nn.logsumexp(z, axis=-1) - (p * z).sum(axis=-1)
    return spread, at.weights @ entropy
