"""The rows that a figure of two models becomes: before, after, and the change between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evidence import Estimate, benjamini_hochberg, cluster_mean
from evidence.interval import Ends
from evidence.paired import paired_change
from experiments.results import row

#: Parallel groups below which no subspace is compared.
LEAST_GROUPS = 8


def three(
    measure: str,
    before: Estimate,
    after: Estimate,
    change: Estimate | None,
    label: str,
    **where: Any,
) -> Iterator[dict[str, Any]]:
    """`measure` without an edit, `measure` under `label`, and `measure_change` under `label`."""
    yield row(measure, before, **where)
    yield row(measure, after, edit=label, **where)
    if change is not None:
        yield row(f"{measure}_change", change, edit=label, **where)


def of_means(
    before: np.ndarray,
    after: np.ndarray,
    groups: np.ndarray,
    *,
    bounds: Ends | None = None,
) -> tuple[Estimate, Estimate, Estimate]:
    """Means over groups of a figure of each row `[n]`, and of its paired change."""
    return (
        cluster_mean(before, groups, bounds=bounds),
        cluster_mean(after, groups, bounds=bounds),
        paired_change(before, after, groups, bounds=bounds),
    )


def corrected(found: Sequence[Estimate]) -> list[Estimate]:
    """The same with p corrected over all that were tested (Benjamini & Hochberg 1995)."""
    p = np.array([e.p for e in found])
    known = np.isfinite(p)
    if known.any():
        p[known] = benjamini_hochberg(p[known])
    return [replace(e, p=float(q)) for e, q in zip(found, p, strict=True)]
