"""Directions over places against planted angles, closed forms, enumeration and plain loops."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from geometry import (
    DirectionGrid,
    GeometryError,
    cosine_null,
    direction_grid,
    direction_span,
    direction_subspace_cosine,
    mean_difference,
    paired_differences,
)
from geometry.contrast import auc

States = dict[Any, tuple[np.ndarray, np.ndarray]]


def apart(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row a group of its own."""
    return np.arange(n), n + np.arange(n)


def planted(
    seed: int, directions: np.ndarray, *, n: int = 60, common: float = 0.0, sd: float = 1.0
) -> States:
    """At place i, positives are shifted by `directions[i]`; `common` is the noise's correlation."""
    rng = np.random.default_rng(seed)
    d = directions.shape[1]
    shared, states = rng.standard_normal((2 * n, d)), {}
    for i, direction in enumerate(directions):
        own = rng.standard_normal((2 * n, d))
        x = sd * (np.sqrt(common) * shared + np.sqrt(1 - common) * own) + 7.0
        states[i] = (x[:n] + direction, x[n:])
    return states


def fan(degrees: list[float], d: int = 30, length: float = 2.0) -> np.ndarray:
    turn = np.radians(degrees)
    made = np.zeros((len(degrees), d))
    made[:, 0], made[:, 1] = np.cos(turn), np.sin(turn)
    return length * made


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x)


def test_differences_and_norms_are_those_of_the_plain_means() -> None:
    states = planted(0, fan([0, 40]))
    grid = direction_grid(states, groups=apart(60), seed=0)
    for i, (high, low) in states.items():
        gap = high.mean(0) - low.mean(0)
        np.testing.assert_allclose(grid.differences[i], gap, atol=1e-12)
        assert grid.norms[i] == pytest.approx(np.linalg.norm(gap))
        np.testing.assert_allclose(
            grid.direction(i).direction, mean_difference(high, low).direction
        )
    rows = np.concatenate(states[1])
    size = np.linalg.norm(rows, axis=1).mean()
    assert grid.frame()["relative_norm"][1] == pytest.approx(grid.norms[1] / size)


def test_weighted_contrasts_equal_a_loop_over_repeated_rows() -> None:
    states = planted(1, fan([0, 30], d=5), n=6)
    names = np.array(list("aabbcd")), np.array(list("adeeff"))
    grid = direction_grid(states, groups=names, seed=0)
    weights = np.random.default_rng(0).integers(1, 4, size=(3, grid.grouping.n)).astype(float)
    found = grid.contrast(weights)
    for b, row in enumerate(weights):
        times = dict(zip("abcdef", row.astype(int), strict=True))
        for i, sides in states.items():
            means = [
                np.concatenate([[x] * times[g] for x, g in zip(part, name, strict=True)]).mean(0)
                for part, name in zip(sides, names, strict=True)
            ]
            np.testing.assert_allclose(found[i, b], means[0] - means[1], atol=1e-12)


def test_split_half_cosines_are_the_mean_over_all_halvings() -> None:
    states = planted(2, fan([0, 60], d=4), n=4)
    found = direction_grid(states, groups=apart(4), draws=3000, resamples=1, seed=0).cosines
    exact: dict[tuple[int, int], list[float]] = {pair: [] for pair in product(range(2), repeat=2)}
    for high, low in product(combinations(range(4), 2), repeat=2):
        rest = [sorted({0, 1, 2, 3} - set(side)) for side in (high, low)]
        for i, j in exact:
            one = states[i][0][list(high)].mean(0) - states[i][1][list(low)].mean(0)
            two = states[j][0][rest[0]].mean(0) - states[j][1][rest[1]].mean(0)
            exact[i, j].append(float(unit(one) @ unit(two)))
    for (i, j), cosines in exact.items():
        error = np.std(cosines) / np.sqrt(3000)
        assert found.split_half[i, j] == pytest.approx(np.mean(cosines), abs=5 * error)


def test_reliability_is_the_closed_form_of_many_dimensions() -> None:
    """In many dimensions noise is orthogonal: ‖δ‖² / (‖δ‖² + σ² d (1/n + 1/m)), n, m of a half."""
    d, n, length = 4000, 40, 12.0
    states = planted(0, fan([0], d=d, length=length), n=n)
    grid = direction_grid(states, groups=apart(n), resamples=2, seed=0)
    expected = length**2 / (length**2 + d * (2 / (n / 2)))
    assert grid.cosines.split_half[0, 0] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("degrees", "common"), [(60.0, 0.8), (0.0, 0.0), (90.0, 0.9)])
def test_the_corrected_cosine_is_the_planted_one_where_the_raw_one_is_not(
    degrees: float, common: float
) -> None:
    truth, raw, corrected, inside = np.cos(np.radians(degrees)), [], [], 0
    for seed in range(60):
        states = planted(seed, fan([0, degrees]), common=common)
        found = direction_grid(states, groups=apart(60), draws=8, resamples=60, seed=seed).cosines
        raw.append(found.raw[0, 1])
        corrected.append(found.corrected[0, 1])
        inside += found.corrected_low[0, 1] <= truth <= found.corrected_high[0, 1]
    error = np.std(corrected) / np.sqrt(60)
    assert np.mean(corrected) == pytest.approx(truth, abs=4 * error + 0.01)
    assert abs(np.mean(raw) - truth) > 0.05
    assert stats.binomtest(inside, 60, 0.95, alternative="less").pvalue > 0.001


def test_correction_is_spearmans_formula_and_leaves_the_diagonal_at_one() -> None:
    found = direction_grid(planted(3, fan([0, 20, 50])), groups=apart(60), seed=0).cosines
    own = np.diag(found.split_half)
    np.testing.assert_allclose(found.corrected, found.split_half / np.sqrt(np.outer(own, own)))
    np.testing.assert_allclose(np.diag(found.corrected), 1.0)
    np.testing.assert_array_equal(found.split_half, found.split_half.T)


def test_nothing_is_corrected_where_no_direction_is_sure() -> None:
    directions = np.vstack([np.zeros(30), fan([0])])
    grid = direction_grid(planted(0, directions), groups=apart(60), seed=0)
    assert grid.cosines.low[0, 0] <= 0 < grid.cosines.low[1, 1]
    assert np.isnan(grid.cosines.corrected[0]).all()
    assert grid.cosines.corrected[1, 1] == pytest.approx(1.0)
    step = grid.drift().iloc[0]
    assert np.isnan([step["cosine"], step["low"], step["degrees"]]).all()


def test_copies_of_a_text_in_one_group_make_no_direction_reliable() -> None:
    rng = np.random.default_rng(0)
    high, low = (np.repeat(rng.standard_normal((12, 40)), 6, axis=0) for _ in range(2))
    groups = np.repeat(np.arange(12), 6)
    kept = direction_grid({0: (high, low)}, groups=(groups, 12 + groups), seed=0)
    cut = direction_grid({0: (high, low)}, groups=apart(72), seed=0)
    assert kept.cosines.split_half[0, 0] < 0.15
    assert cut.cosines.split_half[0, 0] > 0.5


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 50.0))
def test_turning_the_space_and_scaling_a_place_change_no_cosine(seed: int, scale: float) -> None:
    states = planted(seed, fan([0, 45], d=6), n=10)
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((6, 6)))[0]
    moved = {
        i: (scale ** (i * 1.0) * h @ turn, scale ** (i * 1.0) * w @ turn)
        for i, (h, w) in states.items()
    }
    one, two = (
        direction_grid(s, groups=apart(10), draws=5, resamples=10, seed=1) for s in (states, moved)
    )
    for name in ("raw", "split_half", "low", "high", "null"):
        np.testing.assert_allclose(
            getattr(one.cosines, name), getattr(two.cosines, name), atol=1e-8
        )
    np.testing.assert_allclose(one.separation[1].value, two.separation[1].value)


def test_the_covariance_null_is_that_of_plain_gaussian_draws() -> None:
    rng = np.random.default_rng(0)
    axes = 1 / np.arange(1, 9)
    x = rng.standard_normal((2, 80, 8)) * axes
    y = rng.standard_normal((2, 80, 8)) * axes[::-1]
    found = direction_grid({0: tuple(x), 1: tuple(y)}, groups=apart(80), seed=0).cosines
    spread = [np.cov(np.concatenate(part), rowvar=False) for part in (x, y)]
    for i, j in ((0, 0), (0, 1)):
        one, two = (rng.multivariate_normal(np.zeros(8), spread[s], size=4000) for s in (i, j))
        plain = np.abs([unit(a) @ unit(b) for a, b in zip(one, two, strict=True)])
        assert found.null[i, j] == pytest.approx(plain.mean(), abs=4 * plain.std() / np.sqrt(500))
        assert found.null_high[i, j] == pytest.approx(np.quantile(plain, 0.95), abs=0.06)
    assert found.null[0, 0] > 1.2 * cosine_null(8).mean > found.null[0, 1]


def test_p_is_small_for_a_direction_and_not_for_noise() -> None:
    directions = np.vstack([np.zeros(30), fan([0])])
    found = direction_grid(planted(5, directions), groups=apart(60), seed=0).cosines
    assert found.estimate(1, 1, kind="split_half").p < 0.02
    assert found.estimate(0, 0, kind="split_half").p > 0.05


def test_the_weighted_auc_is_that_of_repeated_rows_with_ties() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, size=30).astype(float)
    high, low = rng.integers(0, 3, size=(2, 30))
    labels = np.repeat([1, 0], [high.sum(), low.sum()])
    repeated = np.concatenate([np.repeat(scores, high), np.repeat(scores, low)])
    assert auc(scores, high.astype(float), low.astype(float)) == pytest.approx(
        roc_auc_score(labels, repeated)
    )


def test_separation_is_the_closed_form_for_normal_states_and_chance_for_noise() -> None:
    """Along a sure direction the AUC of two normals a distance s apart is Φ(s / √2)."""
    states = planted(0, np.array([[1.5, 0, 0, 0], [0, 0, 0, 0]]), n=600)
    one, none = direction_grid(states, groups=apart(600), resamples=50, seed=0).separation
    assert one.value == pytest.approx(stats.norm.cdf(1.5 / np.sqrt(2)), abs=0.03)
    assert one.low < one.value < one.high
    assert none.low < 0.5 < none.high


def test_states_far_from_zero_are_scored_from_halfway_between_the_means() -> None:
    near = planted(3, fan([0], d=8, length=3.0))
    far = {0: (near[0][0] + 1000.0, near[0][1] + 1000.0)}
    one, two = (
        direction_grid(s, groups=apart(60), draws=1, resamples=2, seed=0).separation[0].value
        for s in (near, far)
    )
    assert one > 0.95
    assert two == pytest.approx(one, abs=1e-9)


def test_separation_in_few_rows_and_many_dimensions_is_not_learnt_by_heart() -> None:
    areas = []
    for seed in range(30):
        states = planted(seed, np.zeros((1, 200)), n=10)
        grid = direction_grid(states, groups=apart(10), resamples=2, seed=0)
        high, low = states[0]
        own = grid.directions[0]
        assert roc_auc_score([1] * 10 + [0] * 10, np.concatenate([high, low]) @ own) > 0.95
        areas.append(grid.separation[0].value)
    assert np.mean(areas) < 0.55


def test_planted_turns_and_growth_are_the_drift() -> None:
    directions = fan([0, 10, 30, 60], length=6.0) * np.array([[1.0], [1.0], [2.0], [2.0]])
    states = planted(0, directions, common=0.5, sd=0.5)
    grid = direction_grid(states, groups=apart(60), seed=0)
    drift = grid.drift()
    np.testing.assert_allclose(drift["degrees"], [10, 20, 30], atol=1.5)
    assert (drift["degrees_low"] <= drift["degrees"]).all()
    assert (drift["degrees"] <= drift["degrees_high"]).all()
    to_last = np.cos(np.radians([50, 30, 0]))
    np.testing.assert_allclose(drift["cosine_to_reference"], to_last, atol=0.03)
    sizes = grid.frame()["relative_norm"].to_numpy()
    np.testing.assert_allclose(drift["growth"], sizes[1:] / sizes[:-1])
    assert drift["growth"][1] == pytest.approx(2.0, rel=0.1)
    path = grid.drift([3, 0], reference=1)
    assert path["degrees"][0] == pytest.approx(60, abs=1.5)
    assert path["cosine_to_reference"][0] == pytest.approx(np.cos(np.radians(10)), abs=0.02)


def test_a_grid_of_layers_and_positions_is_named_by_its_places() -> None:
    states = {(i, j): s for i in range(2) for j, s in planted(i, fan([0, 90])).items()}
    grid = direction_grid(states, groups=apart(60), seed=0)
    frame = grid.cosines.frame()
    assert len(frame) == 10 and frame["place"][0] == (0, 0)
    assert grid.cosines.estimate((0, 0), (1, 0)).value > 0.7
    assert abs(grid.cosines.estimate((0, 0), (0, 1)).value) < 0.35
    assert list(grid.drift([(0, 1), (1, 1)])["previous"]) == [(0, 1)]


def test_the_effective_rank_of_orthogonal_and_of_equal_places_is_their_number_and_one() -> None:
    apart_ = direction_grid(planted(0, 4 * np.eye(3, 10), sd=1e-6), groups=apart(60), seed=0)
    same = direction_grid(planted(0, fan([0, 0, 0], d=10), sd=1e-6), groups=apart(60), seed=0)
    assert direction_span(apart_, seed=0).effective_rank.value == pytest.approx(3.0, abs=1e-3)
    assert direction_span(same, seed=0).effective_rank.value == pytest.approx(1.0, abs=1e-3)
    np.testing.assert_allclose(np.sum(direction_span(apart_, seed=0).singular_values ** 2), 1.0)


def test_noise_alone_is_no_drift_and_a_second_direction_is() -> None:
    p = {"one": [], "two": []}
    for seed in range(40):
        for name, degrees in (("one", [0, 0, 0, 0]), ("two", [0, 0, 60, 60])):
            grid = _few_draws(planted(seed, fan(degrees, d=20), common=0.6), seed)
            p[name].append(direction_span(grid, draws=99, seed=seed).effective_rank.p)
    assert np.mean(np.array(p["one"]) <= 0.05) <= 0.15
    assert np.mean(np.array(p["two"]) <= 0.05) >= 0.9
    span = direction_span(_few_draws(planted(0, fan([0, 0, 60, 60], d=20)), 0), seed=0)
    assert span.singular_values[1] > span.null_high[1]


def _few_draws(states: States, seed: int) -> DirectionGrid:
    return direction_grid(states, groups=apart(60), draws=8, resamples=2, seed=seed)


def subspace_case(
    seed: int, degrees: float, *, n: int = 80, d: int = 24, noise: float = 0.3
) -> tuple[np.ndarray, ...]:
    """A direction `degrees` from a plane: positives, negatives, a variety and its reference."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((d, 3)))[0]
    turn = np.radians(degrees)
    direction = np.cos(turn) * basis[:, 0] + np.sin(turn) * basis[:, 2]
    low, reference = rng.standard_normal((2, n, d))
    high = rng.standard_normal((n, d)) + 6 * direction
    x = reference + 3 * rng.standard_normal((n, 2)) @ basis[:, :2].T
    return high, low, x + noise * rng.standard_normal((n, d)), reference


@pytest.mark.parametrize("degrees", [0.0, 40.0, 90.0])
def test_the_cosine_with_a_subspace_is_the_planted_one(degrees: float) -> None:
    high, low, x, reference = subspace_case(0, degrees)
    one, two = apart(80)
    found = direction_subspace_cosine(
        high, low, x, reference, k=2, groups=(one, two, 500 + one), seed=0
    )
    assert found.value == pytest.approx(np.cos(np.radians(degrees)), abs=0.1)
    assert found.low <= found.value <= found.high
    assert (found.p < 0.05) == (degrees < 90)
    plain = paired_differences(x, reference, k=2).basis.T @ mean_difference(high, low).direction
    assert found.value == pytest.approx(np.linalg.norm(plain))


def test_a_shared_text_does_not_draw_direction_and_subspace_together() -> None:
    """Positives that are the variety's own texts share their noise with its subspace."""
    rng = np.random.default_rng(0)
    kept, cut = [], []
    for seed in range(6):
        x, reference, low = rng.standard_normal((3, 30, 60))
        names = np.arange(30)
        many = {"draws": 6, "resamples": 2, "null_draws": 50, "seed": seed}
        shared = (names, 100 + names, names)
        kept.append(direction_subspace_cosine(x, low, x, reference, k=6, groups=shared, **many))
        apart_ = (names, 100 + names, 200 + names)
        cut.append(direction_subspace_cosine(x, low, x, reference, k=6, groups=apart_, **many))
    assert np.mean([e.value for e in cut]) > np.mean([e.value for e in kept]) + 0.08
    assert np.mean([e.value for e in kept]) == pytest.approx(cosine_null(60, 6).mean, abs=0.06)


def test_bad_input_is_one_clear_sentence() -> None:
    states = planted(0, fan([0, 10], d=5), n=6)
    good: dict[str, Any] = {"groups": apart(6), "seed": 0}
    with pytest.raises(GeometryError, match="states is empty"):
        direction_grid({}, **good)
    with pytest.raises(GeometryError, match="two means coincide"):
        direction_grid({"a": (np.ones((6, 3)), np.ones((6, 3)))}, **good)
    with pytest.raises(GeometryError, match="give the same rows"):
        direction_grid(states | {2: (np.ones((5, 5)), np.ones((6, 5)))}, **good)
    with pytest.raises(GeometryError, match="give two arrays"):
        direction_grid({0: (np.ones(5), np.ones((6, 5)))}, **good)
    holes = {0: (np.full((6, 5), np.nan), states[0][1])}
    with pytest.raises(GeometryError, match="positive states at place 0 holds 30 values"):
        direction_grid(holes, **good)
    with pytest.raises(GeometryError, match="cannot be halved"):
        direction_grid(states, groups=(np.zeros(6), 1 + np.arange(6)), seed=0)
    with pytest.raises(GeometryError, match="There are 6 rows but their groups"):
        direction_grid(states, groups=(np.arange(5), np.arange(6)), seed=0)
    with pytest.raises(GeometryError, match="groups has 1 parts"):
        direction_grid(states, groups=(np.arange(6),), seed=0)  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match="level is 1"):
        direction_grid(states, level=1, **good)
    grid = direction_grid(states, **good)
    with pytest.raises(GeometryError, match="no place 'x'"):
        grid.cosines.estimate("x", 0)
    with pytest.raises(GeometryError, match="kind is 'plain'"):
        grid.cosines.estimate(0, 1, kind="plain")  # type: ignore[arg-type]
    with pytest.raises(GeometryError, match="drift needs at least two"):
        grid.drift([0])
    with pytest.raises(GeometryError, match="one place"):
        direction_span(direction_grid({0: states[0]}, **good), seed=0)
    x, three = np.ones((4, 5)), (*apart(6), 50 + np.arange(4))
    with pytest.raises(GeometryError, match="rank 0"):
        direction_subspace_cosine(*states[0], x, x, k=1, groups=three, seed=0)
    with pytest.raises(GeometryError, match="same rows in the same order"):
        direction_subspace_cosine(*states[0], x, x[:3], k=1, groups=three, seed=0)
    with pytest.raises(GeometryError, match="from one site"):
        direction_subspace_cosine(*states[0], x[:, :3], x[:, :3] * 0, k=1, groups=three, seed=0)
