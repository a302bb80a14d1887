"""Can variety and behaviour be read from the states, layer by layer, and beyond the text?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.compare.bench import Bench
from experiments.compare.inputs import Rows
from experiments.results import row
from probes import probe_sites, text_baseline


def probe(bench: Bench) -> Iterator[dict[str, Any]]:
    """Rows for each question that the corpus can be asked."""
    if bench.inputs.corpus.has_varieties:
        yield from _question(bench, "variety", bench.inputs.variety_rows)
        yield from _ceiling(bench)
    if bench.inputs.corpus.has_behaviours:
        yield from _question(bench, "behaviour", bench.inputs.behaviour_rows)


def _question(bench: Bench, column: str, rows: Rows) -> Iterator[dict[str, Any]]:
    frame, settings = bench.inputs.corpus.frame.iloc[rows], bench.settings
    labels, groups = frame[column].to_numpy(), frame["group"].to_numpy()
    measure = f"{column}_probe_accuracy"
    results = probe_sites(
        {site: bench.states(site)[rows] for site in bench.sites},
        labels,
        groups,
        n_folds=settings.folds,
        C=settings.regularisation,
        control_draws=settings.control_draws,
        permutations=settings.permutations,
        seed=settings.seed,
    )
    for result in results:
        where = {"site": result.site, "layer": result.layer, "unit": "balanced accuracy"}
        yield row(measure, result.accuracy, seed=settings.seed, **where)
        yield row(measure, result.control, control="control_task", seed=settings.seed, **where)
    text = text_baseline(
        frame["text"].to_numpy(), labels, groups, n_folds=settings.folds, seed=settings.seed
    )
    yield row(measure, text, control="text_ngrams", unit="balanced accuracy")
    chance = 1 / len(np.unique(labels))
    yield row(measure, chance, control="chance", unit="balanced accuracy", n=len(set(groups)))


def _ceiling(bench: Bench) -> Iterator[dict[str, Any]]:
    """The best that any reader of these texts could do, known where the grammar is."""
    if bench.inputs.truth is not None:
        frame = bench.inputs.corpus.frame.iloc[bench.inputs.variety_rows]
        best = bench.inputs.truth.ceiling(frame["text"].tolist(), frame["variety"].tolist())
        yield row("variety_probe_accuracy", best, control="bayes_ceiling", unit="balanced accuracy")
