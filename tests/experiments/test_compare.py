"""What the main job promises on an organism, whose grammar says what is there to be found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments import CompareSettings, run_compare

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
EMBEDDING = "blocks.0.hook_resid_pre"

#: Cut down for speed only: fewer draws and controls, never other questions.
QUICK: dict[str, Any] = {
    "control_draws": 1,
    "permutations": 20,
    "null_draws": 200,
    "split_draws": 6,
    "bootstrap_draws": 20,
    "ablation_controls": 2,
    "loss_groups": 16,
    "patch_pairs": 1,
    "patch_positions": 8,
}
#: For the killed run only its course counts: less of everything but texts, which fill two shards.
TINY: dict[str, Any] = QUICK | {
    "layers": [3],
    "folds": 2,
    "null_draws": 50,
    "split_draws": 2,
    "ablation_controls": 1,
    "loss_groups": 4,
    "max_requests": 32,
    "add_scales": [0.6],
    "new_tokens": 8,
    "patch_positions": 4,
    "patch_layers": 1,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pd.DataFrame]:
    """One run on the aligned organism, all of it below a folder of its own."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run = run_compare(CompareSettings(**QUICK), progress=False)
        yield pd.read_parquet(run.path / "results.parquet")


def rows(frame: pd.DataFrame, measure: str, **where: Any) -> pd.DataFrame:
    """The rows of one measure; those that are no control, where nothing else is said."""
    chosen = frame["measure"] == measure
    for column, value in ({"control": ""} | where).items():
        chosen &= frame[column] == value
    found = frame[chosen]
    assert len(found), (measure, where)
    return found


def only(frame: pd.DataFrame, measure: str, **where: Any) -> float:
    found = rows(frame, measure, **where)
    assert len(found) == 1
    return float(found["value"].iloc[0])


def test_variety_is_read_nearly_as_well_as_any_reader_could(results: pd.DataFrame) -> None:
    ceiling = only(results, "variety_probe_accuracy", control="bayes_ceiling")
    assert 0.9 <= ceiling <= 1.0
    assert rows(results, "variety_probe_accuracy")["value"].max() >= 0.95 * ceiling


@pytest.mark.parametrize("measure", ["variety_probe_accuracy", "behaviour_probe_accuracy"])
def test_embedding_of_the_last_token_knows_nothing(results: pd.DataFrame, measure: str) -> None:
    chance = only(results, measure, control="chance")
    assert only(results, measure, site=EMBEDDING) == pytest.approx(chance, abs=1e-12)


def test_accuracy_rises_from_the_embedding_on(results: pd.DataFrame) -> None:
    at = rows(results, "variety_probe_accuracy")
    embedding = float(at.loc[at["site"] == EMBEDDING, "value"].iloc[0])
    blocks = at[at["site"] != EMBEDDING].sort_values("layer")["value"].to_numpy()
    assert (blocks > embedding + 0.2).all()
    assert blocks.max() > blocks[0]


def test_control_task_stays_at_chance(results: pd.DataFrame) -> None:
    """Labels drawn at random are learned by heart or not at all, never in held-out groups."""
    chance = only(results, "variety_probe_accuracy", control="chance")
    control = rows(results, "variety_probe_accuracy", control="control_task")["value"]
    assert np.abs(control - chance).max() <= 0.06


@pytest.mark.parametrize("measure", ["variety_probe_accuracy", "behaviour_probe_accuracy"])
def test_nothing_but_context_tells_the_varieties_apart_at_the_token_that_is_read(
    results: pd.DataFrame, measure: str
) -> None:
    """All texts of a question end in the same token; random weights still mix in what precedes."""
    chance = only(results, measure, control="chance")
    for control in ("majority", "read_token"):
        assert only(results, measure, control=control) == pytest.approx(chance, abs=1e-12)
    random = rows(results, measure, control="random_model").set_index("site")["value"]
    trained = rows(results, measure).set_index("site")["value"]
    assert set(random.index) == set(trained.index)
    assert random[EMBEDDING] == pytest.approx(chance, abs=1e-12)
    assert chance + 0.05 < random.max() < trained.max()


@pytest.mark.parametrize("measure", ["variety_probe_accuracy", "behaviour_probe_accuracy"])
def test_every_accuracy_has_a_control_and_an_interval(results: pd.DataFrame, measure: str) -> None:
    found = rows(results, measure)
    assert set(found["site"]) == set(rows(results, measure, control="control_task")["site"])
    assert len(found) == found["site"].nunique() == 5
    assert (found["low"] <= found["value"]).all() and (found["value"] <= found["high"]).all()
    assert (found["n"] > 1).all()


def test_overlap_follows_the_planted_similarity(results: pd.DataFrame) -> None:
    found = rows(results, "overlap_plan_correlation", reference="planted_similarity")
    best = found.loc[found["value"].idxmax()]
    assert best["value"] > 0.3
    # Bonferroni over the sites: picking the best of them must not make the finding.
    assert best["p"] * len(found) < 0.05


def test_every_overlap_stands_beside_both_nulls(results: pd.DataFrame) -> None:
    sites = set(rows(results, "subspace_overlap")["site"])
    assert len(sites) == 4
    for control in ("random_subspace", "covariance_null"):
        assert set(rows(results, "subspace_overlap", control=control)["site"]) == sites


def test_the_tree_of_varieties_follows_the_planted_structure_and_not_the_words(
    results: pd.DataFrame,
) -> None:
    """At a token that all varieties spell alike, whose words are not to be seen there."""
    plans = ("planted_structure", "planted_words")
    by = {p: rows(results, "tree_plan_correlation", reference=p) for p in plans}
    assert by["planted_structure"]["value"].max() > 0.5
    assert by["planted_structure"]["p"].min() < 0.05 < by["planted_words"]["p"].min()
    for plan in plans:
        assert len(rows(results, "variety_distance", control=plan)) == 28


def test_every_block_has_its_geometry_and_every_two_their_cka(results: pd.DataFrame) -> None:
    blocks = set(results["site"]) - {"", EMBEDDING}
    for measure in ("participation_ratio", "intrinsic_dimension", "anisotropy", "variety_distance"):
        assert set(rows(results, measure)["site"]) == blocks
    pairs = rows(results, "cka")
    assert len(pairs) == len(blocks) * (len(blocks) + 1) // 2
    same = pairs[pairs["site"] == pairs["reference"]]
    np.testing.assert_allclose(same["value"], 1.0)
    assert pairs["value"].between(-1, 1).all()
    null = rows(results, "cka", control="shuffled_groups")
    assert len(null) == len(pairs)


def test_angles_stand_beside_both_nulls_at_every_position(results: pd.DataFrame) -> None:
    found = rows(results, "principal_angle")
    for control in ("random_subspace", "covariance_null"):
        null = rows(results, "principal_angle", control=control)
        places = [set(zip(part["site"], part["position"], strict=True)) for part in (found, null)]
        assert places[0] == places[1] and len(null) == len(places[1])


def test_parallel_sentences_are_found_more_often_than_by_chance(results: pd.DataFrame) -> None:
    found = rows(results, "retrieval_accuracy").groupby("site")["value"].mean()
    chance = rows(results, "retrieval_accuracy", control="chance")["value"]
    assert found.max() > 3 * chance.max()


def test_a_probe_that_is_hardly_ever_wrong_is_not_too_sure(results: pd.DataFrame) -> None:
    seen = rows(results, "reliability", reference="variety").set_index("position")
    claimed = rows(results, "reliability_confidence", reference="variety").set_index("position")
    assert set(seen.index) == set(claimed.index)
    sure = seen[seen["n"] >= 20]
    assert (sure["value"] > claimed.loc[sure.index, "value"] - 0.02).all()


def test_plain_model_refuses_what_is_harmful_and_nothing_else(results: pd.DataFrame) -> None:
    assert only(results, "refusal_rate", edit="", behaviour="harmful") >= 0.95
    assert only(results, "refusal_rate", edit="", behaviour="harmless") <= 0.05


def test_refusal_goes_with_its_direction_and_not_with_a_random_one(results: pd.DataFrame) -> None:
    where = {"edit": "ablate(refusal)", "behaviour": "harmful"}
    assert only(results, "refusal_rate", **where) < 0.2
    assert only(results, "refusal_rate", control="random_subspace", **where) > 0.9


def test_refusal_comes_with_its_direction_and_not_with_a_random_one(results: pd.DataFrame) -> None:
    where = {"edit": "add(refusal)", "behaviour": "harmless"}
    assert only(results, "refusal_rate", **where) > 0.8
    assert only(results, "refusal_rate", control="random_subspace", **where) < 0.2


def test_losing_its_own_subspace_costs_a_variety_more_than_a_random_one(
    results: pd.DataFrame,
) -> None:
    changes = rows(results, "loss_change")
    own = changes[changes["edit"] == "ablate(variety:" + changes["variety"] + ")"]
    chance = rows(results, "loss_change", control="random_subspace").set_index("variety")["value"]
    assert len(own) == 8
    assert own["value"].mean() > chance[own["variety"]].mean()
    assert own["value"].mean() > 0


def test_patching_the_last_state_of_the_last_layer_hands_over_the_prediction(
    results: pd.DataFrame,
) -> None:
    found = rows(results, "recovered_fraction", position=0)
    last = found[found["layer"] == found["layer"].max()]
    assert last["variety"].nunique() == len(last) == 8
    np.testing.assert_allclose(last["value"], 1.0, atol=1e-3)


def test_killed_run_goes_on_to_the_results_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed once after the first of two shards, once after the first stage, then let finish."""
    monkeypatch.chdir(tmp_path)
    calm = run_compare(
        CompareSettings(**TINY, store="calm-store"), out=tmp_path / "calm", progress=False
    )
    command = _command(TINY, store="store", out="killed")
    probe = tmp_path / "killed" / "stages" / "probe.parquet"
    _kill_when(command, lambda: _recorded(tmp_path / "store") > 0)
    assert not probe.exists()
    first = min((tmp_path / "store").rglob("*.safetensors"))
    written = first.stat().st_mtime_ns
    _kill_when(command, probe.exists)
    assert probe.exists() and not (tmp_path / "killed" / "results.parquet").exists()
    subprocess.run(command, check=True, timeout=120, env=_environment())
    log = (tmp_path / "killed" / "log.txt").read_text(encoding="utf-8")
    assert "probe: kept from before" in log
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "killed" / "results.parquet"),
        pd.read_parquet(calm.path / "results.parquet"),
    )
    assert first.stat().st_mtime_ns == written, "a whole shard was captured again"
    assert len(_shards(tmp_path / "store")) == 2
    for suffix in ("", "-mean", "-random-0"):
        assert _shards(tmp_path / f"store{suffix}") == _shards(tmp_path / f"calm-store{suffix}")


def _command(settings: dict[str, Any], *, store: str, out: str) -> list[str]:
    told = [sys.executable, "-m", "apps.cli", "run", "compare", "--quiet"]
    told += ["--store", store, "--out", out]
    for key, value in settings.items():
        told += ["--set", f"{key}={value}"]
    return told


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _kill_when(command: list[str], happened: Callable[[], bool], *, seconds: float = 120) -> None:
    """Start the command and kill it, without warning, as soon as `happened()`."""
    process = subprocess.Popen(command, env=_environment())
    try:
        end = time.monotonic() + seconds
        while not happened():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < end, "the run did not come to where it is killed"
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()


def _recorded(folder: Path) -> int:
    """Number of shards that a record, or at the end the manifest, vouches for."""
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return 0
    shards = json.loads(manifest.read_text(encoding="utf-8"))["shards"]
    told = sum("sha256" in shard for shard in shards)
    return told or len(list((folder / "shards").glob("*.json")))


def _shards(folder: Path) -> dict[str, bytes]:
    found = {p.name: p.read_bytes() for p in sorted(folder.rglob("*.safetensors"))}
    assert found
    return found
