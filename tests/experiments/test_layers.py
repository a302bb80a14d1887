"""The harmful direction over depth: rows from planted states, and the sentences about them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import CompareSettings
from experiments.compare.layer_findings import sentences
from experiments.compare.layers import over_layers
from experiments.results import as_frame

from . import made_results

SITES = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(4))]
N, D = 40, 20


def measured(*, groups: np.ndarray | None = None, others: tuple[str, ...] = ()) -> pd.DataFrame:
    """Rows of 4 blocks: noise; one direction; the same turned by 60°; that and a second one.

    The embedding is the same token's for all. Of 160 requests the first half are harmful, and
    even ones are for training.
    """
    rng = np.random.default_rng(0)
    states: dict[str, np.ndarray] = {SITES[0]: np.ones((4 * N, D))}
    harmful = np.arange(4 * N) < 2 * N
    axes = np.eye(D)
    turned = np.cos(np.pi / 3) * axes[0] + np.sin(np.pi / 3) * axes[1]
    shift = {2: 4 * axes[0], 3: 4 * turned, 4: 4 * turned}
    for i in range(1, 5):
        x = rng.standard_normal((4 * N, D))
        x[harmful] += shift.get(i, 0 * axes[0])
        if i == 4:
            x[harmful] += 4 * rng.standard_normal((2 * N, 1)) * axes[2]
        states[SITES[i]] = x
    for site in others:
        states[site] = states[SITES[2]] + rng.standard_normal((4 * N, D))
    names = np.arange(4 * N).astype(str) if groups is None else groups
    bench: Any = SimpleNamespace(
        sites=[*SITES, *others],
        states=states.__getitem__,
        settings=CompareSettings(bootstrap_draws=40, permutations=199),
        model=SimpleNamespace(embedding_site=SITES[0]),
        inputs=SimpleNamespace(corpus=SimpleNamespace(frame=pd.DataFrame({"group": names}))),
    )
    rows = [np.flatnonzero(harmful), np.flatnonzero(~harmful)]
    train, test = ((rows[0][s::2], rows[1][s::2]) for s in (0, 1))
    return as_frame(over_layers(bench, train, test))


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return measured()


def value(frame: pd.DataFrame, measure: str, **where: Any) -> pd.Series:
    chosen = frame["measure"] == measure
    for column, wanted in ({"control": ""} | where).items():
        chosen &= frame[column] == wanted
    return frame[chosen].set_index("site")["value"]


def test_a_site_where_nothing_differs_has_no_rows(frame: pd.DataFrame) -> None:
    assert set(frame["site"]) == set(SITES[1:])


def test_planted_counts_are_found_and_stand_on_corrected_p(frame: pd.DataFrame) -> None:
    counts = value(frame, "direction_count")
    assert counts.to_dict() == dict(zip(SITES[1:], [0, 1, 1, 2], strict=True))
    rounds = frame[(frame["measure"] == "direction_separation") & (frame["control"] == "")]
    for site, count in counts.items():
        here = rounds[rounds["site"] == site].sort_values("position")
        assert (here["p"].to_numpy()[: int(count)] <= 0.05).all()
        assert (here["p"].to_numpy()[int(count) :] > 0.05).all()


def test_the_planted_turn_is_the_drift_and_noise_has_none(frame: pd.DataFrame) -> None:
    drift = value(frame, "direction_drift")
    assert set(drift.index) == set(SITES[3:])
    assert drift[SITES[3]] == pytest.approx(0.5, abs=0.12)
    assert drift[SITES[4]] == pytest.approx(1.0, abs=0.08)


def test_every_figure_stands_beside_its_nulls_and_pairs_come_once(frame: pd.DataFrame) -> None:
    keys = ["measure", "site", "reference", "position", "control"]
    assert not frame.duplicated(keys).any()
    assert len(value(frame, "direction_layer_cosine")) == 6
    for measure in ("direction_reliability", "direction_layer_cosine", "direction_drift"):
        own = len(value(frame, measure))
        for control in ("random_subspace", "covariance_null"):
            assert len(value(frame, measure, control=control)) == own
    null = frame[frame["control"] == "shuffled_labels"]
    assert len(null) == len(value(frame, "direction_separation"))
    assert (null["low"] < 0.5).all() and (null["high"] > 0.5).all()
    reliability = value(frame, "direction_reliability")
    assert reliability[SITES[1]] < 0.3 < 0.6 < reliability[SITES[2]]


def test_sites_of_another_kind_are_no_step_of_the_stream() -> None:
    other = ("blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out")
    drift = measured(others=other)
    drift = drift[(drift["measure"] == "direction_drift") & (drift["control"] == "")]
    for pair in drift[["site", "reference"]].itertuples():
        assert pair.site.split("_")[-1] == pair.reference.split("_")[-1]
    assert other[1] in set(drift["site"])


def test_requests_that_all_belong_to_one_group_give_no_rows_and_no_error() -> None:
    assert measured(groups=np.array(["harmful"] * 80 + ["harmless"] * 80)).empty


def test_sentences_name_the_turn_the_second_direction_and_their_nulls() -> None:
    said = " ".join(sentences(made_results.made_results()))
    assert "At 6 of 7 sites" in said and "such draws reach 0.60" in said
    assert "by 60 degrees: cosine 0.50 [0.48, 0.52]" in said
    assert "single direction at 5 of 7 sites; at `blocks.4.hook_resid_post` it takes 2" in said
    assert "AUC 0.70 [0.66, 0.74], p = 0.01" in said


def test_a_count_that_no_failed_round_ends_is_said_to_be_a_least_one() -> None:
    frame = made_results.made_results()
    failed = (frame["measure"] == "direction_separation") & (frame["p"] > 0.05)
    assert "it takes 2:" in " ".join(sentences(frame))
    assert "it takes at least 2:" in " ".join(sentences(frame[~failed]))


def test_without_rows_nothing_is_said() -> None:
    assert sentences(made_results.made_results().head(0)) == []
