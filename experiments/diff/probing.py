"""Can variety and behaviour still be read, layer by layer, and by the probe of the model before?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from activations import layer_of
from evidence import balanced_accuracy_interval
from evidence.paired import balanced_accuracy_change
from experiments.diff.observing import Observed
from experiments.diff.pairs import corrected
from experiments.diff.settings import DiffSettings
from experiments.inputs import Inputs, Rows
from experiments.results import row
from probes import ProbeResult, grouped_folds, probe_sites
from probes.batched import fit_folds

_UNIT = "balanced accuracy"


def probe(
    before: Observed, after: Observed, inputs: Inputs, settings: DiffSettings, label: str
) -> Iterator[dict[str, Any]]:
    """Each question's probes in both models: the same rows, folds and control labels."""
    questions: dict[str, Rows] = {}
    if inputs.corpus.has_varieties:
        questions["variety"] = inputs.variety_rows
    if inputs.corpus.has_behaviours:
        questions["behaviour"] = inputs.behaviour_rows
    for column, rows in questions.items():
        yield from _question(before, after, inputs, settings, label, column, rows)


def _question(
    before: Observed,
    after: Observed,
    inputs: Inputs,
    settings: DiffSettings,
    label: str,
    column: str,
    rows: Rows,
) -> Iterator[dict[str, Any]]:
    frame = inputs.corpus.frame.iloc[rows]
    labels, groups = frame[column].to_numpy(), frame["group"].to_numpy()
    measure, seed = f"{column}_probe_accuracy", settings.seed
    found: list[dict[str, ProbeResult]] = []
    for model, edit in ((before, ""), (after, label)):
        results = probe_sites(
            {site: model.states(site)[rows] for site in model.sites},
            labels,
            groups,
            n_folds=settings.folds,
            C=settings.regularisation,
            control_draws=settings.control_draws,
            permutations=0,
            seed=seed,
        )
        found.append({result.site: result for result in results})
        for result in results:
            where = {"site": result.site, "layer": result.layer, "unit": _UNIT, "edit": edit}
            yield row(measure, result.accuracy, seed=seed, **where)
            yield row(measure, result.control, control="control_task", seed=seed, **where)
    chance = 1 / len(np.unique(labels))
    yield row(measure, chance, control="chance", unit=_UNIT, n=len(set(groups)))
    sites = shared_sites(before, after)
    right = [{s: results[s].predictions == labels for s in sites} for results in found]
    yield from _changes(f"{measure}_change", right[0], right[1], labels, groups, label, seed)
    if before.d_model != after.d_model:
        return
    carried = {
        site: transferred(
            before.states(site)[rows], after.states(site)[rows], labels, groups, settings
        )
        for site in sites
    }
    measure = f"{column}_probe_transfer"
    for site in sites:
        where = {"site": site, "layer": layer_of(site), "unit": _UNIT, "seed": seed}
        yield row(measure, found[0][site].accuracy, **where)
        accuracy = balanced_accuracy_interval(carried[site], labels, groups, seed=seed)
        yield row(measure, accuracy, edit=label, **where)
    yield from _changes(f"{measure}_change", right[0], carried, labels, groups, label, seed)


def shared_sites(before: Observed, after: Observed) -> list[str]:
    """The sites that stand at the same depth in both models; none where their layers differ."""
    if before.n_layers != after.n_layers:
        return []
    theirs = set(after.sites)
    return [site for site in before.sites if site in theirs]


def _changes(
    measure: str,
    before: dict[str, np.ndarray],
    after: dict[str, np.ndarray],
    labels: np.ndarray,
    groups: np.ndarray,
    label: str,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """Paired changes of accuracy, with p corrected over the sites."""
    found = corrected(
        [balanced_accuracy_change(before[s], after[s], labels, groups, seed=seed) for s in before]
    )
    for site, change in zip(before, found, strict=True):
        yield row(measure, change, edit=label, site=site, layer=layer_of(site), unit=_UNIT)


def transferred(
    before: Float[np.ndarray, "n d"],
    after: Float[np.ndarray, "n d"],
    labels: np.ndarray,
    groups: np.ndarray,
    settings: DiffSettings,
) -> Bool[np.ndarray, " n"]:
    """Whether the probe of the model before reads each held-out state of the model after rightly.

    Fitted on the states before, in the folds that `probe_sites` uses.
    """
    classes, code = np.unique(labels, return_inverse=True)
    folds = grouped_folds(labels, groups, n_folds=settings.folds, seed=settings.seed)
    fits = fit_folds(before, code[None], folds, n_classes=len(classes), C=settings.regularisation)
    said = np.empty(len(code), dtype=int)
    for fold, (_, test) in enumerate(folds):
        logits = after[test] @ fits.coef[0, fold].T + fits.intercept[0, fold]
        said[test] = logits.argmax(axis=1) if len(classes) > 2 else logits[:, 0] > 0
    return said == code
