"""The geometry of the states beyond pairs of subspaces: shape, likeness, kinship, calibration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from experiments.compare.bench import Bench
from experiments.compare.cloud import cloud_rows
from experiments.compare.kinship import kinship_rows
from experiments.compare.reliability import reliability_rows
from experiments.compare.retrieval import retrieval_rows


def compare_representation(bench: Bench, probed: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Rows for whatever the corpus allows; `probed` are the rows of the probes.

    Shape of the cloud of states and CKA of every two sites need either question; distances, tree
    and shared dimensions two dialects; retrieval one; the reliability curve a probe.
    """
    yield from cloud_rows(bench)
    if bench.inputs.corpus.has_varieties:
        yield from kinship_rows(bench)
        yield from retrieval_rows(bench)
    yield from reliability_rows(bench, probed)
