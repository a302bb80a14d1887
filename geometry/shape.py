"""The shape of a cloud of activations: how many dimensions, how lopsided, how far apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from geometry.checks import count, finite
from geometry.errors import GeometryError

_CELLS = 4_000_000  # distances held at once, 32 MB


class Separability(NamedTuple):
    """A ratio of variation between classes to variation within, and its mean without classes.

    `chance` is for Gaussian rows that are independent; rows of one group are not.
    """

    value: float
    chance: float


def effective_rank(
    x: ArrayLike, *, of: Literal["singular values", "variances"] = "singular values"
) -> float:
    """exp of the entropy of the spectrum of centred `x` `[n, d]`: dimensions, from 1 to rank.

    Roy & Vetterli (2007, eq. 2 to 4) take the spectrum as singular values σ / Σσ; with
    `"variances"` it is σ² / Σσ², which gives less.

    Raises:
        GeometryError: numbers that are not finite, fewer than two rows, no variation.
    """
    if of not in ("singular values", "variances"):
        raise GeometryError(f"of is {of!r}; choose 'singular values' or 'variances'.")
    values = _spectrum(x)
    p = values if of == "singular values" else values**2
    p = p[p > 0] / p.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def participation_ratio(
    x: ArrayLike, *, debiased: bool = False, independent: int | None = None
) -> float:
    """(Σλ)² / Σλ² of the variances λ of centred `x` `[n, d]`: dimensions, from 1 to rank.

    Few rows make it too small: 1/PR_n ≈ 1/PR + 1/(n - 1).

    Args:
        debiased: subtract that; infinite where nothing is left.
        independent: how many independent rows there are, the groups where rows come in groups; n
            unless given.

    Raises:
        GeometryError: numbers that are not finite, fewer than two rows, no variation.
    """
    centred = _centred(x)
    # Σλ and Σλ² are a trace and a Frobenius norm: no decomposition is needed.
    wide = centred.shape[1] > centred.shape[0]
    products = centred @ centred.T if wide else centred.T @ centred
    inverse = float(np.sum(products**2) / np.trace(products) ** 2)
    if debiased:
        n = len(np.asarray(x))
        inverse -= 1 / max(1, (n if independent is None else _at_least_two(independent, n)) - 1)
        # A cloud that fills all the dimensions its rows allow says nothing of an upper limit.
        return 1 / inverse if inverse > 1e-12 else float("inf")
    return 1 / inverse


def two_nn(x: ArrayLike, *, groups: ArrayLike | None = None, discard: float = 0.1) -> float:
    """Intrinsic dimension of `x` `[n, d]` from the ratio of the two nearest distances.

    Facco et al. (2017): the slope through 0 of -log(1 - F(μ)) on log μ, μ = r₂/r₁, without the
    largest ratios. Too small above about 20 dimensions at n ≈ 1000.

    Args:
        groups: `[n]`; neighbours then are the nearest rows of two other groups, since twins of a
            row make r₁ small, and twins of its neighbour μ.
        discard: the share of largest ratios left out.

    Raises:
        GeometryError: numbers that are not finite, too few rows, rows equal to another, ratios
            that are all 1, a share outside [0, 1).
    """
    if not 0 <= discard < 1:
        raise GeometryError(f"discard is {discard!r}; it must lie in [0, 1).")
    nearest = _neighbours(x, groups, 2)
    ratios = np.sort(np.log(nearest[:, 1] / nearest[:, 0]))
    n = len(ratios)
    kept = int(n * (1 - discard))
    slopes = ratios[:kept]
    if kept < 2 or slopes[-1] <= 1e-12:
        raise GeometryError(
            "The two nearest neighbours are equally far for too many rows, as on a lattice; "
            "take mle_dimension with more neighbours, or more rows."
        )
    heights = -np.log1p(-np.arange(kept) / n)
    return float(slopes @ heights / (slopes @ slopes))


def mle_dimension(x: ArrayLike, *, neighbours: int = 20, groups: ArrayLike | None = None) -> float:
    """Intrinsic dimension of `x` `[n, d]` by maximum likelihood from the k nearest distances.

    Levina & Bickel (2004, eq. 8), with inverses averaged over rows as MacKay & Ghahramani (2005)
    correct it: the inverse of the mean over i and j < k of log(T_k(x_i) / T_j(x_i)).

    Args:
        neighbours: k. More mean less variance and, where the cloud is curved or has edges, a
            smaller estimate.
        groups: `[n]`; neighbours then are the nearest rows of k other groups.

    Raises:
        GeometryError: numbers that are not finite, too few rows, rows equal to another, distances
            that are all equal.
    """
    k = count(neighbours, name="neighbours")
    if k < 2:
        raise GeometryError("neighbours is 1; distances to at least 2 are compared.")
    nearest = _neighbours(x, groups, k)
    inverse = float(np.log(nearest[:, -1:] / nearest[:, :-1]).mean())
    if inverse <= 1e-12:
        raise GeometryError("All neighbours are equally far, so no dimension fits; add rows.")
    return 1 / inverse


def anisotropy(x: ArrayLike) -> float:
    """Mean cosine similarity of two different rows of `x` `[n, d]`, in [-1/(n - 1), 1].

    0 for directions spread evenly (Ethayarajh 2019); x is not centred.

    Raises:
        GeometryError: numbers that are not finite, fewer than two rows, a row of zeros.
    """
    rows = finite(x, name="x", ndim=2)
    n = len(rows)
    if n < 2:
        raise GeometryError("x has 1 row; at least 2 are needed.")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise GeometryError("A row of x is all zeros, so it has no cosine; leave it out.")
    total = (rows / lengths).sum(axis=0)
    return float((total @ total - n) / (n * (n - 1)))


def trace_ratio(x: ArrayLike, labels: ArrayLike) -> Separability:
    """tr S_B / tr S_W: variance of `x` `[n, d]` between the classes of `labels` over that within.

    Turning x does not change it, scaling single features does. `chance` is (C - 1) / (n - C),
    about what labels without meaning give.

    Raises:
        GeometryError: lengths that differ, numbers that are not finite, one class, no variation
            within classes.
    """
    between, within, classes = _scatter(x, labels)
    n = len(within)
    inside = float(np.sum(within**2))
    if inside == 0:
        raise GeometryError("Rows of one class are all equal, so the ratio is infinite; add rows.")
    return Separability(float(np.sum(between**2)) / inside, (classes - 1) / (n - classes))


def fisher_ratio(x: ArrayLike, labels: ArrayLike) -> Separability:
    """tr(S_W⁻¹ S_B) of `x` `[n, d]` over the classes of `labels`: Fisher's criterion for C classes.

    Invertible linear maps do not change it. It grows with d whether or not classes differ: for
    Gaussian rows without them its mean is (C - 1) d / (n - C - d - 1), given as `chance`, infinite
    where n - C is at most d + 1. (Fukunaga 1990, section 10.2; the Hotelling-Lawley trace.)

    Raises:
        GeometryError: lengths that differ, numbers that are not finite, one class, a within-class
            scatter without full rank.
    """
    between, within, classes = _scatter(x, labels)
    n, d = within.shape
    lengths = np.linalg.norm(within, axis=0)
    # Feature scales cancel in the ratio, and would only blur what counts as full rank.
    scales = np.where(lengths > 0, lengths, 1.0)
    _, values, axes = np.linalg.svd(within / scales, full_matrices=False)
    rank = int(np.sum(values > max(n, d) * 1e-14 * values[0]))
    if rank < d:
        raise GeometryError(
            f"Within classes x has rank {rank} in {d} dimensions, so the ratio is not defined; "
            "take fewer principal components, more rows, or trace_ratio."
        )
    value = float(np.sum(((between / scales) @ axes.T / values) ** 2))
    free = n - classes - d - 1
    return Separability(value, (classes - 1) * d / free if free > 0 else float("inf"))


def _at_least_two(independent: int, n: int) -> int:
    found = count(independent, name="independent", most=n)
    if found < 2:
        raise GeometryError("independent is 1; at least 2 rows must be independent.")
    return found


def _centred(x: ArrayLike) -> Float[np.ndarray, "n d"]:
    """The rows less their mean, scaled to Frobenius norm 1."""
    rows = finite(x, name="x", ndim=2)
    if len(rows) < 2:
        raise GeometryError("x has 1 row; at least 2 are needed.")
    centred = rows - rows.mean(axis=0)
    length = np.linalg.norm(centred)
    if length <= 1e-12 * np.linalg.norm(rows):
        raise GeometryError(f"x does not vary over its {len(rows)} rows.")
    return centred / length


def _spectrum(x: ArrayLike) -> Float[np.ndarray, " r"]:
    """Singular values of the centred rows, the largest 1."""
    centred = _centred(x)
    values = np.linalg.svd(centred, compute_uv=False)
    values = values / values[0]
    return values[values > max(centred.shape) * np.finfo(np.float64).eps]


def _scatter(x: ArrayLike, labels: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Weighted class means `[C, d]`, rows less their class mean `[n, d]`, and C."""
    rows = finite(x, name="x", ndim=2)
    names = np.asarray(labels)
    if names.shape != (len(rows),):
        raise GeometryError(
            f"labels has shape {names.shape}, but x has {len(rows)} rows; give each its class."
        )
    _, member = np.unique(names.astype(str), return_inverse=True)
    sizes = np.bincount(member)
    if len(sizes) < 2:
        raise GeometryError("There is one class; at least 2 are needed to lie apart.")
    if len(sizes) == len(rows):
        raise GeometryError("Every class has one row, so nothing varies within; add rows.")
    centred = rows - rows.mean(axis=0)
    means = np.zeros((len(sizes), rows.shape[1]))
    np.add.at(means, member, centred)
    means /= sizes[:, None]
    within = centred - means[member]
    constant = np.linalg.norm(within, axis=0) <= 1e-12 * np.linalg.norm(rows, axis=0)
    return np.sqrt(sizes)[:, None] * means, np.where(constant, 0.0, within), len(sizes)


def _neighbours(x: ArrayLike, groups: Any, k: int) -> Float[np.ndarray, "n k"]:
    """Distances to the nearest row of each of the k nearest other groups, smallest first.

    Without groups every row is one.
    """
    rows = finite(x, name="x", ndim=2)
    n = len(rows)
    member = np.arange(n)
    if groups is not None:
        names = np.asarray(groups)
        if names.shape != (n,):
            raise GeometryError(f"groups has shape {names.shape}, but x has {n} rows.")
        member = np.unique(names.astype(str), return_inverse=True)[1]
    sizes = np.bincount(member)
    if len(sizes) <= k:
        what = "rows" if groups is None else "groups"
        raise GeometryError(f"x has {len(sizes)} {what}, too few for {k} neighbours; add {what}.")
    centred = rows - rows.mean(axis=0)
    if centred.shape[1] > n:
        # Distances live in the span of the rows.
        centred = np.asarray(np.linalg.qr(centred.T, mode="r")).T
    squares = np.einsum("nd,nd->n", centred, centred)
    order = np.argsort(member, kind="stable")
    starts = np.cumsum(sizes) - sizes
    # The rows of each group, the last one repeated where it has fewer than the largest group.
    of_group = order[starts[:, None] + np.minimum(np.arange(sizes.max()), sizes[:, None] - 1)]
    found = np.empty((n, k))
    candidates = min(k + 4, len(sizes))
    for block in _blocks(n, max(n, candidates * max(centred.shape[1], sizes.max()))):
        rough = squares[block, None] + squares - 2 * centred[block] @ centred.T
        least = np.minimum.reduceat(rough[:, order], starts, axis=1)
        own = member[block, None]
        np.put_along_axis(least, own, np.inf, axis=1)
        near = np.argpartition(least, candidates - 1, axis=1)[:, :candidates]
        each = np.arange(len(rough))[:, None, None]
        inside = np.argmin(rough[each, of_group[near]], axis=2)
        # The rough distances cancel for near twins: take those of the candidates anew.
        exact = np.linalg.norm(centred[block, None] - centred[of_group[near, inside]], axis=2)
        exact[near == own] = np.inf
        found[block] = np.sort(exact, axis=1)[:, :k]
    equal = int(np.sum(found[:, 0] <= 1e-12 * np.sqrt(squares.max())))
    if equal:
        raise GeometryError(
            f"{equal} rows of x equal another, so distances have no ratio; keep one of each."
        )
    return found


def _blocks(n: int, cells: int) -> Iterator[slice]:
    size = max(1, _CELLS // cells)
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))
