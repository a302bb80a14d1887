"""The states of each site on a few chosen directions: points to look at, not measurements."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from activations import layer_of
from experiments.compare.bench import Bench
from experiments.compare.directions import LEAST, by_answer, harmful_direction, request_rows
from experiments.compare.findings import best_site
from experiments.compare.subspaces import pair_up
from experiments.inputs import Rows
from geometry import GeometryError, Subspace, mean_difference, paired_differences

#: Texts that are projected, the same at each site. More would lie on each other in a picture.
MOST_TEXTS = 2000

_DECIMALS = 3  # less than a pixel on axes whose unit can be seen, and a third off the file
_ROUNDING = 1e-5  # of the longest: below it lies what float32 states round off


class Projection(NamedTuple):
    """Texts as points, and the directions on which they are seen; see `projection`."""

    points: pd.DataFrame
    axes: pd.DataFrame


class _Axis(NamedTuple):
    """A unit vector `[d]`, where its zero lies, how long its unit is, and how it is told."""

    key: str
    name: str
    scale: str
    direction: np.ndarray
    origin: float
    unit: float


def projection(bench: Bench) -> Projection | None:
    """Texts of the corpus at every site that has two directions, on all of its directions.

    The directions are found by the same recipe at each site, from train groups: the harmful one
    (mean of harmful minus harmless requests), the requests' first principal component without it,
    the refusal direction (refused minus answered), the first two of all dialects' differences
    from the standard, and of each dialect its mean difference and the first direction of its
    differences alone. On an axis 0 and 1 are what its `scale` says, so that pictures of two sites
    can be compared though lengths in their states cannot.

    Of a corpus of more than `MOST_TEXTS`, whole groups are drawn by the seed, of each behaviour
    its share.

    Returns:
        points: one row for each text and site: site, layer, variety, behaviour, group, train
            (whether the directions come from its side of the split), text, and a float32 column
            for each axis, to three decimals, NaN where the site lacks it.
        axes: one row for every two axes of a site, itself included: site, layer, axis (the column
            of points), name, scale, other, cosine, texts (how many the run used).
        None where no site has two directions.
    """
    rows = _drawn(bench)
    frame = bench.inputs.corpus.frame.iloc[rows]
    texts = pd.DataFrame(
        {
            **{c: frame[c].to_numpy() for c in ("variety", "behaviour", "group")},
            "train": bench.inputs.train[rows],
            "text": frame["text"].to_numpy(),
        }
    )
    points, axes, keys = [], [], []
    for site in bench.sites:
        found = _axes(bench, site)
        if len(found) < 2:
            continue
        keys = max(keys, [axis.key for axis in found], key=len)
        where = {"site": site, "layer": layer_of(site)}
        x = bench.states(site)[rows]
        places = {
            axis.key: np.round((x @ axis.direction - axis.origin) / axis.unit, _DECIMALS)
            for axis in found
        }
        points.append(texts.assign(**where, **places).astype(dict.fromkeys(places, np.float32)))
        axes += [
            where
            | {"axis": axis.key, "name": axis.name, "scale": axis.scale, "other": other.key}
            | {"cosine": float(axis.direction @ other.direction), "texts": len(bench.inputs.train)}
            for axis in found
            for other in found
        ]
    if not points:
        return None
    whole, told = pd.concat(points, ignore_index=True), pd.DataFrame(axes)
    keys = list(dict.fromkeys([*keys, *told["axis"]]))  # as at the site that has most
    return Projection(whole[["site", "layer", *texts.columns, *keys]], told)


def pictured(axes: pd.DataFrame, results: pd.DataFrame) -> str:
    """The site of the report's picture: where variety, else behaviour, is read best.

    The last one that was projected, where that one was not.
    """
    sites = list(dict.fromkeys(axes["site"]))
    for kind in ("variety", "behaviour"):
        best = best_site(results, f"{kind}_probe_accuracy")
        if best is not None:
            return best if best in sites else sites[-1]
    return sites[-1]


def _drawn(bench: Bench) -> Rows:
    """Rows to project: all, or of each behaviour as many whole groups as its share allows."""
    frame = bench.inputs.corpus.frame
    if len(frame) <= MOST_TEXTS:
        return np.arange(len(frame))
    rng = np.random.default_rng([bench.settings.seed, 14])
    asked = frame.groupby("group")["behaviour"].transform("first")
    kept: list[Any] = []
    for _, rows in frame.groupby(asked):
        sizes = rows["group"].value_counts(sort=False).sample(frac=1, random_state=rng)
        share = MOST_TEXTS * len(rows) / len(frame)
        kept += list(sizes.index[sizes.cumsum() <= share])
    return np.flatnonzero(frame["group"].isin(kept).to_numpy())


def _axes(bench: Bench, site: str) -> list[_Axis]:
    """All directions that the site has, those of the requests first."""
    return [*_of_requests(bench, site), *_of_varieties(bench, site)]


def _of_requests(bench: Bench, site: str) -> Iterator[_Axis]:
    if not bench.inputs.corpus.has_behaviours:
        return
    x = bench.states(site)
    harm = _found(lambda: harmful_direction(bench, site))
    if harm is None:
        return  # the embedding of one and the same template token
    yield _axis("harmful", "harmful direction", "0: harmless mean, 1: harmful mean", harm)
    both = x[np.concatenate(request_rows(bench, train=True))]
    rest = both - both.mean(axis=0)
    rest -= np.outer(rest @ harm.basis[:, 0], harm.basis[:, 0])
    _, values, turned = np.linalg.svd(rest, full_matrices=False)
    spread = float(values[0] / np.sqrt(len(rest)))
    if spread > _ROUNDING * float(harm.singular_values[0]):
        name = "requests' first component without harm"
        middle = float(both.mean(axis=0) @ turned[0])
        yield _Axis("requests", name, "standard deviations", turned[0], middle, spread)
    if not bench.answers:
        return
    refused, answered = by_answer(bench)
    if min(len(refused), len(answered)) >= LEAST:
        refusal = _found(lambda: mean_difference(x[refused], x[answered], mean="negative"))
        if refusal is not None:
            scale = "0: mean of answered, 1: mean of refused"
            yield _axis("refusal", "refusal direction", scale, refusal)


def _of_varieties(bench: Bench, site: str) -> Iterator[_Axis]:
    if not bench.inputs.corpus.has_varieties:
        return
    x, standard = bench.states(site), bench.inputs.standard
    pairs = _train_pairs(bench)
    if not pairs:
        return
    own, other = (np.concatenate(side) for side in zip(*pairs.values(), strict=True))
    most = min(2, len(own), x.shape[1])
    ranks = (_found(lambda k=k: paired_differences(x[own], x[other], k=k)) for k in (most, 1))
    shared = next((space for space in ranks if space is not None), None)
    if shared is None:
        return  # the embedding of a neutral token: nothing differs there
    least = _ROUNDING * float(shared.singular_values[0])
    gap = f"0: mean of {standard}, 1: typical gap"
    middle = x[np.unique(other)].mean(axis=0)
    for rank, (size, name) in enumerate(zip(shared.singular_values, ("first", "second"))):
        if size > least:
            axis = shared.basis[:, rank]
            key, name = f"variety_{rank + 1}", f"{name} variety direction"
            yield _Axis(key, name, gap, axis, float(middle @ axis), float(size))
    for variety, (one, two) in pairs.items():
        shift = _found(lambda one=one, two=two: mean_difference(x[one], x[two], mean="negative"))
        if shift is not None and shift.singular_values[0] > least:
            scale = f"0: mean of {standard}, 1: mean of {variety}"
            yield _axis(f"shift_{variety}", f"mean shift of {variety}", scale, shift)
    for variety, (one, two) in pairs.items():
        alone = _found(lambda one=one, two=two: paired_differences(x[one], x[two], k=1))
        if alone is not None and alone.singular_values[0] > least:
            yield _axis(f"own_{variety}", f"first direction of {variety} alone", gap, alone)


def _train_pairs(bench: Bench) -> dict[str, tuple[Rows, Rows]]:
    """Train rows of each dialect, and the standard's parallel to them."""
    pairs = {}
    for variety in bench.inputs.dialects:
        pairing = pair_up(bench, (variety,))
        own, other = pairing.rows[variety], pairing.rows[bench.inputs.standard]
        kept = bench.inputs.train[own]
        if kept.any():
            pairs[variety] = own[kept], other[kept]
    return pairs


def _axis(key: str, name: str, scale: str, found: Subspace) -> _Axis:
    """From the mean of a subspace of one dimension, as long as its singular value."""
    direction = found.basis[:, 0]
    origin, unit = float(found.mean @ direction), float(found.singular_values[0])
    return _Axis(key, name, scale, direction, origin, unit)


def _found(direction: Callable[[], Subspace]) -> Subspace | None:
    """A direction; None where the states do not allow it, as where nothing differs."""
    try:
        return direction()
    except GeometryError:
        return None
