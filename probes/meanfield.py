"""The mean-field posterior of a linear classifier, in JAX: one fit is one pure function.

The objective is the ELBO sum_i E log p(y_i | z_i) - KL(q || prior), with the logits z of a row
drawn themselves instead of the weights (local reparameterisation; Kingma, Salimans & Welling
2015): q(W) = prod N(m, s^2) makes them independent Gaussians, mean x m and variance x^2 s^2. It is
concave in (m, s), so there is one optimum (Challis & Barber 2013).

- Means: z-averaged residuals, stepped by the inverse of Böhning's (1992) bound on the curvature,
  which no step can overshoot, with Nesterov's momentum restarted where it turns uphill.
- Variances: the fixed point 1/s^2 = precision + sum_i x_i^2 E[p(1 - p)], at which dELBO/ds = 0
  (Khan & Nielsen 2018), damped by half.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from probes.expectations import (
    DRAWS,
    Nodes,
    expected_moments,
    expected_probabilities,
    log_likelihoods,
    nodes,
)

REPLICATES = 4
_REFRESH = 10


class Posterior(NamedTuple):
    """Means and variances `[d + 1, C]` in standardised units, the intercept last, and how it went.

    Attributes:
        elbo: nats, and its standard error from the draws. kl: nats. gradient: largest per row.
        steps: taken. converged: whether tol was reached.
    """

    mean: Any
    variance: Any
    elbo: Any
    elbo_error: Any
    kl: Any
    gradient: Any
    steps: Any
    converged: Any


def targets(code: Any, n_columns: int) -> Any:
    """Class numbers `[..., n]` as what logits are compared with, `[..., n, n_columns]`."""
    if n_columns == 1:
        return (np.asarray(code) == 1).astype(np.float64)[..., None]
    return np.eye(n_columns)[np.asarray(code)]


def standardise(x: Any, weight: Any) -> tuple[Any, Any, Any]:
    """States `[n, d + 1]` centred and scaled by the rows of weight 1, a one last; centre; scale.

    Features that are constant but for rounding are only centred.
    """
    total = weight.sum()
    centre = (weight @ x) / total
    spread = jnp.sqrt((weight @ (x - centre) ** 2) / total)
    largest = jnp.abs(x * weight[:, None]).max(axis=0)
    rounding = 10 * jnp.finfo(x.dtype).eps
    scale = jnp.where(spread <= rounding * largest, 1.0, spread)
    flat = spread <= rounding * largest
    z = jnp.where(flat, 0.0, (x - centre) / scale)
    return jnp.concatenate([z, jnp.ones((len(x), 1), x.dtype)], axis=1), centre, scale


def gaussian_kl(mean: Any, variance: Any, precision: Any, prior_mean: Any = 0.0) -> Any:
    """KL(N(mean, variance) || N(prior_mean, 1/precision)), summed, in nats."""
    moved = precision * ((mean - prior_mean) ** 2 + variance)
    return 0.5 * jnp.sum(moved - 1.0 - jnp.log(precision * variance))


def majoriser(x: Any, precision: Any, bound: Any, inner: Any = None) -> Any:
    """A function that applies (x' diag(bound) x + diag(precision))^-1 to `[d, C]`.

    Factors whichever of the `[n, n]` and `[d, d]` forms is smaller. `inner`: x / precision @ x.T,
    where it is at hand.
    """
    n, d = x.shape
    if d <= n:
        factor = jax.scipy.linalg.cho_factor((bound[:, None] * x).T @ x + jnp.diag(precision))
        return lambda g: jax.scipy.linalg.cho_solve(factor, g)
    scaled = x / precision
    small = jax.scipy.linalg.cho_factor(
        jnp.diag(1 / bound) + (scaled @ x.T if inner is None else inner)
    )
    return lambda g: (
        g / precision[:, None] - scaled.T @ jax.scipy.linalg.cho_solve(small, scaled @ g)
    )


def ascend(
    x: Any,
    y: Any,
    precision: Any,
    at: Nodes,
    inner: Any = None,
    *,
    start: tuple[Any, Any] | None = None,
    tol: float,
    max_iter: int,
) -> tuple[Any, Any, Any, Any, Any]:
    """Means and precisions `[d, C]` at the maximum, the gradient, the steps, and if tol was met.

    Every `_REFRESH` steps the bound on the curvature of row i is taken anew: from 1/2 (1/4 for
    one logit) at first to 2 max_c E[p_c(1 - p_c)], Gershgorin's at the present means. Where the
    gradient did not shrink, four times that is taken, and after each success half of it again.

    Args:
        x: `[n, d]`, rows of zeros for those left out. y: `[n, C]`. precision: prior's, `[d]`.
        start: means and precisions to begin from.
        tol: on the gradient over the number of rows, and ten times it on the relative change of
            precisions.
    """
    used = (x != 0).any(axis=1).astype(x.dtype)
    squares = x * x
    rows = used.sum()
    shape = (x.shape[1], y.shape[1])
    ceiling = 0.25 if y.shape[1] == 1 else 0.5
    if start is None:
        mean = jnp.zeros(shape, x.dtype)
        narrow = jnp.broadcast_to((precision + 0.25 * squares.sum(axis=0))[:, None], shape)
    else:
        mean, narrow = start

    def step(solve: Any, state: Any) -> Any:
        mean, before, narrow, momentum, _, _, _ = state
        grown = 0.5 * (1 + jnp.sqrt(1 + 4 * momentum**2))
        ahead = mean + ((momentum - 1) / grown) * (mean - before)
        first, curvature = expected_moments(x @ ahead, squares @ (1 / narrow), at)
        gradient = x.T @ (used[:, None] * (y - first)) - precision[:, None] * ahead
        moved = ahead + solve(gradient)
        wanted = precision[:, None] + squares.T @ curvature
        uphill = jnp.sum((moved - ahead) * (moved - mean)) < 0
        grown = jnp.where(uphill, 1.0, grown)
        change = jnp.max(jnp.abs(wanted / narrow - 1))
        largest = jnp.max(jnp.abs(gradient)) / rows
        steepest = 2 * curvature.max(axis=1) if y.shape[1] > 1 else curvature[:, 0]
        return moved, mean, 0.5 * (narrow + wanted), grown, largest, change, steepest

    def block(carry: Any) -> Any:
        state, bound, caution, count = carry
        solve = majoriser(x, precision, bound, inner)
        before = state[4]
        state = jax.lax.fori_loop(0, _REFRESH, lambda _, s: step(solve, s), state)
        grew = (state[4] > before) & (count > 0)
        caution = jnp.where(grew, 4 * caution, jnp.maximum(caution / 2, 1.0))
        local = jnp.clip(caution * state[6], 1e-3 * ceiling, ceiling)
        return state, local, caution, count + _REFRESH

    def reached(state: Any) -> Any:
        *_, largest, change, _ = state
        return (largest <= tol) & (change <= 10 * tol)

    def unfinished(carry: Any) -> Any:
        state, _, _, count = carry
        return (count < max_iter) & ~reached(state)

    far = jnp.asarray(jnp.inf, x.dtype)
    one = jnp.asarray(1.0, x.dtype)
    bound = jnp.full(y.shape[0], ceiling, x.dtype)
    state = (mean, mean, narrow, one, far, far, bound)
    carry = (state, bound, one, 0)
    state, _, _, count = jax.lax.while_loop(unfinished, block, carry)
    mean, _, narrow, _, largest, _, _ = state
    return mean, narrow, largest, count, reached(state)


def evaluate(
    x: Any, weight: Any, y: Any, mean: Any, variance: Any, precision: Any, fresh: Nodes
) -> tuple[Any, Any, Any]:
    """ELBO, its standard error and the KL term, in nats, at draws that no step has seen.

    `fresh` has `REPLICATES` independent sets of draws, one after another. In f64 wherever JAX has
    it: in f32 sums over draws and rows were seen to be off by nats.
    """
    wide = jnp.promote_types(x.dtype, jnp.result_type(float))
    x, weight, y, mean, variance, precision, fresh = jax.tree.map(
        lambda a: jnp.asarray(a).astype(wide), (x, weight, y, mean, variance, precision, fresh)
    )
    mu, spread = x @ mean, (x * x) @ variance
    kl = gaussian_kl(mean, variance, precision[:, None])
    drawn = log_likelihoods(mu, spread, y, fresh) @ weight
    if y.shape[1] == 1:
        return drawn[0] - kl, jnp.zeros_like(kl), kl
    each = drawn.reshape(REPLICATES, -1).mean(axis=1)
    return each.mean() - kl, each.std(ddof=1) / np.sqrt(REPLICATES), kl


def fresh_nodes(n_columns: int, *, n: int, draws: int = DRAWS, seed: int) -> Nodes:
    """`REPLICATES` independent sets of four times the `nodes` that fit, and apart from those."""
    if n_columns == 1:
        return nodes(1)
    sets = [nodes(n_columns, n=n, draws=4 * draws, seed=[seed, 1 + r]) for r in range(REPLICATES)]
    points = np.concatenate([s.points for s in sets])
    return Nodes(points, np.full(len(points), 1 / len(points)))


def fit_one(
    x: Any,
    weight: Any,
    y: Any,
    precision: Any,
    at: Nodes,
    fresh: Nodes,
    inner: Any = None,
    *,
    tol: float,
    max_iter: int,
) -> Posterior:
    """The posterior from standardised states `[n, d + 1]`, rows of weight 0 left out."""
    used = x * weight[:, None]
    mean, narrow, gradient, steps, converged = ascend(
        used, y, precision, at, inner, tol=tol, max_iter=max_iter
    )
    elbo, error, kl = evaluate(x, weight, y, mean, 1 / narrow, precision, fresh)
    return Posterior(mean, 1 / narrow, elbo, error, kl, gradient, steps, converged)


@cache
def compiled_fit() -> Any:
    """`fit_one`, compiled once for each shape and dtype."""
    return jax.jit(fit_one)


@partial(jax.jit, static_argnames=("spread",))
def fit_grid(
    x: Any,
    y: Any,
    train: Any,
    precision: Any,
    at: Nodes,
    fresh: Nodes,
    reading: Nodes,
    *,
    tol: Any,
    max_iter: Any,
    spread: bool,
) -> tuple[Posterior, Any]:
    """Posteriors `[L, F, T, S, ...]` and predictive probabilities `[L, F, T, S, n, classes]`.

    Layers and folds run one after another, and share one Gram matrix for all labelings and seeds;
    so do labelings and seeds, unless `spread`, which runs those of one layer and fold side by side.

    Args:
        x: `[L, n, d]`. y: `[T, n, C]`. train: `[F, n]`. at, fresh: points `[S, K, n, C]`.
    """

    def one(z: Any, w: Any, inner: Any, y: Any, seed: tuple[Any, Any]) -> Any:
        found = fit_one(
            z, w, y, precision, Nodes(seed[0], at.weights), Nodes(seed[1], fresh.weights), inner,
            tol=tol, max_iter=max_iter,
        )  # fmt: skip
        return found, expected_probabilities(z @ found.mean, (z * z) @ found.variance, reading)

    def cell(layer: Any, w: Any) -> Any:
        z, _, _ = standardise(layer, w)
        used = z * w[:, None]
        inner = None if z.shape[1] <= z.shape[0] else (used / precision) @ used.T
        each = jax.vmap if spread else _mapped
        seeds = (at.points, fresh.points)
        return each(lambda labels: each(lambda s: one(z, w, inner, labels, s))(seeds))(y)

    return _mapped(lambda layer: _mapped(lambda w: cell(layer, w))(train))(x)


def _mapped(function: Any) -> Any:
    return lambda values: jax.lax.map(function, values)
