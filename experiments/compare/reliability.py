"""Is the probe as sure as it is right? Its held-out probabilities at the best site."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from activations import layer_of
from evidence import Estimate, cluster_bootstrap, cluster_mean
from experiments.compare.bench import Bench
from experiments.compare.findings import best_site
from experiments.compare.inputs import Rows
from experiments.results import row
from probes import LinearProbe, expected_calibration_error, grouped_folds, reliability_curve

_BINS = 10
_DRAWS = 500


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
    error = expected_calibration_error(p, labels, classes, bins=_BINS)
    unit = {"unit": "probability"}
    yield row(
        "calibration_error",
        _calibration_interval(error, confidence, right, groups, settings.seed),
        **unit,
        **where,
    )
    null = _calibrated(confidence, groups, settings.seed)
    yield row("calibration_error", null, control="calibrated", **unit, **where)


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


def _sums(confidence: np.ndarray, right: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each group and bin, how much more often right than claimed; then its rows: `[G, B+1]`."""
    names, member = np.unique(groups, return_inverse=True)
    edges = np.linspace(0, 1, _BINS + 1)
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, _BINS - 1)
    table = np.zeros((len(names), _BINS + 1))
    np.add.at(table, (member, which), right - confidence)
    table[:, -1] = np.bincount(member)
    return table


def _error(summed: np.ndarray) -> np.ndarray:
    return np.abs(summed[..., :-1]).sum(axis=-1) / summed[..., -1]


def _calibration_interval(
    error: float, confidence: np.ndarray, right: np.ndarray, groups: np.ndarray, seed: int
) -> Estimate:
    """A bootstrap over groups, what was fitted held fixed."""
    found = cluster_bootstrap(_sums(confidence, right, groups), _error, seed=seed)
    return Estimate(error, found.low, found.high, n=found.n, seed=seed)


def _calibrated(confidence: np.ndarray, groups: np.ndarray, seed: int) -> Estimate:
    """The error that as many rows give where every probability is true.

    Rows are drawn one by one, although those of a group depend on one another.
    """
    rng = np.random.default_rng([seed, 14])
    drawn = [
        _error(_sums(confidence, rng.random(len(confidence)) < confidence, groups).sum(axis=0))
        for _ in range(_DRAWS)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(float(np.mean(drawn)), float(low), float(high), n=_DRAWS, seed=seed)
