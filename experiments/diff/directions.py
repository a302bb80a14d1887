"""The harmful direction in two models: how far it turns, how long it is, what it shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from activations import layer_of
from evidence import Estimate, grouped_jackknife
from experiments.compare.directions import (
    LEAST,
    contrast,
    cosine_nulls,
    cosine_of,
    group_bootstrap,
)
from experiments.diff.observing import Observed, Texts
from experiments.diff.pairs import corrected, three
from experiments.diff.probing import shared_sites
from experiments.diff.settings import DiffSettings
from experiments.inputs import Inputs, Rows
from experiments.results import row
from geometry import DirectionGrid, GeometryError, cosine_null, direction_grid, paired_differences

Sides = tuple[Rows, Rows]


def directions(
    before: Observed,
    after: Observed,
    inputs: Inputs,
    texts: Texts,
    settings: DiffSettings,
    label: str,
) -> Iterator[dict[str, Any]]:
    """From requests of the train side, as in `compare`: harmful mean less harmless mean."""
    if not inputs.corpus.has_behaviours:
        return
    most = settings.max_requests
    rows = (
        inputs.requests("harmful", train=True, most=most),
        inputs.requests("harmless", train=True, most=most),
    )
    if min(map(len, rows)) < LEAST:
        return
    sites = [
        site
        for site in shared_sites(before, after)
        if all(_differs(model.states(site), rows) for model in (before, after))
    ]
    if before.d_model == after.d_model:
        yield from _turned(before, after, inputs, settings, label, rows, sites)
    replies = _by_reply(before, after, inputs, texts)
    for site in sites:
        x = before.states(site), after.states(site)
        where = {"site": site, "layer": layer_of(site)}
        yield from _lengths(x, inputs, settings, label, rows, where)
        if replies is not None:
            yield from _with_replies(x, inputs, settings, label, rows, replies, where)
        if inputs.corpus.has_varieties:
            yield from _with_varieties(x, inputs, settings, label, rows, site)


def _differs(x: np.ndarray, rows: Sides) -> bool:
    """False at the embedding of one and the same template token."""
    length = np.linalg.norm(x[rows[0]].mean(0) - x[rows[1]].mean(0))
    return bool(length > 1e-9 * np.linalg.norm(x[rows[0]].mean(0)))


def _turned(
    before: Observed,
    after: Observed,
    inputs: Inputs,
    settings: DiffSettings,
    label: str,
    rows: Sides,
    sites: list[str],
) -> Iterator[dict[str, Any]]:
    """The cosine between the two models' directions, beside what half the requests reproduce.

    Site by site, so that a large model's states are not all held. Cosines of directions from
    disjoint halves are lowered by noise: as they are (`uncorrected`), they stand beside those of
    each model with itself (`split_half`); the row without control is corrected for it.
    """
    found = {}
    for site in sites:
        grid = _grid(before.states(site), after.states(site), inputs, settings, rows)
        if grid is None:
            return  # groups too few to be halved
        found[site] = grid
    estimates = corrected([g.cosines.estimate("before", "after") for g in found.values()])
    chance = cosine_null(before.d_model)
    for (site, grid), estimate in zip(found.items(), estimates, strict=True):
        told = {
            "variety": "harmful",
            "reference": after.name,
            "edit": label,
            "site": site,
            "layer": layer_of(site),
            "unit": "cosine",
        }
        yield row("model_direction_cosine", estimate, **told)
        across = grid.cosines.estimate("before", "after", kind="split_half")
        yield row("model_direction_cosine", across, control="uncorrected", **told)
        for place, edit in (("before", ""), ("after", label)):
            own = grid.cosines.estimate(place, place, kind="split_half")
            yield row("model_direction_cosine", own, control="split_half", **told | {"edit": edit})
        null = Estimate(0.0, -chance.quantile, chance.quantile)
        yield row("model_direction_cosine", null, control="random_subspace", **told)


def _grid(
    one: np.ndarray, two: np.ndarray, inputs: Inputs, settings: DiffSettings, rows: Sides
) -> DirectionGrid | None:
    names = inputs.corpus.frame["group"].to_numpy()
    try:
        return direction_grid(
            {"before": (one[rows[0]], one[rows[1]]), "after": (two[rows[0]], two[rows[1]])},
            groups=(names[rows[0]], names[rows[1]]),
            draws=settings.split_draws,
            resamples=settings.bootstrap_draws,
            seed=settings.seed,
        )
    except GeometryError:
        return None


def _three_of(
    statistic: Any,
    x: tuple[np.ndarray, np.ndarray],
    inputs: Inputs,
    settings: DiffSettings,
    rows: Rows,
) -> tuple[Estimate, Estimate, Estimate]:
    """A statistic of states and row weights in both models and its change, same resamples."""
    groups = inputs.corpus.frame["group"].to_numpy()

    def over(figure: Any) -> Estimate:
        return group_bootstrap(figure, groups, rows, len(x[0]), settings)

    return (
        over(lambda w: statistic(0, w)),
        over(lambda w: statistic(1, w)),
        over(lambda w: statistic(1, w) - statistic(0, w)),
    )


def _lengths(
    x: tuple[np.ndarray, np.ndarray],
    inputs: Inputs,
    settings: DiffSettings,
    label: str,
    rows: Sides,
    where: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """How far apart harmful and harmless requests lie, in mean lengths of a request's state.

    The noise of few requests lengthens a difference of means; the jackknife takes that off.
    """
    both = np.concatenate(rows)
    harmful = np.arange(len(both)) < len(rows[0])
    groups = inputs.corpus.frame["group"].to_numpy()[both]
    states = [part[both] for part in x]
    scale = [float(np.linalg.norm(part, axis=1).mean()) for part in states]

    def length(i: int, kept: np.ndarray) -> float:
        high, low = kept[harmful[kept]], kept[~harmful[kept]]
        if not (len(high) and len(low)):
            return float("nan")
        step = states[i][high].mean(axis=0) - states[i][low].mean(axis=0)
        return float(np.linalg.norm(step) / scale[i])

    found = (
        grouped_jackknife(lambda kept: length(0, kept), groups, seed=settings.seed),
        grouped_jackknife(lambda kept: length(1, kept), groups, seed=settings.seed),
        grouped_jackknife(
            lambda kept: length(1, kept) - length(0, kept), groups, seed=settings.seed
        ),
    )
    told = {"behaviour": "harmful", "unit": "mean lengths of a state", **where}
    yield from three("direction_length", *found, label, **told)


def _by_reply(
    before: Observed, after: Observed, inputs: Inputs, texts: Texts
) -> tuple[Sides, Sides] | None:
    """Refused and answered requests of the train side in each model, if there are enough."""
    if not (len(before.refused) and len(after.refused)):
        return None
    train = inputs.train[texts.requests]
    sides = []
    for model in (before, after):
        refused = model.refused > 0
        sides.append((texts.requests[train & refused], texts.requests[train & ~refused]))
    if min(len(part) for side in sides for part in side) < LEAST:
        return None
    return sides[0], sides[1]


def _with_replies(
    x: tuple[np.ndarray, np.ndarray],
    inputs: Inputs,
    settings: DiffSettings,
    label: str,
    rows: Sides,
    replies: tuple[Sides, Sides],
    where: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """The harmful direction beside the refusal direction, refused mean less answered mean."""
    found = _three_of(
        lambda i, w: cosine_of(contrast(x[i], rows, w), contrast(x[i], replies[i], w)),
        x, inputs, settings, np.concatenate(rows),
    )  # fmt: skip
    told = {"variety": "refusal", "reference": "harmful", "unit": "cosine", **where}
    yield from three("direction_cosine", *found, label, **told)


def _with_varieties(
    x: tuple[np.ndarray, np.ndarray],
    inputs: Inputs,
    settings: DiffSettings,
    label: str,
    rows: Sides,
    site: str,
) -> Iterator[dict[str, Any]]:
    """How much of the harmful direction lies in each variety's subspace, which is held fixed."""
    where = {"site": site, "layer": layer_of(site)}
    both, size = np.concatenate(rows), 0
    for variety in inputs.dialects:
        pairing = inputs.parallel((variety,))
        own, other = pairing.rows[variety], pairing.rows[inputs.standard]
        k = max(1, min(settings.k, x[0].shape[1], x[1].shape[1], len(own) // 2))
        try:
            bases = [paired_differences(s[own], s[other], k=k).basis for s in x]
        except GeometryError:
            continue  # nothing differs at this site

        def share(i: int, weight: np.ndarray, bases: list[np.ndarray] = bases) -> float:
            axis = contrast(x[i], rows, weight)
            return float(np.linalg.norm(bases[i].T @ axis) / np.linalg.norm(axis))

        size = k
        found = _three_of(share, x, inputs, settings, both)
        told = {"variety": variety, "reference": "harmful", "unit": "cosine", **where}
        yield from three("direction_subspace_cosine", *found, label, **told)
    for states, edit in zip(x, ("", label), strict=True) if size else ():
        pooled = np.cov(states[both], rowvar=False)
        for null in cosine_nulls(settings, "direction_subspace_cosine", pooled, size, where):
            yield null | {"edit": edit}
