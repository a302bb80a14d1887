"""Sentences on the harmful direction over depth, each with its figure, interval and null."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from experiments.figures.look import control, figure, plain

_ALPHA = 0.05


def sentences(results: pd.DataFrame) -> list[str]:
    """What was found: where there is a direction, how far it turns, whether it stands alone."""
    return [*_reliability(results), *_drift(results), *_count(results)]


def _reliability(results: pd.DataFrame) -> Iterator[str]:
    frame = plain(results, "direction_reliability")
    if frame.empty:
        return
    sure = frame[frame["p"] < _ALPHA]
    best = frame.loc[frame["value"].idxmax()]
    null = control(results, "direction_reliability", "covariance_null").set_index("site")
    yield (
        f"At {len(sure)} of {len(frame)} sites two halves of the requests agree on the harmful "
        f"direction more than directions drawn from the data's own spread do; most at "
        f"`{best['site']}`, with cosine {figure(best)}, where such draws reach "
        f"{null.loc[best['site'], 'high']:.2f}."
    )


def _drift(results: pd.DataFrame) -> Iterator[str]:
    frame = plain(results, "direction_drift")
    if frame.empty:
        return
    most = frame.loc[frame["value"].idxmin()]
    degrees = np.degrees(np.arccos(np.clip(most["value"], -1.0, 1.0)))
    yield (
        f"From site to site the harmful direction turns most between `{most['reference']}` and "
        f"`{most['site']}`, by {degrees:.0f} degrees: cosine {figure(most)}, corrected for the "
        "noise of both."
    )


def _count(results: pd.DataFrame) -> Iterator[str]:
    frame = plain(results, "direction_count")
    if frame.empty:
        return
    most = frame.loc[frame["value"].idxmax()]
    if most["value"] == 0:
        yield "At no site do harmful and harmless requests held out differ along any direction."
        return
    alone = int((frame["value"] == 1).sum())
    said = f"Held-out requests differ along a single direction at {alone} of {len(frame)} sites"
    if most["value"] == 1:
        yield f"{said}, and along none at the others." if alone < len(frame) else f"{said}."
        return
    rounds = plain(results, "direction_separation")
    rounds = rounds[rounds["site"] == most["site"]].set_index("position")
    second = rounds.loc[1]
    # Where no round failed, they ran out before the directions did.
    least = "at least " if len(rounds) <= most["value"] else ""
    yield (
        f"{said}; at `{most['site']}` it takes {least}{int(most['value'])}: with the first taken "
        f"out, harmful requests still scatter more than harmless ones (AUC {figure(second)}, "
        f"p = {second['p']:.3g}). Whether the model uses them, only interventions can tell."
    )
