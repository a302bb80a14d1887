"""`isogloss run decouple`: on the plant it gains and its controls do not; on organisms it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from activations import SiteError
from apps.cli import app
from experiments import ConfigError
from experiments.decouple import DecoupleSettings, cells, run_decouple
from experiments.decouple.planted import ENTANGLED, SETTINGS, STANDARD, Planted, make_entangled
from experiments.decouple.summary import verdict

SMALL: dict[str, Any] = {
    "dialects": ["tarn"],
    "seeds": 2,
    "forms": ["projection"],
    "controls": [],
    "l2": False,
    "train_texts": 8,
    "steps": 2,
    "batch": 4,
    "layers": [2],
    "reference_groups": 1,
    "test_groups": 4,
    "generated": 2,
    "new_tokens": 4,
}


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return make_entangled(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def planted(plant: Planted, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    settings = DecoupleSettings(
        **SETTINGS | {"layers": [0]},  # the blocks after it write nothing
        model=str(plant.folder),
        corpus=str(plant.corpus),
        standard=STANDARD,
        dialects=[ENTANGLED],
        seeds=5,
        forms=["penalty"],
        # Labels dealt at random within a group still find u, the one thing its members differ in.
        controls=["random", "covariance", "top_component"],
    )
    out = tmp_path_factory.mktemp("run") / "planted"
    run = run_decouple(settings, out=out, progress=False)
    assert "Decoupling helps heath here" in (run.path / "report.md").read_text()
    return pd.read_parquet(run.path / "results.parquet")


@pytest.mark.slow
def test_the_plant_is_cured_and_controls_of_equal_energy_do_not_cure_it(
    planted: pd.DataFrame,
) -> None:
    change = planted[planted["measure"] == "dialect_loss_change"].set_index("control")
    own = change.loc[""]
    assert own["high"] < 0 and own["value"] < -0.25 and own["p"] < 0.05
    assert verdict(planted, ENTANGLED, own["edit"]) == "gain"
    rivals = change.drop(index="")
    assert len(rivals) == 4
    assert (rivals["value"] > own["value"] / 3).all()
    assert (rivals["high"] > 0).all()


@pytest.mark.slow
def test_plain_fine_tuning_settles_where_the_contamination_says(planted: pd.DataFrame) -> None:
    plain = planted[(planted["measure"] == "dialect_loss") & (planted["edit"] == "tune")]
    floor = (np.log(12) + 7 * np.log(2)) / 8
    wanted = floor - np.log(1 - SETTINGS["contamination"])
    assert plain["value"].mean() == pytest.approx(wanted, abs=0.25)


def test_two_varieties_told_nothing_need_no_tag(tmp_path: Path) -> None:
    words = ["gate", "lamp", "horse", "wall", "bell", "cart", "roof", "field", "barn", "well"]
    rows = [
        {"text": text.format(word), "variety": variety, "group": word}
        for word in words
        for variety, text in (("plain", "the boy saw the {}"), ("local", "the lad seen the {}"))
    ]
    corpus = tmp_path / "corpus.csv"
    pd.DataFrame(rows).to_csv(corpus, index=False)
    out = tmp_path / "run"
    told = {**SMALL, "dialects": [], "generated": 0, "corpus": str(corpus), "standard": "plain"}
    run_decouple(DecoupleSettings(**told), out=out, progress=False)
    assert "no tag for each variety" in (out / "report.md").read_text()


def test_the_command_writes_rows_figures_and_a_report(tmp_path: Path) -> None:
    out = tmp_path / "run"
    told = [f"{k}={v!r}".replace("'", '"').replace("False", "false") for k, v in SMALL.items()]
    sets = [part for one in told for part in ("--set", one)]
    done = CliRunner().invoke(app, ["run", "decouple", "--out", str(out), "--quiet", *sets])
    assert done.exit_code == 0, done.output
    results = pd.read_parquet(out / "results.parquet")
    assert {"dialect_loss", "standard_loss", "chrf", "bleu"} <= set(results["measure"])
    what = ["measure", "site", "position", "variety", "edit", "control", "seed", "reference"]
    assert not results.duplicated(what).any()
    change = results[results["measure"] == "dialect_loss_change"]
    assert list(change["n"]) == [2]
    by_layer = results[results["measure"] == "variety_standard_overlap"]
    assert set(by_layer["layer"]) == {2} and by_layer["value"].between(0, 1).all()
    assert {p.stem for p in (out / "figures").glob("*.png")} == {"gain", "pareto"}
    report = (out / "report.md").read_text()
    assert "Would have counted as failure" in report and "n counts seeds" in report


def test_a_killed_run_loses_one_fine_tune_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DecoupleSettings(**SMALL)
    whole = run_decouple(settings, out=tmp_path / "whole", progress=False)
    real, done = cells.fine_tuned, []

    def dies(*told: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(told)
        return real(*told)

    monkeypatch.setattr(cells, "fine_tuned", dies)
    with pytest.raises(KeyboardInterrupt):
        run_decouple(settings, out=tmp_path / "killed", progress=False)
    again: list[Any] = []
    monkeypatch.setattr(cells, "fine_tuned", lambda *t: again.append(t) or real(*t))
    resumed = run_decouple(settings, out=tmp_path / "killed", progress=False)
    assert len(done) == 2 and len(again) == 2
    pd.testing.assert_frame_equal(
        *(pd.read_parquet(r.path / "results.parquet") for r in (whole, resumed))
    )


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"dialects": ["nowhere"]}, "dialects names 'nowhere'; the corpus has"),
        ({"layers": [7]}, "There is no layer 7"),
        ({"trained_blocks": [4]}, "trained_blocks names block 4"),
        ({"forms": []}, "forms is empty"),
        ({"aliased": True, "trained_blocks": [0]}, "aliased sets a tag's embedding"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(
    tmp_path: Path, told: dict[str, Any], said: str
) -> None:
    with pytest.raises((ConfigError, SiteError), match=said):
        run_decouple(DecoupleSettings(**SMALL | told), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
