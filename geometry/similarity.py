"""How alike two representations of the same rows are: CKA, RSA, Procrustes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.spatial.distance import pdist
from scipy.stats import rankdata

from geometry.checks import finite
from geometry.errors import GeometryError

Dissimilarity = Literal["correlation", "cosine", "euclidean", "sqeuclidean"]

_CELLS = 16_000_000  # numbers of Gram matrices held at once, 128 MB


def linear_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Linear centred kernel alignment of `x` `[n, d1]` and `y` `[n, d2]`: a similarity in [0, 1].

    ‖XᵀY‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F) of centred columns (Kornblith et al. 2019, eq. 4). Biased:
    independent Gaussians of d dimensions reach about d / (n + d). Take `debiased_cka` unless n is
    well above 10 d.

    Raises:
        GeometryError: as `cka_matrix`.
    """
    return float(cka_matrix([x], [y], debiased=False)[0, 0])


def debiased_cka(x: ArrayLike, y: ArrayLike) -> float:
    """Linear CKA of `x` `[n, d1]` and `y` `[n, d2]` from unbiased HSIC: a similarity, at most 1.

    Each HSIC is the U-statistic of Song et al. (2012, eq. 5), as in Murphy et al. (2024) and
    Nguyen et al. (2021). Its expectation is about 0 for independent rows, so that it may be
    negative: do not clip before averaging.

    Raises:
        GeometryError: as `cka_matrix`.
    """
    return float(cka_matrix([x], [y])[0, 0])


def cka_matrix(
    layers: ArrayLike | Sequence[ArrayLike],
    others: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    debiased: bool = True,
) -> Float[np.ndarray, "layers others"]:
    """Linear CKA of every one of `layers` with every one of `others`: similarities, at most 1.

    Each Gram matrix is computed once, centred, and all pairs are one matrix product. Rows come in
    blocks where the Gram matrices would take more than 128 MB, which does not change the result.

    Args:
        layers: `[L, n, d]`, or a sequence of L arrays `[n, d_l]` of the same n rows.
        others: the same for another model; `layers` themselves unless given.
        debiased: as in `debiased_cka`, else as in `linear_cka`.

    Raises:
        GeometryError: rows that differ in number, fewer than two (debiased: four), numbers that
            are not finite, a representation without variation.
    """
    one = _layers(layers, "layers")
    two = [] if others is None else _layers(others, "others")
    every = one + two
    _same_rows(every, 4 if debiased else 2)
    n = len(every[0])
    products = np.zeros((len(one), len(two) or len(one)))
    norms = np.zeros(len(every))
    block = max(1, min(n, _CELLS // (len(every) * n)))
    sums = [_row_sums(x, debiased) for x in every]
    for start in range(0, n, block):
        rows = slice(start, min(start + block, n))
        grams = np.empty((len(every), rows.stop - start, n))
        for gram, x, total in zip(grams, every, sums, strict=True):
            np.matmul(x[rows], x.T, out=gram)
            if debiased:
                _u_centre(gram, total, start)
        flat = grams.reshape(len(every), -1)
        norms += np.einsum("ln,ln->l", flat, flat)
        products += flat[: len(one)] @ flat[len(one) if two else 0 :].T
    lengths = _lengths(norms, every)
    found = products / np.outer(lengths[: len(one)], lengths[len(one) if two else 0 :])
    return np.minimum(found, 1.0)


def dissimilarities(
    x: ArrayLike, *, measure: Dissimilarity = "correlation"
) -> Float[np.ndarray, " pairs"]:
    """Dissimilarity of every two rows of `x` `[n, d]`, pairs in the order of scipy's `pdist`.

    `correlation` is 1 - Pearson's r over features, `cosine` 1 - cosine; both in [0, 2].

    Raises:
        GeometryError: fewer than three rows, numbers that are not finite, a row that is constant
            (for `correlation`) or zero (for `cosine`), an unknown measure.
    """
    rows = finite(x, name="x", ndim=2)
    if measure not in get_args(Dissimilarity):
        raise GeometryError(
            f"measure is {measure!r}; choose from {', '.join(get_args(Dissimilarity))}."
        )
    if len(rows) < 3:
        raise GeometryError(f"x has {len(rows)} rows; at least 3 are needed to compare pairs.")
    if measure in ("correlation", "cosine"):
        bare = rows - rows.mean(axis=1, keepdims=True) if measure == "correlation" else rows
        lengths = np.linalg.norm(bare, axis=1)
        if (lengths <= 1e-12 * np.linalg.norm(rows, axis=1)).any():
            what = "constant over features" if measure == "correlation" else "zero"
            raise GeometryError(
                f"A row of x is {what}, so it has no {measure}; leave it out, or take 'euclidean'."
            )
        # Half the squared distance of unit vectors: no loss where rows nearly agree.
        return pdist(bare / lengths[:, None], "sqeuclidean") / 2
    return pdist(rows, measure)


def rsa(
    x: ArrayLike,
    y: ArrayLike,
    *,
    measure: Dissimilarity = "correlation",
    correlation: Literal["spearman", "pearson"] = "spearman",
) -> float:
    """Representational similarity of `x` `[n, d1]` and `y` `[n, d2]`: a correlation in [-1, 1].

    Between the dissimilarities of all pairs of rows (Kriegeskorte et al. 2008). Pairs that share
    a row are not independent: take p from `evidence.spearman_permutation` of the square matrices.

    Raises:
        GeometryError: rows that differ in number, equal dissimilarities, or as `dissimilarities`.
    """
    if correlation not in ("spearman", "pearson"):
        raise GeometryError(f"correlation is {correlation!r}; choose 'spearman' or 'pearson'.")
    one, two = dissimilarities(x, measure=measure), dissimilarities(y, measure=measure)
    if len(one) != len(two):
        raise GeometryError("x and y have different rows; they need the same in the same order.")
    if any(np.ptp(v) <= 1e-12 * np.abs(v).max() for v in (one, two)):
        raise GeometryError(
            "All pairs of rows are equally unlike, so nothing correlates with that."
        )
    if correlation == "spearman":
        one, two = rankdata(one), rankdata(two)
    return float(np.clip(np.corrcoef(one, two)[0, 1], -1.0, 1.0))


def procrustes_distance(x: ArrayLike, y: ArrayLike) -> float:
    """min ‖XR - Y‖_F over orthogonal R, of `x` `[n, d1]` and `y` `[n, d2]`: a metric in [0, √2].

    After centring and scaling each to Frobenius norm 1 (Ding et al. 2021; Williams et al. 2021,
    section 2); reflections count as rotations, and the narrower one is filled up with zeros.

    Raises:
        GeometryError: rows that differ in number, numbers that are not finite, no variation.
    """
    one, two = _unit(x, "x"), _unit(y, "y")
    if len(one) != len(two):
        raise GeometryError(
            f"x has {len(one)} rows and y {len(two)}; they need the same rows in the same order."
        )
    width = max(one.shape[1], two.shape[1])
    one, two = (np.pad(m, ((0, 0), (0, width - m.shape[1]))) for m in (one, two))
    u, _, vt = np.linalg.svd(one.T @ two)
    # The residual itself, not √(2 - 2 nuclear norm), which cannot tell 1e-8 from 0.
    return float(np.linalg.norm(one @ (u @ vt) - two))


def procrustes_angle(x: ArrayLike, y: ArrayLike) -> float:
    """arccos of the nuclear norm of XᵀY, in radians in [0, π/2]: a metric.

    The angular distance of Williams et al. (2021, section 2), between representations
    centred and scaled as in `procrustes_distance`.

    Raises:
        GeometryError: as `procrustes_distance`.
    """
    return float(2 * np.arcsin(np.clip(procrustes_distance(x, y) / 2, 0.0, np.sqrt(0.5))))


def _layers(values: Any, name: str) -> list[np.ndarray]:
    """Each representation, centred and of Frobenius norm 1."""
    if not isinstance(values, Sequence | np.ndarray) or len(values) == 0:
        raise GeometryError(f"{name} must be an array [L, n, d] or a list of arrays [n, d].")
    return [_scaled(v, f"representation {i} of {name}") for i, v in enumerate(values)]


def _same_rows(every: list[np.ndarray], least: int) -> None:
    sizes = sorted({len(x) for x in every})
    if len(sizes) > 1:
        raise GeometryError(
            f"The representations have {sizes} rows; they need the same rows in the same order."
        )
    if sizes[0] < least:
        raise GeometryError(f"There are {sizes[0]} rows; at least {least} are needed here.")


def _lengths(norms: np.ndarray, every: list[np.ndarray]) -> np.ndarray:
    """Frobenius norms of centred Gram matrices, from their squares."""
    lengths = np.sqrt(norms)
    if (lengths <= 1e-12 * np.array([np.sum(x**2) for x in every])).any():
        raise GeometryError(
            "A representation has no variation beyond what centring removes; "
            "leave it out, or add rows."
        )
    return lengths


def _scaled(values: Any, name: str) -> np.ndarray:
    x = finite(values, name=name, ndim=2)
    centred = x - x.mean(axis=0)
    length = np.linalg.norm(centred)
    if length <= 1e-12 * np.linalg.norm(x):
        raise GeometryError(f"{name} does not vary over its {len(x)} rows; leave it out.")
    return centred / length


def _unit(values: Any, name: str) -> np.ndarray:
    """`_scaled`, with no more columns than rows: products of rows stay what they were."""
    x = _scaled(values, name)
    return x if x.shape[1] <= x.shape[0] else np.asarray(np.linalg.qr(x.T, mode="r")).T


def _row_sums(x: np.ndarray, debiased: bool) -> np.ndarray:
    """Sums of the Gram matrix's rows without its diagonal."""
    return x @ x.sum(axis=0) - np.einsum("nd,nd->n", x, x) if debiased else np.empty(0)


def _u_centre(gram: np.ndarray, sums: np.ndarray, start: int) -> None:
    """Rows from `start` of the U-centred Gram matrix, in place (Székely & Rizzo 2014)."""
    n = gram.shape[1]
    gram -= (sums / (n - 2))[None, :]
    gram += sums.sum() / ((n - 1) * (n - 2)) - (sums / (n - 2))[start : start + len(gram), None]
    gram[np.arange(len(gram)), start + np.arange(len(gram))] = 0.0
