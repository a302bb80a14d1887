"""Do parallel sentences of two varieties lie nearest to each other?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from activations import layer_of
from evidence import Estimate, cluster_mean
from experiments.compare.bench import Bench
from experiments.compare.cloud import varies
from experiments.compare.subspaces import pair_up
from experiments.results import row
from geometry import all_but_the_top, retrieve

_NEAREST = 10  # rows that CSLS takes a row's mean reach from
_LEAST = 4
_UNIT = "share of sentences"


def retrieval_rows(bench: Bench) -> Iterator[dict[str, Any]]:
    """How often a dialect's sentence finds its parallel among all of the standard's, by site."""
    standard, pairs = bench.inputs.standard, {}
    for variety in bench.inputs.dialects:
        pairing = pair_up(bench, (variety,))
        own, other = pairing.rows[variety], pairing.rows[standard]
        kept = _evenly(len(own), bench.settings.cloud_rows)
        if len(own) >= _LEAST:
            pairs[variety] = own[kept], other[kept]
    for variety, (own, _) in pairs.items():
        told = {"variety": variety, "reference": standard, "unit": _UNIT}
        yield row("retrieval_accuracy", 1 / len(own), control="chance", n=len(own), **told)
    for site in bench.sites:
        x = bench.states(site)
        for variety, (own, other) in pairs.items():
            where = {"site": site, "layer": layer_of(site), "variety": variety}
            for control, estimate in _found(x[own], x[other]):
                yield row(
                    "retrieval_accuracy",
                    estimate,
                    control=control,
                    reference=standard,
                    unit=_UNIT,
                    **where,
                )


def _found(own: np.ndarray, other: np.ndarray) -> Iterator[tuple[str, Estimate]]:
    """Accuracy without each variety's mean, and as `identity` with the states as they are.

    The means are taken without regard to which sentence belongs to which, so chance stays 1 / n.
    """
    if not (varies(own) and varies(other)):
        return
    centred = [all_but_the_top(x, components=0) for x in (own, other)]
    for control, (a, b) in (("", centred), ("identity", (own, other))):
        if np.linalg.norm(a, axis=1).all() and np.linalg.norm(b, axis=1).all():
            hits = retrieve(a, b, at=(1,), csls=min(_NEAREST, len(a))).forward_hits[:, 0]
            yield control, cluster_mean(hits, np.arange(len(hits)), bounds=(0, 1))


def _evenly(n: int, most: int) -> np.ndarray:
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(int)
