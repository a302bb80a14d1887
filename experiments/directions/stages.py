"""What is measured: candidates, the chosen direction on held-out requests, and its cone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from evidence import Estimate, cluster_mean, permutation_p
from experiments.directions.requests import BEHAVIOURS, Requests
from experiments.results import row
from geometry import Subspace, cone_sample, independent_directions, mean_difference
from interventions import add, is_refusal
from interventions.chance import random_directions
from interventions.next_token import last_logits, refusal_score
from interventions.selection import (
    Place,
    Thresholds,
    ablate_everywhere,
    choose_candidate,
    score_candidates,
)

_SCORE = "log-odds of a refusal"
_TESTED = {("ablate(refusal)", "harmful"), ("add(refusal)", "harmless")}
CONTROLS = {"random_subspace": False, "covariance_null": True}


def select(work: Requests) -> Iterator[dict[str, Any]]:
    """Scores of every candidate on validation requests, and which was chosen."""
    settings = work.settings
    states = {
        place: (work.at(place, "fit", "harmful"), work.at(place, "fit", "harmless"))
        for place in work.states
    }
    limits = Thresholds(settings.kl_threshold, settings.induce_threshold, settings.depth)
    harmful, harmless = (work.prompts("validation", b) for b in BEHAVIOURS)
    found = list(
        score_candidates(work.model, states, harmful, harmless, work.tokens, thresholds=limits)
    )
    best, passed = choose_candidate(found)
    groups = {b: work.groups("validation", b) for b in BEHAVIOURS}
    for candidate in found:
        where = {"site": candidate.site, "layer": candidate.place[0]}
        where |= {"position": candidate.place[1]}
        if candidate.direction is not None and candidate.discarded != "not finite":
            scores = [
                ("bypass_score", candidate.bypass, "harmful", "ablate(refusal)", _SCORE),
                ("induce_score", candidate.induce, "harmless", "add(refusal)", _SCORE),
                ("selection_kl", candidate.kl, "harmless", "ablate(refusal)", "nats"),
            ]
            for measure, values, behaviour, edit, unit in scores:
                estimate = cluster_mean(values, groups[behaviour])
                told = {"behaviour": behaviour, "edit": edit, "unit": unit}
                yield row(measure, estimate, **told, **where)
        yield row(
            "candidate_discarded",
            float(bool(candidate.discarded)),
            reference=candidate.discarded,
            unit="0 or 1",
            **where,
        )
    place = {"site": best.site, "layer": best.place[0], "position": best.place[1]}
    yield row("chosen_direction", float(passed), unit="1 if it passed", **place)


def chosen_place(selected: pd.DataFrame) -> Place:
    """The place that the first stage chose."""
    found = selected[selected["measure"] == "chosen_direction"].iloc[0]
    return int(found["layer"]), int(found["position"])


def direction_at(work: Requests, place: Place) -> Subspace:
    """The mean difference of the requests that were set apart for it."""
    return mean_difference(
        work.at(place, "fit", "harmful"),
        work.at(place, "fit", "harmless"),
        site=f"blocks.{place[0]}.hook_resid_pre",
    )


def verify(work: Requests, place: Place) -> Iterator[dict[str, Any]]:
    """Held-out requests under ablation and addition, beside random directions of the same length.

    The p of a score is how many random directions, uniform or from the states' own spread, move it
    as far: the larger of the two.
    """
    direction = direction_at(work, place)
    edits = {
        "ablate(refusal)": lambda d: ablate_everywhere(work.model, d),
        "add(refusal)": add,
    }
    for behaviour in BEHAVIOURS:
        told = {"behaviour": behaviour}
        yield row("refusal_score", _score(work, behaviour), unit=_SCORE, **told)
        yield row("refusal_rate", _share(work, behaviour, [_flags(work, behaviour)]), **told)
    # Within each behaviour: the spread between them is the direction itself.
    within = [work.at(place, "fit", b) for b in BEHAVIOURS]
    at = np.concatenate([x - x.mean(axis=0) for x in within])
    drawn = {
        control: random_directions(
            direction,
            work.settings.random_draws,
            seed=[work.settings.seed, 11, number],
            states=at if spread else None,
        )
        for number, (control, spread) in enumerate(CONTROLS.items())
    }
    for edit, made in edits.items():
        where = {} if edit.startswith("ablate") else {"site": direction.site, "layer": place[0]}
        for behaviour in BEHAVIOURS:
            told = {"behaviour": behaviour, "edit": edit, **where}
            with work.model.edited(made(direction)):
                own = _scores(work, behaviour)
                flags = _flags(work, behaviour)
            tails = []
            for control, directions in drawn.items():
                scores, replies = _of_random(work, behaviour, directions, made)
                means = scores.mean(axis=1)
                side = "less" if edit.startswith("ablate") else "greater"
                tails.append(permutation_p(float(own.mean()), means, alternative=side))
                low, high = np.quantile(means, [0.025, 0.975])
                spread = Estimate(float(means.mean()), float(low), float(high), n=len(means))
                yield row("refusal_score", spread, control=control, unit=_SCORE, **told)
                yield row("refusal_rate", _share(work, behaviour, replies), control=control, **told)
            estimate = cluster_mean(own, work.groups("test", behaviour))
            # What is tested is that ablation frees and that addition induces, not their reverse.
            p = max(tails) if (edit, behaviour) in _TESTED else float("nan")
            yield row("refusal_score", estimate, unit=_SCORE, p=p, **told)
            yield row("refusal_rate", _share(work, behaviour, [flags]), **told)


def cone(work: Requests, place: Place) -> Iterator[dict[str, Any]]:
    """Ablate directions of the positive cone of the independent ones, each on its own.

    The cone's axes beside the first are where harmful requests scatter in excess of harmless ones,
    whether or not they passed the test that counts them.
    """
    settings = work.settings
    parts = {b: [(p, b) for p in ("fit", "validation", "test")] for b in BEHAVIOURS}
    x = {b: np.concatenate([work.at(place, *part) for part in parts[b]]) for b in BEHAVIOURS}
    groups = {b: np.concatenate([work.groups(*part) for part in parts[b]]) for b in BEHAVIOURS}
    train = {
        b: np.concatenate([np.full(len(work.parts[part]), part[0] != "test") for part in parts[b]])
        for b in BEHAVIOURS
    }
    found = independent_directions(
        x["harmful"],
        x["harmless"],
        groups=(groups["harmful"], groups["harmless"]),
        train=(train["harmful"], train["harmless"]),
        most=settings.cone,
        permutations=settings.permutations,
        seed=settings.seed,
    )
    site = f"blocks.{place[0]}.hook_resid_pre"
    where = {"site": site, "layer": place[0]}
    yield row("direction_count", found.count, unit="directions", **where)
    basis = np.stack([r.direction for r in found.rounds], axis=1)
    told = {"behaviour": "harmful", "edit": "ablate(cone)", "unit": _SCORE, **where}
    tried = {"basis": basis.T, "": cone_sample(basis, settings.cone_draws, seed=settings.seed)}
    least = []
    for control, directions in tried.items():
        for number, unit in enumerate(directions):
            line = Subspace(unit[:, None], found.mean, np.ones(1), site=site)
            with work.model.edited(ablate_everywhere(work.model, line)):
                estimate = _score(work, "harmful")
            yield row("cone_score", estimate, control=control, position=number, **told)
            least += [] if control else [estimate.value]
    flags = np.array([value < 0 for value in least], dtype=float)
    share = cluster_mean(flags, np.arange(len(flags)), bounds=(0, 1))
    yield row("cone_share", share, **(told | {"unit": "share of directions"}))


def _scores(work: Requests, behaviour: str) -> np.ndarray:
    return refusal_score(last_logits(work.model, work.prompts("test", behaviour)), work.tokens)


def _score(work: Requests, behaviour: str) -> Estimate:
    return cluster_mean(_scores(work, behaviour), work.groups("test", behaviour))


def _flags(work: Requests, behaviour: str) -> np.ndarray:
    replies = work.model.generate(
        work.prompts("test", behaviour),
        max_new_tokens=work.settings.new_tokens,
        rendered=work.model.has_chat_template,
    )
    return np.array([is_refusal(reply) for reply in replies], dtype=float)


def _share(work: Requests, behaviour: str, drawn: Sequence[np.ndarray]) -> Estimate:
    """Share refused; random draws are pooled, so that a request counts by its share of refusals."""
    groups = work.groups("test", behaviour)
    found = np.mean(drawn, axis=0)
    return cluster_mean(found, groups, bounds=(0, 1), unit="share of requests")


def _of_random(
    work: Requests, behaviour: str, directions: Sequence[Subspace], made: Any
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Scores `[draws, n]` under each random direction, and the refusals under the first few."""
    scores, replies = [], []
    for number, direction in enumerate(directions):
        with work.model.edited(made(direction)):
            scores.append(_scores(work, behaviour))
            if number < work.settings.reply_draws:
                replies.append(_flags(work, behaviour))
    return np.array(scores), replies
