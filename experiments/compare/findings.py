"""Sentences that the results bear out, each with its figure, its interval and its control."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from experiments.compare import layer_findings
from experiments.figures.look import control, figure, plain, rounded


def sentences(results: pd.DataFrame, standard: str) -> list[str]:
    """What was found, most general first."""
    found = [
        *_probe(results, "variety"),
        *_probe(results, "behaviour"),
        *_overlap(results),
        *_directions(results),
        *layer_findings.sentences(results),
        *_ablation(results, standard),
        *_refusal(results),
        *_patching(results, standard),
    ]
    return found or ["Nothing could be measured on this corpus."]


def caveats(results: pd.DataFrame) -> list[str]:
    """What these results do not show."""
    said = [
        "A probe shows what can be read from a state, not what the model uses; only the changes "
        "to the running model speak of causes."
    ]
    probed = results[
        results["measure"].isin(["variety_probe_accuracy", "behaviour_probe_accuracy"])
    ]
    if len(probed) and "random_model" not in set(probed["control"]):
        said.append(
            "No model with random weights was probed beside this one, so how much of each accuracy "
            "is owed to the architecture alone is not known."
        )
    if "direction_cosine" in set(results["measure"]):
        said.append(
            "Refused and answered requests are largely the harmful and the harmless ones, so "
            "their two directions come close to each other by construction."
        )
    if plain(results, "recovered_fraction").shape[0]:
        said.append(
            "A recovered fraction below zero means that the patch moved the run away from the "
            "standard's; the shortest sentence pairs were patched."
        )
    return said


def best_site(results: pd.DataFrame, measure: str) -> str | None:
    """The site where the measure itself is highest."""
    frame = plain(results, measure)
    return None if frame.empty else str(frame.loc[frame["value"].idxmax(), "site"])


def pairs_of_varieties(results: pd.DataFrame) -> bool:
    """Whether any two different varieties' subspaces were compared."""
    return not plain(results, "subspace_overlap").empty


def _probe(results: pd.DataFrame, kind: str) -> Iterator[str]:
    measure = f"{kind}_probe_accuracy"
    frame = plain(results, measure)
    if frame.empty:
        return
    best = frame.loc[frame["value"].idxmax()]
    chance = control(results, measure, "chance")["value"].iloc[0]
    tasks = control(results, measure, "control_task").set_index("site")
    there = tasks.loc[best["site"]]
    sentence = (
        f"{kind.capitalize()} can be read best at `{best['site']}`: balanced accuracy "
        f"{figure(best)} over {best['n']} groups, where chance is {chance:.2f} and the control "
        f"task reaches {figure(there)}"
    )
    if not np.isnan(best["p"]):
        sentence += f" (p = {best['p']:.3g}, corrected over layers)"
    yield sentence + "."
    ceiling = control(results, measure, "bayes_ceiling")
    if len(ceiling):
        yield (
            f"The grammar allows {ceiling['value'].iloc[0]:.2f} at most; the best layer reaches "
            f"{best['value'] / ceiling['value'].iloc[0]:.0%} of it."
        )
    yield _beside_text(results, measure, best, kind)
    yield _beyond(results, measure, best, kind)
    first = frame.iloc[0]
    if first["site"].startswith("blocks.0.hook_resid_pre"):
        yield (
            f"At the embedding, before any context, {kind} is read with {figure(first)} "
            f"(chance {chance:.2f})."
        )


def _beside_text(results: pd.DataFrame, measure: str, best: pd.Series, kind: str) -> str:
    text = control(results, measure, "text_ngrams").iloc[0]
    said = f"Character n-grams of the text alone give {figure(text)} for {kind}: "
    if text["low"] > best["value"]:
        return said + "more than any layer, so the text suffices and the probe adds nothing to it."
    if text["value"] >= best["low"]:
        return said + "about as much as the best layer, so the text alone may explain the probe."
    return said + "less than the best layer."


#: What reads without a model's having learned anything, as it is called in a sentence.
_UNLEARNED = {
    "text_length": "the text's length",
    "read_token": "the token that is read",
    "text_ngrams": "character n-grams",
    "random_model": "a model of the same shape with random weights",
}


def _beyond(results: pd.DataFrame, measure: str, best: pd.Series, kind: str) -> str:
    """Whether the best layer stands above all that needs no learning, each at its own best."""
    below, level = [], []
    for baseline, name in _UNLEARNED.items():
        rows = control(results, measure, baseline)
        if len(rows):
            most = rows.loc[rows["value"].idxmax()]
            part = below if most["value"] < best["low"] else level
            part.append(f"{name} ({figure(most)})")
    said = f"{kind.capitalize()} is "
    if below:
        said += f"read beyond {_listed(below)}"
    if level:
        said += f"{', but ' if below else ''}not shown to be read beyond {_listed(level)}"
    return said + "."


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _overlap(results: pd.DataFrame) -> Iterator[str]:
    frame = plain(results, "subspace_overlap")
    if frame.empty:
        return
    site = best_site(results, "variety_probe_accuracy")
    here = frame[frame["site"] == site] if site in set(frame["site"]) else frame
    site = str(here["site"].iloc[0])
    most, least = here.loc[here["value"].idxmax()], here.loc[here["value"].idxmin()]
    null = control(results, "subspace_overlap", "covariance_null").set_index("site").loc[site]
    chance = control(results, "subspace_overlap", "random_subspace").set_index("site").loc[site]
    yield (
        f"At `{site}`, {most['variety']} and {most['reference']} share most of their subspaces "
        f"({figure(most)}), {least['variety']} and {least['reference']} least "
        f"({figure(least)}); random subspaces share {chance['value']:.2f} (up to "
        f"{chance['high']:.2f}), subspaces drawn from the data's own spread {null['value']:.2f} "
        f"(up to {null['high']:.2f})."
    )
    above = int((here["low"] > null["high"]).sum())
    yield f"Of {len(here)} pairs there, {above} lie wholly above the stricter of the two nulls."
    plan = plain(results, "overlap_plan_correlation")
    plan = plan[plan["site"] == site].set_index("reference")
    for reference, words in (
        ("planted_similarity", "the similarity planted by the grammar"),
        ("planted_structure_given_words", "planted structure when planted words are held fixed"),
        ("planted_similarity_given_text", "planted similarity beyond the overlap of the texts"),
    ):
        if reference in plan.index:
            r = plan.loc[reference]
            yield (
                f"Overlap follows {words}: Spearman {figure(r)}, permutation p = {r['p']:.3g} "
                f"({'above' if r['p'] < 0.05 else 'not above'} its null)."
            )


def _directions(results: pd.DataFrame) -> Iterator[str]:
    frame = plain(results, "direction_cosine")
    if len(frame):
        last = frame.iloc[-1]
        yield (
            f"The refusal direction (refused minus answered) and the harmful direction (harmful "
            f"minus harmless) have cosine {figure(last)} at `{last['site']}`."
        )
    elif len(plain(results, "refusal_rate")):
        yield (
            "The model refused, or answered, too few requests for a refusal direction of its own; "
            "the harmful direction (harmful minus harmless) stands in for it below."
        )
    frame = plain(results, "direction_subspace_cosine")
    if len(frame):
        site = frame["site"].iloc[-1]
        here = frame[frame["site"] == site]
        most = here.loc[here["value"].idxmax()]
        null = control(results, "direction_subspace_cosine", "covariance_null")
        null = null.set_index("site").loc[site]
        yield (
            f"Of the varieties' subspaces, that of {most['variety']} lies nearest to the harmful "
            f"direction at `{site}`: cosine {figure(most)}, where the data's own spread gives "
            f"{null['value']:.2f} (up to {null['high']:.2f})."
        )


def _ablation(results: pd.DataFrame, standard: str) -> Iterator[str]:
    frame = plain(results, "loss_change")
    if frame.empty:
        return
    own = frame[frame["edit"] == "ablate(variety:" + frame["variety"] + ")"]
    other = frame[
        (frame["edit"] != "ablate(variety:" + frame["variety"] + ")")
        & (frame["variety"] != standard)
    ]
    cost = frame[frame["variety"] == standard]
    chance = control(results, "loss_change", "random_subspace")
    worst = own.loc[own["value"].idxmax()]
    sentence = (
        "Taking a variety's subspace out of every block changes the loss on that variety by "
        f"{own['value'].mean():+.3f} nats a token on average (most for {worst['variety']}, "
        f"{worst['value']:+.3f} [{worst['low']:+.3f}, {worst['high']:+.3f}])"
    )
    if len(other):
        sentence += f", on the other varieties by {other['value'].mean():+.3f}"
    yield (
        f"{sentence}, on {standard} by {cost['value'].mean():+.3f}; random subspaces of the same "
        f"size change it by {chance['value'].mean():+.3f}."
    )


def _refusal(results: pd.DataFrame) -> Iterator[str]:
    frame = results[results["measure"] == "refusal_rate"]
    if frame.empty:
        return
    table = frame.set_index(["edit", "control", "behaviour"])

    def rate(edit: str, control: str, behaviour: str) -> str:
        return figure(table.loc[(edit, control, behaviour)])

    yield (
        f"On held-out requests the model refuses {rate('', '', 'harmful')} of the harmful and "
        f"{rate('', '', 'harmless')} of the harmless ones."
    )
    if table.loc[("", "", "harmful"), "value"] < 0.05:
        yield "It hardly refuses at all, so taking the direction out has nothing to show here."
    else:
        # Zero can lie on the refusing side: then harmless requests are refused as well.
        zero = [rate("ablate_to_zero(refusal)", "", kind) for kind in ("harmful", "harmless")]
        yield (
            "With the refusal direction set to its harmless mean in every block it refuses "
            f"{rate('ablate(refusal)', '', 'harmful')} of the harmful ones; with random directions "
            f"{rate('ablate(refusal)', 'random_subspace', 'harmful')}. Set to zero instead, "
            f"{zero[0]} of the harmful and {zero[1]} of the harmless ones."
        )
    added = table.loc[("add(refusal)", "", "harmless")]
    yield (
        f"Adding the direction at `{added['site']}` makes it refuse {figure(added)} of the "
        f"harmless ones; a random direction of the same length "
        f"{rate('add(refusal)', 'random_subspace', 'harmless')}."
    )


def _patching(results: pd.DataFrame, standard: str) -> Iterator[str]:
    frame = plain(results, "recovered_fraction")
    if frame.empty:
        return
    mean = frame.groupby(["site", "layer", "position"], as_index=False)["value"].mean()
    best = mean[mean["position"] > 0]
    best = (mean if best.empty else best).nlargest(1, "value").iloc[0]
    last = mean[mean["position"] == 0].sort_values("layer")
    half = last[last["value"] >= 0.5]
    there = frame[(frame["site"] == best["site"]) & (frame["position"] == best["position"])]
    cells = len(mean if mean["position"].eq(0).all() else mean[mean["position"] > 0])
    if len(there) == 1:
        closed = figure(there.iloc[0])
    else:
        closed = (
            f"{best['value']:.2f} on average over {len(there)} dialects "
            f"({rounded(there['value'].min())} to {rounded(there['value'].max())})"
        )
    back = int(best["position"])
    yield (
        f"Patching {standard} states into dialect runs, the earlier position that matters most is "
        f"{back} token{'s' * (back != 1)} before the end at `{best['site']}`: it closes {closed} "
        f"of the gap between the two runs' next-token distributions. As the largest of {cells} it "
        "is flattered; `isogloss run patch` measures such a cell on groups that did not choose it."
    )
    if len(half):
        yield (
            f"At the last token itself half of the gap is closed from `{half.iloc[0]['site']}` on: "
            "by then what tells the varieties apart has arrived there."
        )
