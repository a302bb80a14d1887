"""A small results frame with every measure that the charts draw, and known figures."""

from __future__ import annotations

from itertools import combinations, combinations_with_replacement
from typing import Any

import numpy as np
import pandas as pd

VARIETIES = ["hill", "island", "river", "valley"]
STANDARD = "standard"
SITES = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(6))]
_BLANK: dict[str, Any] = {
    "measure": "",
    "site": "",
    "layer": -1,
    "position": -1,
    "variety": "",
    "reference": "",
    "behaviour": "",
    "edit": "",
    "control": "",
    "value": np.nan,
    "low": np.nan,
    "high": np.nan,
    "level": 0.95,
    "n": 0,
    "p": np.nan,
    "unit": "",
    "seed": -1,
}


def made_results() -> pd.DataFrame:
    """Seven depths, four varieties and a standard; the variety probe is best at block 3."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []

    def say(measure: str, value: float, spread: float = 0.04, **where: Any) -> None:
        low, high = (value - spread, value + spread) if spread else (np.nan, np.nan)
        told = {"measure": measure, "value": value, "low": low, "high": high, "n": 60}
        rows.append(_BLANK | told | where)

    for i, site in enumerate(SITES):
        at = {"site": site, "layer": max(i - 1, 0)}
        _probes(say, i, at)
        _overlaps(say, i, at, rng)
        if i:
            _geometry(say, i, at)
        say("direction_cosine", 0.1 * i, variety="refusal", reference="harmful", **at)
        _over_layers(say, i, at)
        for null, width in (("random_subspace", 0.1), ("covariance_null", 0.25)):
            say("direction_cosine", width, width * 0.9, control=null, **at)
            say("direction_subspace_cosine", width, width * 0.8, control=null, **at)
        for j, variety in enumerate(VARIETIES):
            figure = 0.15 + 0.06 * j + 0.03 * i
            say("direction_subspace_cosine", figure, variety=variety, reference="harmful", **at)
    for measure, chance in (("variety_probe_accuracy", 0.2), ("behaviour_probe_accuracy", 0.5)):
        say(measure, 0.62, control="text_ngrams")
        say(measure, chance, 0, control="chance")
    say("variety_probe_accuracy", 0.97, 0, control="bayes_ceiling")
    _causes(say, rng)
    _planted(say)
    _reliability(say)
    return pd.DataFrame(rows)


def _probes(say: Any, i: int, at: dict[str, Any]) -> None:
    say("variety_probe_accuracy", 0.9 - 0.12 * abs(i - 4), p=0.005, **at)
    say("variety_probe_accuracy", 0.21, 0.03, control="control_task", **at)
    say("behaviour_probe_accuracy", 0.55 + 0.06 * i, p=0.005, **at)
    say("behaviour_probe_accuracy", 0.5, 0.05, control="control_task", **at)


def _overlaps(say: Any, i: int, at: dict[str, Any], rng: np.random.Generator) -> None:
    for a, b in combinations_with_replacement(VARIETIES, 2):
        figure = 0.8 if a == b else 0.15 + 0.05 * i + 0.1 * rng.random()
        half = "split_half" if a == b else ""
        say("subspace_overlap", figure, variety=a, reference=b, control=half, **at)
    say("subspace_overlap", 0.06, 0.03, control="random_subspace", **at)
    say("subspace_overlap", 0.17, 0.06, control="covariance_null", **at)


def _geometry(say: Any, i: int, at: dict[str, Any]) -> None:
    """Hill and island lie together, river and valley too; far layers are less alike."""
    for a, b in combinations(VARIETIES, 2):
        near = (a, b) in (("hill", "island"), ("river", "valley"))
        pair = at | {"variety": a, "reference": b}
        say("variety_distance", 0.6 if near else 1.8, 0.1, **pair)
        for rank in range(3):
            angle = (5 if near else 40) * (rank + 1) / 3 + (10 * rank)
            say("principal_angle", angle, 0, position=rank, **pair)
    for variety in VARIETIES:
        told = {"variety": variety, "reference": variety, "control": "split_half"}
        say("variety_distance", 0.4, 0.1, **told, **at)
    for null, mean in (("random_subspace", 2.4), ("covariance_null", 1.5)):
        say("variety_distance", mean, 0.2, control=null, **at)
        for rank in range(3):
            say("principal_angle", mean * 10 * (rank + 1), 4, control=null, position=rank, **at)
    say("shared_dimensions", 1.0, 0.5, **at)
    say("participation_ratio", 3.0, 0.4, **at)
    say("intrinsic_dimension", 5.0, 0, **at)
    say("anisotropy", 0.6, 0.05, **at)
    for variety in VARIETIES:
        told = at | {"variety": variety, "reference": STANDARD}
        say("private_dimensions", 2.5, 0.3, **at, variety=variety)
        say("retrieval_accuracy", 0.1 * i, 0.05, **told)
        say("retrieval_accuracy", 0.04, 0.03, control="identity", **told)
    say("private_dimensions", 1.5, 0.4, control="covariance_null", **at)
    for clade in ("hill+island", "river+valley"):
        say("clade_support", 0.87, 0, reference=clade, **at)
    for plan, rho, p in (("planted_words", 0.9, 0.01), ("planted_structure", -0.2, 0.7)):
        say("tree_plan_correlation", rho, 0, reference=plan, p=p, **at)
    for j in range(i, len(SITES)):
        pair = at | {"reference": SITES[j]}
        say("cka", 1 - 0.1 * (j - i), 0 if i == j else 0.02, **pair)
        say(
            "cka",
            1 - 0.15 * (j - i),
            0 if i == j else 0.02,
            control="without_top_component",
            **pair,
        )
        say("cka", 0.3, 0.05, control="shuffled_groups", **pair)


def _planted(say: Any) -> None:
    """By words as in the states; by structure hill goes with river, and island with valley."""
    words = {("hill", "island"), ("river", "valley")}
    structure = {("hill", "river"), ("island", "valley")}
    for control, together in (("planted_words", words), ("planted_structure", structure)):
        for a, b in combinations(VARIETIES, 2):
            far = 0.0 if (a, b) in together else 1.0
            say("variety_distance", far, 0, variety=a, reference=b, control=control)
    for variety in VARIETIES:
        say("retrieval_accuracy", 1 / 60, 0, variety=variety, reference=STANDARD, control="chance")


def _reliability(say: Any) -> None:
    for question, site, shift in (("variety", SITES[4], 0.1), ("behaviour", SITES[2], -0.1)):
        at = {"site": site, "layer": SITES.index(site) - 1, "reference": question}
        for b, n in ((4, 2), (6, 20), (8, 40)):
            where = at | {"position": b, "n": n}
            say("reliability", b / 10 + 0.05 + shift, 0.05, **where)
            say("reliability_confidence", b / 10 + 0.05, 0.01, **where)
        say("calibration_error", 0.08, 0.02, p=0.01 if question == "variety" else 0.4, **at)
        say("calibration_error", 0.1, 0, control="uncorrected", **at)


def made_points() -> pd.DataFrame:
    """Two varieties and two kinds of request on directions of two sites, half of them held out.

    At block 1 the harmful direction is turned round.
    """
    rng = np.random.default_rng(1)
    rows = []
    for i in range(80):
        kind = ["", "", "harmful", "harmless"][i % 4]
        variety = VARIETIES[i // 4 % 2]
        rows.append(
            {
                "site": SITES[4],
                "layer": 3,
                "harmful": {"": 0.5, "harmful": 1.0, "harmless": 0.0}[kind] + 0.05 * rng.normal(),
                "variety_1": (variety == VARIETIES[1]) + 0.1 * rng.normal(),
                "variety": variety,
                "behaviour": kind,
                "group": f"g{i // 2}",
                "train": i % 8 < 4,
                "text": f"text {i} " + "that is rather long " * (i == 0) * 10,
            }
        )
    best = pd.DataFrame(rows).assign(shift_hill=lambda p: 2 * p["variety_1"] - 1)
    other = best.assign(site=SITES[2], layer=1, harmful=-best["harmful"], shift_hill=np.nan)
    return pd.concat([other, best], ignore_index=True)


def made_axes() -> pd.DataFrame:
    """The directions of `made_points`; of them the last is there at block 3 only."""
    told = {
        "harmful": ("harmful direction", "0: harmless mean, 1: harmful mean"),
        "variety_1": ("first variety direction", "0: mean of standard, 1: typical gap"),
        "shift_hill": ("mean shift of hill", "0: mean of standard, 1: mean of hill"),
    }
    return pd.DataFrame(
        {
            **{"site": site, "layer": layer, "axis": axis, "name": told[axis][0]},
            **{"scale": told[axis][1], "other": other, "cosine": 1.0 if axis == other else 0.04},
            "texts": 80,
        }
        for site, layer, axes in ((SITES[2], 1, list(told)[:2]), (SITES[4], 3, list(told)))
        for axis in axes
        for other in axes
    )


def _over_layers(say: Any, i: int, at: dict[str, Any]) -> None:
    """No direction at the embedding; from block 2 to block 3 it turns by a cosine of 0.5."""
    at = at | {"behaviour": "harmful"}
    own = 0.9 if i else 0.05
    say("direction_reliability", own, 0.04, p=0.01 if i else 0.6, **at)
    say("direction_reliability", 0.3, 0.3, control="covariance_null", **at)
    for j in range(i + 1, len(SITES)):
        figure = 0.02 if i == 0 else 0.42 if i < 4 <= j else 0.85
        pair = at | {"reference": SITES[j]}
        say("direction_layer_cosine", figure, p=0.02, **pair)
        say("direction_layer_cosine", 0.2, 0.2, control="covariance_null", **pair)
        say("direction_layer_cosine", 0.07, 0.07, control="random_subspace", **pair)
    if i > 1:
        say("direction_drift", 0.5 if i == 4 else 0.97, 0.02, reference=SITES[i - 1], **at)
    say("direction_count", [0, 1, 1, 1, 1, 2, 1][i], 0, **at)
    for removed in range([1, 2, 2, 2, 2, 3, 2][i]):
        p = 0.01 if removed < [0, 1, 1, 1, 1, 2, 1][i] else 0.4
        say("direction_separation", 0.9 - 0.2 * removed, position=removed, p=p, **at)


def _causes(say: Any, rng: np.random.Generator) -> None:
    for variety in (*VARIETIES, STANDARD):
        for removed in VARIETIES:
            figure = 0.6 if variety == removed else -0.05 if variety == STANDARD else 0.08
            say("loss_change", figure, 0.02, variety=variety, edit=f"ablate(variety:{removed})")
        where = {"variety": variety, "edit": "ablate(variety:random)"}
        say("loss_change", 0.01, 0.02, control="random_subspace", **where)
    for edit, chance, harmful, harmless in (
        ("", "", 0.95, 0.05),
        ("ablate(refusal)", "", 0.1, 0.04),
        ("ablate_to_zero(refusal)", "", 0.2, 0.04),
        ("add(refusal)", "", 0.99, 0.9),
        ("ablate(refusal)", "random_subspace", 0.93, 0.05),
        ("add(refusal)", "random_subspace", 0.94, 0.08),
    ):
        where = {"edit": edit, "control": chance}
        say("refusal_rate", harmful, 0.01, behaviour="harmful", **where)
        say("refusal_rate", harmless, 0.04, behaviour="harmless", **where)
    for variety in VARIETIES:
        for layer in range(6):
            for position in range(10):
                figure = layer / 5 if position == 0 else (1 - layer / 5) * 0.7 * (position == 4)
                say(
                    "recovered_fraction",
                    figure + 0.06 * rng.standard_normal(),
                    site=f"blocks.{layer}.hook_resid_post",
                    layer=layer,
                    position=position,
                    variety=variety,
                    reference=STANDARD,
                    edit=f"patch({STANDARD}→{variety})",
                )
