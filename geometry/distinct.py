"""Products of covariances that compare only rows of different groups, and so have no bias.

Rows of one group share noise, and a row agrees with itself perfectly: a sum over all pairs of
rows counts both as likeness. Here every term takes its rows from groups that differ, and each
group weighs the same however many rows it has, so that the expectation is that of independent
groups (the U-statistic of Song et al. 2012, eq. 5, with groups in place of rows; for one row a
group it is theirs). All values with one group left out come from the same sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from evidence.interval import skewness


class LeftOut(NamedTuple):
    """A figure of all groups, and of all groups but each."""

    value: float
    without: Float[np.ndarray, " groups"]


class GroupGram:
    """Inner products of rows `x` `[n, d]`, by group; five groups, so that four are left, or more.

    Attributes:
        groups: how many there are.
    """

    def __init__(self, x: Float[np.ndarray, "n d"], member: Int[np.ndarray, " n"]) -> None:
        sizes = np.bincount(member)
        self.groups = len(sizes)
        self._weights = 1 / sizes[member]
        self._member = member
        centred = x - x.mean(axis=0)  # changes nothing but rounding
        self._own = np.einsum("nd,nd->n", centred, centred)
        gram = centred @ centred.T
        gram[member[:, None] == member] = 0.0
        self._gram = gram
        self._to_group = self.summed(gram * self._weights)
        self._between = self.summed((self._weights[:, None] * self._to_group).T).T

    def summed(self, columns: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "m groups"]:
        """Columns of rows added up by group."""
        order = np.argsort(self._member, kind="stable")
        starts = np.searchsorted(self._member[order], np.arange(self.groups))
        return np.add.reduceat(columns[:, order], starts, axis=1)

    def product(self, other: GroupGram) -> LeftOut:
        """‖Σ_xy‖²_F, Σ_xy the cross-covariance of the rows of both, without bias.

        With i, j, q, r rows of different groups it is the mean of K_ij L_ij - 2 K_ij L_iq +
        K_ij L_qr. It may be negative.
        """
        g, w, member = self.groups, self._weights, self._member
        one, two = self._to_group, other._to_group
        pairs = self.summed((w[:, None] * self.summed(self._gram * other._gram * w)).T).T
        a, b = self._between, other._between
        ra, rb, pa, pb = a.sum(axis=1), b.sum(axis=1), one.sum(axis=1), two.sum(axis=1)
        # Sums over ordered pairs, triples and quadruples of different groups.
        shared = a * b
        first = pairs.sum()
        both = w * (pa * pb - np.einsum("ng,ng->n", one, two))
        second = both.sum()
        third = a.sum() * b.sum() - 4 * ra @ rb + 2 * shared.sum()
        value = _mean(first, second, third, g)
        # The same without group h. Triples lose those that start in h and those that lead to h.
        firsts = first - 2 * pairs.sum(axis=1)
        lead = w[:, None] * (2 * one * two - one * pb[:, None] - pa[:, None] * two)
        lead[np.arange(len(w)), member] = 0.0
        seconds = second - np.bincount(member, weights=both, minlength=g) + lead.sum(axis=0)
        ra_h, rb_h = ra[:, None] - a, rb[:, None] - b
        np.fill_diagonal(ra_h, 0.0)
        np.fill_diagonal(rb_h, 0.0)
        thirds = (
            (a.sum() - 2 * ra) * (b.sum() - 2 * rb)
            - 4 * np.einsum("gh,gh->h", ra_h, rb_h)
            + 2 * (shared.sum() - 2 * shared.sum(axis=1))
        )
        return LeftOut(value, _mean(firsts, seconds, thirds, g - 1))

    def trace(self) -> LeftOut:
        """tr Σ, the total variance of the rows, without bias."""
        g, a = self.groups, self._between
        own = np.bincount(self._member, weights=self._own * self._weights, minlength=g)
        value = own.mean() - a.sum() / (g * (g - 1))
        less = (own.sum() - own) / (g - 1) - (a.sum() - 2 * a.sum(axis=1)) / ((g - 1) * (g - 2))
        return LeftOut(float(value), less)

    def unevenness(self) -> float:
        """Skewness over groups of their rows' mean square, divided by √groups."""
        own = np.bincount(self._member, weights=self._own * self._weights, minlength=self.groups)
        return skewness(own) / np.sqrt(self.groups) if np.ptp(own) > 0 else 0.0


def permuted_products(
    grams: Sequence[GroupGram], orders: Int[np.ndarray, "draws n"]
) -> Float[np.ndarray, "draws l l"]:
    """`product(...).value` of gram i with gram j, whose rows have taken each of the orders.

    The orders must put each group as a whole in the place of one with as many rows.
    """
    return np.stack(list(_permuted(grams, orders)))


def _permuted(
    grams: Sequence[GroupGram], orders: Int[np.ndarray, "draws n"]
) -> Iterator[Float[np.ndarray, "l l"]]:
    first_row = np.unique(grams[0]._member, return_index=True)[1]
    w, g, size = grams[0]._weights, grams[0].groups, len(grams)
    full = np.stack([m._gram for m in grams])
    lines = np.stack([m._to_group for m in grams])
    between = np.stack([m._between for m in grams])
    weighted = (w[:, None] * full * w).reshape(size, -1)
    weighted_lines = (w[:, None] * lines).reshape(size, -1)
    p, r = lines.sum(axis=2), between.sum(axis=2)
    total = r.sum(axis=1)
    for order in orders:
        to = grams[0]._member[order[first_row]]  # the group that stands in each group's place
        moved = full.take(order, axis=1).take(order, axis=2)  # 5 times as fast as one index
        moved_lines = lines.take(order, axis=1).take(to, axis=2)
        moved_between = between.take(to, axis=1).take(to, axis=2)
        first = weighted @ moved.reshape(size, -1).T
        second = (w * p) @ p[:, order].T - weighted_lines @ moved_lines.reshape(size, -1).T
        shared = between.reshape(size, -1) @ moved_between.reshape(size, -1).T
        third = np.outer(total, total) - 4 * r @ r[:, to].T + 2 * shared
        yield _mean(first, second, third, g)


def mean_product(one: Float[np.ndarray, "groups d"], two: Float[np.ndarray, "groups d"]) -> LeftOut:
    """⟨E one, E two⟩ from vectors of each group, without what both share in a group."""
    g = len(one)
    first, second = one.sum(axis=0), two.sum(axis=0)
    own = np.einsum("gd,gd->g", one, two)
    total = first @ second - own.sum()
    less = total - one @ second - two @ first + 2 * own
    return LeftOut(float(total / (g * (g - 1))), less / ((g - 1) * (g - 2)))


def _mean(first, second, third, g: int):
    """The U-statistic of its sums over g groups."""
    pairs = g * (g - 1)
    return first / pairs - 2 * second / (pairs * (g - 2)) + third / (pairs * (g - 2) * (g - 3))
