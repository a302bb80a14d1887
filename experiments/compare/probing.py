"""Can variety and behaviour be read from the states, layer by layer, and beyond the text?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from activations import ActivationStore
from activations.reading import encode_corpus
from experiments.compare.bench import Bench, flat, untrained
from experiments.inputs import Rows
from experiments.results import row
from probes import baselines, probe_sites

_UNIT = "balanced accuracy"


def probe(bench: Bench, *, progress: bool = False) -> Iterator[dict[str, Any]]:
    """Rows for each question that the corpus can be asked."""
    random = untrained(bench, progress=progress) if bench.settings.random_model else None
    if bench.inputs.corpus.has_varieties:
        yield from _question(bench, "variety", bench.inputs.variety_rows, random)
        yield from _ceiling(bench)
    if bench.inputs.corpus.has_behaviours:
        yield from _question(bench, "behaviour", bench.inputs.behaviour_rows, random)


def _question(
    bench: Bench, column: str, rows: Rows, random: ActivationStore | None
) -> Iterator[dict[str, Any]]:
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
        where = {"site": result.site, "layer": result.layer, "unit": _UNIT}
        yield row(measure, result.accuracy, seed=settings.seed, **where)
        yield row(measure, result.control, control="control_task", seed=settings.seed, **where)
    if random is not None:
        for result in probe_sites(
            {site: flat(random, site)[rows] for site in bench.sites},
            labels,
            groups,
            n_folds=settings.folds,
            C=settings.regularisation,
            control_draws=0,
            permutations=0,
            seed=settings.seed,
        ):
            where = {"site": result.site, "layer": result.layer, "unit": _UNIT}
            yield row(measure, result.accuracy, control="random_model", seed=settings.seed, **where)
    ids = encode_corpus(bench.model, bench.inputs.corpus.take(rows))
    for name, estimate in baselines(
        frame["text"].to_numpy(),
        labels,
        groups,
        # A mean over tokens was read at no one of them.
        token_ids=[one[-1] for one in ids] if settings.tokens == "last" else None,
        lengths=[len(one) for one in ids],
        n_folds=settings.folds,
        seed=settings.seed,
    ).items():
        yield row(measure, estimate, control=name, unit=_UNIT, seed=settings.seed)
    chance = 1 / len(np.unique(labels))
    yield row(measure, chance, control="chance", unit=_UNIT, n=len(set(groups)))


def _ceiling(bench: Bench) -> Iterator[dict[str, Any]]:
    """The best that any reader of these texts could do, known where the grammar is."""
    if bench.inputs.truth is not None:
        frame = bench.inputs.corpus.frame.iloc[bench.inputs.variety_rows]
        best = bench.inputs.truth.ceiling(frame["text"].tolist(), frame["variety"].tolist())
        yield row("variety_probe_accuracy", best, control="bayes_ceiling", unit=_UNIT)
