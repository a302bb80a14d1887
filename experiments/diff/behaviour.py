"""What two models do otherwise: which texts they expect, what they refuse, what they say next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool

from evidence import Estimate, cluster_mean
from experiments.diff.observing import BEHAVIOURS, Observed, Texts
from experiments.diff.pairs import corrected, of_means, three
from experiments.inputs import Inputs
from experiments.results import row

_LEAST = 3  # requests of one variety, below which no rate is told for it


def losses(
    before: Observed, after: Observed, inputs: Inputs, texts: Texts, label: str
) -> Iterator[dict[str, Any]]:
    """Loss a token and perplexity of each variety's texts, paired text by text.

    Two models that cut texts into other tokens have no loss a token in common: theirs is told per
    character.
    """
    if not len(texts.sentences):
        return
    frame = inputs.corpus.frame.iloc[texts.sentences]
    variety, group = frame["variety"].to_numpy(), frame["group"].to_numpy()
    same = before.words == after.words
    length = frame["text"].str.len().to_numpy().astype(float)
    measure, unit = ("loss", "nats per token") if same else ("text_loss", "nats per character")
    figures = [o.nll / (o.counted if same else length) for o in (before, after)]
    names = [v for v in inputs.corpus.varieties if np.any(variety == v)]
    found = []
    for name in names:
        own = variety == name
        found.append(of_means(figures[0][own], figures[1][own], group[own]))
    changes = corrected([change for _, _, change in found])
    for name, (one, two, _), change in zip(names, found, changes, strict=True):
        told = {"variety": name, "unit": unit}
        yield from three(measure, one, two, change, label, **told)
        if same:
            told["unit"] = "perplexity"
            yield row("perplexity", _exponential(one), **told)
            yield row("perplexity", _exponential(two), edit=label, **told)
            yield row(
                "perplexity_ratio", _exponential(change), edit=label, variety=name, unit="ratio"
            )


def _exponential(found: Estimate) -> Estimate:
    value, low, high = np.exp([found.value, found.low, found.high])
    return Estimate(float(value), float(low), float(high), found.level, found.n, p=found.p)


def refusal_rates(
    before: Observed, after: Observed, inputs: Inputs, texts: Texts, label: str
) -> Iterator[dict[str, Any]]:
    """Shares of requests refused, all of them and by variety, paired request by request.

    The p-values of the varieties are corrected over them.
    """
    if not (len(before.refused) and len(after.refused)):
        return
    frame = inputs.corpus.frame.iloc[texts.requests]
    behaviour, group = frame["behaviour"].to_numpy(), frame["group"].to_numpy()
    found = {
        (kind, name): of_means(
            before.refused[kept], after.refused[kept], group[kept], bounds=(0.0, 1.0)
        )
        for kind, name, kept in _parts(inputs, frame["variety"].to_numpy(), behaviour)
    }
    sets = {
        key: [k for k in found if k[0] == key[0] and bool(k[1]) == bool(key[1])] for key in found
    }
    for (kind, name), (one, two, _) in found.items():
        family = sets[kind, name]
        change = corrected([found[key][2] for key in family])[family.index((kind, name))]
        told = {"behaviour": kind, "variety": name, "unit": "share of requests"}
        yield from three("refusal_rate", one, two, change, label, **told)


def _parts(
    inputs: Inputs, variety: np.ndarray, behaviour: np.ndarray
) -> Iterator[tuple[str, str, Bool[np.ndarray, " n"]]]:
    """Rows of each behaviour, then of each behaviour in each variety."""
    for kind in BEHAVIOURS:
        own = behaviour == kind
        if own.any():
            yield kind, "", own
    names = [v for v in inputs.corpus.varieties if np.any(variety == v)]
    for name in names if len(names) > 1 else ():
        for kind in BEHAVIOURS:
            own = (behaviour == kind) & (variety == name)
            if own.sum() >= _LEAST:
                yield kind, name, own


def divergence(
    after: Observed, inputs: Inputs, texts: Texts, label: str
) -> Iterator[dict[str, Any]]:
    """KL(before ‖ after) of the next token: over all tokens, and at the last (`position` 0).

    The last token of a request in the chat template is where the reply begins.
    """
    if after.kl is None:
        return
    frame = inputs.corpus.frame
    sets: list[tuple[dict[str, str], np.ndarray]] = []
    for name in inputs.corpus.varieties if len(texts.sentences) else ():
        own = texts.sentences[frame["variety"].to_numpy()[texts.sentences] == name]
        sets.append(({"variety": name}, own))
    for kind in BEHAVIOURS:
        own = texts.requests[frame["behaviour"].to_numpy()[texts.requests] == kind]
        sets.append(({"behaviour": kind}, own))
    for told, rows in sets:
        seen = [int(r) for r in rows if int(r) in after.kl]
        if not seen:
            continue
        group = frame["group"].to_numpy()[seen]
        means = np.array([after.kl[r].mean() for r in seen])
        lasts = np.array([after.kl[r][-1] for r in seen])
        for position, values in ((-1, means), (0, lasts)):
            estimate = cluster_mean(values, group)
            # No KL is below zero.
            yield row(
                "next_token_kl",
                Estimate(
                    estimate.value,
                    max(estimate.low, 0.0) if estimate.n > 1 else estimate.low,
                    estimate.high,
                    n=estimate.n,
                ),
                position=position,
                edit=label,
                unit="nats per token" if position < 0 else "nats",
                **told,
            )
