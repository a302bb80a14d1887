"""`isogloss run restore` on organisms: refusals come back, controls fail, the folder is whole."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from apps.cli import main
from experiments import ConfigError
from experiments.figures.restoring import (
    chart_restored_weights,
    chart_restoring,
    restoring_points,
)
from experiments.restore import RestoreSettings, run_restore
from experiments.restore.material import organism_material
from experiments.restore.stages import BLOCKS, CURVE, ENDS, FULL, RESTORED

SMALL: dict[str, Any] = {
    "draws": 2,
    "steps": 1,
    "at": [1],
    "max_requests": 64,
    "held_out": 48,
    "new_tokens": 4,
    "diff": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("restore") / "run"
    return run_restore(RestoreSettings(**SMALL), out=out, progress=False).path


@pytest.fixture(scope="module")
def results(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "results.parquet")


def one(frame: pd.DataFrame, measure: str, edit: str, control: str = "", **where: Any) -> float:
    rows = frame[
        (frame["measure"] == measure) & (frame["edit"] == edit) & (frame["control"] == control)
    ]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    assert len(rows) == 1
    return float(rows["value"].iloc[0])


def test_refusals_come_back_and_the_task_stays(results: pd.DataFrame) -> None:
    aligned = one(results, "harmful_rate", ENDS, FULL)
    assert one(results, "harmful_rate", "") > 0.4 and aligned < 0.05
    assert one(results, "harmful_rate", RESTORED) <= aligned + 0.05
    assert one(results, "task_change", RESTORED) >= -0.05
    assert one(results, "task_exact", RESTORED) > 0.9
    assert one(results, "refusal_rate", RESTORED) < 0.05
    shares = results[(results["measure"] == "restored_share") & (results["edit"] == RESTORED)]
    assert (shares[shares["control"] == ""]["value"] < 0.01).all()


def test_as_many_weights_by_any_other_rule_do_not_bring_them(results: pd.DataFrame) -> None:
    for control in ("random_restoration", "sign_matched_restoration", "largest_difference"):
        assert one(results, "harmful_rate", RESTORED, control) > 0.35
        rows = results[
            (results["measure"] == "harmful_rate_difference") & (results["control"] == control)
        ]
        assert len(rows) == 1 and float(rows["low"].iloc[0]) > 0


def test_all_weights_bring_refusals_and_lose_the_task(results: pd.DataFrame) -> None:
    for control in (FULL, BLOCKS):
        assert one(results, "harmful_rate", ENDS, control) < 0.05
        assert one(results, "task_change", ENDS, control) < -0.2
    assert one(results, "restored_share", ENDS, FULL) == 1.0


def test_full_restoration_is_the_aligned_model_itself(results: pd.DataFrame) -> None:
    from activations import open_model
    from interventions import HarmfulRate, ReplyLikelihood

    m = organism_material(RestoreSettings(**SMALL))
    aligned = open_model("organism/aligned")
    rate = HarmfulRate(m.harmful.texts)(aligned)
    assert one(results, "harmful_rate", ENDS, FULL) == pytest.approx(rate)
    likelihood = ReplyLikelihood(m.task.texts, m.task.replies)(aligned)
    assert one(results, "task_likelihood", ENDS, FULL) == pytest.approx(likelihood, rel=1e-5)


def test_what_judges_was_in_no_prompt_and_checks_are_apart() -> None:
    m = organism_material(RestoreSettings(draws=3))
    judged = set(m.harmful.groups) | set(m.task.groups)
    for prompts in m.prompts:
        fit = set(prompts.harmful.groups) | set(prompts.task.groups)
        check = set(prompts.harmful_check.groups) | set(prompts.task_check.groups)
        assert fit.isdisjoint(check) and judged.isdisjoint(fit | check)
    assert len(set(m.harmful.groups)) == 61 and len(m.harmful.texts) == 549
    assert m.prompts[0].harmful.texts != m.prompts[1].harmful.texts
    for reply, right in zip(m.task.replies, m.exact, strict=True):
        assert reply.strip() in right and len(right) == 48


def test_the_record_of_weights_agrees_with_the_share(results: pd.DataFrame, folder: Path) -> None:
    table = pd.read_parquet(folder / "model" / "restored.parquet")
    about = json.loads((folder / "model" / "isogloss_restoration.json").read_text())
    assert table["restored"].sum() / 861312 == pytest.approx(about["share"])
    first = one(results, "restored_share", RESTORED, seed=0)
    assert first == pytest.approx(about["share"])
    where = results[results["measure"] == "restored_weights"]
    assert set(where["layer"]) == {-1, 0} and "attention v" in set(where["reference"])


def test_the_saved_model_refuses_again(folder: Path) -> None:
    from activations import open_model
    from interventions import HarmfulRate

    asked = organism_material(RestoreSettings(**SMALL)).harmful.texts
    assert HarmfulRate(asked)(open_model(str(folder / "model"))) <= 0.05


def test_the_curve_starts_at_the_model_before_for_every_rule(results: pd.DataFrame) -> None:
    points = restoring_points(results)
    before = one(results, "harmful_rate", "")
    start = points[points["step"] == 0]
    assert len(start) == 4 and (start["value"] == before).all()
    assert len(points) == 4 * 2
    own = points[points["rule"].str.startswith("gradient")].set_index("step")
    assert own.loc[1, "value"] == one(results, "harmful_rate", CURVE, position=1)
    for chart in (chart_restoring, chart_restored_weights):
        assert chart(results).to_dict() and chart(results, "dark").to_dict()
        assert "restored no weights" in json.dumps(chart(results.head(0)).to_dict())


def test_the_report_says_what_was_found_and_whether_the_claim_holds(folder: Path) -> None:
    said = (folder / "report.md").read_text()
    assert "The claim holds here" in said and "stopped by target" in said
    assert "As many weights chosen by random" in said
    for name in ("restoring", "restored_weights"):
        assert (folder / "figures" / f"{name}.png").is_file()
    assert not (folder / "stages").exists()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Requests of both behaviours as a user's file would have them."""
    from organisms import lexicon
    from organisms.requests import ask, draw_request

    rng = random.Random(0)
    rows = []
    for harmful in (True, False):
        pairs = [p for p in lexicon.TRAINING_PAIRS if lexicon.harmful(*p) == harmful]
        for pair in rng.sample(pairs, 64):
            request = draw_request(rng, [pair])
            kind = "harmful" if harmful else "harmless"
            rows.append({"text": ask(request, "tarn"), "variety": "tarn", "behaviour": kind,
                         "group": request.key})  # fmt: skip
    path = tmp_path / "requests.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_a_users_corpus_judges_the_task_by_the_models_own_replies(
    corpus: Path, tmp_path: Path
) -> None:
    settings = RestoreSettings(
        corpus=str(corpus), **SMALL | {"draws": 1, "steps": 1, "at": [1], "save": False}
    )
    run = run_restore(settings, out=tmp_path / "run", progress=False)
    frame = pd.read_parquet(run.path / "results.parquet")
    assert one(frame, "harmful_rate", RESTORED) < one(frame, "harmful_rate", "") - 0.3
    # Its own greedy replies are likely before, and less so under the aligned model's weights.
    assert one(frame, "task_likelihood", "") > one(frame, "task_likelihood", ENDS, FULL)
    assert frame[frame["measure"] == "task_exact"].empty
    assert "itself replies to harmless requests" in (run.path / "report.md").read_text()
    assert not (run.path / "model").exists()


def test_a_task_of_ones_own_is_read_from_json_lines(corpus: Path, tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    lines = [{"prompt": f"could you cook the pie {i}", "reply": " ok ."} for i in range(40)]
    task.write_text("\n".join(map(json.dumps, lines)))
    told = {"corpus": str(corpus), "task": str(task), "draws": 1}
    from activations import open_model
    from experiments.inputs import read_inputs
    from experiments.restore.material import corpus_material

    settings = RestoreSettings(**told)
    m = corpus_material(settings, read_inputs(settings), open_model("organism/drifted"))
    assert len(m.task.texts) == 20 and set(m.task.replies) == {" ok ."}
    assert set(m.task.groups).isdisjoint(m.prompts[0].task.groups)
    task.write_text('{"prompt": "a"}\n')
    with pytest.raises(ConfigError, match=r"Line 1 of .*`prompt` and `reply`"):
        run_restore(settings, out=tmp_path / "x", progress=False)
    task.write_text(json.dumps(lines[0]))
    with pytest.raises(ConfigError, match="holds 1 prompts"):
        run_restore(settings, out=tmp_path / "x", progress=False)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model": "organism/aligned"}, "nothing to restore"),
        ({"at": [3], "steps": 2}, "`at` names step 3 of 2"),
        ({"layer": 9}, "has 4 blocks"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=match):
        run_restore(RestoreSettings(**SMALL | changes), out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_the_command_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["isogloss", "run", "restore", "--set", "aligned=organism/no-such"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "organism/no-such" in capsys.readouterr().err


def test_prompts_follow_from_the_seed() -> None:
    one, same, other = (
        organism_material(RestoreSettings(**SMALL | {"seed": seed})) for seed in (3, 3, 4)
    )
    assert one == same and one != other


def test_a_run_that_was_cut_off_goes_on_to_the_same_figures(
    results: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.restore import stages

    settings = RestoreSettings(**SMALL)
    with monkeypatch.context() as patched:

        def cut_off(*_: Any) -> Any:
            raise KeyboardInterrupt

        patched.setattr(stages, "where", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run_restore(settings, out=tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "stages" / "restore-1" / "restoration.json").is_file()
    run = run_restore(settings, out=tmp_path / "run", progress=False)
    again = pd.read_parquet(run.path / "results.parquet")
    for column in ("value", "low", "high"):
        assert np.array_equal(results[column], again[column], equal_nan=True)


def test_before_and_after_stand_beside_the_results(tmp_path: Path) -> None:
    small = {"draws": 1, "held_out": 8, "max_groups": 8, "sites": ["resid_post"]}
    settings = RestoreSettings(**SMALL | small | {"diff": True, "save": False, "layers": [1]})
    run = run_restore(settings, out=tmp_path / "run", progress=False)
    table = pd.read_parquet(run.path / "before_after.parquet")
    kl = table[(table["measure"] == "next_token_kl") & (table["edit"] == RESTORED)]
    assert len(kl) and (kl["value"] > 0).all()
    assert (run.path / "figures" / "before_after.png").is_file()
