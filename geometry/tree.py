"""The tree of varieties that distances imply, and how far it agrees with another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from evidence import Estimate, spearman_permutation
from geometry.checks import count, finite
from geometry.errors import GeometryError

Nested: TypeAlias = "int | Sequence[Nested]"
Clade: TypeAlias = "frozenset[int]"


class VarietyTree(NamedTuple):
    """A rooted tree over V varieties, numbered as in the distances.

    Attributes:
        linkage: `[V - 1, 4]`, as scipy writes it; row i joins two clusters at the height in its
            third column, in the unit of the distances.
        leaves: `[V]`, the varieties in an order in which branches do not cross and neighbours are
            as near as can be.
        cophenetic: `[V, V]`, the height at which two varieties meet.
        correlation: Pearson's, of the heights and the distances: how much of them the tree holds.
            NaN where all distances are equal.
    """

    linkage: Float[np.ndarray, "merges 4"]
    leaves: Int[np.ndarray, " v"]
    cophenetic: Float[np.ndarray, "v v"]
    correlation: float


class CladeComparison(NamedTuple):
    """Which clades two trees have in common; the trivial ones (one variety, all) do not count.

    Attributes:
        shared, first_only, second_only: the clades as sets of varieties.
        distance: Robinson & Foulds's (1981), rooted: how many clades are in one tree only.
    """

    shared: frozenset[Clade]
    first_only: frozenset[Clade]
    second_only: frozenset[Clade]
    distance: int


def variety_tree(distances: ArrayLike) -> VarietyTree:
    """The average-linkage tree (UPGMA: Sokal & Michener 1958) of `distances` `[V, V]`.

    Where distances tie, which of the tied clusters join first is arbitrary: set clades of such a
    tree beside `clade_support`.

    Raises:
        GeometryError: fewer than two varieties; distances that are not square, symmetric, finite,
            at least 0, with zeros on the diagonal.
    """
    matrix = _distances(distances, "distances")
    condensed = squareform(matrix, checks=False)
    joined = hierarchy.linkage(condensed, method="average")
    ordered = hierarchy.optimal_leaf_ordering(joined, condensed)
    heights = np.asarray(hierarchy.cophenet(joined))
    return VarietyTree(
        joined, hierarchy.leaves_list(ordered), squareform(heights), _pearson(condensed, heights)
    )


def clades(tree: VarietyTree | Nested) -> frozenset[Clade]:
    """The groups of at least two varieties, and not of all, that have a node of their own.

    Args:
        tree: as `variety_tree` makes it, or a given one as nested sequences of the numbers 0 to
            V - 1, as in `((0, 1), (2, 3, 4))`.

    Raises:
        GeometryError: a nested tree that does not hold each number from 0 once.
    """
    if isinstance(tree, VarietyTree):
        members = _members(tree.linkage)
        return frozenset(c for c in members if len(c) < len(tree.leaves))
    _size(tree)
    found: set[Clade] = set()
    whole = _collect(tree, found)
    return frozenset(c for c in found if 1 < len(c) < len(whole))


def compare_clades(first: VarietyTree | Nested, second: VarietyTree | Nested) -> CladeComparison:
    """Which clades two trees over the same varieties share.

    Against a given tree with nodes of three or more branches, clades in the first only are no
    contradiction when they refine the given one.

    Raises:
        GeometryError: trees over different varieties, or as in `clades`.
    """
    sizes = [_size(first), _size(second)]
    if sizes[0] != sizes[1]:
        raise GeometryError(
            f"The trees hold {sizes[0]} and {sizes[1]} varieties; compare trees over the same."
        )
    one, two = clades(first), clades(second)
    return CladeComparison(one & two, one - two, two - one, len(one ^ two))


def nested_distances(tree: Nested) -> Float[np.ndarray, "v v"]:
    """Distances that a given tree implies: the height of the node where two varieties meet.

    The tree is given as nested sequences, as in `clades`. A node is one higher than its
    highest branch; leaves are at 0.

    Raises:
        GeometryError: as `clades`.
    """
    size = _size(tree)
    matrix = np.zeros((size, size))

    def climb(node: Any) -> tuple[list[int], int]:
        if not _is_node(node):
            return [int(node)], 0
        branches = [climb(b) for b in node]
        height = 1 + max(h for _, h in branches)
        for i, (one, _) in enumerate(branches):
            for other, _ in branches[:i]:
                matrix[np.ix_(one, other)] = matrix[np.ix_(other, one)] = height
        return [leaf for leaves, _ in branches for leaf in leaves], height

    climb(tree)
    return matrix


def compare_distances(
    distances: ArrayLike,
    given: ArrayLike | VarietyTree,
    *,
    control: ArrayLike | None = None,
    draws: int = 9999,
    seed: int,
) -> Estimate:
    """Mantel's test: do `distances` `[V, V]` rank pairs of varieties as `given` ones do?

    Spearman's rho over pairs with a one-sided p-value from relabelled varieties; see
    `evidence.spearman_permutation`. With V = 4 varieties there are 24 relabellings, so that p is
    at least 0.04.

    Args:
        given: `[V, V]` distances, `nested_distances` of a known tree, or a tree, of which the
            cophenetic distances count.
        control: `[V, V]`, distances whose ranks are partialled out (of length, of script, ...).

    Raises:
        GeometryError: as `variety_tree`, fewer than three varieties, different sizes.
    """
    one = _distances(distances, "distances")
    other = given.cophenetic if isinstance(given, VarietyTree) else _distances(given, "given")
    held = None if control is None else _distances(control, "control")
    draws = count(draws, name="draws")
    if one.shape != other.shape or (held is not None and held.shape != one.shape):
        raise GeometryError(
            f"distances has shape {one.shape} and given {other.shape}; give the same varieties."
        )
    if len(one) < 3:
        raise GeometryError(f"There are {len(one)} varieties; at least 3 are needed to rank pairs.")
    return spearman_permutation(one, other, control=held, draws=draws, seed=seed)


def clade_support(tree: VarietyTree, resampled: ArrayLike) -> Float[np.ndarray, " merges"]:
    """For each row of `tree.linkage`, the share of resamples whose tree has that clade.

    The last row joins all varieties, so its support is 1. Felsenstein (1985); resample groups,
    never rows.

    Args:
        resampled: `[B, V, V]`, the distances of each resample.

    Raises:
        GeometryError: resamples of other varieties, or as `variety_tree`.
    """
    stack = finite(resampled, name="resampled", ndim=3)
    members = _members(tree.linkage)
    if stack.shape[1:] != tree.cophenetic.shape:
        raise GeometryError(
            f"resampled has shape {stack.shape}, but the tree has {len(tree.leaves)} varieties; "
            "pass [B, V, V]."
        )
    hits = np.zeros(len(members))
    for i, matrix in enumerate(stack):
        condensed = squareform(_distances(matrix, f"resample {i}"), checks=False)
        found = set(_members(hierarchy.linkage(condensed, method="average")))
        hits += [clade in found for clade in members]
    return hits / len(stack)


def _distances(values: Any, name: str) -> np.ndarray:
    matrix = finite(values, name=name, ndim=2)
    if matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise GeometryError(
            f"{name} has shape {matrix.shape}; it must be square, with at least 2 varieties."
        )
    slack = 1e-6 * np.abs(matrix).max()
    if np.abs(matrix - matrix.T).max() > slack:
        raise GeometryError(f"{name} is not symmetric; average it with its transpose.")
    if np.abs(np.diagonal(matrix)).max() > slack:
        raise GeometryError(f"{name} is not 0 on its diagonal; pass distances, not similarities.")
    if matrix.min() < -slack:
        raise GeometryError(f"{name} has negative entries; pass distances, not similarities.")
    matrix = np.maximum((matrix + matrix.T) / 2, 0.0)
    np.fill_diagonal(matrix, 0.0)
    return matrix


def _members(linkage: np.ndarray) -> list[Clade]:
    """The varieties under each row of a linkage."""
    leaves = len(linkage) + 1
    under: list[Clade] = [frozenset([i]) for i in range(leaves)]
    for one, other in linkage[:, :2].astype(int):
        under.append(under[one] | under[other])
    return under[leaves:]


def _is_node(node: Any) -> bool:
    return isinstance(node, Sequence) and not isinstance(node, str)


def _collect(node: Any, found: set[Clade]) -> Clade:
    if not _is_node(node):
        return frozenset([node])
    whole = frozenset().union(*(_collect(b, found) for b in node))
    found.add(whole)
    return whole


def _leaves(node: Any) -> list[Any]:
    return [leaf for b in node for leaf in _leaves(b)] if _is_node(node) else [node]


def _size(tree: VarietyTree | Nested) -> int:
    if isinstance(tree, VarietyTree):
        return len(tree.leaves)
    found = _leaves(tree)
    whole = all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in found)
    if len(found) < 2 or not whole or sorted(found) != list(range(len(found))):
        raise GeometryError(
            f"The given tree holds the leaves {found}; it must hold each number from 0 once, "
            "as in ((0, 1), (2, 3, 4))."
        )
    return len(found)


def _pearson(one: np.ndarray, other: np.ndarray) -> float:
    if np.ptp(one) <= 1e-12 * np.abs(one).max() or np.ptp(other) <= 1e-12 * np.abs(other).max():
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])
