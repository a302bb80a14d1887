"""Is the probe as sure as it is right? Its held-out probabilities at the best site."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from activations import layer_of
from evidence import cluster_mean
from experiments.compare.bench import Bench
from experiments.compare.findings import best_site
from experiments.inputs import Rows
from experiments.results import row
from probes import (
    LinearProbe,
    calibration_estimate,
    expected_calibration_error,
    grouped_folds,
    reliability_curve,
)

_BINS = 10


def reliability_rows(bench: Bench, probed: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The reliability curve of each question's probe, at the site that `probed` says is best."""
    questions = {}
    if bench.inputs.corpus.has_varieties:
        questions["variety"] = bench.inputs.variety_rows
    if bench.inputs.corpus.has_behaviours:
        questions["behaviour"] = bench.inputs.behaviour_rows
    for column, rows in questions.items():
        site = best_site(probed, f"{column}_probe_accuracy")
        if site is not None:
            yield from _question(bench, column, rows, site)


def _question(bench: Bench, column: str, rows: Rows, site: str) -> Iterator[dict[str, Any]]:
    frame, settings = bench.inputs.corpus.frame.iloc[rows], bench.settings
    labels, groups = frame[column].to_numpy(), frame["group"].to_numpy()
    classes = np.unique(labels)
    p = held_out_probabilities(
        bench.states(site)[rows],
        labels,
        groups,
        folds=settings.folds,
        C=settings.regularisation,
        seed=settings.seed,
    )
    confidence, right = p.max(axis=1), classes[p.argmax(axis=1)] == labels
    where = {"site": site, "layer": layer_of(site), "reference": column}
    for part in reliability_curve(p, labels, classes, bins=_BINS).itertuples():
        inside = (confidence > part.low) & (confidence <= part.high)
        told = where | {"position": round(float(part.low) * _BINS)}
        seen = cluster_mean(right[inside].astype(float), groups[inside], bounds=(0, 1))
        claimed = cluster_mean(confidence[inside], groups[inside], bounds=(0, 1))
        yield row("reliability", seen, unit="share right", **told)
        yield row("reliability_confidence", claimed, unit="probability", **told)
    unit = {"unit": "probability"}
    error = calibration_estimate(p, labels, classes, groups, bins=_BINS, seed=settings.seed)
    if np.isfinite(error.value):
        yield row("calibration_error", error, **unit | where)
    plain = expected_calibration_error(p, labels, classes, bins=_BINS)
    yield row("calibration_error", plain, control="uncorrected", n=error.n, **unit | where)


def held_out_probabilities(
    x: Float[np.ndarray, "n d"],
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    folds: int,
    C: float,
    seed: int,
) -> Float[np.ndarray, "n classes"]:
    """What the probe of `probe_sites` says of each row when its group was not fitted to."""
    p = np.zeros((len(x), len(np.unique(labels))))
    for train, test in grouped_folds(labels, groups, n_folds=folds, seed=seed):
        p[test] = LinearProbe(C).fit(x[train], labels[train]).predict_proba(x[test])
    return p
