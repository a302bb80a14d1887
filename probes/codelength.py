"""Minimum description length of labels given states (Voita & Titov 2020), in nats."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.base import clone

from probes.checks import codes, names, states
from probes.errors import ProbeError
from probes.linear import LinearProbe
from probes.variational import VariationalProbe

FRACTIONS = (0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True, eq=False)
class CodeLength:
    """How long the labels are once the states are known.

    Attributes:
        nats: the code, mean over orders. uniform: n log classes, the code without states.
        nats_by_order: `[orders]`; of one entry for a variational code.
        by_row: `[n]`, of a prequential code, what each label took, mean over orders.
        blocks: of a prequential code, columns order, start, stop (in groups), nats, uniform
            (whether coded uniformly), impossible (labels below p = 1e-12, coded at that).
    """

    nats: float
    uniform: float
    nats_by_order: np.ndarray
    blocks: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    by_row: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)

    @property
    def bits(self) -> float:
        """The code in bits."""
        return self.nats / float(np.log(2))

    @property
    def compression(self) -> float:
        """uniform / nats: 1 where states say nothing, less where the probe itself costs more."""
        return self.uniform / self.nats


def variational_code(probe: VariationalProbe) -> CodeLength:
    """-ELBO of a fitted probe: KL(q || prior) - E log p(y | x, W).

    The variational code of Voita & Titov (2020), whose prior is another: compare codes of one
    prior only. It is longer than -log of the evidence by what a mean-field posterior misses: most
    with three classes or more, whose weights share a free sum. The prior's precision must not
    have been chosen by this code, or the choice has to be paid for.
    """
    uniform = probe.n_rows_ * float(np.log(len(probe.classes_)))
    return CodeLength(-probe.elbo_, uniform, np.array([-probe.elbo_]))


def prequential_code(
    x: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    probe: Any = None,
    fractions: tuple[float, ...] = FRACTIONS,
    orders: int = 5,
    seed: int,
) -> CodeLength:
    """Each block of labels coded by a probe that has learned the blocks before.

    Groups come in random order and stay whole, so no group is in two blocks. The first block, and
    any whose prefix lacks a class, is coded uniformly.

    Args:
        x: `[n, d]`. labels, groups: `[n]`. probe: a scikit-learn classifier, copied for each fit;
            `LinearProbe()` by default.
        fractions: of the groups, where blocks end; increasing, the last 1.
        orders: random orders to average over.

    Raises:
        ProbeError: bad states or labels, fractions that do not increase to 1, no order.
    """
    rows = states(x)
    classes, code = codes(labels, n=len(rows))
    unique, member = np.unique(names(groups, what="groups", n=len(rows)), return_inverse=True)
    cuts = np.asarray(fractions, dtype=np.float64)
    if len(cuts) == 0 or cuts[0] <= 0 or (np.diff(cuts) <= 0).any() or cuts[-1] != 1:
        raise ProbeError(f"The fractions are {fractions}; let them increase from above 0 to 1.")
    if orders < 1:
        raise ProbeError(f"orders is {orders}; it must be at least 1.")
    ends = np.unique(np.maximum(np.round(cuts * len(unique)).astype(int), 1))
    flat, found, by_row = float(np.log(len(classes))), [], np.zeros(len(rows))
    for order in range(orders):
        place = np.random.default_rng([seed, order]).permutation(len(unique))[member]
        for start, stop in zip([0, *ends[:-1]], ends, strict=True):
            past, block = place < start, (place >= start) & (place < stop)
            blind = len(np.unique(code[past])) < len(classes)
            nats, impossible = np.full(block.sum(), flat), 0
            if not blind:
                reader: Any = clone(LinearProbe() if probe is None else probe)
                reader.fit(rows[past], code[past])
                p = reader.predict_proba(rows[block])[np.arange(block.sum()), code[block]]
                impossible = int((p < 1e-12).sum())
                nats = -np.log(np.maximum(p, 1e-12))
            by_row[block] += nats / orders
            found.append((order, int(start), int(stop), float(nats.sum()), blind, impossible))
    blocks = pd.DataFrame(
        found, columns=pd.Index(["order", "start", "stop", "nats", "uniform", "impossible"])
    )
    each = np.bincount(blocks["order"].to_numpy(), weights=blocks["nats"].to_numpy())
    return CodeLength(float(each.mean()), flat * len(rows), each, blocks, by_row)
