"""Overlap, angles and cosines of estimated subspaces, with intervals over groups.

Two estimated subspaces lie farther apart than the true ones, since each has errors of its own, and
nearer where they share rows, whose noise is in both. Subspaces from disjoint halves of the groups
share no noise, and how well halves of one variety reproduce its subspace says how much the errors
take away.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from evidence import Estimate, grouped_jackknife, jackknife_estimate, permutation_p
from geometry.checks import count, finite, members
from geometry.distinct import mean_product
from geometry.errors import GeometryError
from geometry.nulls import angle_sample, haar_overlap_sample

OverlapNull = Literal["covariance", "haar", "labels"]

#: Below this share of reproducible dimensions nothing can be said of the true overlap.
_LEAST = 0.1
#: Below this the angles of estimated subspaces say little of the true ones.
_RELIABLE = 0.8


def overlap_estimate(
    x: ArrayLike,
    y: ArrayLike,
    reference: ArrayLike,
    groups: ArrayLike,
    *,
    k: int,
    null: OverlapNull | None = "covariance",
    draws: int = 999,
    splits: int = 4,
    most: int = 40,
    level: float = 0.95,
    seed: int,
) -> Estimate:
    """Overlap of the k-dimensional subspaces of x - reference and y - reference, freed of noise.

    For a random half A of the groups and the rest B, the main axes (`paired_differences`) of x in
    A are compared with those of y in B and the other way round, O, and the two halves of x, r_x,
    and of y, r_y, with one another; all are averaged over `splits`. With c = k/d what isotropic
    errors share by chance, the estimate is c + (1 - c)(O - c) / √((r_x - c)(r_y - c)): Spearman's
    (1904) correction of a correlation for the reliability of both sides, made for overlaps (this
    form is ours). It is exact where errors turn all k axes alike and in no preferred direction.
    The interval is a jackknife over groups with the splits held; where halves reproduce less than
    about 0.8 it is wider than it need be.

    Args:
        x, y, reference: `[n, d]`, parallel rows.
        groups: `[n]`.
        null: what `null`, its mean, and the one-sided p stand for. `"haar"`: uniform subspaces.
            `"covariance"`: subspaces with the spread that all rows have. `"labels"`: the rows of
            each group exchanged between x, y and reference, as if no variety differed from
            another; a shared shift survives that in part, so it finds less. p is of O, before the
            correction.
        draws: of the null.
        splits: random halvings.
        most: above this many groups, they are left out by this many blocks.

    Returns:
        The mean squared cosine, in [0, 1]; NaN, with the reason, where halves of the groups do not
        reproduce a subspace.

    Raises:
        GeometryError: shapes that differ, numbers that are not finite, fewer than eight groups, k
            above what half of the rows or the differences span, an unknown null.
    """
    if null is not None and null not in get_args(OverlapNull):
        raise GeometryError(f"null is {null!r}; choose from {', '.join(get_args(OverlapNull))}.")
    given, member, k = _checked(x, y, reference, groups, k)
    draws = count(draws, name="draws")
    n, d = int(member.max()) + 1, given.shape[2]
    halving = _Halving.of(member, count(splits, name="splits"), most, seed)
    states, one, two = _differences(given, k)
    whole, without = halving.overlaps(one, two, k), halving.without(one, two, k)
    drawn = None
    if null == "haar":
        drawn = haar_overlap_sample(d, k, k, draws=draws, seed=seed)
    elif null == "covariance":
        spectrum = _spectrum(states)
        angles = angle_sample(d, k, k, spectrum=spectrum, draws=draws, seed=seed)
        drawn = np.mean(np.cos(angles) ** 2, axis=1)
    elif null == "labels":
        drawn = _relabelled(states, member, halving, k, draws, seed)
    mean, p = np.nan, np.nan
    if drawn is not None:
        mean, p = float(drawn.mean()), permutation_p(whole[0], drawn)
    chance = k / d
    less = _corrected(without, chance)
    reproduced = float(min(whole[1:]))
    told = Estimate(np.nan, level=level, n=n, null=mean, p=p, unit=_SQUARED, seed=seed)
    if (reproduced - chance) < _LEAST * (1 - chance) or not np.isfinite(less).all():
        why = f"halves of the groups reproduce a subspace only to {reproduced:.2f}"
        return replace(told, method=f"no estimate: {why}, where chance gives {chance:.2f}")
    found = jackknife_estimate(
        float(_corrected(whole, chance)),
        less,
        level=level,
        bounds=(0.0, 1.0),
        what=halving.what,
        n=n,
    )
    method = f"{found.method}; corrected for halves that reproduce {reproduced:.2f}"
    return replace(told, value=found.value, low=found.low, high=found.high, method=method)


def angle_estimate(
    x: ArrayLike,
    y: ArrayLike,
    reference: ArrayLike,
    groups: ArrayLike,
    *,
    k: int,
    which: Literal["mean", "smallest", "largest"] = "mean",
    most: int = 40,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A principal angle in radians between the subspaces of x - reference and y - reference.

    Of the subspaces of all rows; the bias that falls as one over the number of groups is removed
    by the jackknife. That is not enough where halves of the groups reproduce a subspace to less
    than 0.8, nor where the angle is not told from zero or a right one, which no estimate reaches:
    `method` then says so. `overlap_estimate` has neither fault.

    Raises:
        GeometryError: as `overlap_estimate`, or an unknown `which`.
    """
    if which not in ("mean", "smallest", "largest"):
        raise GeometryError(f"which is {which!r}; choose 'mean', 'smallest' or 'largest'.")
    given, member, k = _checked(x, y, reference, groups, k)
    _, one, two = _differences(given, k)
    pick = {"mean": np.mean, "smallest": np.min, "largest": np.max}[which]

    def angle(rows: Int[np.ndarray, " m"]) -> float:
        cosines = np.linalg.svd(_axes(one[rows], k)[0].T @ _axes(two[rows], k)[0], compute_uv=False)
        return float(pick(np.arccos(np.clip(cosines, 0.0, 1.0))))

    found = grouped_jackknife(
        angle, member, most=most, seed=seed, level=level, bounds=(0.0, np.pi / 2), unit="radians"
    )
    reproduced = float(min(_Halving.of(member, 4, most, seed).overlaps(one, two, k)[1:]))
    told, blur = f"{found.method}; halves reproduce {reproduced:.2f}", 2 * (1 - reproduced)
    if reproduced < _RELIABLE:
        told += ", too little for an interval that covers"
    elif min(np.sin(found.value) ** 2, np.cos(found.value) ** 2) < blur:
        told += ", and an angle so near to zero or a right one is not told from it"
    return replace(found, method=told)


def direction_estimate(
    x: ArrayLike,
    y: ArrayLike,
    reference: ArrayLike,
    groups: ArrayLike,
    *,
    level: float = 0.95,
) -> Estimate:
    """Cosine between the mean shifts of x and of y from the reference, freed of noise.

    ⟨δ_x, δ_y⟩ / √(‖δ_x‖² ‖δ_y‖²), each of the three the mean product of vectors of two different
    groups, so that neither noise that lengthens a mean nor the reference's, which x and y share,
    counts. `null` is 0, and p that of the interval, two-sided.

    Args:
        x, y, reference: `[n, d]`, parallel rows. groups: `[n]`.

    Returns:
        The cosine, in [-1, 1]; NaN, with the reason, where a shift is not told from none.

    Raises:
        GeometryError: shapes that differ, numbers that are not finite, fewer than four groups.
    """
    given, member, _ = _checked(x, y, reference, groups, 1, least=4)
    n = int(member.max()) + 1
    sizes = np.bincount(member)[:, None]
    means = np.zeros((2, n, given.shape[2]))
    for mean, own in zip(means, given[:2], strict=True):
        np.add.at(mean, member, own - given[2])
        mean /= sizes
    both, first, second = (mean_product(means[i], means[j]) for i, j in ((0, 1), (0, 0), (1, 1)))
    lengths = [jackknife_estimate(m.value, m.without, level=level) for m in (first, second)]
    if (
        min(length.low for length in lengths) <= 0
        or min(m.without.min() for m in (first, second)) <= 0
    ):
        why = "no estimate: a mean shift is not told from none"
        return Estimate(np.nan, level=level, n=n, null=0.0, unit="cosine", method=why)
    return jackknife_estimate(
        float(both.value / np.sqrt(first.value * second.value)),
        both.without / np.sqrt(first.without * second.without),
        level=level,
        null=0.0,
        bounds=(-1.0, 1.0),
        unit="cosine",
    )


_SQUARED = "mean squared cosine"


class _Halving(NamedTuple):
    """Random halves of the groups, which are joined to blocks where they are many."""

    block: Int[np.ndarray, " n"]
    halves: list[Bool[np.ndarray, " blocks"]]
    what: str

    @classmethod
    def of(cls, member: Int[np.ndarray, " n"], splits: int, most: int, seed: int) -> _Halving:
        rng = np.random.default_rng(seed)
        groups = int(member.max()) + 1
        joined = rng.permutation(np.arange(groups) % max(most, 8)) if groups > most else None
        block = member if joined is None else joined[member]
        blocks = int(block.max()) + 1
        halves = []
        for _ in range(splits):
            half = np.zeros(blocks, dtype=bool)
            half[rng.permutation(blocks)[: blocks // 2]] = True
            halves.append(half)
        return cls(block, halves, "groups" if joined is None else f"blocks of {groups} groups")

    def overlaps(
        self, one: Float[np.ndarray, "n r"], two: Float[np.ndarray, "n r"], k: int
    ) -> Float[np.ndarray, " three"]:
        """Of halves: of the two varieties, of the first with itself, and of the second."""
        total = np.zeros(3)
        for half in self.halves:
            (a, b), (c, e) = self._sides(half, one, two, k)
            total += [(_overlap(a, e) + _overlap(b, c)) / 2, _overlap(a, b), _overlap(c, e)]
        return total / len(self.halves)

    def without(
        self, one: Float[np.ndarray, "n r"], two: Float[np.ndarray, "n r"], k: int
    ) -> Float[np.ndarray, "three blocks"]:
        """The same with each block left out of its half."""
        total = np.zeros((3, len(self.halves[0])))
        for half in self.halves:
            axes = self._sides(half, one, two, k)
            for side, far in ((half, 1), (~half, 0)):
                rows = side[self.block]
                out = self.block[rows] == np.flatnonzero(side)[:, None]
                first, second = (_axes(m[rows], k, out) for m in (one, two))
                far_one, far_two = axes[0][far], axes[1][far]
                total[0, side] += (_overlap(first, far_two) + _overlap(second, far_one)) / 2
                total[1, side] += _overlap(first, far_one)
                total[2, side] += _overlap(second, far_two)
        return total / len(self.halves)

    def _sides(self, half: np.ndarray, one: np.ndarray, two: np.ndarray, k: int) -> Any:
        rows = half[self.block]
        return [[_axes(m[own], k)[0] for own in (rows, ~rows)] for m in (one, two)]


def _corrected(found: np.ndarray, chance: float) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        reliable = np.sqrt(found[1] - chance) * np.sqrt(found[2] - chance)
        return chance + (1 - chance) * (found[0] - chance) / reliable


def _overlap(axes: Float[np.ndarray, "*b r k"], far: Float[np.ndarray, "r k"]) -> Any:
    return np.sum((axes.swapaxes(-1, -2) @ far) ** 2, axis=(-2, -1)) / far.shape[1]


def _axes(
    rows: Float[np.ndarray, "n r"], k: int, out: Bool[np.ndarray, "b n"] | None = None
) -> Float[np.ndarray, "b r k"]:
    """The k main axes of the rows, uncentred, without those that `out` marks, b times."""
    kept = np.ones((1, len(rows))) if out is None else (~out).astype(np.float64)
    if rows.shape[1] <= len(rows):
        moments = np.stack([(rows * own[:, None]).T @ rows for own in kept])
        return np.linalg.eigh(moments)[1][:, :, -k:]
    gram = rows @ rows.T
    values, left = np.linalg.eigh(gram * kept[:, :, None] * kept[:, None, :])
    left = left[:, :, -k:] / np.sqrt(np.maximum(values[:, None, -k:], 1e-300))
    return rows.T @ left


def _spectrum(states: Float[np.ndarray, "three n r"]) -> Float[np.ndarray, " m"]:
    """Eigenvalues of the covariance within x, y and reference, up to a factor."""
    centred = states - states.mean(axis=1, keepdims=True)
    return np.linalg.svd(centred.reshape(-1, states.shape[2]), compute_uv=False) ** 2


def _relabelled(
    states: Float[np.ndarray, "three n r"],
    member: Int[np.ndarray, " n"],
    halving: _Halving,
    k: int,
    draws: int,
    seed: int,
) -> Float[np.ndarray, " draws"]:
    """Overlaps of halves after exchanging what x, y and reference hold, group by group."""
    rng = np.random.default_rng([seed, 1])
    place = np.arange(len(member))
    found = np.empty(draws)
    for draw in range(draws):
        order = rng.permuted(np.tile(np.arange(3), (int(member.max()) + 1, 1)), axis=1)[member]
        moved = states[order.T, place]
        found[draw] = halving.overlaps(moved[0] - moved[2], moved[1] - moved[2], k)[0]
    return found


def _compact(given: Float[np.ndarray, "three n d"]) -> Float[np.ndarray, "three n r"]:
    """The same rows in coordinates of their own span, where that has fewer dimensions."""
    rows = given.reshape(-1, given.shape[2])
    if rows.shape[1] <= rows.shape[0]:
        return given
    return np.asarray(np.linalg.qr(rows.T, mode="r")).T.reshape(3, -1, len(rows))


def _checked(
    x: ArrayLike, y: ArrayLike, reference: ArrayLike, groups: ArrayLike, k: int, least: int = 8
) -> tuple[Float[np.ndarray, "three n d"], Int[np.ndarray, " n"], int]:
    named = {"x": x, "y": y, "reference": reference}
    given = [finite(value, name=name, ndim=2) for name, value in named.items()]
    if len({rows.shape for rows in given}) > 1:
        shapes = ", ".join(f"{n} {rows.shape}" for n, rows in zip(named, given, strict=True))
        raise GeometryError(f"The shapes differ ({shapes}); parallel rows need the same order.")
    member = members(groups, n=len(given[0]), least=least)
    # What is left of the smaller half of the groups without its largest.
    sizes = np.sort(np.bincount(member))
    fewest = int(sizes[: len(sizes) // 2 - 1].sum())
    k = count(k, name="k", most=max(1, min(fewest, given[0].shape[1])))
    return np.stack(given), member, k


def _differences(
    given: Float[np.ndarray, "three n d"], k: int
) -> tuple[Float[np.ndarray, "three n r"], Float[np.ndarray, "n r"], Float[np.ndarray, "n r"]]:
    """All rows in coordinates of their span, and what x and y differ from the reference there.

    Raises:
        GeometryError: differences that span no k dimensions.
    """
    states = _compact(given)
    found = states[0] - states[2], states[1] - states[2]
    for name, own, rows in zip(("x", "y"), found, states, strict=False):
        values = np.linalg.svd(own, compute_uv=False)
        largest = max(values[0], np.abs(rows).max())
        rank = int(np.sum(values > max(own.shape) * np.finfo(np.float64).eps * largest))
        if rank < k:
            raise GeometryError(
                f"The differences of {name} from the reference have rank {rank}, so they span no "
                f"{k} dimensions; lower k, or add pairs that differ."
            )
    return states, *found
