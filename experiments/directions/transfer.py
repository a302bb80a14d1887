"""Two models' directions: how far they agree, and what one does in the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from activations import layer_of
from evidence import Estimate, cluster_mean
from experiments.compare.bench import open_checked
from experiments.directions.requests import BEHAVIOURS, Requests, read_states
from experiments.directions.stages import direction_at
from experiments.results import row
from experiments.settings import ConfigError
from geometry import cosine_null, mean_difference
from interventions import is_refusal
from interventions.next_token import last_logits, refusal_score
from interventions.selection import Place, ablate_everywhere

_SCORE = "log-odds of a refusal"


def open_other(work: Requests) -> Any:
    """The second model.

    Raises:
        ConfigError: one of another shape, whose directions cannot be laid beside this one's.
    """
    settings = work.settings.model_copy(update={"model": work.settings.other})
    model = open_checked(settings)
    if (model.d_model, model.n_layers) != (work.model.d_model, work.model.n_layers):
        raise ConfigError(
            f"{settings.model} has {model.n_layers} layers of {model.d_model} dimensions and "
            f"{work.settings.model} {work.model.n_layers} of {work.model.d_model}: compare two "
            "models of one shape, such as a model before and after tuning."
        )
    if model.tokenizer.get_vocab() != work.model.tokenizer.get_vocab():
        raise ConfigError(
            f"{settings.model} and {work.settings.model} have other tokens, so that no position of "
            "the one is the other's; compare two models with one tokenizer."
        )
    return model


def compare_models(
    work: Requests, other: Any, place: Place, *, progress: bool
) -> Iterator[dict[str, Any]]:
    """Cosines of the two models' directions at every place, and each direction in the other model.

    Both directions come from the same requests. Their cosine lies beside that of random vectors;
    noise that the requests share makes it larger, noise that they do not makes it smaller.
    """
    settings = work.settings.model_copy(update={"store": ""})
    states = read_states(settings, work.inputs, other, work.order, progress=progress)
    theirs = Requests(
        settings,
        work.inputs,
        other,
        work.tokens,
        work.parts,
        work.dropped,
        work.order,
        states,
    )
    told = {"variety": "refusal", "reference": work.settings.other}
    for at in work.states:
        if at not in states:
            continue
        estimate = _cosine(work, theirs, at)
        if estimate is None:
            continue
        site = f"blocks.{at[0]}.hook_resid_pre"
        where = {"site": site, "layer": layer_of(site), "position": at[1], "unit": "cosine"}
        yield row("model_direction_cosine", estimate, **told, **where)
        chance = cosine_null(work.model.d_model)
        null = Estimate(0.0, -chance.quantile, chance.quantile)
        yield row("model_direction_cosine", null, control="random_subspace", **told, **where)
    yield from _cross(work, theirs, place)


def _cosine(work: Requests, theirs: Requests, place: Place) -> Estimate | None:
    """With a percentile interval over groups, drawn in both models at once."""
    x = [{b: one.at(place, "fit", b) for b in BEHAVIOURS} for one in (work, theirs)]
    if not all(np.any(s["harmful"].mean(0) - s["harmless"].mean(0)) for s in x):
        return None
    groups = np.concatenate([work.groups("fit", b) for b in BEHAVIOURS])
    names, member = np.unique(groups, return_inverse=True)
    first = len(work.parts["fit", "harmful"])
    rng = np.random.default_rng([work.settings.seed, 12])

    def cosine(weight: np.ndarray) -> float:
        high, low = weight[:first], weight[first:]
        a, b = (
            np.average(s["harmful"], axis=0, weights=high)
            - np.average(s["harmless"], axis=0, weights=low)
            for s in x
        )
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    drawn = []
    for _ in range(work.settings.bootstrap_draws):
        counts = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        drawn.append(cosine(counts[member] + 1e-9))  # a side may lose all its groups in one draw
    low, high = np.quantile(drawn, [0.025, 0.975])
    value = cosine(np.ones(len(member)))
    return Estimate(value, float(low), float(high), n=len(names), seed=work.settings.seed)


def _cross(work: Requests, theirs: Requests, place: Place) -> Iterator[dict[str, Any]]:
    """Ablate each direction in each model: `variety` is the host, `reference` the giver."""
    names = {id(work): work.settings.model, id(theirs): work.settings.other}
    prompts = work.prompts("test", "harmful")
    groups = work.groups("test", "harmful")
    for host in (work, theirs):
        edits: list[tuple[str, Any]] = [("", None)]
        for giver in (work, theirs):
            line = mean_difference(
                giver.at(place, "fit", "harmful"),
                giver.at(place, "fit", "harmless"),
                site=direction_at(work, place).site,
            )
            edits.append((names[id(giver)], ablate_everywhere(host.model, line)))
        for giver_name, edit in edits:
            with host.model.edited(*([edit] if edit else [])):
                scores = refusal_score(last_logits(host.model, prompts), work.tokens)
                replies = host.model.generate(
                    prompts,
                    max_new_tokens=work.settings.new_tokens,
                    rendered=host.model.has_chat_template,
                )
            flags = np.array([is_refusal(reply) for reply in replies], dtype=float)
            told = {
                "variety": names[id(host)],
                "reference": giver_name,
                "behaviour": "harmful",
                "edit": f"ablate(refusal:{giver_name})" if edit else "",
            }
            yield row("transfer_refusal_score", cluster_mean(scores, groups), unit=_SCORE, **told)
            share = cluster_mean(flags, groups, bounds=(0, 1), unit="share of requests")
            yield row("transfer_refusal_rate", share, **told)
