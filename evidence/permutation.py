"""Permutation p-values, and their correction over many tests."""

from __future__ import annotations

from itertools import islice, permutations
from typing import Any, Literal

import numpy as np
from scipy import stats

from evidence.estimate import Estimate, EvidenceError, require_finite

Alternative = Literal["greater", "less", "two-sided"]


def permutation_p(observed: float, null: Any, *, alternative: Alternative = "greater") -> float:
    """(1 + #{null at least as extreme}) / (B + 1), never zero (Phipson and Smyth 2010).

    `"two-sided"` doubles the smaller tail, at most 1.

    Raises:
        EvidenceError: no draws, or figures that are not finite.
    """
    drawn = np.asarray(null, dtype=np.float64).ravel()
    if drawn.size == 0:
        raise EvidenceError("The null holds no draws: give at least one.")
    require_finite(np.append(drawn, observed), "figures")
    return _tail(observed, drawn, alternative, added=1)


def _tail(observed: float, drawn: np.ndarray, alternative: Alternative, *, added: int) -> float:
    """The share of draws at least as extreme; `added` is 0 where the observed one is among them."""
    # Draws that equal the observed value up to rounding are ties, and ties count.
    slack = 1e-12 * max(1.0, abs(float(observed)))
    above = (added + int(np.sum(drawn >= observed - slack))) / (drawn.size + added)
    below = (added + int(np.sum(drawn <= observed + slack))) / (drawn.size + added)
    tails = {"greater": above, "less": below, "two-sided": min(1.0, 2 * min(above, below))}
    if alternative not in tails:
        raise EvidenceError(
            f"The alternative is {alternative!r}: choose from {', '.join(map(repr, tails))}."
        )
    return tails[alternative]


def max_statistic_p(observed: Any, null: Any) -> np.ndarray:
    """P-values `[L]` that hold for all L tests together (Westfall and Young 1993, single step).

    p_l = (1 + #{b : max over l' of null[b, l'] ≥ observed[l]}) / (B + 1). The statistics must be
    on one scale, and draw b must be the same permutation for every test.

    Args:
        observed: `[L]`, larger means stronger.
        null: `[B, L]`.

    Raises:
        EvidenceError: shapes that do not fit, no draws, or figures that are not finite.
    """
    seen, drawn = np.asarray(observed, dtype=np.float64), np.asarray(null, dtype=np.float64)
    if seen.ndim != 1 or drawn.ndim != 2 or drawn.shape[1] != len(seen) or drawn.size == 0:
        raise EvidenceError(
            f"The observed values have shape {seen.shape} and the null {drawn.shape}: "
            "give [L] and [B, L]."
        )
    require_finite(drawn, "figures of the null")
    require_finite(seen, "observed values")
    largest = drawn.max(axis=1)
    slack = 1e-12 * np.maximum(1.0, np.abs(seen))
    return (1 + np.sum(largest[:, None] >= seen - slack, axis=0)) / (len(drawn) + 1)


def benjamini_hochberg(p: Any) -> np.ndarray:
    """P-values adjusted to control the false discovery rate (Benjamini and Hochberg 1995).

    Same shape as `p`; NaN stays NaN and does not count as a test. Not to be applied to p-values
    that are corrected already, as those of `max_statistic_p`.

    Raises:
        EvidenceError: a p-value outside [0, 1].
    """
    given = np.asarray(p, dtype=np.float64)
    known = ~np.isnan(given)
    if np.any((given[known] < 0) | (given[known] > 1)):
        raise EvidenceError("A p-value lies outside [0, 1]: give probabilities.")
    adjusted = np.full(given.shape, np.nan)
    if known.any():
        adjusted[known] = stats.false_discovery_control(given[known])
    return adjusted


def spearman_permutation(
    x_matrix: Any,
    y_matrix: Any,
    *,
    control: Any = None,
    draws: int,
    seed: int,
    alternative: Alternative = "greater",
) -> Estimate:
    """Rank correlation of two symmetric matrices over pairs of items (Mantel 1967).

    Spearman's rho of the entries above the diagonals. Pairs that share an item are not
    independent, so for the null the items of `x_matrix` are relabelled (rows and columns
    together), which keeps that dependence. With `control`, the partial correlation given the
    ranks of its entries (Smouse, Long and Sokal 1986); still only `x_matrix` is relabelled, raw,
    as Legendre (2000) advises where there are no outliers. Where all relabellings are at most
    `draws`, each is taken once and p is exact.

    Args:
        x_matrix, y_matrix, control: `[V, V]`, symmetric; the diagonals are not used.
        draws: relabellings drawn at random where there are too many to take all.

    Returns:
        `value` is rho (NaN where one side is constant, or the control explains one entirely), `n`
        the number of items V, `null` the mean under relabelling. There is no interval.

    Raises:
        EvidenceError: matrices that are not square, symmetric, finite and of one size, or fewer
            than three items.
    """
    x, y = _symmetric(x_matrix, "first"), _symmetric(y_matrix, "second")
    z = None if control is None else _symmetric(control, "control")
    if x.shape != y.shape or (z is not None and z.shape != x.shape):
        raise EvidenceError("The matrices are of different sizes: give the same items in each.")
    items = len(x)
    if items < 3:
        raise EvidenceError(f"There are {items} items: at least 3 are needed for a correlation.")
    pairs = np.triu_indices(items, 1)
    ranks = np.zeros_like(x)
    ranks[pairs] = stats.rankdata(x[pairs])
    ranks += ranks.T
    against = stats.rankdata(y[pairs])
    held = None if z is None else stats.rankdata(z[pairs])
    orders, exact = _relabellings(items, draws, seed)
    null = np.array([_partial(ranks[o[pairs[0]], o[pairs[1]]], against, held) for o in orders])
    value = _partial(ranks[pairs], against, held)
    name = "Mantel test" if held is None else "partial Mantel test"
    if not np.isfinite(value):
        return Estimate(np.nan, n=items, unit="rho", method=f"{name}: no variation", seed=seed)
    null = null[np.isfinite(null)]
    # Among all relabellings is the one that changes nothing, so there is none to add.
    p = _tail(value, null, alternative, added=0 if exact else 1)
    told = f"{name}, {'all ' if exact else ''}{len(orders)} relabellings of {items} items"
    return Estimate(
        value,
        n=items,
        null=float(null.mean()) if len(null) else np.nan,
        p=p,
        unit="rho",
        method=told,
        seed=seed,
    )


def _symmetric(matrix: Any, which: str) -> np.ndarray:
    values = np.array(matrix, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise EvidenceError(f"The {which} matrix has shape {values.shape}: give a square one.")
    np.fill_diagonal(values, 0.0)
    require_finite(values, f"entries of the {which} matrix")
    if not np.allclose(values, values.T, rtol=1e-6, atol=1e-9):
        raise EvidenceError(f"The {which} matrix is not symmetric: average it with its transpose.")
    return (values + values.T) / 2


def _relabellings(items: int, draws: int, seed: int) -> tuple[list[np.ndarray], bool]:
    every = [np.array(o) for o in islice(permutations(range(items)), draws + 1)]
    if len(every) <= draws:
        return every, True
    rng = np.random.default_rng(seed)
    return [rng.permutation(items) for _ in range(draws)], False


def _partial(x: np.ndarray, y: np.ndarray, z: np.ndarray | None) -> float:
    """Pearson's correlation of `x` and `y`, with `z` regressed out of both where given."""
    x, y = x - x.mean(), y - y.mean()
    full_x, full_y = float(x @ x), float(y @ y)
    if z is not None:
        held = np.asarray(z - z.mean())
        scale = float(held @ held)
        if scale > 0:
            x, y = x - held * ((x @ held) / scale), y - held * ((y @ held) / scale)
    left_x, left_y = float(x @ x), float(y @ y)
    # What is left of a side that the control explains is rounding error, not signal.
    if left_x <= 1e-12 * full_x or left_y <= 1e-12 * full_y:
        return float("nan")
    return float(np.clip(x @ y / np.sqrt(left_x * left_y), -1.0, 1.0))
