"""Folds, controls and sweeps: planted signal is found, its absence is chance, leaks are errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from probes import (
    ProbeError,
    check_no_leak,
    control_labels,
    grouped_folds,
    probe_frame,
    probe_site,
    probe_sites,
)
from probes.controls import permuted_codes, reader_accuracies, ridge_reader

LABELS = np.tile(["a", "b", "c"], 30)
GROUPS = np.repeat([f"g{i}" for i in range(30)], 3)


def noise(seed: int, d: int = 6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shared = np.repeat(rng.standard_normal((30, d)), 3, axis=0)
    return shared + rng.standard_normal((90, d))


def signal(seed: int) -> np.ndarray:
    return noise(seed) + 4 * np.eye(6)[np.unique(LABELS, return_inverse=True)[1]]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 6))
def test_no_group_crosses_and_every_row_is_tested_once(seed: int, n_folds: int) -> None:
    folds = grouped_folds(LABELS, GROUPS, n_folds=n_folds, seed=seed)
    for train, test in folds:
        assert not set(GROUPS[train]) & set(GROUPS[test])
    np.testing.assert_array_equal(np.sort(np.concatenate([t for _, t in folds])), np.arange(90))


def test_a_leak_is_an_error() -> None:
    with pytest.raises(ProbeError, match="both sides of a split, such as 'g0'"):
        check_no_leak(GROUPS, [0], [1])


def test_folds_that_cannot_be_are_refused() -> None:
    with pytest.raises(ProbeError, match="is 1 group for 5"):
        grouped_folds(["a", "b"], ["g", "g"], seed=0)
    with pytest.raises(ProbeError, match="at least two classes"):
        grouped_folds(["a"] * 9, np.arange(9), seed=0)
    with pytest.raises(ProbeError, match="too few groups to be in every"):
        grouped_folds(["a"] * 9 + ["b"], np.arange(10), seed=0)
    with pytest.raises(ProbeError, match="at least 2"):
        grouped_folds(LABELS, GROUPS, n_folds=1, seed=0)


def test_planted_signal_is_found_and_its_absence_is_chance() -> None:
    sites = {f"blocks.{i}.hook_resid_post": noise(i) for i in range(3)}
    sites["blocks.3.hook_resid_post"] = signal(3)
    results = probe_sites(sites, LABELS, GROUPS, permutations=99, seed=0)
    assert [r.layer for r in results] == [0, 1, 2, 3]
    assert results[3].accuracy.value > 0.9 and results[3].p <= 0.02
    assert results[3].accuracy.low > 1 / 3
    assert results[3].selectivity > 0.4
    for result in results[:3]:
        assert abs(result.accuracy.value - 1 / 3) < 0.17 and result.p > 0.02
    for result in results:
        assert abs(result.control.value - 1 / 3) < 0.12
        assert result.control_train > result.control.value
    frame = probe_frame(results)
    assert list(frame.columns) == [
        "site", "layer", "measure", "control", "value", "low", "high", "n", "p",
    ]  # fmt: skip
    assert set(frame["control"]) == {"", "chance", "control_task", "control_task_train"}
    assert frame["n"].max() == 30


def test_the_same_seed_gives_the_same_result() -> None:
    one, two = (probe_site(noise(0), LABELS, GROUPS, permutations=20, seed=4) for _ in range(2))
    assert one.accuracy == two.accuracy and one.control == two.control
    np.testing.assert_array_equal(one.predictions, two.predictions)


def test_control_labels_keep_the_margins_and_agree_within_a_type() -> None:
    drawn = control_labels(LABELS, GROUPS, seed=0)
    assert sorted(drawn) == sorted(LABELS) and (drawn != LABELS).any()
    twice = control_labels(np.tile(LABELS, 2), np.tile(GROUPS, 2), seed=1)
    np.testing.assert_array_equal(twice[:90], twice[90:])


def test_permutations_keep_what_groups_share() -> None:
    code = np.unique(LABELS, return_inverse=True)[1]
    for drawn in permuted_codes(code, GROUPS, draws=20, seed=0):
        assert (np.sort(drawn.reshape(30, 3), axis=1) == [0, 1, 2]).all()
    whole = np.repeat(np.arange(30) % 2, 3)
    draws = permuted_codes(whole, GROUPS, draws=20, seed=0).reshape(20, 30, 3)
    assert (draws == draws[:, :, :1]).all() and (draws.sum(axis=(1, 2)) == 45).all()
    assert len(np.unique(draws[:, :, 0], axis=0)) == 20


def test_the_compiled_permutations_equal_refits_of_ridge() -> None:
    x, code = signal(0)[:, :2] + noise(5)[:, :2], np.unique(LABELS, return_inverse=True)[1]
    folds = grouped_folds(LABELS, GROUPS, seed=0)
    labelings = permuted_codes(code, GROUPS, draws=12, seed=1)
    labelings[0] = code
    plain = []
    for drawn in labelings:
        found = np.empty(90, int)
        for train, test in folds:
            z = (x - x[train].mean(0)) / x[train].std(0)
            alpha = np.mean(np.sum(z[train] ** 2, axis=1))
            model = Ridge(alpha=alpha).fit(z[train], np.eye(3)[drawn[train]])
            found[test] = model.predict(z[test]).argmax(1)
        plain.append(np.mean([(found == drawn)[drawn == c].mean() for c in range(3)]))
    np.testing.assert_allclose(reader_accuracies(ridge_reader(x, folds), labelings, 3), plain)


def test_more_features_than_rows_and_constant_states_are_fine() -> None:
    wide = np.hstack([signal(0), np.random.default_rng(0).standard_normal((90, 200))])
    assert probe_site(1e6 * wide, LABELS, GROUPS, control_draws=0, seed=0).accuracy.value > 0.4
    flat = probe_site(np.ones((90, 4)), LABELS, GROUPS, permutations=19, seed=0)
    assert flat.accuracy.value == pytest.approx(1 / 3, abs=0.05) and flat.p == 1.0


def test_bad_states_are_one_clear_sentence() -> None:
    x = noise(0)
    x[3, 2] = np.inf
    with pytest.raises(ProbeError, match=r"1 rows of the states at .* hold NaN"):
        probe_sites({"blocks.0.x": x}, LABELS, GROUPS, seed=0)
    with pytest.raises(ProbeError, match="80 rows of states"):
        probe_site(noise(0)[:80], LABELS, GROUPS, seed=0)
    with pytest.raises(ProbeError, match="89 groups"):
        probe_site(noise(0), LABELS, GROUPS[:89], seed=0)
    with pytest.raises(ProbeError, match="labels are missing"):
        probe_site(noise(0), [None, *LABELS[1:]], GROUPS, seed=0)
    with pytest.raises(ProbeError, match="no site"):
        probe_sites({}, LABELS, GROUPS, seed=0)
