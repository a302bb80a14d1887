"""Choose where and how strongly on the train side; observe every strength on the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from activations import layer_of
from evidence import Estimate, cluster_mean
from experiments.results import row
from experiments.steer.question import Question, mean_of, pooled
from experiments.steer.questions import Work
from interventions.dose import DoseResponse, dose_response, reversal


def choose(work: Work, question: Question) -> Iterator[dict[str, Any]]:
    """The site, and the strength there, with most effect within the budget of loss.

    Tried are single sites, evenly spaced over depth, and all together. The smallest strength wins
    a tie. Where nothing keeps within the budget, what costs least is taken.
    """
    settings, model = work.settings, work.model
    places = [[site] for site in spread(list(question.directions), settings.searched)]
    if len(question.directions) > 1:
        places.append(list(question.directions))
    doses = sorted(s for s in settings.strengths if s > 0) or sorted(settings.strengths)
    plain = question.train(model, None)
    base = mean_of(plain, question.cost)
    measure, variety, behaviour = question.effects[0]
    tried = []
    for sites in places:
        edit_at = question.edit_at(sites)
        for dose in doses:
            found = question.train(model, edit_at(dose))
            effect = next(o for o in found if o.key == question.effects[0])
            cost = mean_of(found, question.cost) - base
            tried.append((sites, dose, float(effect.values.mean()), cost))
            told = {"variety": variety, "behaviour": behaviour, "edit": question.label(dose)}
            yield row(
                "steering_search",
                effect.estimate(),
                reference=measure,
                **told,
                **_where(sites),
            )
            yield row("steering_search_cost", cost, unit="nats per token", **told, **_where(sites))
    within = [t for t in tried if t[3] <= settings.loss_budget]
    best = (
        max(within, key=lambda t: (round(t[2], 6), -t[1]))
        if within
        else min(tried, key=lambda t: t[3])
    )
    yield row(
        "steering_strength",
        best[1],
        edit=question.label(),
        reference="within budget" if within else "over budget",
        unit="differences in means",
        **_where(best[0]),
    )


def chosen_sites(question: Question, searched: pd.DataFrame) -> list[str]:
    """The sites that `choose` chose."""
    found = searched[searched["measure"] == "steering_strength"].iloc[0]
    return [str(found["site"])] if found["site"] else list(question.directions)


def respond(work: Work, question: Question, sites: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every figure at every strength on held-out texts, trends, and random directions beside."""
    settings, where = work.settings, _where(sites)
    found = dose_response(work.model, question.test, question.edit_at(sites), settings.strengths)
    yield from _rows(question, found, where)
    for key in question.effects:
        if key not in found.keys:
            continue
        measure, variety, behaviour = key
        told = {"variety": variety, "behaviour": behaviour, "reference": measure}
        told |= {"edit": question.label(), **where}
        trend = found.trend(key, draws=settings.permutations, seed=settings.seed)
        yield row("dose_trend", trend, **told)
        curve = [o.estimate().value for o in found.outcomes(key)]
        yield row("dose_reversal", reversal(curve), unit=found.outcomes(key)[0].unit, **told)
    drawn = question.random(sites, settings.random_draws, settings.seed)
    plain = question.beside(work.model, None)
    for control, directions in drawn.items():
        answers = [
            dose_response(
                work.model,
                question.beside,
                question.edit_at(sites, lines),
                settings.strengths,
                plain=plain,
            )
            for lines in directions
        ]
        yield from _random_rows(question, answers, control, where)


def _rows(question: Question, found: DoseResponse, where: Any) -> Iterator[dict[str, Any]]:
    for outcome in found.plain:
        yield row(outcome.measure, outcome.estimate(), **_told(outcome))
    for dose, there in zip(found.strengths, found.at, strict=True):
        edit = question.label(dose)
        for before, outcome in zip(found.plain, there, strict=True):
            yield row(outcome.measure, outcome.estimate(), edit=edit, **_told(outcome), **where)
            if outcome.measure == "loss":
                rise = cluster_mean(outcome.values - before.values, outcome.groups)
                told = _told(outcome) | {"unit": outcome.unit}
                yield row("loss_change", rise, edit=edit, **told, **where)


def _random_rows(
    question: Question, answers: Sequence[DoseResponse], control: str, where: Any
) -> Iterator[dict[str, Any]]:
    """Means over draws; of what should follow the strength, the range of the draws as interval."""
    for number, dose in enumerate(answers[0].strengths):
        for key in answers[0].keys:
            drawn = [answer.outcomes(key)[number] for answer in answers]
            outcome = pooled(drawn)
            edit = question.label(dose)
            means = [o.estimate().value for o in drawn]
            if key in question.effects:
                low, high = float(min(means)), float(max(means))
                estimate = Estimate(float(np.mean(means)), low, high, level=1.0, n=len(means))
                told = _told(outcome) | {"unit": outcome.unit}
                yield row(outcome.measure, estimate, edit=edit, control=control, **told, **where)
            if outcome.measure == "loss":
                before = next(o for o in answers[0].plain if o.key == key)
                rise = cluster_mean(outcome.values - before.values, outcome.groups)
                told = _told(outcome) | {"unit": outcome.unit}
                yield row("loss_change", rise, edit=edit, control=control, **told, **where)


def _told(outcome: Any) -> dict[str, str]:
    return {"variety": outcome.variety, "behaviour": outcome.behaviour}


def _where(sites: Sequence[str]) -> dict[str, Any]:
    """One site; none where several are steered together."""
    return {"site": sites[0], "layer": layer_of(sites[0])} if len(sites) == 1 else {}


def spread(items: list[str], most: int) -> list[str]:
    """At most `most` of the items, evenly spaced, the last among them."""
    if len(items) <= most:
        return items
    if most == 1:
        return items[-1:]
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]
