"""Figures of geometry as estimates: an interval over groups, and what chance would give.

Rows of one group are not independent, so groups are left out, and a group is never compared with
itself. What has no honest interval says so in `method` instead.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from evidence import (
    Estimate,
    cluster_mean,
    grouped_jackknife,
    jackknife_estimate,
    permutation_p,
    permuted_groups,
)
from geometry.checks import count, finite, members
from geometry.distinct import GroupGram, permuted_products
from geometry.errors import GeometryError
from geometry.retrieval import retrieve
from geometry.shape import effective_rank, mle_dimension, two_nn

#: Skewness / √G of the groups' variances above which covariances rest on a few of them.
_UNEVEN = 0.4


def cka_estimate(
    x: ArrayLike,
    y: ArrayLike,
    groups: ArrayLike,
    *,
    draws: int = 199,
    level: float = 0.95,
    seed: int,
) -> Estimate:
    """Linear CKA of `x` `[n, d1]` and `y` `[n, d2]`, without bias from noise or from groups.

    ‖Σ_xy‖² / (‖Σ_xx‖ ‖Σ_yy‖), each of the three from rows of different groups only, every group
    weighing the same; with one row a group it is `debiased_cka`. The interval is a jackknife over
    groups, from the same sums. For p, groups with equally many rows change places in y.

    Args:
        groups: `[n]`. draws: of the null; 0 for none.

    Returns:
        A similarity of at most 1, about 0 for independent rows and then possibly below.

    Raises:
        GeometryError: rows that differ in number, numbers that are not finite, fewer than five
            groups, no variation between groups.
        EvidenceError: for p, no two groups with equally many rows.
    """
    one, two = finite(x, name="x", ndim=2), finite(y, name="y", ndim=2)
    if len(one) != len(two):
        raise GeometryError(
            f"x has {len(one)} rows and y {len(two)}; they need the same rows in the same order."
        )
    member = members(groups, n=len(one), least=5)
    first, second = GroupGram(one, member), GroupGram(two, member)
    both, own, other = first.product(second), first.product(first), second.product(second)
    if own.value <= 0 or other.value <= 0:
        raise GeometryError(
            "A representation does not vary between groups beyond its noise; leave it out, or add "
            "groups."
        )
    scale = np.sqrt(own.value * other.value)
    with np.errstate(invalid="ignore", divide="ignore"):
        without = both.without / (np.sqrt(own.without) * np.sqrt(other.without))
    null, p = np.nan, np.nan
    if draws:
        orders = permuted_groups(member, draws=draws, seed=seed)
        drawn = permuted_products([first, second], orders)[:, 0, 1] / scale
        null, p = float(np.mean(drawn)), permutation_p(both.value / scale, drawn)
    found = jackknife_estimate(
        both.value / scale, without, level=level, null=null, p=p, bounds=(-1.0, 1.0), unit="CKA"
    )
    return replace(_told_uneven(found, first, second), seed=seed if draws else None)


def participation_ratio_estimate(
    x: ArrayLike, groups: ArrayLike, *, level: float = 0.95
) -> Estimate:
    """(tr Σ)² / tr Σ² of rows `x` `[n, d]`: dimensions, without the bias of few or grouped rows.

    Both traces come from rows of different groups only, every group weighing the same; the
    interval is a jackknife over groups, from the same sums.

    Raises:
        GeometryError: numbers that are not finite, fewer than five groups, no variation between
            groups beyond noise.
    """
    rows = finite(x, name="x", ndim=2)
    gram = GroupGram(rows, members(groups, n=len(rows), least=5))
    trace, square = gram.trace(), gram.product(gram)
    if square.value <= 0:
        raise GeometryError(
            "x does not vary between groups beyond its noise, so it has no dimension; add groups."
        )
    with np.errstate(divide="ignore"):
        without = np.where(square.without > 0, trace.without**2 / square.without, np.nan)
    found = jackknife_estimate(
        trace.value**2 / square.value,
        without,
        level=level,
        bounds=(1.0, float(rows.shape[1])),
        unit="dimensions",
    )
    return _told_uneven(found, gram)


def effective_rank_estimate(
    x: ArrayLike,
    groups: ArrayLike,
    *,
    of: Literal["singular values", "variances"] = "singular values",
    most: int = 60,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """`effective_rank` of rows `x` `[n, d]` less the bias that falls as 1 / groups, by jackknife.

    What is left of the bias is small where there are three rows for each column; with fewer, the
    jackknife cannot know the directions that rows have not reached, and `method` says so.

    Raises:
        GeometryError: numbers that are not finite, fewer than five groups, no variation.
    """
    rows = finite(x, name="x", ndim=2)
    member = members(groups, n=len(rows), least=5)
    found = grouped_jackknife(
        lambda own: effective_rank(rows[own], of=of),
        member,
        most=most,
        seed=seed,
        level=level,
        bounds=(1.0, float(rows.shape[1])),
        unit="dimensions",
    )
    if len(rows) >= 3 * rows.shape[1]:
        return found
    why = f"{len(rows)} rows are few for {rows.shape[1]} columns, so that it is not to be trusted"
    return replace(found, method=f"{found.method}; {why}")


def canonical_estimate(
    x: ArrayLike,
    y: ArrayLike,
    groups: ArrayLike,
    *,
    components: int,
    folds: int = 5,
    level: float = 0.95,
    seed: int,
) -> Estimate:
    """First canonical correlation of `x` `[n, d1]` and `y` `[n, d2]` on held-out groups.

    In each fold the leading principal components of each side and their first canonical directions
    are taken from the training groups, and the others are projected. Canonical correlations of the
    rows that they were fitted to are large whatever the rows; this one is about 0 for independent
    rows. What was fitted stays fixed, so the interval states the uncertainty of the evaluation, and
    is too narrow for what other training groups would give.

    Args:
        components: principal components kept of each side; at most a tenth of the rows is wise.
        folds: every group is held out in one of them.

    Raises:
        GeometryError: rows that differ in number, numbers that are not finite, fewer than eight
            groups or than folds, more components than the training rows or the columns have.
    """
    one, two = finite(x, name="x", ndim=2), finite(y, name="y", ndim=2)
    if len(one) != len(two):
        raise GeometryError(
            f"x has {len(one)} rows and y {len(two)}; they need the same rows in the same order."
        )
    member = members(groups, n=len(one), least=8)
    n = int(member.max()) + 1
    folds = count(folds, name="folds", most=n)
    if folds < 2:
        raise GeometryError("folds is 1; at least 2 are needed to hold groups out.")
    fold = np.random.default_rng(seed).permutation(np.arange(n) % folds)[member]
    fewest = min(int(np.sum(fold != f)) for f in range(folds))
    k = count(components, name="components", most=min(fewest // 2 - 1, one.shape[1], two.shape[1]))
    pair = np.zeros((2, len(one)))
    for f in range(folds):
        test = fold == f
        pair[:, test] = _held_out(one[~test], two[~test], one[test], two[test], k)
    u, v = pair
    terms = np.stack([np.ones_like(u), u, v, u * u, v * v, u * v])
    sizes = np.bincount(member)
    sums = np.stack([np.bincount(member, weights=term) / sizes for term in terms], axis=1)
    total = sums.sum(axis=0)
    found = jackknife_estimate(
        float(_correlation(total)),
        _correlation(total - sums),
        level=level,
        null=0.0,
        bounds=(-1.0, 1.0),
        unit="correlation",
    )
    why = "too narrow by what other training groups would change, since what was fitted is held"
    return replace(found, method=f"{found.method}; {why}", seed=seed)


def retrieval_estimate(
    x: ArrayLike,
    y: ArrayLike,
    groups: ArrayLike,
    *,
    at: int = 1,
    csls: int | None = 10,
    level: float = 0.95,
) -> Estimate:
    """Precision `at` k of `retrieve`, mean of both ways, with an interval over groups.

    The rows that are candidates stay the same, so the interval is for this pool, and `null` is
    what a random order gives in it.

    Raises:
        GeometryError: as `retrieve`, or fewer than two groups.
    """
    found = retrieve(x, y, at=(at,), csls=csls)
    member = members(groups, n=len(found.forward_hits), least=2)
    hits = (found.forward_hits[:, 0] + found.backward_hits[:, 0]) / 2
    chance = float(found.chance[0])
    share = cluster_mean(hits, member, level=level, null=chance, bounds=(0, 1), unit="share found")
    return replace(share, method=f"{share.method}, for a pool of {len(hits)} candidates")


def dimension_estimate(
    x: ArrayLike, groups: ArrayLike, *, method: Literal["two_nn", "mle"] = "two_nn"
) -> Estimate:
    """Intrinsic dimension of rows `x` `[n, d]` by `two_nn` or `mle_dimension`, without an interval.

    Leaving groups out thins the cloud and drawing them makes copies, and both change the nearest
    neighbours by which dimension is measured; a fit's own error holds for independent rows only.
    Set the figure beside that of other sites with as many rows instead.

    Raises:
        GeometryError: as those, or an unknown method.
    """
    if method not in ("two_nn", "mle"):
        raise GeometryError(f"method is {method!r}; choose 'two_nn' or 'mle'.")
    value = two_nn(x, groups=groups) if method == "two_nn" else mle_dimension(x, groups=groups)
    n = len(np.unique(np.asarray(groups).astype(str)))
    why = "no interval: resampled groups have other nearest neighbours"
    return Estimate(value, n=n, unit="dimensions", method=why)


def _told_uneven(found: Estimate, *grams: GroupGram) -> Estimate:
    """With a warning where few groups hold so much variance that no interval of it can be right."""
    uneven = max(gram.unevenness() for gram in grams)
    if uneven <= _UNEVEN or "too narrow" in found.method:
        return found
    return replace(
        found,
        method=f"{found.method}; perhaps too narrow, since few groups hold much of the variance",
    )


def _held_out(
    x: np.ndarray, y: np.ndarray, new_x: np.ndarray, new_y: np.ndarray, k: int
) -> Float[np.ndarray, "two m"]:
    """First canonical variates of new rows, by directions that the other rows give."""
    sides = []
    for rows in (x, y):
        centre = rows.mean(axis=0)
        left, values, axes = np.linalg.svd(rows - centre, full_matrices=False)
        if values[k - 1] <= 1e-12 * values[0]:
            raise GeometryError(
                f"The training rows span fewer than {k} dimensions; lower components."
            )
        sides.append((left[:, :k], axes[:k].T / values[:k], centre))
    (left_x, back_x, mean_x), (left_y, back_y, mean_y) = sides
    a, _, bt = np.linalg.svd(left_x.T @ left_y)
    # Both at the scale of training variates of unit variance, so that folds can be pooled.
    size = np.sqrt(len(x))
    return size * np.stack([(new_x - mean_x) @ back_x @ a[:, 0], (new_y - mean_y) @ back_y @ bt[0]])


def _correlation(sums: Float[np.ndarray, "*b six"]) -> Any:
    """Pearson's, from sums of 1, u, v, u², v² and uv."""
    n, u, v, uu, vv, uv = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (uv / n - u * v / n**2) / np.sqrt((uu / n - (u / n) ** 2) * (vv / n - (v / n) ** 2))
