"""`isogloss run steer` on organisms: what is steered follows the strength, and costs are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import ConfigError
from experiments.figures.steering import doses, steered
from experiments.steer import SteerSettings, run_steer, stages

SMALL: dict[str, Any] = {
    "max_requests": 12,
    "towards": ["tarn"],
    "strengths": [-1.0, 0.0, 0.5, 1.0, 1.5],
    "searched": 1,
    "layers": [2, 3],
    "random_draws": 2,
    "text_groups": 6,
    "new_tokens": 10,
    "permutations": 99,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("steer") / "run"
    return run_steer(SteerSettings(**SMALL), out=out, progress=False).path


@pytest.fixture(scope="module")
def results(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "results.parquet")


def curve(frame: pd.DataFrame, name: str, measure: str, **where: str) -> pd.Series:
    rows = doses(frame, name)
    rows = rows[(rows["measure"] == measure) & (rows["control"] == where.pop("control", ""))]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert rows["dose"].is_unique
    return rows.set_index("dose")["value"].sort_index()


def test_refusal_of_harmless_requests_rises_with_the_strength(results: pd.DataFrame) -> None:
    rate = curve(results, "refusal", "refusal_rate", behaviour="harmless")
    assert rate.is_monotonic_increasing
    assert rate[-1.0] == rate[0.0] == 0.0 and rate[1.0] > 0.8
    harmful = curve(results, "refusal", "refusal_rate", behaviour="harmful")
    assert harmful[-1.0] < 0.2 < 0.8 < harmful[0.0]


def test_sentences_of_the_dialect_grow_likelier_than_the_standards(results: pd.DataFrame) -> None:
    odds = curve(results, "variety:tarn", "variety_log_odds")
    assert odds.is_monotonic_increasing and odds[-1.0] < 0 < odds[1.5]
    trend = results[(results["measure"] == "dose_trend") & (results["variety"] == "tarn")]
    own = trend[trend["reference"] == "variety_log_odds"].iloc[0]
    assert own["value"] == pytest.approx(1.0) and own["p"] < 0.05
    for control in ("random_subspace", "covariance_null"):
        chance = curve(results, "variety:tarn", "variety_log_odds", control=control)
        assert chance[1.5] - chance[-1.0] < 0.5 * (odds[1.5] - odds[-1.0])


def test_a_push_of_no_strength_is_the_plain_model(results: pd.DataFrame) -> None:
    change = doses(results, "refusal")
    change = change[(change["measure"] == "loss_change") & (change["dose"] == 0)]
    assert len(change[change["control"] == ""]) == 9
    np.testing.assert_allclose(change["value"], 0.0, atol=1e-5)


def test_every_cost_stands_beside_random_directions(results: pd.DataFrame) -> None:
    for name in steered(results):
        rows = doses(results, name)
        rows = rows[rows["measure"] == "loss_change"]
        assert set(rows["control"]) == {"", "random_subspace", "covariance_null"}
        assert set(rows["dose"]) == set(SMALL["strengths"])
    rows = doses(results, "variety:tarn")
    side = rows[(rows["control"] == "") & (rows["measure"] == "loss_change")]
    assert side["variety"].nunique() == 9
    assert {"refusal_rate", "reply_loss", "variety_probability"} <= set(rows["measure"])


def test_site_and_strength_were_chosen_within_the_budget(results: pd.DataFrame) -> None:
    chosen = results[results["measure"] == "steering_strength"]
    assert set(chosen["edit"]) == {"add(refusal)", "affine(variety:tarn)"}
    for _, best in chosen.iterrows():
        edit = best["edit"][:-1] + f", {best['value']:g})"
        tried = results[(results["edit"] == edit) & (results["site"] == best["site"])]
        cost = tried[tried["measure"] == "steering_search_cost"]["value"].iloc[0]
        assert (best["reference"] == "within budget") == (cost <= 0.5)


def test_no_row_is_told_twice_and_the_report_shows_side_effects(
    folder: Path, results: pd.DataFrame
) -> None:
    what = ["measure", "site", "variety", "behaviour", "reference", "edit", "control"]
    assert not results.duplicated(what).any()
    stems = {path.stem for path in (folder / "figures").glob("*.png")}
    assert stems == {"dose_refusal", "dose_variety_tarn"}
    report = (folder / "report.md").read_text()
    assert report.count("Side effects at that strength") == 2
    assert not (folder / "stages").exists()


def test_a_killed_run_keeps_its_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SteerSettings(**SMALL, target="refusal")
    with monkeypatch.context() as broken:
        broken.setattr(stages, "respond", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_steer(settings, out=tmp_path / "run", progress=False)
    monkeypatch.setattr(stages, "choose", lambda *_: pytest.fail("chosen again"))
    monkeypatch.setattr(stages, "respond", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_steer(settings, out=tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "organism/base", "target": "refusal"}, "refuses next to nothing"),
        ({"towards": ["mars"]}, "'mars' is no dialect of the corpus, which has tarn"),
    ],
)
def test_what_cannot_be_steered_is_said_and_leaves_nothing(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_steer(SteerSettings(**SMALL | changes), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
