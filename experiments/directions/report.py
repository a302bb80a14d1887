"""What the search for a direction found, in sentences and figures."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from experiments.directions.requests import Requests
from experiments.figures.look import control, figure, plain
from experiments.job import Report


def report(work: Requests, results: pd.DataFrame) -> Report:
    """The report of a finished run."""
    from experiments import figures

    settings = work.settings
    size = {key: len(rows) for key, rows in work.parts.items()}
    drawn = {
        "selection": (
            "Scores of the directions of every place",
            figures.chart_selection(results),
        ),
        "held_out": (
            "The chosen direction on held-out requests",
            figures.chart_refusal(_for_chart(results)),
        ),
        "cone": ("Directions of the cone, ablated one by one", figures.chart_cone(results)),
    }
    if settings.other:
        drawn["models"] = (
            "The directions of two models",
            figures.chart_model_cosine(results),
        )
    words = ", ".join(repr(work.model.tokenizer.decode([t]).strip()) for t in work.tokens)
    return Report(
        title=f"{settings.model}: the direction that refusal hangs on",
        about=(
            f"Requests of the corpus `{work.inputs.corpus.name}`: "
            f"{size['fit', 'harmful']} harmful and {size['fit', 'harmless']} harmless to estimate "
            f"from, {size['validation', 'harmful']} and {size['validation', 'harmless']} to choose "
            f"by, {size['test', 'harmful']} and {size['test', 'harmless']} to test on; "
            f"{work.dropped} of the train side were dropped, since the plain model takes them the "
            "wrong way. Intervals are 95% over groups."
        ),
        findings=[*sentences(results, work)],
        figures=drawn,
        method=[
            "Candidates: harmful less harmless mean at each block's input and each of the last "
            f"{len({p for _, p in work.states})} tokens (the chat template's after the "
            "instruction), after Arditi et al. (2024).",
            f"Refusal score: log-odds that the first token of the reply is one of {words}.",
            "Bypass: that score on harmful requests with the direction ablated (set to zero) at "
            "every block input, attention output and MLP output; the lowest wins. Discarded: a "
            f"KL above {settings.kl_threshold:g} nats on harmless requests under the same edit, a "
            f"score below {settings.induce_threshold:g} on harmless requests with the direction "
            f"added, layers from {settings.depth:.0%} of the depth on.",
            f"Controls: {settings.random_draws} random directions of the same length, uniform, and "
            f"as many drawn from the states' own spread; replies are counted for "
            f"{min(settings.reply_draws, settings.random_draws)} of each.",
            f"Cone: {settings.cone_draws} unit directions that are positive combinations of up to "
            f"{settings.cone} independent directions at the chosen place, each ablated alone.",
        ],
        caveats=[
            "The score reads one token. A model that refuses in other words, or later, is not "
            "seen; the counted replies stand beside it.",
            "The validation requests chose the place, so their scores are too good; the held-out "
            "ones are not.",
            "Axes of the cone beside the first are where harmful requests scatter, found without "
            "asking what the model does with them.",
        ],
        left_out=work.left_out,
    )


def _for_chart(results: pd.DataFrame) -> pd.DataFrame:
    """Refusals without the second kind of random directions, which the chart has no place for."""
    return results[results["control"] != "covariance_null"]


def sentences(results: pd.DataFrame, work: Requests) -> Iterator[str]:
    """One plain sentence for each finding."""
    chosen = plain(results, "chosen_direction").iloc[0]
    there = results[
        (results["site"] == chosen["site"]) & (results["position"] == chosen["position"])
    ]

    def at(measure: str) -> str:
        return figure(plain(there, measure).iloc[0])

    scored = plain(results, "candidate_discarded")
    kept = scored[scored["value"] == 0]
    passed = (
        f"{len(kept)} of {len(scored)} places pass all thresholds"
        if len(kept)
        else f"none of {len(scored)} places passes all thresholds, so the lowest of the others"
    )
    verb = "; chosen is" if len(kept) else " is taken,"
    yield (
        f"{passed[0].upper()}{passed[1:]}{verb} the input of block {chosen['layer']}, "
        f"{int(chosen['position'])} tokens before the end: on validation requests, bypass "
        f"{at('bypass_score')}, induce {at('induce_score')}, KL {at('selection_kl')} nats."
    )
    if len(scored) > len(kept):
        reasons = scored[scored["value"] == 1]["reference"].value_counts()
        said = ", ".join(f"{n} ({why})" for why, n in reasons.items())
        yield f"Places discarded, each for its first reason: {said}."
    yield from _verified(results, "ablate(refusal)", "harmful", "With the direction ablated")
    yield from _verified(results, "add(refusal)", "harmless", "With the direction added once")
    yield from _cone(results)
    yield from _models(results, work)


def _verified(results: pd.DataFrame, edit: str, behaviour: str, told: str) -> Iterator[str]:
    def one(measure: str, under: str, beside: str = "") -> pd.Series:
        rows = control(results, measure, beside)
        found = rows[(rows["edit"] == under) & (rows["behaviour"] == behaviour)]
        return found.iloc[0]

    score = one("refusal_score", edit)
    chance = one("refusal_score", edit, "covariance_null")
    yield (
        f"{told}, the model refuses {figure(one('refusal_rate', edit))} of held-out {behaviour} "
        f"requests, without an edit {figure(one('refusal_rate', ''))}, under random directions of "
        f"the same length {figure(one('refusal_rate', edit, 'random_subspace'))}; the refusal "
        f"score goes from {figure(one('refusal_score', ''))} to {figure(score)}, where random "
        f"directions of the states' spread give {chance['low']:.2f} to {chance['high']:.2f} "
        f"(p = {score['p']:.3g})."
    )
    if edit.startswith("add") and score["value"] > 0 and one("refusal_rate", edit)["value"] < 0.5:
        yield (
            "Added in full the direction makes replies begin as refusals that most do not go on "
            "with; `isogloss run steer` looks for the strength that suits."
        )


def _cone(results: pd.DataFrame) -> Iterator[str]:
    count = plain(results, "direction_count").iloc[0]
    share = plain(results, "cone_share").iloc[0]
    axes = control(results, "cone_score", "basis").sort_values("position")
    working = [int(r["position"]) + 1 for _, r in axes.iterrows() if r["value"] < 0]
    alone = ", ".join(map(str, working)) if working else "none"
    yield (
        f"{int(count['value'])} independent "
        f"{'direction separates' if count['value'] == 1 else 'directions separate'} held-out "
        f"requests there; of {len(axes)} axes, ablating axis {alone} alone makes a reply "
        f"likelier than a refusal. Of directions sampled from their positive cone "
        f"{figure(share)} do."
    )


def _models(results: pd.DataFrame, work: Requests) -> Iterator[str]:
    cosines = plain(results, "model_direction_cosine")
    if cosines.empty:
        return
    last = cosines[cosines["position"] == 0].sort_values("layer")
    first, end = last.iloc[0], last.iloc[-1]
    null = control(results, "model_direction_cosine", "random_subspace").iloc[0]
    yield (
        f"The directions of {work.settings.model} and {work.settings.other} at the last token have "
        f"cosine {figure(first)} at the input of block {first['layer']} and {figure(end)} at that "
        f"of block {end['layer']}; random ones stay below {null['high']:.2f}."
    )
    rates = plain(results, "transfer_refusal_rate")
    for host in dict.fromkeys(rates["variety"]):
        own = rates[rates["variety"] == host].set_index("reference")
        told = "; ".join(
            f"with {giver}'s direction ablated {figure(r)}" for giver, r in own.iterrows() if giver
        )
        yield f"{host} refuses {figure(own.loc[''])} of held-out harmful requests; {told}."
