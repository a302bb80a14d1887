"""What steering did, in sentences and figures."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from experiments.figures.look import figure, plain
from experiments.figures.steering import doses
from experiments.job import Report
from experiments.steer.question import Question
from experiments.steer.questions import Work

_SAID = {
    "refusal_rate": "the share of {behaviour} requests refused",
    "refusal_score": "the refusal score of {behaviour} requests",
    "variety_log_odds": "the log-odds of {variety} sentences against the standard's",
    "variety_probability": "the probability that the model goes on in {variety}",
}


def report(work: Work, results: pd.DataFrame) -> Report:
    """The report of a finished run."""
    from experiments import figures

    settings = work.settings
    drawn = {}
    for question in work.questions:
        stem = "dose_" + "".join(c if c.isalnum() else "_" for c in question.name)
        title = f"Steering {question.name.replace('variety:', 'towards ')}"
        drawn[stem] = (title, figures.chart_dose_response(results, name=question.name))
    return Report(
        title=f"{settings.model}: what follows the strength of steering",
        about=(
            f"Texts of the corpus `{work.inputs.corpus.name}`; directions, site and strength from "
            "the train side, effects on the held-out side. Intervals are 95% over groups."
        ),
        findings=[s for q in work.questions for s in sentences(results, q)],
        figures=drawn,
        method=[
            f"Directions: {_ESTIMATORS[settings.estimator]}. For refusal harmful against harmless "
            "requests at the last token, acting on all tokens of the request; for a dialect its "
            "sentences against the standard's, averaged over tokens, acting on all tokens but the "
            "first.",
            "`add` is h + c r; `affine` sets the coordinate along r to the standard's (or the "
            "harmless) mean plus c r, whatever it was. r reaches from mean to mean, so c = 1 "
            "is the target's mean for `affine`, and c = 0 is not the plain model.",
            f"Site and strength: most effect on train texts among {settings.searched} single sites "
            f"and all together, at a rise of loss of at most {settings.loss_budget:g} nats per "
            "token.",
            f"Random directions: {settings.random_draws} uniform and as many from the states' "
            "spread within their classes, as long as the real ones; their rows give the least and "
            "the most of the draws.",
            "Trend: Spearman's rho of strength and mean effect; its null exchanges the strengths "
            "within each group. `dose_reversal` is the largest step back.",
            "A continuation's variety is judged by character n-grams, fitted on the train side's "
            "texts; its fluency is the plain model's loss on it.",
        ],
        caveats=[
            "The letters' judge gives every text a variety, nonsense too: read it beside the "
            "plain model's loss on what was written.",
            "Log-odds of two texts rise when the second alone grows unlikely; both losses stand "
            "in the figure.",
            "Refusals are recognised by their words.",
        ],
        left_out=work.left_out,
    )


_ESTIMATORS = {
    "means": "difference in means",
    "contrastive": "mean difference of pairs",
    "probe": "weights of a logistic regression",
}


def sentences(results: pd.DataFrame, question: Question) -> Iterator[str]:
    """One plain sentence for each finding of a question."""
    chosen = results[
        (results["measure"] == "steering_strength") & (results["edit"] == question.label())
    ].iloc[0]
    place = f"`{chosen['site']}`" if chosen["site"] else "all sites together"
    name = question.name.replace("variety:", "towards ")
    over = "" if chosen["reference"] == "within budget" else ", though over the budget of loss"
    yield (
        f"Steering {name} ({question.kind}) is best at {place} with strength "
        f"{chosen['value']:g}, as train texts say{over}."
    )
    rows = doses(results[~results["measure"].str.startswith("steering_")], question.name)
    for key in question.effects:
        yield from _effect(results, rows, question, key, float(chosen["value"]))
    yield from _cost(rows, question, float(chosen["value"]))


def _of(frame: pd.DataFrame, key: tuple[str, str, str]) -> pd.DataFrame:
    measure, variety, behaviour = key
    return frame[
        (frame["measure"] == measure)
        & (frame["variety"] == variety)
        & (frame["behaviour"] == behaviour)
    ]


def _effect(
    results: pd.DataFrame,
    rows: pd.DataFrame,
    question: Question,
    key: tuple[str, str, str],
    strength: float,
) -> Iterator[str]:
    own = _of(plain(rows, key[0]), key).sort_values("dose")
    if own.empty:
        return
    measure, variety, behaviour = key
    first, last = own.iloc[0], own.iloc[-1]
    there = own[own["dose"] == strength].iloc[0]
    before = _of(results[results["edit"] == ""], key).iloc[0]
    trends = results[(results["reference"] == measure) & (results["edit"] == question.label())]
    trends = trends[(trends["variety"] == variety) & (trends["behaviour"] == behaviour)]
    trend = trends[trends["measure"] == "dose_trend"].iloc[0]
    back = trends[trends["measure"] == "dose_reversal"].iloc[0]["value"]
    if trend["p"] >= 0.05:
        way = "does not follow the strength for certain"
    elif back == 0:
        way = "follows the strength without a step back"
    else:
        way = f"follows the strength, with a step back of at most {back:.2f}"
    said = _SAID[measure].format(variety=variety, behaviour=behaviour)
    sentence = (
        f"{said[0].upper()}{said[1:]} {way} (rho {figure(trend)}, p = {trend['p']:.2g}): from "
        f"{figure(first)} at {first['dose']:g} to {figure(last)} at {last['dose']:g}; it is "
        f"{figure(before)} in the plain model and {figure(there)} at the chosen strength"
    )
    chance = _of(rows[(rows["control"] != "") & (rows["dose"] == strength)], key)
    if len(chance):
        low, high = chance["low"].min(), chance["high"].max()
        sentence += f", where random directions give {low:.2f} to {high:.2f}"
    yield sentence + "."


def _cost(rows: pd.DataFrame, question: Question, strength: float) -> Iterator[str]:
    """Side effects at the chosen strength."""
    at = rows[rows["dose"] == strength]
    change = plain(at, "loss_change")
    parts = []
    if question.name.startswith("variety:"):
        target = question.name.removeprefix("variety:")
        own, rest = change[change["variety"] == target], change[change["variety"] != target]
        if len(own):
            parts.append(f"the loss on {target} by {_signed(own.iloc[0])} nats per token")
        if len(rest):
            worst = rest.loc[rest["value"].idxmax()]
            parts.append(
                f"on the other varieties by {rest['value'].mean():+.3f} on average (most on "
                f"{worst['variety']}, {_signed(worst)})"
            )
    elif len(change):
        worst = change.loc[change["value"].idxmax()]
        parts.append(
            f"the loss on sentences by {change['value'].mean():+.3f} nats per token on average "
            f"(most on {worst['variety'] or 'requests'}, {_signed(worst)})"
        )
    chance = at[(at["measure"] == "loss_change") & (at["control"] != "")]
    if parts and len(chance):
        parts.append(f"random directions change it by {chance['value'].mean():+.3f}")
    if parts:
        yield f"Side effects at that strength: it changes {'; '.join(parts)}."
    refused = plain(at, "refusal_rate")
    if question.name.startswith("variety:") and len(refused):
        told = ", ".join(f"{figure(r)} of the {r['behaviour']}" for _, r in refused.iterrows())
        yield f"Under it the model refuses {told} requests."


def _signed(row: pd.Series) -> str:
    return f"{row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
