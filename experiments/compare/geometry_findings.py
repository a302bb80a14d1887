"""Sentences on the geometry of the states, each with its figure, interval and control."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from experiments.compare.findings import best_site
from experiments.compare.projection import Projection, pictured
from experiments.figures.look import control, figure, plain, rounded
from experiments.figures.projection import picture_of

_ALPHA = 0.05
_PLANS = {"planted_structure": "structure", "planted_words": "words"}


def sentences(results: pd.DataFrame) -> list[str]:
    """What was found, for the list of findings."""
    return [
        *_tree(results),
        *_shared(results),
        *_retrieval(results),
        *_likeness(results),
        *_shape(results),
        *_calibration(results),
    ]


def captions(results: pd.DataFrame, seen: Projection | None = None) -> dict[str, str]:
    """One sentence for each figure that these rows and the projection allow."""
    found = {
        "angle_spectrum": _angles(results),
        "dendrogram": _distances(results),
        "cka": next(_likeness(results), ""),
        "reliability": " ".join(_calibration(results)),
        "projection": "" if seen is None else _points(seen, pictured(seen.axes, results)),
    }
    return {stem: said for stem, said in found.items() if said}


def shown_site(rows: pd.DataFrame, results: pd.DataFrame) -> str:
    """The site where variety is read best, or where these rows lack it, their last one."""
    best = best_site(results, "variety_probe_accuracy")
    return str(best if best in set(rows["site"]) else rows["site"].iloc[-1])


def _angles(results: pd.DataFrame) -> str:
    rows = plain(results, "principal_angle")
    if rows.empty:
        return ""
    site = shown_site(rows, results)
    here = rows[rows["site"] == site]
    null = control(results, "principal_angle", "covariance_null")
    null = null[null["site"] == site].set_index("position")
    if null.empty:
        return f"The angles between every two varieties' subspaces at `{site}`."
    low = here["position"].map(null["low"])
    below = here[here["value"] < low].groupby(["variety", "reference"]).size()
    pairs = here.groupby(["variety", "reference"]).ngroups
    dimensions = len(null)
    return (
        f"At `{site}`, {int((below == dimensions).sum())} of {pairs} pairs of varieties have all "
        f"of their {dimensions} angles below the band of subspaces drawn from the data's own "
        f"spread, and {len(below)} have at least one."
    )


def _distances(results: pd.DataFrame) -> str:
    rows = plain(results, "variety_distance")
    if rows.empty:
        return ""
    site = shown_site(rows, results)
    here = rows[rows["site"] == site]
    near, far = here.loc[here["value"].idxmin()], here.loc[here["value"].idxmax()]
    said = (
        f"At `{site}`, {near['variety']} and {near['reference']} lie nearest ({figure(near)} "
        f"radians), {far['variety']} and {far['reference']} farthest ({figure(far)})"
    )
    if len(here) == 1:
        pair = f"{near['variety']} and {near['reference']}"
        said = f"At `{site}`, {pair} lie {figure(near)} radians apart"
    null = control(results, "variety_distance", "covariance_null")
    null = null[null["site"] == site]
    own = control(results, "variety_distance", "split_half")
    own = own[own["site"] == site]["value"]
    if len(null):
        said += f"; subspaces drawn from the data's own spread lie {figure(null.iloc[0])} apart"
    if len(own):
        said += f", a variety from itself {own.mean():.2f}"
    return said + "."


def _tree(results: pd.DataFrame) -> Iterator[str]:
    rows = plain(results, "tree_plan_correlation")
    if rows.empty:
        said = _distances(results)
        if said:
            yield said
        return
    site = shown_site(rows, results)
    here = rows[rows["site"] == site].set_index("reference")
    told = []
    for plan, word in _PLANS.items():
        if plan in here.index:
            r = here.loc[plan]
            follows = "follows" if r["p"] < _ALPHA else "does not follow"
            told.append(
                f"{follows} planted {word} (Spearman {r['value']:.2f}, permutation p = "
                f"{r['p']:.3g}, corrected over layers)"
            )
    yield (f"The tree of varieties that their subspaces imply at `{site}` {' and '.join(told)}.")


def _shared(results: pd.DataFrame) -> Iterator[str]:
    rows = plain(results, "shared_dimensions")
    if rows.empty:
        return
    site = shown_site(rows, results)
    at = rows[rows["site"] == site].iloc[0]
    private = plain(results, "private_dimensions")
    private = private[private["site"] == site]["value"].mean()
    null = control(results, "private_dimensions", "covariance_null")
    null = null[null["site"] == site].iloc[0]
    many = "No dimension is" if at["value"] == 0 else f"{figure(at)} dimensions are"
    yield (
        f"{many} shared by most varieties' subspaces at `{site}` and borne out by the other half "
        f"of the sentences; outside those a variety has {private:.1f} on average that are borne "
        f"out, where subspaces drawn from the data's own spread have {null['value']:.1f} (up to "
        f"{null['high']:.1f})."
    )


def _retrieval(results: pd.DataFrame) -> Iterator[str]:
    rows = plain(results, "retrieval_accuracy")
    if rows.empty:
        return
    means = rows.groupby("site", sort=False)["value"].mean()
    site = str(means.idxmax())
    raw = control(results, "retrieval_accuracy", "identity")
    raw = raw[raw["site"] == site]["value"].mean()
    chance = control(results, "retrieval_accuracy", "chance")
    here = rows[rows["site"] == site]
    who = here["variety"].iloc[0] if len(here) == 1 else f"{len(here)} varieties on average"
    yield (
        f"Of the sentences of {who}, {means.max():.0%} have their parallel in "
        f"{here['reference'].iloc[0]} as nearest neighbour at `{site}` once each variety's mean is "
        f"taken out, {raw:.0%} with the states as they are; chance is {chance['value'].mean():.1%}."
    )


def _likeness(results: pd.DataFrame) -> Iterator[str]:
    rows = plain(results, "cka")
    rows = rows[rows["site"] != rows["reference"]]
    if rows.empty:
        return
    least = rows.loc[rows["value"].idxmin()]

    def beside(name: str) -> pd.DataFrame:
        found = control(results, "cka", name)
        at = (found["site"] == least["site"]) & (found["reference"] == least["reference"])
        return found[at]

    said = (
        f"The states of `{least['site']}` and `{least['reference']}` are least alike: CKA "
        f"{figure(least)}"
    )
    null = beside("shuffled_groups")
    if len(null):
        given = figure(null.iloc[0])
        said += f", where groups exchanged at one of them, so that only labels agree, give {given}"
    without = beside("without_top_component")
    if len(without):
        rest = figure(without.iloc[0])
        said += f"; without the first principal component of each it is {rest}"
    yield said + "."


def _shape(results: pd.DataFrame) -> Iterator[str]:
    names = {
        "participation_ratio": "a participation ratio of",
        "intrinsic_dimension": "an intrinsic dimension of",
        "anisotropy": "a mean cosine between texts of",
    }
    rows = plain(results, *names)
    if rows.empty:
        return
    site = shown_site(rows, results)
    here = rows[rows["site"] == site]
    told = [f"{names[r['measure']]} {figure(r)}" for _, r in here.iterrows()]
    yield f"The cloud of states at `{site}` has {', '.join(told)}."


def _calibration(results: pd.DataFrame) -> Iterator[str]:
    rows = plain(results, "calibration_error")
    for _, r in rows.iterrows():
        off = "is off" if r["p"] < _ALPHA else "cannot be told from a calibrated one"
        if r["p"] < _ALPHA and r["value"] < 0.005:
            off = "is hardly off"
        yield (
            f"The {r['reference']} probe at `{r['site']}` {off}: calibration error {figure(r)} "
            f"beyond what chance adds (p = {r['p']:.3g})."
        )


def _points(seen: Projection, site: str) -> str:
    picture = picture_of(*seen, site=site)
    one, other = (picture.names[c] for c in "xy")
    return (
        f"{len(picture.rows)} texts at `{site}` on the {one} and the {other}, whose cosine is "
        f"{rounded(picture.cosine, '+.2f')}: a picture of two dimensions, not a measurement."
    )
