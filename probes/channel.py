"""A noisy code of states, its rate and what it costs the labels, in JAX.

The code z ~ N(A'x + a, diag exp(B'x + b)) is read by the logits D'z + e. Its rate is
KL(p(z | x) || N(0, I)) = sum (mean^2 + variance - 1 - log variance) / 2.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from probes.expectations import Nodes, logistic_moments


class Channel(NamedTuple):
    """Weights of the encoder's means and log variances `[d, k]`, levels `[k]`; of the decoder.

    Attributes:
        read: `[k, C]`. level: `[C]`. One column, the logit of the second, where there are two.
    """

    mean: Any
    mean_level: Any
    log_variance: Any
    log_variance_level: Any
    read: Any
    level: Any


def encode(channel: Channel, x: Any) -> tuple[Any, Any]:
    """Means and log variances `[n, k]` of the codes of `x` `[n, d]`."""
    mean = x @ channel.mean + channel.mean_level
    return mean, x @ channel.log_variance + channel.log_variance_level


@jax.jit
def rates(channel: Channel, x: Any) -> Any:
    """KL(p(z | x) || N(0, I)) of each row, in nats `[n]`."""
    mean, log_variance = encode(channel, x)
    return 0.5 * jnp.sum(mean**2 + jnp.exp(log_variance) - 1.0 - log_variance, axis=-1)


def log_odds(channel: Channel, x: Any, at: Nodes) -> Any:
    """Logits `[K, n, C]` at draws of the codes."""
    mean, log_variance = encode(channel, x)
    return (mean + jnp.exp(log_variance / 2) * at.points) @ channel.read + channel.level


@jax.jit
def losses(channel: Channel, x: Any, y: Any, at: Nodes) -> Any:
    """E_z -log p(y | z) of each row, in nats `[n]`; in closed form for two classes."""
    if y.shape[1] == 1:
        mean, log_variance = encode(channel, x)
        mu = mean @ channel.read + channel.level
        found = logistic_moments(mu, jnp.exp(log_variance) @ channel.read**2)
        return (found.softplus - y * mu)[:, 0]
    z = log_odds(channel, x, at)
    return at.weights @ (jax.nn.logsumexp(z, axis=-1) - (y * z).sum(axis=-1))


@jax.jit
def average_probabilities(channel: Channel, x: Any, at: Nodes) -> Any:
    """E_z p(y | z) `[n, classes]`."""
    if channel.read.shape[1] == 1:
        mean, log_variance = encode(channel, x)
        mu, variance = mean @ channel.read + channel.level, jnp.exp(log_variance) @ channel.read**2
        # Of each class apart, so that neither is 1 less a rounded 1.
        return jnp.concatenate(
            [logistic_moments(sign * mu, variance).probability for sign in (-1, 1)], axis=1
        )
    return jnp.einsum("k,knc->nc", at.weights, jax.nn.softmax(log_odds(channel, x, at), axis=-1))


@jax.jit
@jax.value_and_grad
def objective(
    raw: Channel, units: Channel, x: Any, weight: Any, y: Any, at: Nodes, beta: Any, penalty: Any
) -> Any:
    """Mean loss + beta mean rate over the rows of weight 1 (Alemi et al. 2017), and penalties.

    The channel is `raw` times `units`. `penalty` / 2 times the squares of AD, the weights from
    states to mean logits, and of B.
    """
    channel = jax.tree.map(jnp.multiply, raw, units)
    share = weight / weight.sum()
    cost = losses(channel, x, y, at) + beta * rates(channel, x)
    shrink = jnp.sum((channel.mean @ channel.read) ** 2) + jnp.sum(channel.log_variance**2)
    return share @ cost + penalty / 2 * shrink
