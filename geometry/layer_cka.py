"""CKA of every two layers over groups of rows, with an interval and with groups exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from evidence import jackknife_estimate
from geometry.checks import finite, members
from geometry.distinct import GroupGram, permuted_products
from geometry.errors import GeometryError


class LayerCKA(NamedTuple):
    """CKA of L layers.

    Attributes:
        value: `[L, L]`, symmetric, 1 on the diagonal; about 0 for independent rows, then possibly
            below.
        low, high: `[L, L]`, the ends of its interval over groups.
        permuted: `[draws, L, L]`; at `[b, i, j]` with the rows of layer j in order `orders[b]`.
    """

    value: Float[np.ndarray, "layers layers"]
    low: Float[np.ndarray, "layers layers"]
    high: Float[np.ndarray, "layers layers"]
    permuted: Float[np.ndarray, "draws layers layers"]


def layer_cka(
    layers: Sequence[ArrayLike],
    groups: ArrayLike,
    *,
    orders: ArrayLike | None = None,
    level: float = 0.95,
) -> LayerCKA:
    """`cka_estimate` of every two layers, and of each with the others' groups exchanged.

    Each Gram matrix is computed once for all pairs and draws, and all of them are held.

    Args:
        layers: L arrays `[n, d_l]` of the same rows.
        groups: `[n]`.
        orders: `[draws, n]`, permutations of the row numbers that put each group as a whole in
            the place of one with as many rows; none unless given.

    Raises:
        GeometryError: rows that differ in number, numbers that are not finite, fewer than five
            groups, a layer without variation between groups, orders that tear a group apart.
    """
    every = [finite(x, name=f"layer {i}", ndim=2) for i, x in enumerate(layers)]
    sizes = sorted({len(x) for x in every})
    if len(sizes) != 1:
        raise GeometryError(
            f"The layers have {sizes} rows; they need the same rows in the same order."
        )
    member = members(groups, n=sizes[0], least=5)
    grams = [GroupGram(x, member) for x in every]
    own = [gram.product(gram) for gram in grams]
    flat = [i for i, product in enumerate(own) if product.value <= 0]
    if flat:
        raise GeometryError(
            f"Layer {flat[0]} does not vary between groups beyond its noise; leave it out, or add "
            "groups."
        )
    size = len(every)
    found = np.ones((3, size, size))
    for i in range(size):
        for j in range(i):
            both = grams[i].product(grams[j])
            with np.errstate(invalid="ignore"):
                scales = np.sqrt(own[i].without) * np.sqrt(own[j].without)
            estimate = jackknife_estimate(
                both.value / np.sqrt(own[i].value * own[j].value),
                np.divide(both.without, scales, out=np.full_like(scales, np.nan), where=scales > 0),
                level=level,
                bounds=(-1.0, 1.0),
            )
            told = (estimate.value, estimate.low, estimate.high)
            found[:, i, j] = found[:, j, i] = told
    permuted = np.empty((0, size, size))
    if orders is not None:
        lengths = np.sqrt([product.value for product in own])
        permuted = permuted_products(grams, _moves(orders, member)) / np.outer(lengths, lengths)
    return LayerCKA(found[0], found[1], found[2], permuted)


def _moves(orders: ArrayLike, member: np.ndarray) -> np.ndarray:
    """The orders `[draws, n]`, if each moves whole groups."""
    wanted = np.asarray(orders)
    n = len(member)
    if wanted.ndim != 2 or not (np.sort(wanted, axis=1) == np.arange(n)).all():
        raise GeometryError(f"orders must hold permutations of 0 to {n - 1}, as [draws, {n}].")
    for order in wanted:
        pairs = {(int(a), int(b)) for a, b in zip(member, member[order], strict=True)}
        if len(pairs) > len(np.unique(member)):
            raise GeometryError(
                "An order puts rows of one group in the places of several; move whole groups."
            )
    return wanted
