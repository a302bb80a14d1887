"""The states of one site on two chosen directions: points to look at, not measurements."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from activations import layer_of
from experiments.compare.bench import Bench
from experiments.compare.directions import request_rows
from experiments.compare.findings import best_site
from experiments.compare.subspaces import pair_up


class Axis(NamedTuple):
    """A unit vector `[d]`, where its zero lies, how long its unit is, and what it is called."""

    direction: np.ndarray
    origin: float
    unit: float
    name: str


def projection(bench: Bench, results: pd.DataFrame) -> pd.DataFrame | None:
    """Every text of the corpus as a point, at the site where variety (else behaviour) is read best.

    x is the harmful direction and y the first direction of the varieties; where the corpus lacks
    one of the two questions, a second direction of the other. Both directions come from train
    groups; `train` says which points those are.

    Returns:
        Columns site, layer, x, y, x_axis, y_axis (what each shows, with its unit), cosine (of the
        two directions), variety, behaviour, group, train, text.
    """
    site = best_site(results, "variety_probe_accuracy") or best_site(
        results, "behaviour_probe_accuracy"
    )
    if site is None:
        return None
    x = bench.states(site)
    axes = [*_harm(bench, x), *_varieties(bench, x)]
    if bench.inputs.corpus.has_behaviours and bench.inputs.corpus.has_varieties:
        axes = axes[:1] + axes[2:3]  # of each question the first
    if len(axes) < 2:
        return None
    frame = bench.inputs.corpus.frame
    places = {
        name: (x @ axis.direction - axis.origin) / axis.unit
        for name, axis in zip("xy", axes, strict=False)
    }
    return pd.DataFrame(
        {
            "site": site,
            "layer": layer_of(site),
            **places,
            "x_axis": axes[0].name,
            "y_axis": axes[1].name,
            "cosine": float(axes[0].direction @ axes[1].direction),
            "variety": frame["variety"].to_numpy(),
            "behaviour": frame["behaviour"].to_numpy(),
            "group": frame["group"].to_numpy(),
            "train": bench.inputs.train,
            "text": frame["text"].to_numpy(),
        }
    )


def _harm(bench: Bench, x: Float[np.ndarray, "rows d"]) -> list[Axis]:
    """The harmful direction, and the requests' first principal component without it."""
    if not bench.inputs.corpus.has_behaviours:
        return []
    harmful, harmless = request_rows(bench, train=True)
    if not (len(harmful) and len(harmless)):
        return []
    step = x[harmful].mean(axis=0) - x[harmless].mean(axis=0)
    length = float(np.linalg.norm(step))
    if not length:
        return []
    unit = step / length
    start = float(x[harmless].mean(axis=0) @ unit)
    first = Axis(unit, start, length, "harmful direction (0: harmless mean, 1: harmful mean)")
    both = x[np.concatenate([harmful, harmless])]
    rest = both - both.mean(axis=0)
    rest -= np.outer(rest @ unit, unit)
    _, values, turned = np.linalg.svd(rest, full_matrices=False)
    spread = float(values[0] / np.sqrt(len(rest)))
    if not spread > 1e-9 * length:
        return [first]
    middle = float(both.mean(axis=0) @ turned[0])
    name = "requests' first component without harm (standard deviations)"
    return [first, Axis(turned[0], middle, spread, name)]


def _varieties(bench: Bench, x: Float[np.ndarray, "rows d"]) -> list[Axis]:
    """The two leading directions of all dialects' differences from the standard, train groups."""
    if not bench.inputs.corpus.has_varieties:
        return []
    found, standard = [], []
    for variety in bench.inputs.dialects:
        pairing = pair_up(bench, (variety,))
        own, other = pairing.rows[variety], pairing.rows[bench.inputs.standard]
        kept = bench.inputs.train[own]
        found.append(x[own[kept]] - x[other[kept]])
        standard.append(other[kept])
    differences = np.concatenate(found)
    if not np.any(differences):
        return []
    _, values, turned = np.linalg.svd(differences, full_matrices=False)
    start = x[np.unique(np.concatenate(standard))].mean(axis=0)
    axes = []
    for rank, name in enumerate(("first", "second")[: len(values)]):
        size = float(values[rank] / np.sqrt(len(differences)))
        if size > 1e-9 * values[0]:
            # Signed so that dialects lie to the positive side on average.
            turn = turned[rank] * (1.0 if differences.mean(axis=0) @ turned[rank] >= 0 else -1.0)
            told = f"{name} variety direction (0: mean of {bench.inputs.standard}, 1: typical gap)"
            axes.append(Axis(turn, float(start @ turn), size, told))
    return axes
