"""Overlap, angles and directions of estimated subspaces against planted ones.

500 simulations for each rate. Both varieties are measured from one reference, whose noise is in
both differences, and rows of a group share half of their variance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from evidence import Estimate
from geometry import (
    GeometryError,
    angle_estimate,
    direction_estimate,
    haar_overlap,
    overlap_estimate,
    paired_differences,
)

REPEATS, ROWS, D, K = 500, 3, 10, 2
STATED = (0.92, 0.98)
ANGLES = (0.5, 1.0)
OVERLAP = float(np.mean(np.cos(ANGLES) ** 2))

Sample = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def planes(angles: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Bases of two planes with these principal angles."""
    one, other = np.zeros((2, D, K))
    for i, angle in enumerate(angles):
        one[i, i] = 1
        other[i, i], other[K + i, i] = np.cos(angle), np.sin(angle)
    return one, other


def planted(
    rng: np.random.Generator, groups: int, *, angles=ANGLES, size: float = 2.0, kind: str = "normal"
) -> Sample:
    """x, y, reference and groups."""

    def drawn(*shape: int) -> np.ndarray:
        return rng.exponential(size=shape) - 1 if kind == "skewed" else rng.normal(size=shape)

    def coordinates() -> np.ndarray:
        shared, own = drawn(groups, 1, K), drawn(groups, ROWS, K)
        return size * (1 + np.sqrt(0.5) * (shared + own)).reshape(-1, K)

    n = groups * ROWS
    reference = 0.5 * rng.normal(size=(n, D))
    x, y = (coordinates() @ basis.T + rng.normal(size=(n, D)) for basis in planes(angles))
    return x, y, reference, np.repeat(np.arange(groups), ROWS)


def coverage(estimate: Callable[[Sample], Estimate], truth: float, **sample) -> float:
    held = 0
    for repeat in range(REPEATS):
        found = estimate(planted(np.random.default_rng(repeat), **sample))
        held += found.low <= truth <= found.high
    return held / REPEATS


def corrected(sample: Sample) -> Estimate:
    return overlap_estimate(*sample, k=K, null=None, splits=2, most=20, seed=0)


@pytest.mark.parametrize(("groups", "kind"), [(20, "skewed"), (20, "normal"), (60, "skewed")])
def test_overlap_covers_the_planted_one(groups: int, kind: str) -> None:
    assert STATED[0] <= coverage(corrected, OVERLAP, groups=groups, kind=kind) <= 0.985


def test_overlap_uncorrected_for_noise_would_be_too_small() -> None:
    samples = [planted(np.random.default_rng(r), 20, size=1.0) for r in range(100)]
    plain = []
    for x, y, reference, _ in samples:
        one, two = (paired_differences(m, reference, k=K) for m in (x, y))
        plain.append(one.overlap(two))
    assert np.mean(plain) < OVERLAP - 0.06
    freed = [corrected(s).value for s in samples]
    assert np.mean(np.isnan(freed)) < 0.1
    assert np.nanmean(freed) == pytest.approx(OVERLAP, abs=0.03)


def test_rows_taken_for_groups_do_not_cover() -> None:
    """Groups that share all of their variation, with many rows each."""

    def by_row(sample: Sample) -> Estimate:
        x, y, reference, _ = (np.repeat(m, 9, axis=0) for m in sample)
        noise = np.random.default_rng(0).normal(scale=0.01, size=x.shape)
        return overlap_estimate(
            x + noise, y, reference, range(len(x)), k=K, null=None, splits=1, most=20, seed=0
        )

    held = 0
    for repeat in range(100):
        found = by_row(planted(np.random.default_rng(repeat), 10))
        held += found.low <= OVERLAP <= found.high
    assert held / 100 < 0.8


@pytest.mark.parametrize(("angles", "truth"), [((0.0, 0.0), 1.0), ((np.pi / 2,) * 2, 0.0)])
def test_equal_and_orthogonal_planes_are_held_by_intervals_at_the_bounds(angles, truth) -> None:
    found = [corrected(planted(np.random.default_rng(r), 20, angles=angles)) for r in range(60)]
    assert np.mean([e.low - 1e-9 <= truth <= e.high + 1e-9 for e in found]) > 0.95
    assert np.median([e.high - e.low for e in found]) < 0.2


def test_planes_of_noise_have_no_overlap_to_estimate_and_say_so() -> None:
    found = overlap_estimate(*planted(np.random.default_rng(0), 20, size=0.0), k=K, seed=0)
    assert np.isnan(found.value) and np.isnan(found.low) and found.n == 20
    assert "halves of the groups reproduce a subspace only to" in found.method
    assert 0 < found.p <= 1


def test_haar_null_has_the_mean_of_the_formula_and_tells_a_shared_plane() -> None:
    sample = planted(np.random.default_rng(1), 30, angles=(0.1, 0.2))
    found = overlap_estimate(*sample, k=K, null="haar", draws=999, seed=0)
    assert found.null == pytest.approx(haar_overlap(D, K, K).mean, abs=0.02)
    assert found.p == 1 / 1000 and found.low > 0.8


def random_planes(rng: np.random.Generator, spread: np.ndarray, groups: int) -> Sample:
    """Differences in two planes drawn with `spread`, on a reference that varies with it."""
    reference = 3 * rng.normal(size=(groups, D)) * spread
    bases = [np.linalg.qr(spread[:, None] * rng.normal(size=(D, K)))[0] for _ in range(2)]
    x, y = (
        reference + 0.3 * rng.normal(size=(groups, K)) @ b.T + 0.01 * rng.normal(size=(groups, D))
        for b in bases
    )
    return x, y, reference, np.arange(groups)


def rejected(null, spread: np.ndarray, groups: int) -> float:
    p = []
    for repeat in range(REPEATS):
        sample = random_planes(np.random.default_rng([repeat, 1]), spread, groups)
        options = {"draws": 199, "splits": 1, "most": 8}
        p.append(overlap_estimate(*sample, k=K, null=null, seed=repeat, **options).p)
    return float(np.mean(np.array(p) <= 0.05))


UNEVEN = 1 / np.sqrt(np.arange(1, D + 1))


def test_haar_null_rejects_at_its_level_where_it_holds_and_too_often_where_it_does_not() -> None:
    assert 0.03 <= rejected("haar", np.ones(D), 40) <= 0.07
    assert rejected("haar", UNEVEN, 40) > 0.1


def test_covariance_null_rejects_at_its_level_where_the_other_does_not() -> None:
    assert 0.03 <= rejected("covariance", UNEVEN, 200) <= 0.07


def test_label_null_rejects_at_its_level_where_no_variety_differs() -> None:
    p = []
    for repeat in range(REPEATS):
        rng = np.random.default_rng([repeat, 2])
        shared = rng.normal(size=(3, 16, 1, 6))
        x, y, reference = (shared + rng.normal(size=(3, 16, 2, 6))).reshape(3, 32, 6)
        names = np.repeat(np.arange(16), 2)
        options = {"draws": 19, "splits": 1, "most": 8}
        found = overlap_estimate(x, y, reference, names, k=K, null="labels", seed=repeat, **options)
        p.append(found.p)
    assert 0.03 <= np.mean(np.array(p) <= 0.05) <= 0.07


@pytest.mark.parametrize(("which", "truth"), [("mean", np.mean(ANGLES)), ("smallest", ANGLES[0])])
def test_angles_cover_where_halves_reproduce_the_planes(which, truth: float) -> None:
    def angle(sample: Sample) -> Estimate:
        return angle_estimate(*sample, k=K, which=which, most=15)

    held = coverage(angle, truth, groups=60, size=3.0)
    assert STATED[0] - 0.01 <= held <= STATED[1]


def test_angles_that_cannot_be_covered_say_so() -> None:
    rng = np.random.default_rng(3)
    noisy = angle_estimate(*planted(rng, 20, size=0.3), k=K)
    assert "too little for an interval that covers" in noisy.method
    equal = angle_estimate(*planted(rng, 60, size=3.0, angles=(0.0, 0.0)), k=K)
    assert "not told from it" in equal.method
    plain = angle_estimate(*planted(rng, 60, size=3.0), k=K)
    assert "told" not in plain.method and plain.unit == "radians"


def shifted(rng: np.random.Generator, groups: int, angle: float, size: float) -> Sample:
    """Mean shifts of x and y at an angle, with skewed noise that groups and both sides share."""

    def noise() -> np.ndarray:
        shared = np.repeat(rng.exponential(size=(groups, D)) - 1, ROWS, axis=0)
        return shared + rng.exponential(size=(groups * ROWS, D)) - 1

    reference = noise()
    one, other = planes((angle, 0.0))
    x, y = (noise() + size * basis[:, 0] for basis in (one, other))
    return x, y, reference, np.repeat(np.arange(groups), ROWS)


@pytest.mark.parametrize("groups", [20, 60])
def test_the_cosine_of_directions_covers_the_planted_one(groups: int) -> None:
    held = 0
    for repeat in range(REPEATS):
        sample = shifted(np.random.default_rng(repeat), groups, 1.0, 4.0)
        found = direction_estimate(*sample)
        held += found.low <= np.cos(1.0) <= found.high
    assert STATED[0] <= held / REPEATS <= STATED[1]


def test_the_cosine_of_orthogonal_directions_is_rejected_at_its_level() -> None:
    rng = np.random.default_rng(4)
    p = [direction_estimate(*shifted(rng, 30, np.pi / 2, 4.0)).p for _ in range(REPEATS)]
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.07


def test_a_plain_cosine_would_take_the_shared_reference_for_agreement() -> None:
    rng = np.random.default_rng(5)
    plain, ours = [], []
    for _ in range(500):
        x, y, reference, groups = shifted(rng, 60, np.pi / 2, 1.5)
        one, two = (np.mean(m - reference, axis=0) for m in (x, y))
        plain.append(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
        ours.append(direction_estimate(x, y, reference, groups).value)
    assert np.mean(plain) > 0.05 and abs(np.nanmedian(ours)) < 0.03


def test_a_shift_not_told_from_none_has_no_cosine_and_says_so() -> None:
    rng = np.random.default_rng(0)
    found = [direction_estimate(*shifted(rng, 20, 1.0, 0.0)) for _ in range(100)]
    unknown = [e for e in found if np.isnan(e.value) and "not told from none" in e.method]
    assert len(unknown) > 90


def test_many_dimensions_give_the_same_as_their_span() -> None:
    """Rows that lie in few of many dimensions, turned at random."""
    x, y, reference, groups = planted(np.random.default_rng(6), 10)
    turn = np.linalg.qr(np.random.default_rng(7).normal(size=(300, D)))[0].T
    options = {"k": K, "null": None, "seed": 0}
    wide = angle_estimate(x @ turn, y @ turn, reference @ turn, groups, k=K)
    assert wide.value == pytest.approx(angle_estimate(x, y, reference, groups, k=K).value)
    far = overlap_estimate(x @ turn, y @ turn, reference @ turn, groups, **options)
    assert far.value == pytest.approx(
        overlap_estimate(x, y, reference, groups, **options).value, abs=0.1
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"null": "uniform"}, "choose from covariance, haar, labels"),
        ({"k": 11}, "at most 10"),
        ({"groups": [0, 1] * 30}, "2 groups, too few"),
        ({"x": np.zeros((60, 9))}, r"x \(60, 9\)"),
        ({"y": np.full((60, D), np.nan)}, "NaN"),
        ({"draws": 0}, "draws is 0"),
        ({"splits": 0}, "splits is 0"),
    ],
)
def test_bad_input_is_one_clear_sentence(change: dict, message: str) -> None:
    x, y, reference, groups = planted(np.random.default_rng(0), 20)
    given = {"x": x, "y": y, "reference": reference, "groups": groups, "k": K, "seed": 0}
    with pytest.raises(GeometryError, match=message):
        overlap_estimate(**{**given, **change})
    with pytest.raises(GeometryError, match="differences of x from the reference have rank 0"):
        overlap_estimate(x, y, x, groups, k=1, seed=0)
    with pytest.raises(GeometryError, match="differences of y from the reference have rank 1"):
        angle_estimate(x, reference + reference[:, :1], reference, groups, k=2)
    with pytest.raises(GeometryError, match="which is 'middle'"):
        angle_estimate(x, y, reference, groups, k=1, which="middle")
