"""At which block the tokens are decided that base would not have written.

Before such a token, base's state of the last token so far is set to the aligned model's at one
block's output, and base's own later blocks go on from there, attending to base's own past. From the
block on from which base then ranks the token first, what decides it lies in that one state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from activations import Model, layer_of
from activations.batching import full_batches, length_batches, limits
from activations.engines.fork_plan import Fork, Put
from activations.forking import CannotFork, Forks
from evidence import cluster_mean
from experiments.results import row
from experiments.token_shift.shares import by_behaviour, pooled
from experiments.token_shift.shift import KINDS, Speaker, vocabulary
from experiments.token_shift.work import Work
from interventions import replace

#: Where states are put in, what they are beside the real ones, and which draw.
Key = tuple[str, str, int]

_SHARE = "share of tokens"


@dataclass(frozen=True, eq=False)
class Moved:
    """Tokens that base does not rank first, and what stood before them.

    Attributes:
        tokens: their rows of the main frame.
        prefixes: token ids of request and answer so far.
        ids: `[n]`, the tokens themselves.
    """

    tokens: pd.DataFrame
    prefixes: list[list[int]]
    ids: Tensor


def why_not(work: Work) -> str | None:
    """Why this part cannot be asked of these models, if so; empty where that was said already."""
    a, b = work.aligned.model, work.base.model
    if not work.settings.patched:
        return "No token was patched: `patched` is 0."
    if a is b:
        return ""
    if (a.d_model, a.n_layers) != (b.d_model, b.n_layers):
        return (
            f"Where tokens are decided was not asked: {a.name} has {a.n_layers} layers of "
            f"{a.d_model} dimensions and {b.name} {b.n_layers} of {b.d_model}, so that states of "
            "the one do not fit the other."
        )
    if work.settings.template != "same":
        return (
            "Where tokens are decided was not asked: the models see other contexts "
            f"(`template` is {work.settings.template})."
        )
    return None


def sample(work: Work, tokens: pd.DataFrame) -> Moved:
    """At most `patched` of the moved tokens, drawn by the seed."""
    found = tokens[tokens["shift"] != KINDS[0]]
    if len(found) > work.settings.patched:
        rng = np.random.default_rng([work.settings.seed, 32])
        found = found.iloc[np.sort(rng.choice(len(found), work.settings.patched, replace=False))]
    prefixes = [
        [*work.own.contexts[text], *work.own.answers[text][:position]]
        for text, position in zip(found["text"], found["position"], strict=True)
    ]
    return Moved(found.reset_index(drop=True), prefixes, torch.tensor(found["token_id"].to_numpy()))


def last_states(
    model: Model, prefixes: Sequence[Sequence[int]], sites: Sequence[str]
) -> dict[str, Float[Tensor, "n d"]]:
    """States of the last token of each prefix, by site."""
    return _run(model, prefixes, sites, None, None)


def patched_states(
    model: Model, prefixes: Sequence[Sequence[int]], site: str, values: Float[Tensor, "n d"]
) -> Float[Tensor, "n d"]:
    """States after the last block where the last token's state at `site` is set to `values`."""
    last = f"blocks.{model.n_layers - 1}.hook_resid_post"
    return _run(model, prefixes, [last], site, values)[last]


def _run(
    model: Model,
    prefixes: Sequence[Sequence[int]],
    sites: Sequence[str],
    site: str | None,
    values: Tensor | None,
) -> dict[str, Tensor]:
    found: dict[str, list[Any]] = {name: [None] * len(prefixes) for name in sites}
    budget, overhead = limits(model.device.type)
    for batch in length_batches([len(p) for p in prefixes], budget=budget, overhead=overhead):
        tokens, mask = model.pad([prefixes[i] for i in batch])
        ends = mask.sum(-1) - 1

        def select(x: Tensor, _site: Any, ends: Tensor = ends) -> Tensor:
            return x[torch.arange(len(x), device=x.device), ends.to(x.device)]

        edits = []
        if site is not None and values is not None:
            edits.append(replace(site, values[batch][:, None], ends[:, None]))
        with model.edited(*edits):
            states = model.activations(tokens, mask, sites, select=select)
        for name, rows in states.items():
            for at, one in zip(batch, rows, strict=True):
                found[name][at] = one
    return {name: torch.stack(rows) for name, rows in found.items()}


def deciding(work: Work, tokens: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """By block: how often the patched base ranks the token first, and the gap that is closed.

    Nothing where fewer than two groups of requests have tokens that base does not rank first.
    """
    if tokens.loc[tokens["shift"] != KINDS[0], "group"].nunique() < 2:
        return
    moved = sample(work, tokens)
    a, b = work.aligned, work.base
    layers = work.settings.layers
    sites = a.model.resolve_sites("resid_post", layers=layers or None)
    sites = sites if layers else [a.model.embedding_site, *sites]
    width = vocabulary(a, b)
    theirs = last_states(a.model, moved.prefixes, sites)
    mine = last_states(b.model, moved.prefixes, sites)
    tried = _tried(work, moved, sites, theirs, mine)
    read = read_patched(b, moved.prefixes, moved.ids, tried, width)
    before = moved.tokens["log_probability"].to_numpy()
    gap = moved.tokens["own_log_probability"].to_numpy() - before
    first: list[np.ndarray] = []
    for site in sites:
        told = {"site": site, "layer": layer_of(site)}
        for control in dict.fromkeys(c for s, c, _ in tried if s == site):
            seen = [read[key] for key in tried if key[:2] == (site, control)]
            ranked = np.mean([rank == 1 for rank, _ in seen], axis=0)
            closed = np.mean([said for _, said in seen], axis=0) - before
            yield from _rows(moved, ranked, closed, gap, control=control, **told)
            if not control:
                first.append(ranked)
        for control, speaker, states in (("", a, theirs), ("base", b, mine)):
            rank, _ = _ranked(speaker.logits(states[site])[:, :width], moved.ids)
            yield from _shares("lens_top_share", moved, rank == 1, control=control, **told)
    numbers = [-1 if site == a.model.embedding_site else layer_of(site) for site in sites]
    yield from _decided(moved, np.stack(first, axis=1) == 1, sites, numbers)


def _tried(
    work: Work,
    moved: Moved,
    sites: Sequence[str],
    theirs: dict[str, Tensor],
    mine: dict[str, Tensor],
) -> dict[Key, Tensor]:
    """What is put into base, by site, control and number."""
    stranger = _strangers(work, moved)
    steps = _directions(work, mine[sites[0]].shape)
    tried: dict[Key, Tensor] = {}
    for site in sites:
        tried[site, "", 0] = theirs[site]
        if stranger is not None:
            tried[site, "other_prompt", 0] = theirs[site][stranger]
        away = (theirs[site] - mine[site]).norm(dim=-1, keepdim=True)
        for number, step in enumerate(steps):
            tried[site, "random_step", number] = mine[site] + away * step.to(away)
    return tried


def read_patched(
    speaker: Speaker,
    prefixes: Sequence[Sequence[int]],
    ids: Tensor,
    tried: Mapping[Key, Float[Tensor, "n d"]],
    width: int,
) -> dict[Key, tuple[np.ndarray, np.ndarray]]:
    """Rank and log-probability `[n]` of the tokens `ids` under each patch of the last states.

    Where the model allows it, the later blocks alone run, and for one token of each prefix.
    """
    model = speaker.model
    forks = _forks(model, [site for site, _, _ in tried])
    found = {key: (np.zeros(len(ids), np.int64), np.zeros(len(ids))) for key in tried}
    budget, _ = limits(model.device.type)
    for batch in full_batches([len(p) for p in prefixes], budget=budget):
        few = [prefixes[i] for i in batch]
        record = None if forks is None else forks.record(few)
        for key, values in tried.items():
            if forks is None or record is None:
                logits = speaker.logits(patched_states(model, few, key[0], values[batch]))
            else:
                puts = [
                    Fork(at, (Put(key[0], (len(few[at]) - 1,), values[i : i + 1]),))
                    for at, i in enumerate(batch)
                ]
                logits = forks.run(record, puts, reads=1)[:, 0]
            for kept, new in zip(found[key], _ranked(logits[:, :width], ids[batch]), strict=True):
                kept[batch] = new
    return found


def _forks(model: Model, sites: Sequence[str]) -> Forks | None:
    try:
        return Forks.of(model, list(dict.fromkeys(sites)))
    except CannotFork:
        return None


def _ranked(logits: Float[Tensor, "n vocabulary"], ids: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Rank and log-probability of each token."""
    at = ids.to(logits.device)[:, None]
    rank = 1 + (logits > logits.gather(-1, at)).sum(-1)
    said = logits.double().log_softmax(-1).gather(-1, at)[:, 0]
    return rank.cpu().numpy(), said.cpu().numpy()


def _strangers(work: Work, moved: Moved) -> np.ndarray | None:
    """For each token another one, of another group, before which something else is said."""
    rng = np.random.default_rng([work.settings.seed, 33])
    groups, ids = moved.tokens["group"].to_numpy(), moved.ids.numpy()
    order = []
    for group, token in zip(groups, ids, strict=True):
        free = np.flatnonzero((groups != group) & (ids != token))
        if not len(free):
            return None
        order.append(int(rng.choice(free)))
    return np.asarray(order)


def _directions(work: Work, shape: torch.Size) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(work.settings.seed)
    steps = [torch.randn(shape, generator=drawn) for _ in range(work.settings.random_draws)]
    return [step / step.norm(dim=-1, keepdim=True) for step in steps]


def _rows(
    moved: Moved, ranked: np.ndarray, closed: np.ndarray, gap: np.ndarray, **told: Any
) -> Iterator[dict[str, Any]]:
    yield from _shares("patched_top_share", moved, ranked, **told)
    frame = moved.tokens.assign(closed=closed, gap=gap)
    for where, own in _parts(frame):
        found = pooled(own["closed"], own["group"], weights=own["gap"], unit="share of the gap")
        yield row("gap_closed", found, **where, **told)


def _shares(measure: str, moved: Moved, flags: np.ndarray, **told: Any) -> Iterator[dict[str, Any]]:
    frame = moved.tokens.assign(flag=flags.astype(np.float64))
    for where, own in _parts(frame):
        found = pooled(own["flag"], own["group"], bounds=(0.0, 1.0), unit=_SHARE)
        yield row(measure, found, **where, **told)


def _parts(frame: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.DataFrame]]:
    """All moved tokens, those after requests of each behaviour, and the shifted ones alone."""
    for behaviour, own in by_behaviour(frame):
        yield {"behaviour": behaviour}, own
    shifted = frame[frame["shift"] == KINDS[-1]]
    if len(shifted):
        yield {"reference": KINDS[-1]}, shifted


def _decided(
    moved: Moved, first: np.ndarray, sites: Sequence[str], numbers: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Of tokens `[n]`: from which site on they rank first at this and every later one."""
    stays = np.flip(np.logical_and.accumulate(np.flip(first, axis=1), axis=1), axis=1)
    for at, site in enumerate(sites):
        where = {"site": site, "layer": layer_of(site)}
        yield from _shares("decided_share", moved, stays[:, at], **where)
    layers = np.asarray(numbers, dtype=np.float64)
    ends = (float(layers.min()), float(layers.max())) if len(layers) > 1 else None
    ever = stays[:, -1]
    frame = moved.tokens.assign(layer=layers[stays.argmax(axis=1)])[ever]
    if frame.empty:
        return
    for where, own in _parts(frame):
        found = cluster_mean(own["layer"], own["group"], bounds=ends, unit="layer")
        yield row("deciding_layer", found, **where)
