"""Texts on directions: each against means and a singular value decomposition of planted states."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import TruncatedSVD

from experiments import CompareSettings
from experiments.compare import projection as module
from experiments.compare.bench import Bench
from experiments.compare.projection import Projection, pictured, projection
from experiments.inputs import read_inputs
from experiments.results import DEFAULTS, as_frame

D, GROUPS = 16, 24
DIALECTS = ("ash", "birch", "cedar")
EMBEDDING = "blocks.0.hook_resid_pre"
SITES = tuple(f"blocks.{i}.hook_resid_post" for i in range(2))


def sentences(*varieties: str) -> pd.DataFrame:
    return pd.DataFrame(
        {"text": f"{v} says {g}", "variety": v, "group": f"g{g:02d}", "behaviour": ""}
        for g in range(GROUPS)
        for v in varieties
    )


def requests() -> pd.DataFrame:
    return pd.DataFrame(
        {"text": f"{b} {i}", "variety": "standard", "group": f"r{b}{i}", "behaviour": b}
        for i in range(GROUPS)
        for b in ("harmful", "harmless")
    )


def states(frame: pd.DataFrame) -> np.ndarray:
    """Varieties shift along axes 3 to 5, by amounts of their own; harm along axis 9."""
    rng = np.random.default_rng(0)
    x = 0.1 * rng.standard_normal((len(frame), D))
    groups = np.unique(frame["group"], return_inverse=True)[1]
    x[:, :3] += 3 * rng.standard_normal((groups.max() + 1, 3))[groups]
    for i, variety in enumerate(DIALECTS):
        rows = np.flatnonzero(frame["variety"] == variety)
        x[rows, 3 + i] += 2 + i + 0.3 * rng.standard_normal(len(rows))
    x[:, 9] += 4 * (frame["behaviour"] == "harmful").to_numpy()
    return x


def bench_of(frame: pd.DataFrame, folder: Path, **store: np.ndarray) -> Bench:
    """With an embedding at which nothing varies, and a second site that is the first one turned."""
    frame.to_csv(folder / "corpus.csv", index=False)
    settings = CompareSettings(corpus=str(folder / "corpus.csv"))
    x = states(frame)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((D, D)))[0]
    kept: Any = {EMBEDDING: np.ones_like(x), SITES[0]: x, SITES[1]: 7 * x @ turn + 5} | store
    model: Any = SimpleNamespace(d_model=D, embedding_site=EMBEDDING)
    bench = Bench(settings, read_inputs(settings), model, list(kept), kept)
    harmful = np.flatnonzero(frame["behaviour"] == "harmful")
    asked = np.flatnonzero(frame["behaviour"] != "")
    # All harmful requests but every fifth are refused.
    bench.answers = {int(r): bool(r in harmful and r % 5) for r in asked}
    return bench


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    frame = pd.concat([sentences("standard", *DIALECTS), requests()], ignore_index=True)
    return bench_of(frame, tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def seen(bench: Bench) -> Projection:
    found = projection(bench)
    assert found is not None
    return found


def at(seen: Projection, site: str) -> pd.DataFrame:
    return seen.points[seen.points["site"] == site].reset_index(drop=True)


def between(x: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Where each row of x lies from the mean of `low` (0) to that of `high` (1)."""
    start, step = low.mean(axis=0), high.mean(axis=0) - low.mean(axis=0)
    return (x - start) @ step / (step @ step)


def paired(bench: Bench, variety: str) -> tuple[np.ndarray, np.ndarray]:
    """States of a variety and of the standard, train groups, in one order."""
    frame = bench.inputs.corpus.frame.assign(train=bench.inputs.train)
    kept = frame[frame["train"] & (frame["behaviour"] == "")].sort_values("group")
    x = bench.states(SITES[0])
    own, other = (kept.index[kept["variety"] == v] for v in (variety, "standard"))
    return x[own], x[other]


def test_mean_directions_run_from_one_mean_to_the_other(bench: Bench, seen: Projection) -> None:
    frame, train, x = bench.inputs.corpus.frame, bench.inputs.train, bench.states(SITES[0])
    points = at(seen, SITES[0])
    harmful, harmless = (x[(frame["behaviour"] == b) & train] for b in ("harmful", "harmless"))
    np.testing.assert_allclose(points["harmful"], between(x, harmful, harmless), atol=6e-4)
    asked = np.flatnonzero((frame["behaviour"] != "") & train)
    refused = np.array([bench.answers[int(r)] for r in asked])
    answers = between(x, x[asked[refused]], x[asked[~refused]])
    np.testing.assert_allclose(points["refusal"], answers, atol=6e-4)
    for variety in DIALECTS:
        shift = between(x, *paired(bench, variety))
        np.testing.assert_allclose(points[f"shift_{variety}"], shift, atol=6e-4)


def test_first_directions_are_those_of_scikit_learns_truncated_svd(
    bench: Bench, seen: Projection
) -> None:
    x, points = bench.states(SITES[0]), at(seen, SITES[0])
    pairs = {v: paired(bench, v) for v in DIALECTS}
    own, standard = (np.concatenate(side) for side in zip(*pairs.values(), strict=True))
    middle = np.unique(standard, axis=0).mean(axis=0)
    asked = {f"variety_{i + 1}": (own - standard, middle, i) for i in (0, 1)}
    asked |= {f"own_{v}": (one - two, two.mean(axis=0), 0) for v, (one, two) in pairs.items()}
    for key, (differences, start, rank) in asked.items():
        svd = TruncatedSVD(2, algorithm="arpack").fit(differences)
        gap = svd.singular_values_[rank] / np.sqrt(len(differences))
        axis = svd.components_[rank] * np.sign(differences.sum(axis=0) @ svd.components_[rank])
        np.testing.assert_allclose(points[key], (x - start) @ axis / gap, atol=1e-3, err_msg=key)


def test_the_first_component_without_harm_has_no_harm_and_unit_spread(
    bench: Bench, seen: Projection
) -> None:
    kept = at(seen, SITES[0])[(bench.inputs.corpus.frame["behaviour"] != "") & bench.inputs.train]
    assert kept["requests"].mean() == pytest.approx(0, abs=1e-3)
    assert kept["requests"].std(ddof=0) == pytest.approx(1, abs=1e-3)
    own = seen.axes.set_index(["axis", "other"])["cosine"]
    assert own["harmful", "requests"].abs().max() < 1e-9


def test_a_site_that_is_another_turned_and_stretched_has_the_same_picture(
    seen: Projection,
) -> None:
    keys = list(dict.fromkeys(seen.axes["axis"]))
    assert len(keys) == 5 + 2 * len(DIALECTS)
    one, two = (at(seen, site) for site in SITES)
    signs = np.sign((one[keys] * two[keys]).sum())  # that of a component is free
    assert set(signs.drop("requests")) == {1.0}
    np.testing.assert_allclose(one[keys], two[keys] * signs, atol=2e-3)
    pd.testing.assert_frame_equal(one[["text", "train"]], two[["text", "train"]])
    assert set(one.dtypes[keys]) == {np.dtype("float32")}


def test_cosines_are_those_of_the_directions(bench: Bench, seen: Projection) -> None:
    steps = {v: np.subtract(*(side.mean(axis=0) for side in paired(bench, v))) for v in DIALECTS}
    here = seen.axes[seen.axes["site"] == SITES[0]].set_index(["axis", "other"])["cosine"]
    for one, a in steps.items():
        for other, b in steps.items():
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert here[f"shift_{one}", f"shift_{other}"] == pytest.approx(cosine)
    assert here["refusal", "harmful"] == here["harmful", "refusal"]


def test_no_direction_is_made_where_nothing_differs(seen: Projection) -> None:
    assert set(seen.axes["site"]) == set(seen.points["site"]) == set(SITES)


@pytest.mark.parametrize(
    ("frame", "first"),
    [
        (requests().drop(columns="variety"), ["harmful", "requests"]),
        (sentences("standard", "ash"), ["variety_1", "variety_2", "shift_ash", "own_ash"]),
    ],
)
def test_one_question_gives_its_own_directions(
    frame: pd.DataFrame, first: list[str], tmp_path: Path
) -> None:
    bench = bench_of(frame.assign(variety=frame.get("variety", "standard")), tmp_path)
    bench.answers = {}
    found = projection(bench)
    assert found is not None
    assert list(dict.fromkeys(found.axes["axis"])) == first
    assert list(found.points.columns[-len(first) :]) == first


def test_nothing_that_differs_gives_no_picture(tmp_path: Path) -> None:
    frame = sentences("standard", "ash")
    flat = np.ones((len(frame), D))
    assert projection(bench_of(frame, tmp_path, **dict.fromkeys(SITES, flat))) is None


def test_of_many_texts_whole_groups_are_drawn_of_each_behaviour_its_share(
    bench: Bench, seen: Projection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_TEXTS", 60)
    found, again = projection(bench), projection(bench)
    assert found is not None and again is not None
    pd.testing.assert_frame_equal(found.points, again.points)
    one, two = (at(found, site) for site in SITES)
    assert 50 <= len(one) <= 60 and one["text"].tolist() == two["text"].tolist()
    frame = bench.inputs.corpus.frame
    sizes = frame[frame["group"].isin(one["group"])].groupby("group").size()
    assert sizes.equals(one.groupby("group").size())
    share = one["behaviour"].value_counts(normalize=True)
    wanted = frame["behaviour"].value_counts(normalize=True)
    assert (share - wanted).abs().max() < 0.06
    assert set(found.axes["texts"]) == {len(frame)}
    # The directions are from all train groups, whatever is drawn.
    whole = at(seen, SITES[0])
    kept = whole[whole["text"].isin(one["text"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, one)


def test_the_report_shows_the_site_where_variety_else_behaviour_is_read_best(
    seen: Projection,
) -> None:
    def probed(question: str, site: str) -> pd.DataFrame:
        told = {"measure": f"{question}_probe_accuracy", "site": site, "value": 0.9}
        return as_frame([DEFAULTS | told])

    assert pictured(seen.axes, probed("variety", SITES[0])) == SITES[0]
    assert pictured(seen.axes, probed("behaviour", SITES[0])) == SITES[0]
    assert pictured(seen.axes, probed("variety", EMBEDDING)) == SITES[1]
    assert pictured(seen.axes, as_frame([])) == SITES[1]
