"""How alike two models' states are, how far they moved, and which words the move promotes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from activations import layer_of
from evidence import Estimate, EvidenceError, grouped_jackknife
from experiments.compare.cloud import Cloud, choose_cloud, coordinates, varies
from experiments.diff.observing import BEHAVIOURS, Observed
from experiments.diff.probing import shared_sites
from experiments.diff.settings import DiffSettings
from experiments.inputs import Inputs, Rows
from experiments.results import row
from geometry import GeometryError, Subspace, cka_estimate, random_subspace

if TYPE_CHECKING:
    from activations import Model

_LEAST_GROUPS = 5
_RANDOM = 20  # random directions beside what a shift promotes


def likeness(
    before: Observed, after: Observed, inputs: Inputs, settings: DiffSettings, label: str
) -> Iterator[dict[str, Any]]:
    """CKA of the same site in both models, and of states of one width how far they moved.

    CKA of the texts of varieties and of requests apart: what they differ in would outweigh all.
    """
    groups = inputs.corpus.frame["group"].to_numpy()
    for site in shared_sites(before, after):
        where = {"site": site, "layer": layer_of(site), "edit": label}
        x, y = before.states(site), after.states(site)
        for name, cloud in _clouds(inputs, settings).items():
            one, two = x[cloud.rows], y[cloud.rows]
            if cloud.n_groups >= _LEAST_GROUPS and varies(one) and varies(two):
                yield from _cka(one, two, cloud.groups, settings, where | {"reference": name})
        if before.d_model == after.d_model:
            for told, rows in parts(inputs):
                estimate = moved(x[rows], y[rows], groups[rows])
                yield row("state_shift", estimate, **told, **where)


def _clouds(inputs: Inputs, settings: DiffSettings) -> dict[str, Cloud]:
    """The texts that CKA is of, by what they are."""
    first = choose_cloud(inputs, most=settings.cloud_rows)
    if not inputs.corpus.has_varieties:
        return {"requests": first}
    if not inputs.corpus.has_behaviours:
        return {"texts": first}
    rows = inputs.behaviour_rows
    frame = inputs.corpus.frame.iloc[rows]
    columns = (frame[name].to_numpy() for name in ("group", "behaviour"))
    return {"texts": first, "requests": Cloud(rows, *columns)}


def _cka(
    one: np.ndarray,
    two: np.ndarray,
    groups: np.ndarray,
    settings: DiffSettings,
    where: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    try:
        found = cka_estimate(
            coordinates(one),
            coordinates(two),
            groups,
            draws=settings.null_draws,
            seed=settings.seed,
        )
    except (GeometryError, EvidenceError):
        return  # groups that do not differ beyond their noise, or cannot change places
    yield row("model_cka", found, **where)
    null = Estimate(found.null, n=settings.null_draws, seed=settings.seed)
    yield row("model_cka", null, control="shuffled_groups", unit="CKA", **where)


def parts(inputs: Inputs) -> Iterator[tuple[dict[str, str], Rows]]:
    """Rows of each variety's texts and of each behaviour's requests."""
    frame = inputs.corpus.frame
    if inputs.corpus.has_varieties:
        rows = inputs.variety_rows
        for name in (inputs.standard, *inputs.dialects):
            yield {"variety": name}, rows[frame["variety"].to_numpy()[rows] == name]
    if inputs.corpus.has_behaviours:
        for kind in BEHAVIOURS:
            yield {"behaviour": kind}, np.flatnonzero((frame["behaviour"] == kind).to_numpy())


def moved(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"], groups: np.ndarray) -> Estimate:
    """Length of the mean of y - x in mean lengths of a state of x; jackknife over groups."""
    step = y - x
    scale = float(np.linalg.norm(x, axis=1).mean())
    unit = "mean lengths of a state"
    if not np.any(step):
        return Estimate(0.0, 0.0, 0.0, n=len(np.unique(groups)), unit=unit)
    return grouped_jackknife(
        lambda rows: float(np.linalg.norm(step[rows].mean(axis=0)) / scale),
        groups,
        debias=False,
        bounds=(0.0, np.inf),
        unit=unit,
    )


def lens_sites(before: Observed, after_sites: list[str]) -> list[str]:
    """The last and a middle output of a block, where both models were read."""
    theirs = set(after_sites)
    outputs = [s for s in before.sites if s.endswith("hook_resid_post") and s in theirs]
    if not outputs:
        return []
    return list(dict.fromkeys([outputs[(len(outputs) - 1) // 2], outputs[-1]]))


def promoted(
    before: Observed,
    after: Observed,
    model: Model,
    inputs: Inputs,
    settings: DiffSettings,
    label: str,
) -> Iterator[dict[str, Any]]:
    """The tokens that the mean of the states' change points to, read by the head of `model`.

    `position` is the rank, from 1, and `reference` the token. Beside them stand random directions:
    the mean logit of their token of that rank, and the range that 95% of them lie in.

    Args:
        model: the model after, open.
    """
    from interventions import promoted_tokens

    if before.d_model != after.d_model or before.n_layers != after.n_layers:
        return
    groups = inputs.corpus.frame["group"].to_numpy()
    for site in lens_sites(before, after.sites):
        where = {"site": site, "layer": layer_of(site), "edit": label, "unit": "logits"}
        x, y = before.states(site), after.states(site)
        found: dict[str, Subspace] = {}
        told: dict[str, dict[str, str]] = {}
        rows_of: dict[str, Rows] = {}
        for part, rows in parts(inputs):
            step = (y[rows] - x[rows]).mean(axis=0)
            length = float(np.linalg.norm(step))
            if length > 1e-9 * float(np.linalg.norm(x[rows], axis=1).mean()):
                name = "+".join(part.values())
                told[name], rows_of[name] = part, rows
                found[name] = Subspace(
                    (step / length)[:, None], np.zeros(len(step)), np.array([length]), site=site
                )
        if not found:
            continue
        frame = promoted_tokens(model, found, top=settings.promoted)
        for record in frame[frame["sign"] == 1].itertuples():
            part = told[str(record.direction)]
            rank, token = int(record.rank), str(record.token)
            yield row(
                "promoted_token",
                float(record.logit),
                position=rank,
                reference=token,
                n=len(np.unique(groups[rows_of[str(record.direction)]])),
                **part,
                **where,
            )
        yield from _by_chance(model, settings, where)


def _by_chance(model: Model, settings: DiffSettings, where: dict[str, Any]) -> Any:
    from interventions import promoted_tokens

    rng = np.random.default_rng([settings.seed, 21])
    drawn = {
        str(i): random_subspace(model.d_model, 1, seed=int(rng.integers(2**31)))
        for i in range(_RANDOM)
    }
    frame = promoted_tokens(model, drawn, top=settings.promoted)
    for rank, own in frame[frame["sign"] == 1].groupby("rank"):
        low, high = np.quantile(own["logit"], [0.025, 0.975])
        chance = Estimate(
            float(own["logit"].mean()), float(low), float(high), n=_RANDOM, seed=settings.seed
        )
        yield row(
            "promoted_token", chance, position=int(str(rank)), control="random_subspace", **where
        )
