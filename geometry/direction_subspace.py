"""How much of a behaviour's direction lies in a subspace, such as that of a variety."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from evidence import Estimate, permutation_p
from geometry.checks import count, finite
from geometry.contrast import Grouping, shifted_interval
from geometry.errors import GeometryError
from geometry.nulls import covariance_overlap_sample


def direction_subspace_cosine(
    positive: ArrayLike,
    negative: ArrayLike,
    x: ArrayLike,
    reference: ArrayLike,
    *,
    k: int,
    groups: tuple[ArrayLike, ArrayLike, ArrayLike],
    covariance: ArrayLike | None = None,
    draws: int = 20,
    resamples: int = 100,
    null_draws: int = 500,
    level: float = 0.95,
    seed: int,
) -> Estimate:
    """Cosine of the angle between a difference in means and a subspace of paired differences.

    The direction leads from the mean of `negative` to that of `positive`, the subspace is of the k
    main axes of `x - reference`, as in `mean_difference` and `paired_differences`. It is 1 where
    the direction lies in the subspace, 0 where it is orthogonal to it, and its arc cosine is the
    smallest principal angle. Where both draw on a common group, each comes from its own half of
    the groups, over `draws` random halves, since a shared text would draw them together.

    Noise turns directions into more or less arbitrary ones, and even those have a cosine of about
    √(k/d), more where few axes hold most of the spread: read it beside `null`. It is not corrected
    for noise and so is nearer to `null` than the true one.

    Args:
        positive, negative: `[n, d]` and `[m, d]`. x, reference: `[pairs, d]`, row by row.
        k: dimensions of the subspace.
        groups: names of the groups of the positive rows, the negative rows and the pairs.
        covariance: `[d, d]`, the spread from which the null draws; that of the positive and
            negative rows together unless given.
        draws: random halves. resamples: of groups, for the interval. null_draws: random directions
            with random subspaces, for `null` (their mean) and `p` (one-sided).

    Raises:
        GeometryError: shapes that do not fit, numbers that are not finite, means that coincide,
            differences whose rank is below k, or common groups too few to be halved.
    """
    high, low = finite(positive, name="positive", ndim=2), finite(negative, name="negative", ndim=2)
    own, other = finite(x, name="x", ndim=2), finite(reference, name="reference", ndim=2)
    if own.shape != other.shape:
        raise GeometryError(
            f"x has shape {own.shape} and reference {other.shape}; "
            "pairs need the same rows in the same order."
        )
    widths = {part.shape[1] for part in (high, low, own)}
    if len(widths) > 1:
        raise GeometryError(
            f"The states are {sorted(widths)} wide; take all of them from one site."
        )
    draws, resamples = count(draws, name="draws"), count(resamples, name="resamples")
    null_draws = count(null_draws, name="null_draws")
    if not 0 < level < 1:
        raise GeometryError(f"level is {level!r}; it must lie between 0 and 1.")
    pairs = own - other
    k = count(k, name="k", most=min(pairs.shape))
    values = np.linalg.svd(pairs, compute_uv=False)
    rank = int(np.sum(values > max(pairs.shape) * np.finfo(np.float64).eps * np.abs(own).max()))
    if rank < k:
        raise GeometryError(
            f"The differences have rank {rank}, so they span no {k} dimensions; lower k."
        )
    grouping = Grouping.of(groups, (len(high), len(low), len(pairs)))
    rng = np.random.default_rng(seed)
    # Kinds are sums of 1, 2 and 4: a group with pairs and with rows of a condition is shared.
    if np.any(grouping.kinds > 4):
        grouping.require_halves()
        halves = [side for first in grouping.halves(draws, rng) for side in (first, ~first)]
        sides = [(side, ~side) for side in halves]
    else:
        sides = [(np.ones(grouping.n, dtype=bool),) * 2]
    centre = low.mean(axis=0)
    parts = (high - centre, low - centre, pairs)

    def cosine(times: np.ndarray, sides: list[tuple[np.ndarray, ...]]) -> float:
        found = [_cosine(parts, grouping, times * a, times * b, k) for a, b in sides]
        known = [c for c in found if np.isfinite(c)]
        return float(np.mean(known)) if known else np.nan

    value = cosine(np.ones(grouping.n), sides)
    if not np.isfinite(value):
        raise GeometryError(
            "The two means coincide, or halves of the pairs span too little; check the labels, "
            "lower k, or give more groups."
        )
    many = grouping.resamples(resamples, rng)
    drawn = [cosine(t, [sides[i % len(sides)]]) for i, t in enumerate(many)]
    low_end, high_end = shifted_interval(np.array(value), np.array(drawn), level)
    if covariance is None:
        covariance = np.cov(np.concatenate([parts[0], parts[1]]), rowvar=False).reshape(
            2 * (len(centre),)
        )
    null = np.sqrt(covariance_overlap_sample(covariance, 1, k, draws=null_draws, seed=seed))
    told = "disjoint halves" if len(sides) > 1 else "no common group"
    return Estimate(
        value,
        float(np.clip(low_end, 0.0, 1.0)),
        float(np.clip(high_end, 0.0, 1.0)),
        level,
        grouping.n,
        null=float(null.mean()),
        p=permutation_p(value, null),
        unit="cosine",
        method=f"{told}; bootstrap over {grouping.n} groups",
        seed=seed,
    )


def _cosine(
    parts: tuple[np.ndarray, ...],
    grouping: Grouping,
    towards: Float[np.ndarray, " g"],
    spanning: Float[np.ndarray, " g"],
    k: int,
) -> float:
    """With the direction by the weights `towards` of groups, the subspace by `spanning`."""
    weights = [towards[m] for m in grouping.members[:2]]
    if not all(w.any() for w in weights):
        return np.nan
    means = [w @ x / w.sum() for w, x in zip(weights, parts[:2], strict=True)]
    direction = means[0] - means[1]
    length = np.linalg.norm(direction)
    times = spanning[grouping.members[2]]
    if length == 0 or np.sum(times > 0) < k:
        return np.nan
    rows = parts[2][times > 0] * np.sqrt(times[times > 0])[:, None]
    axes = np.linalg.svd(rows, full_matrices=False)[2][:k]
    return float(np.linalg.norm(axes @ direction) / length)
