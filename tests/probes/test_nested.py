"""The choice of penalty against scikit-learn's grid search on the same folds, and against leaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from probes import LinearProbe, LinearProbeCV, ProbeError, grouped_folds, nested_probe

GRID = (1e-3, 1e-2, 1e-1, 1.0)


def made(
    seed: int, n: int = 90, d: int = 8, classes: int = 3, shift: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y, groups = np.arange(n) % classes, np.arange(n) // 3
    shared = rng.standard_normal((n, d))[groups]
    x = shared + rng.standard_normal((n, d)) + shift * rng.standard_normal((classes, d))[y]
    return x, y, groups


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([LinearProbeCV((0.1, 1.0), n_folds=2)])
def test_the_probe_is_a_scikit_learn_estimator(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize(("d", "classes"), [(8, 3), (8, 2), (200, 3)])
def test_losses_and_choice_equal_scikit_learns_grid_search_on_the_same_folds(
    d: int, classes: int
) -> None:
    x, y, groups = made(0, d=d, classes=classes)
    own = LinearProbeCV(GRID, n_folds=4, seed=3, tol=1e-9).fit(x, y, groups=groups)
    search = GridSearchCV(
        make_pipeline(
            StandardScaler(), LogisticRegression(solver="newton-cg", tol=1e-12, max_iter=2000)
        ),
        {"logisticregression__C": GRID},
        scoring="neg_log_loss",
        cv=grouped_folds(y, groups, n_folds=4, seed=3),
    ).fit(x, y)
    splits = [-search.cv_results_[f"split{f}_test_score"] for f in range(4)]
    np.testing.assert_allclose(own.losses_, splits, atol=1e-6)
    sizes = [len(test) for _, test in grouped_folds(y, groups, n_folds=4, seed=3)]
    best = int(np.average(splits, axis=0, weights=sizes).argmin())
    assert GRID[best] == own.C_
    np.testing.assert_array_equal(own.C_by_fold_, np.array(GRID)[np.argmin(splits, axis=1)])
    same = LinearProbe(own.C_, tol=1e-9).fit(x, y)
    np.testing.assert_array_equal(own.coef_, same.coef_)
    np.testing.assert_array_equal(own.predict(x), same.predict(x))
    assert own.subspace().overlap(same.subspace()) == pytest.approx(1)
    assert own.subspace().provenance["C"] == own.C_


def test_no_group_crosses_an_outer_or_an_inner_split(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, groups = made(1)
    x[:, 0] = groups  # states that say which group they are of
    seen: list[tuple[set[float], set[float]]] = []
    fit, decide = LinearProbe.fit, LinearProbe.decision_function

    def watched_fit(self: LinearProbe, X: np.ndarray, y: np.ndarray) -> LinearProbe:
        vars(self)["_seen"] = set(X[:, 0])
        return fit(self, X, y)

    def watched_decide(self: LinearProbe, X: np.ndarray) -> np.ndarray:
        seen.append((vars(self)["_seen"], set(X[:, 0])))
        return decide(self, X)

    monkeypatch.setattr(LinearProbe, "fit", watched_fit)
    monkeypatch.setattr(LinearProbe, "decision_function", watched_decide)
    nested_probe(x, y, groups, Cs=(0.1, 1.0), n_folds=3, inner_folds=4, seed=0)
    assert len(seen) == 3 * 4 * 2
    assert all(not train & test for train, test in seen)
    for outer in range(3):  # what an outer fold tests is nowhere in its inner folds
        inside = set().union(*(a | b for a, b in seen[outer * 8 : outer * 8 + 8]))
        assert len(inside) == 20


def test_nested_accuracy_equals_a_plain_loop_and_reports_c_by_fold() -> None:
    x, y, groups = made(2, shift=2.0)
    names = np.array(["a", "b", "c"])[y]
    result = nested_probe(x, names, groups, Cs=GRID, n_folds=3, inner_folds=3, seed=4)
    found = np.empty(len(y), dtype=names.dtype)
    for fold, (train, test) in enumerate(grouped_folds(y, groups, n_folds=3, seed=4)):
        inner = LinearProbeCV(GRID, n_folds=3, seed=4).fit(x[train], names[train], groups[train])
        assert result.C_by_fold[fold] == inner.C_
        found[test] = LinearProbe(inner.C_).fit(x[train], names[train]).predict(x[test])
    np.testing.assert_array_equal(result.predictions, found)
    expected = np.mean([(found == names)[names == c].mean() for c in "abc"])
    assert result.accuracy.value == pytest.approx(expected) and expected > 0.8
    assert result.accuracy.low < expected < result.accuracy.high
    assert result.losses.shape == (3, 4)


def test_labels_that_say_nothing_stay_at_chance_and_ask_for_the_strongest_penalty() -> None:
    values, chosen = [], []
    for seed in range(6):
        x, y, groups = made(seed, n=60, shift=0.0)
        result = nested_probe(x, y, groups, Cs=(1e-4, 1.0), n_folds=3, inner_folds=3, seed=seed)
        values.append(result.accuracy.value)
        chosen.extend(result.C_by_fold)
    assert abs(np.mean(values) - 1 / 3) < 3 * np.std(values) / np.sqrt(6) + 0.02
    assert np.mean(np.array(chosen) == 1e-4) > 0.7


def test_bad_input_is_one_clear_sentence() -> None:
    x, y, groups = made(5)
    for bad in ((), (0.0, 1.0), (np.nan,)):
        with pytest.raises(ProbeError, match="finite numbers above 0"):
            LinearProbeCV(bad).fit(x, y)
    with pytest.raises(ProbeError, match="is 1 group for 5"):
        LinearProbeCV().fit(x, y, groups=np.zeros(90))
    with pytest.raises(ProbeError, match="90 rows but 89 groups"):
        LinearProbeCV().fit(x, y, groups=groups[1:])
    with pytest.raises(ProbeError, match="at least two"):
        LinearProbeCV().fit(x, np.zeros(90))
    with pytest.raises(ProbeError, match="3 groups for 5"):
        nested_probe(x, y, np.arange(90) % 6, n_folds=3, seed=0)
    x[0, 0] = np.nan
    with pytest.raises(ProbeError, match="NaN or infinite"):
        nested_probe(x, y, groups, seed=0)
