"""The geometry of made states, in which everything that is to be found was put by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import subspace_angles
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments import CompareSettings
from experiments.compare.bench import Bench
from experiments.compare.cloud import Cloud, choose_cloud, cka_rows, exchanged
from experiments.compare.kinship import confirmed_dimensions, cross_distances, kinship_rows
from experiments.compare.reliability import held_out_probabilities
from experiments.compare.representation import compare_representation
from experiments.compare.subspaces import (
    around,
    bootstrap_overlaps,
    compare_subspaces,
    split_half_overlaps,
)
from experiments.inputs import read_inputs
from experiments.results import DEFAULTS, as_frame
from geometry import joint_null
from probes import grouped_folds

D, GROUPS = 24, 40
DIALECTS = ["ash", "birch", "cedar", "dale"]
SITES = [f"blocks.{i}.hook_resid_post" for i in range(3)]
EMBEDDING = "blocks.0.hook_resid_pre"
QUICK: dict[str, Any] = {
    "k": 2,
    "folds": 3,
    "permutations": 40,
    "null_draws": 60,
    "split_draws": 4,
    "bootstrap_draws": 20,
}


def sentences(varieties: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"text": f"{v} says {g}", "variety": v, "group": f"g{g:02d}"}
            for g in range(GROUPS)
            for v in varieties
        ]
    )


def requests() -> pd.DataFrame:
    kinds = ["harmful", "harmless"]
    return pd.DataFrame(
        [{"text": f"{kinds[i % 2]} {i}", "behaviour": kinds[i % 2]} for i in range(GROUPS)]
    )


def made_states(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """What a text means in axes 0 to 2, its variety in 3 to 8, harm in 9; then noise.

    Ash and birch differ from the standard in axes 3 and 4, cedar and dale in 5 and 6, each by
    amounts that vary from group to group. The second site is the first one turned round, the third
    has nothing to do with either, and at the embedding nothing varies.
    """
    rng = np.random.default_rng(0)
    group = frame["group"].to_numpy() if "group" in frame else frame["text"].to_numpy()
    member = np.unique(group, return_inverse=True)[1]
    x = 0.02 * rng.standard_normal((len(frame), D))
    x[:, :3] += 3 * rng.standard_normal((member.max() + 1, 3))[member]
    if "variety" in frame:
        for i, variety in enumerate(DIALECTS):
            rows = np.flatnonzero(frame["variety"] == variety)
            axes = [3, 4] if i < 2 else [5, 6]
            x[np.ix_(rows, axes)] += rng.standard_normal((len(rows), 2))
            x[rows, axes[0]] += 2 + i % 2
    if "behaviour" in frame:
        x[:, 9] += 10 + 4.0 * (frame["behaviour"] == "harmful").to_numpy()
    turn = np.linalg.qr(rng.standard_normal((D, D)))[0]
    other = rng.standard_normal((len(frame), D))
    return {EMBEDDING: np.ones((len(frame), D)), **dict(zip(SITES, (x, x @ turn, other)))}


def made_bench(
    frame: pd.DataFrame, tmp_path: Path, states: dict[str, np.ndarray] | None = None, **told: Any
) -> Bench:
    path = tmp_path / "corpus.csv"
    frame.to_csv(path, index=False)
    settings = CompareSettings(**QUICK | {"corpus": str(path)} | told)
    inputs = read_inputs(settings)
    assert len(inputs.corpus.frame) == len(frame)
    store = states if states is not None else made_states(frame)
    model: Any = SimpleNamespace(d_model=D, embedding_site=EMBEDDING)
    kept: Any = store
    return Bench(settings, inputs, model, list(store), kept)


def probed(*questions: str) -> pd.DataFrame:
    """What the stage of probes would say: the first block is best."""
    return as_frame(
        {**DEFAULTS, "measure": f"{q}_probe_accuracy", "site": s, "layer": i, "value": 0.9 - i / 10}
        for q in questions
        for i, s in enumerate(SITES)
    )


def measured(bench: Bench, *questions: str) -> pd.DataFrame:
    return as_frame(compare_representation(bench, probed(*questions)))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    frame = sentences(["standard", *DIALECTS])
    return measured(made_bench(frame, tmp_path_factory.mktemp("made")), "variety")


def rows(frame: pd.DataFrame, measure: str, control: str = "", **where: Any) -> pd.DataFrame:
    chosen = (frame["measure"] == measure) & (frame["control"] == control)
    for column, value in where.items():
        chosen &= frame[column] == value
    assert chosen.any(), (measure, control, where)
    return frame[chosen]


def test_every_row_has_a_unit_and_an_interval_around_its_value(results: pd.DataFrame) -> None:
    assert (results["unit"] != "").all()
    known = results["low"].notna()
    inside = results[known]
    assert (inside["low"] <= inside["value"] + 1e-12).all()
    assert (inside["value"] <= inside["high"] + 1e-12).all()
    assert EMBEDDING not in set(results["site"])
    p = results["p"].dropna()
    assert len(p) and p.between(0, 1).all()


def test_cka_is_one_with_itself_and_with_a_rotation_and_no_more_than_its_null_with_noise(
    results: pd.DataFrame,
) -> None:
    table = rows(results, "cka").set_index(["site", "reference"])
    first, turned, noise = SITES
    for site in SITES:
        assert table.loc[(site, site), "value"] == pytest.approx(1.0)
    assert table.loc[(first, turned), "value"] == pytest.approx(1.0)
    assert table.loc[(first, turned), "p"] < 0.05
    assert table.loc[(first, noise), "p"] > 0.05
    null = rows(results, "cka", "shuffled_groups").set_index(["site", "reference"])
    assert null.loc[(first, noise), "low"] < table.loc[(first, noise), "value"]
    assert table.loc[(first, noise), "value"] < null.loc[(first, noise), "high"]
    assert len(table) == 6 == len(rows(results, "cka", "without_top_component"))


def test_distances_are_those_between_the_planted_planes(results: pd.DataFrame) -> None:
    """Two pairs share a plane, the planes stand at right angles: distance π/2 times √2."""
    found = rows(results, "variety_distance", site=SITES[0]).set_index(["variety", "reference"])
    for pair in (("ash", "birch"), ("cedar", "dale")):
        assert found.loc[pair, "value"] < 0.1
    for pair in (("ash", "cedar"), ("ash", "dale"), ("birch", "cedar"), ("birch", "dale")):
        assert found.loc[pair, "value"] == pytest.approx(np.pi / np.sqrt(2), abs=0.1)
    own = rows(results, "variety_distance", "split_half", site=SITES[0])
    assert len(own) == 4 and (own["value"] < 0.1).all()
    support = rows(results, "clade_support", site=SITES[0]).set_index("reference")["value"]
    assert dict(support) == {"ash+birch": 1.0, "cedar+dale": 1.0}


def test_rotating_the_states_moves_no_subspace_apart(results: pd.DataFrame) -> None:
    for measure in ("variety_distance", "shared_dimensions", "retrieval_accuracy"):
        one, two = (rows(results, measure, site=s)["value"].to_numpy() for s in SITES[:2])
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_distances_of_halves_are_symmetric_and_scipys() -> None:
    rng = np.random.default_rng(2)
    one, two = np.linalg.qr(rng.standard_normal((2, 3, 9, 2)))[0]
    found = cross_distances(one, two)
    np.testing.assert_allclose(found, found.T)
    for i in range(3):
        for j in range(3):
            both = [subspace_angles(one[a], two[b]) for a, b in ((i, j), (j, i))]
            assert found[i, j] == pytest.approx(np.mean([np.linalg.norm(a) for a in both]))


def test_a_shared_dimension_counts_only_where_the_other_half_has_it() -> None:
    rng = np.random.default_rng(3)
    axes = np.eye(12)

    def bases(shared: int) -> np.ndarray:
        own = [axes[:, [shared, 4 + i]] for i in range(4)]
        return np.linalg.qr(np.stack(own) + 0.01 * rng.standard_normal((4, 12, 2)))[0]

    null = joint_null(12, [2] * 4, draws=200, seed=0)
    assert confirmed_dimensions(bases(0), bases(0), null).tolist() == [1, 1, 1, 1, 1]
    assert confirmed_dimensions(bases(0), bases(1), null).tolist() == [0, 1, 1, 1, 1]


def test_two_planes_of_two_varieties_each_are_shared_by_no_more_than_half(
    results: pd.DataFrame,
) -> None:
    found = rows(results, "shared_dimensions", site=SITES[0])
    assert found["value"].iloc[0] == 0


def test_shape_finds_the_planted_dimensions(tmp_path: Path) -> None:
    """Three axes of equal variance and nothing else: 3 by the spectrum and by neighbours."""
    frame = requests()
    x = np.random.default_rng(5).standard_normal((len(frame), 3))
    x = np.hstack([x, np.zeros((len(frame), D - 3))])
    found = measured(made_bench(frame, tmp_path, {SITES[0]: x, SITES[1]: x + 50.0}))
    assert rows(found, "participation_ratio", site=SITES[0])["value"].iloc[0] == pytest.approx(
        3, rel=0.15
    )
    near = rows(found, "intrinsic_dimension", site=SITES[0]).iloc[0]
    assert near["value"] == pytest.approx(3, rel=0.3) and np.isnan(near["low"])
    assert abs(rows(found, "anisotropy", site=SITES[0])["value"].iloc[0]) < 0.1
    assert rows(found, "anisotropy", site=SITES[1])["value"].iloc[0] > 0.95
    assert set(found["n"][found["measure"] == "anisotropy"]) == {GROUPS}


def test_parallel_sentences_a_constant_apart_are_all_found(tmp_path: Path) -> None:
    frame = sentences(["standard", "ash"])
    x = np.random.default_rng(6).standard_normal((GROUPS, D)).repeat(2, axis=0)
    apart = x.copy()
    apart[1::2] += 30 * np.random.default_rng(7).standard_normal(D)
    found = measured(made_bench(frame, tmp_path, {SITES[0]: x, SITES[1]: apart}), "variety")
    same = rows(found, "retrieval_accuracy", "identity", site=SITES[0])
    assert same["value"].iloc[0] == 1.0
    assert (rows(found, "retrieval_accuracy")["value"] == 1.0).all()
    assert rows(found, "retrieval_accuracy", "identity", site=SITES[1])["value"].iloc[0] < 0.5
    chance = rows(found, "retrieval_accuracy", "chance")
    assert chance["value"].tolist() == [1 / GROUPS]


def test_two_varieties_alone_have_no_pair_to_compare(tmp_path: Path) -> None:
    found = measured(made_bench(sentences(["standard", "ash"]), tmp_path), "variety")
    measures = set(found["measure"])
    assert {"cka", "intrinsic_dimension", "retrieval_accuracy", "reliability"} <= measures
    assert not {"variety_distance", "clade_support", "shared_dimensions"} & measures


def test_requests_alone_have_cloud_and_calibration(tmp_path: Path) -> None:
    found = measured(made_bench(requests(), tmp_path), "behaviour")
    assert set(found["measure"]) == {
        "cka",
        "participation_ratio",
        "intrinsic_dimension",
        "anisotropy",
        "reliability",
        "reliability_confidence",
        "calibration_error",
    }
    assert set(rows(found, "calibration_error")["reference"]) == {"behaviour"}


@pytest.mark.parametrize("n", [4, 5])
def test_few_groups_give_what_they_can(n: int, tmp_path: Path) -> None:
    frame = sentences(["standard", *DIALECTS]).head(5 * n)
    found = measured(made_bench(frame, tmp_path, folds=2), "variety")
    assert {"variety_distance", "retrieval_accuracy", "reliability"} <= set(found["measure"])
    assert ("cka" in set(found["measure"])) == (n == 5)
    assert set(rows(found, "variety_distance", site=SITES[0])["n"]) == {n}


def test_a_direction_of_rounding_errors_is_no_dimension_of_a_subspace(tmp_path: Path) -> None:
    """All varieties differ along one axis each; what else differs is eight orders smaller."""
    frame = sentences(["standard", *DIALECTS])
    x = np.zeros((len(frame), D))
    rng = np.random.default_rng(12)
    for i, variety in enumerate(DIALECTS):
        chosen = np.flatnonzero(frame["variety"] == variety)
        x[chosen, i] = 1 + rng.random(len(chosen))
    x += 1e-8 * rng.standard_normal(x.shape)
    x[:, 10:] += rng.standard_normal((GROUPS, D - 10)).repeat(5, axis=0)
    bench = made_bench(frame, tmp_path, {SITES[0]: x})
    found = as_frame([*compare_subspaces(bench), *kinship_rows(bench)])
    assert set(found["position"][found["measure"] == "principal_angle"]) == {0}
    np.testing.assert_allclose(rows(found, "variety_distance")["value"], np.pi / 2, atol=1e-6)


@pytest.mark.parametrize(("noise", "skewed"), [(0.3, True), (1.0, False)])
def test_the_interval_of_an_overlap_covers_what_halves_show(noise: float, skewed: bool) -> None:
    """Against the mean over samples of 40 groups, which is below the planted overlap."""
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 4)))[0]
    planes = [basis[:, :2], 0.7 * basis[:, :2] + np.sqrt(0.51) * basis[:, 2:]]
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        states = rng.standard_normal((3, GROUPS, 16)) * noise
        shifts = (
            rng.exponential(size=(2, GROUPS, 2)) - 1
            if skewed
            else rng.standard_normal((2, GROUPS, 2))
        )
        differences = {
            name: 2 * shifts[i] @ planes[i].T + states[i] - states[2]
            for i, name in enumerate(["ash", "birch"])
        }
        value = split_half_overlaps(differences, 2, 20, 0)["ash", "birch"]
        drawn = bootstrap_overlaps(differences, 2, 100, 0)["ash", "birch"]
        found.append(around(value, drawn, GROUPS, 0, most=1.0))
    truth = np.mean([e.value for e in found])
    assert truth < 0.49
    assert 0.92 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.99


def test_groups_of_one_make_up_change_places_and_no_other() -> None:
    """By the definition: group follows group, and each row keeps its label."""
    names = np.array(["a", "a", "b", "b", "c", "d", "d", "e", "e", "f", "f"])
    labels = np.array(["x", "y", "x", "y", "x", "x", "y", "x", "y", "x", "y"])
    cloud: Any = SimpleNamespace(rows=np.arange(11), groups=names, labels=labels)
    orders = exchanged(cloud, draws=30, seed=0)
    assert orders is not None and len({tuple(o) for o in orders}) > 20
    for order in orders:
        assert (labels[order] == labels).all()
        moved = names[order].reshape(-1)
        assert moved[4] == "c"
        assert all(len({*moved[i : i + 2]}) == 1 for i in (0, 2, 5, 7, 9))


def test_texts_of_a_cloud_are_whole_groups_and_stand_once(tmp_path: Path) -> None:
    frame = sentences(["standard", *DIALECTS])
    inputs = made_bench(frame, tmp_path).inputs
    cloud = choose_cloud(inputs, most=60)
    assert len(cloud.rows) == 60 and cloud.n_groups == 12
    assert (np.unique(cloud.groups, return_counts=True)[1] == 5).all()
    texts = inputs.corpus.frame["text"].to_numpy()[cloud.rows]
    assert len(set(texts)) == 60


def test_a_pair_is_told_by_its_own_null_though_another_pair_is_alike_by_its_labels_alone() -> None:
    """Two layers hold little but the label; a third shares their meaning, and that is tested."""
    groups, labels = np.repeat(np.arange(30), 2), np.tile(["x", "y"], 30)
    rng = np.random.default_rng(10)
    meaning = rng.standard_normal((30, 2)).repeat(2, axis=0)
    label = np.where(labels == "x", 8.0, -8.0)[:, None]
    layers = {
        SITES[0]: np.hstack([label, meaning]),
        SITES[1]: np.hstack([label, rng.standard_normal((60, 2))]),
        SITES[2]: meaning + 0.1 * rng.standard_normal((60, 2)),
    }
    cloud = Cloud(np.arange(60), groups.astype(str), labels)
    found = as_frame(cka_rows(layers, cloud, draws=99, seed=0))
    table = rows(found, "cka").set_index(["site", "reference"])
    null = rows(found, "cka", "shuffled_groups").set_index(["site", "reference"])
    alike, shared = (SITES[0], SITES[1]), (SITES[0], SITES[2])
    assert null.loc[alike, "low"] > 0.9 > 0.3 > table.loc[shared, "value"]
    assert table.loc[shared, "p"] == pytest.approx(0.01)
    assert table.loc[alike, "p"] > 0.05


def test_a_site_without_variation_between_groups_is_left_out_of_cka(tmp_path: Path) -> None:
    frame = requests()
    x = np.random.default_rng(11).standard_normal((len(frame), D))
    flat = x.copy()
    flat[1:] = flat[1]
    found = measured(made_bench(frame, tmp_path, {SITES[0]: x, SITES[1]: flat}), "behaviour")
    assert set(rows(found, "anisotropy")["site"]) == {SITES[0], SITES[1]}
    assert set(rows(found, "cka")["site"]) == {SITES[0]}


def test_the_reliability_curve_is_that_of_scikit_learns_probabilities(tmp_path: Path) -> None:
    frame = sentences(["standard", *DIALECTS])
    states = made_states(frame)
    states[SITES[0]] = states[SITES[0]] + 1.5 * np.random.default_rng(9).standard_normal(
        states[SITES[0]].shape
    )
    bench = made_bench(frame, tmp_path, states)
    found = measured(bench, "variety")
    labels, groups = frame["variety"].to_numpy(), frame["group"].to_numpy()
    x = states[SITES[0]]
    p = np.zeros((len(x), 5))
    for train, test in grouped_folds(labels, groups, n_folds=3, seed=0):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, tol=1e-8, max_iter=5000))
        p[test] = model.fit(x[train], labels[train]).predict_proba(x[test])
    ours = held_out_probabilities(x, labels, groups, folds=3, C=1.0, seed=0)
    np.testing.assert_allclose(ours, p, atol=1e-3)
    right = np.unique(labels)[p.argmax(axis=1)] == labels
    which = np.minimum((p.max(axis=1) * 10).astype(int), 9)
    seen = rows(found, "reliability").set_index("position")
    claimed = rows(found, "reliability_confidence").set_index("position")
    assert set(seen.index) == set(which) == set(claimed.index) and len(seen) > 3
    for b in set(which):
        inside = which == b
        means = pd.Series(right[inside]).groupby(groups[inside]).mean()
        assert seen.loc[b, "value"] == pytest.approx(means.mean(), abs=0.05)
        assert b / 10 <= claimed.loc[b, "value"] <= (b + 1) / 10
        assert seen.loc[b, "n"] == len(means)
    gaps = [abs((right - p.max(axis=1))[which == b].sum()) for b in set(which)]
    plain = rows(found, "calibration_error", "uncorrected").iloc[0]
    assert plain["value"] == pytest.approx(sum(gaps) / len(x), abs=0.005)
    error = rows(found, "calibration_error").iloc[0]
    assert 0 <= error["low"] <= error["value"] < plain["value"]
    assert error["n"] == GROUPS and 0 < error["p"] <= 1
