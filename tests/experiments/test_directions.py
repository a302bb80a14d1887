"""`isogloss run directions` on an organism that was tuned to refuse, and on one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import ConfigError
from experiments.directions import DirectionsSettings, run_directions, stages

SMALL: dict[str, Any] = {
    "max_requests": 24,
    "random_draws": 4,
    "reply_draws": 1,
    "cone_draws": 6,
    "permutations": 20,
    "bootstrap_draws": 20,
    "new_tokens": 8,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("directions") / "run"
    settings = DirectionsSettings(**SMALL, other="organism/drifted")
    return run_directions(settings, out=out, progress=False).path


@pytest.fixture(scope="module")
def results(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "results.parquet")


def one(frame: pd.DataFrame, measure: str, **where: Any) -> pd.Series:
    chosen = frame["measure"] == measure
    for column, value in ({"control": ""} | where).items():
        chosen &= frame[column] == value
    assert chosen.sum() == 1, (measure, where)
    return frame[chosen].iloc[0]


def test_every_place_is_scored_and_the_lowest_bypass_is_chosen(results: pd.DataFrame) -> None:
    fate = results[results["measure"] == "candidate_discarded"].set_index("layer")["reference"]
    assert set(fate.index) == {0, 1, 2, 3}
    assert fate[0] == "no difference"  # all requests end in one and the same token
    assert fate[3] == "too late"
    scores = results[results["measure"] == "bypass_score"].set_index("layer")["value"]
    chosen = one(results, "chosen_direction")
    eligible = fate[fate == ""].index if (fate == "").any() else [1, 2]
    assert chosen["layer"] == scores[list(eligible)].idxmin()
    assert chosen["value"] == float((fate == "").any())


def test_refusal_hangs_on_the_direction_and_on_no_random_one(results: pd.DataFrame) -> None:
    told = {"behaviour": "harmful"}
    assert one(results, "refusal_rate", edit="", **told)["value"] == 1.0
    assert one(results, "refusal_rate", edit="ablate(refusal)", **told)["value"] == 0.0
    for control in ("random_subspace", "covariance_null"):
        chance = one(results, "refusal_rate", edit="ablate(refusal)", control=control, **told)
        assert chance["value"] > 0.9
    score = one(results, "refusal_score", edit="ablate(refusal)", **told)
    assert score["p"] == pytest.approx(1 / 5)  # the least that four draws can give
    added = one(results, "refusal_score", edit="add(refusal)", behaviour="harmless")
    assert added["low"] > 0 > one(results, "refusal_score", edit="", behaviour="harmless")["high"]


def test_the_first_axis_of_the_cone_is_the_direction_itself(results: pd.DataFrame) -> None:
    """Up to the requests that it is estimated from: those of validation are in it as well."""
    axis = one(results, "cone_score", control="basis", position=0)
    ablated = one(results, "refusal_score", edit="ablate(refusal)", behaviour="harmful")
    assert axis["value"] == pytest.approx(ablated["value"], abs=1.0)
    samples = results[(results["measure"] == "cone_score") & (results["control"] == "")]
    share = one(results, "cone_share")
    assert share["value"] == pytest.approx(np.mean(samples["value"] < 0))
    assert share["n"] == len(samples) == 6


def test_drifted_keeps_the_direction_but_not_all_of_the_refusal(results: pd.DataFrame) -> None:
    cosine = one(results, "model_direction_cosine", layer=3, position=0)
    null = one(results, "model_direction_cosine", layer=3, position=0, control="random_subspace")
    assert cosine["value"] > 0.8 > null["high"]
    lost = one(results, "transfer_refusal_rate", variety="organism/drifted", reference="")
    assert lost["value"] < 0.9
    other = {"variety": "organism/aligned", "reference": "organism/drifted"}
    assert one(results, "transfer_refusal_rate", **other)["value"] == 0.0


def test_the_run_directory_is_whole(folder: Path) -> None:
    stems = {path.stem for path in (folder / "figures").glob("*.png")}
    assert stems == {"selection", "held_out", "cone", "models"}
    assert not (folder / "stages").exists()
    report = (folder / "report.md").read_text()
    assert "With the direction ablated, the model refuses 0.00" in report


def test_a_killed_run_keeps_its_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DirectionsSettings(**SMALL)
    with monkeypatch.context() as broken:
        broken.setattr(stages, "verify", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_directions(settings, out=tmp_path / "run", progress=False)
    monkeypatch.setattr(stages, "select", lambda *_: pytest.fail("selected again"))
    monkeypatch.setattr(stages, "verify", lambda *_: iter([]))
    monkeypatch.setattr(stages, "cone", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_directions(settings, out=tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "organism/base"}, "organism/base refuses none of 48 requests"),
        ({"model": "organism/base", "refusal_tokens": [" the"]}, "takes the wrong way"),
    ],
)
def test_a_model_without_refusal_is_said_and_leaves_nothing(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = DirectionsSettings(**SMALL | changes)
    with pytest.raises(ConfigError, match=message):
        run_directions(settings, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
