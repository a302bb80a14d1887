"""Whether parallel sentences of two varieties lie nearest to each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from geometry.checks import count, finite
from geometry.errors import GeometryError

_CELLS = 4_000_000  # similarities held at once, 32 MB
_TIE = 1e-12


class Retrieval(NamedTuple):
    """How often a sentence's nearest neighbours in the other variety hold its parallel.

    Attributes:
        at: `[m]`, how many neighbours count.
        forward: `[m]`, share of rows of x whose parallel is among the `at` nearest rows of y.
        backward: the same from y to x.
        chance: `[m]`, what a random order gives, at / n.
        forward_hits, backward_hits: `[n, m]`, for each row whether it was found; where scores tie,
            the share of random orders of the tied in which it is. For intervals over groups, as by
            `evidence.cluster_mean`.
    """

    at: tuple[int, ...]
    forward: Float[np.ndarray, " m"]
    backward: Float[np.ndarray, " m"]
    chance: Float[np.ndarray, " m"]
    forward_hits: Float[np.ndarray, "n m"]
    backward_hits: Float[np.ndarray, "n m"]


class ParallelCosine(NamedTuple):
    """Cosine similarity of parallel rows.

    Attributes:
        value: its mean over pairs.
        chance: the mean cosine of rows that are not parallel, of x with y.
        cosines: `[n]`, of each pair.
    """

    value: float
    chance: float
    cosines: Float[np.ndarray, " n"]


def retrieve(
    x: ArrayLike,
    y: ArrayLike,
    *,
    at: Sequence[int] = (1, 5, 10),
    csls: int | None = 10,
) -> Retrieval:
    """Precision at k of finding row i of `y` `[n, d]` from row i of `x` `[n, d]`, and back.

    Scores are CSLS, 2 cos(x, y) - r(x) - r(y) with r the mean cosine to the nearest rows of the
    other side (Conneau et al. 2018, eq. 3), which takes from hubs, rows near to everything, what
    they have by that; or plain cosines. Both depend on how many candidates there are: compare only
    what has the same n. Correct for anisotropy first, with `all_but_the_top`.

    Args:
        csls: how many nearest rows r is the mean of; None scores by cosine.

    Raises:
        GeometryError: shapes that differ, numbers that are not finite, a row of zeros, more
            neighbours than rows.
    """
    one, two = _pairs(x, y)
    n = len(one)
    if len(tuple(at)) == 0:
        raise GeometryError("at is empty; say how many neighbours count, as (1, 5, 10).")
    places = tuple(count(k, name="at", most=n) for k in at)
    reach_one, reach_two = np.zeros(n), np.zeros(n)
    if csls is not None:
        csls = count(csls, name="csls", most=n)
        reach_one, reach_two = _reach(one, two, csls), _reach(two, one, csls)
    forward = _hits(one, two, reach_two, places)
    backward = _hits(two, one, reach_one, places)
    chance = np.array(places) / n
    return Retrieval(places, forward.mean(axis=0), backward.mean(axis=0), chance, forward, backward)


def parallel_cosine(x: ArrayLike, y: ArrayLike) -> ParallelCosine:
    """Cosine similarity of row i of `x` `[n, d]` and row i of `y` `[n, d]`, beside chance.

    Raw states have high cosines with everything (Ethayarajh 2019): correct x and y first, with
    `all_but_the_top`, and read the value against `chance`.

    Raises:
        GeometryError: shapes that differ, numbers that are not finite, fewer than two rows, a row
            of zeros.
    """
    one, two = _pairs(x, y)
    n = len(one)
    if n < 2:
        raise GeometryError("There is 1 pair; at least 2 are needed to know what chance gives.")
    cosines = np.clip(np.einsum("nd,nd->n", one, two), -1.0, 1.0)
    everything = float(one.sum(axis=0) @ two.sum(axis=0))
    chance = (everything - float(cosines.sum())) / (n * (n - 1))
    return ParallelCosine(float(cosines.mean()), chance, cosines)


def all_but_the_top(
    x: ArrayLike, *, components: int, fit: ArrayLike | None = None
) -> Float[np.ndarray, "n d"]:
    """`x` `[n, d]` less its mean and its coordinates on the first principal components.

    Mu & Viswanath (2018, algorithm 1), who take about d / 100 components; with 0 only the mean is
    removed.

    Args:
        fit: `[m, d]`, the rows that mean and components are taken from; x itself unless given.
            Give other rows than x where what comes out is a measure of x, and the same to both
            varieties where their difference is to stay.

    Raises:
        GeometryError: shapes that do not fit, numbers that are not finite, components not below
            the rank of the centred rows.
    """
    rows = finite(x, name="x", ndim=2)
    source = rows if fit is None else finite(fit, name="fit", ndim=2)
    if source.shape[1] != rows.shape[1]:
        raise GeometryError(
            f"x has {rows.shape[1]} columns and fit {source.shape[1]}; take both from one site."
        )
    mean = source.mean(axis=0)
    centred = rows - mean
    if components == 0:
        return centred
    components = count(components, name="components")
    spread = source - mean
    _, values, axes = np.linalg.svd(spread, full_matrices=False)
    least = max(source.shape) * np.finfo(np.float64).eps * max(values[0], np.abs(source).max())
    rank = int(np.sum(values > least))
    if components >= rank:
        raise GeometryError(
            f"components is {components}, but the centred rows have rank {rank}, so nothing would "
            "be left; lower it."
        )
    top = axes[:components]
    return centred - (centred @ top.T) @ top


def _pairs(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both with rows of length 1."""
    one, two = finite(x, name="x", ndim=2), finite(y, name="y", ndim=2)
    if one.shape != two.shape:
        raise GeometryError(
            f"x has shape {one.shape} and y {two.shape}; "
            "parallel rows need the same order and one space."
        )
    lengths = [np.linalg.norm(m, axis=1, keepdims=True) for m in (one, two)]
    if any((length == 0).any() for length in lengths):
        raise GeometryError("A row is all zeros, so it has no cosine; leave that pair out.")
    return one / lengths[0], two / lengths[1]


def _blocks(n: int) -> Iterator[slice]:
    size = max(1, _CELLS // n)
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _reach(one: np.ndarray, two: np.ndarray, nearest: int) -> np.ndarray:
    """Mean cosine of each row of `one` to its nearest rows of `two`."""
    n = len(one)
    parts = []
    for rows in _blocks(n):
        cosines = one[rows] @ two.T
        parts.append(np.partition(cosines, n - nearest, axis=1)[:, n - nearest :].mean(axis=1))
    return np.concatenate(parts)


def _hits(one: np.ndarray, two: np.ndarray, reach: np.ndarray, at: tuple[int, ...]) -> np.ndarray:
    """For each row of `one`, the chance that its parallel is among the `at` highest scores.

    The row's own reach is the same for all of its candidates, so it is left out of the scores.
    """
    parts = []
    for rows in _blocks(len(one)):
        scores = 2 * (one[rows] @ two.T) - reach
        own = scores[np.arange(len(scores)), np.arange(rows.start, rows.stop)][:, None]
        above = np.sum(scores > own + _TIE, axis=1)
        tied = np.sum(np.abs(scores - own) <= _TIE, axis=1)
        parts.append((np.array(at) - above[:, None]) / tied[:, None])
    return np.clip(np.concatenate(parts), 0.0, 1.0)
