"""Steps of the streaming posterior in JAX, many of them in one compiled scan."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from probes.expectations import Nodes, expected_moments, expected_probabilities
from probes.meanfield import majoriser


@partial(jax.jit, static_argnames=("sweeps",))
def run(
    state: tuple[Any, Any],
    x: Any,
    y: Any,
    base: Any,
    forget: Any,
    at: Nodes,
    *,
    sweeps: int,
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Precisions and precision-weighted means `[d, C]` after all steps; nats and hits of each.

    Args:
        x: `[steps, b, d]`, rows of zeros for padding. y: `[steps, b, C]`. base: `[d, 1]`.
    """

    def step(state: tuple[Any, Any], batch: tuple[Any, Any]) -> tuple[Any, Any]:
        x, y = batch
        used = (x != 0).any(axis=1).astype(x.dtype)
        narrow, pull = state
        # The base prior has mean zero, so only precisions are drawn towards it.
        prior, pull = forget * narrow + (1 - forget) * base, forget * pull
        centre, squares = pull / prior, x * x
        p = expected_probabilities(x @ (state[1] / state[0]), squares @ (1 / state[0]), at)
        wanted = jnp.concatenate([1 - y, y], axis=1) if y.shape[1] == 1 else y
        nats = -used @ jnp.log(jnp.maximum((p * wanted).sum(axis=1), jnp.finfo(p.dtype).tiny))
        hits = used @ (p.argmax(axis=1) == wanted.argmax(axis=1))
        bound = jnp.full(len(x), 0.25 if y.shape[1] == 1 else 0.5, x.dtype)
        each = jax.vmap(
            lambda g, own: majoriser(x, own, bound)(g[:, None])[:, 0], in_axes=1, out_axes=1
        )

        def sweep(_: Any, at_now: tuple[Any, Any]) -> tuple[Any, Any]:
            mean, tight = at_now
            first, curvature = expected_moments(x @ mean, squares @ (1 / tight), at)
            gradient = x.T @ (used[:, None] * (y - first)) - prior * (mean - centre)
            return mean + each(gradient, prior), prior + squares.T @ curvature

        mean, tight = jax.lax.fori_loop(0, sweeps, sweep, (centre, prior))
        return (tight, tight * mean), (nats, hits)

    return jax.lax.scan(step, state, (x, y))
