"""Curves against plain loops of scikit-learn, and against truth planted in known directions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.linalg import hadamard
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probes import ProbeError, grouped_folds, learning_curve, probe_site, size_curve

COLUMNS = ["by", "size", "control", "value", "low", "high", "level", "n"]
COLUMNS += ["unit", "draws", "spread", "seed"]
CODE = np.tile(np.arange(4), 24)
LABELS = np.array(["a", "b", "c", "d"])[CODE]
GROUPS = np.repeat([f"g{i:02}" for i in range(24)], 4)
#: The corners of a tetrahedron: four classes that no plane tells apart at once.
CORNERS = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])


def states(seed: int, strength: float = 1.0, d: int = 12) -> np.ndarray:
    """Noise shared in groups and of rows, and the classes as corners in the first three axes."""
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.standard_normal((24, d)), 4, axis=0) + rng.standard_normal((96, d))
    x[:, :3] += strength * CORNERS[CODE]
    return x


def balanced(labels: np.ndarray, guess: np.ndarray) -> float:
    return float(balanced_accuracy_score(labels, guess))


def values(frame: pd.DataFrame, control: str = "") -> pd.Series:
    return frame[frame["control"] == control].set_index("size")["value"]


def plain() -> LogisticRegression:
    return LogisticRegression(tol=1e-8, max_iter=5000)


def test_a_learning_curve_is_a_loop_over_nested_groups() -> None:
    x = states(0)
    found = learning_curve(x, LABELS, GROUPS, sizes=[3, 7, 24], draws=2, n_folds=4, seed=5)
    assert list(found.columns) == COLUMNS
    for size, repeats in ((3, 2), (7, 2), (24, 1)):
        each = []
        for draw in range(repeats):
            guess = LABELS.copy()
            for fold, (train, test) in enumerate(grouped_folds(LABELS, GROUPS, n_folds=4, seed=5)):
                names = sorted(set(GROUPS[train]))
                chosen = np.random.default_rng([5, draw, fold]).permutation(names)[:size]
                part = [i for i in train if GROUPS[i] in set(chosen)]
                reader = make_pipeline(StandardScaler(), plain()).fit(x[part], LABELS[part])
                guess[test] = reader.predict(x[test])
            each.append(balanced(LABELS, guess))
        row = found[found["size"] == size].iloc[0]
        assert row["value"] == pytest.approx(np.mean(each)) and row["draws"] == repeats
        assert row["low"] < row["value"] < row["high"] and row["n"] == 24
        if repeats > 1:
            assert row["spread"] == pytest.approx(np.std(each, ddof=1))
    assert np.isnan(found["spread"].iloc[-1])


def test_a_learning_curve_rises_to_the_plain_cross_validated_accuracy() -> None:
    x = states(1, strength=0.8)
    found = learning_curve(x, LABELS, GROUPS, seed=0)
    assert list(found["size"])[-1] in (19, 20) and found["size"].is_monotonic_increasing
    assert found["value"].iloc[-1] > found["value"].iloc[0] + 0.15
    whole = probe_site(x, LABELS, GROUPS, control_draws=0, seed=0).accuracy
    last = found.iloc[-1]
    assert (last["value"], last["low"], last["high"]) == (whole.value, whole.low, whole.high)
    pd.testing.assert_frame_equal(found, learning_curve(x, LABELS, GROUPS, seed=0))


def test_groups_of_one_class_count_what_they_lack_as_error() -> None:
    """One group trains on one class: that class is always guessed, which is right for its own."""
    labels, groups = np.repeat(["a", "b"], 10), np.arange(20)
    x = np.where(labels == "a", 5.0, -5.0)[:, None]
    found = values(learning_curve(x, labels, groups, sizes=[1, 16], n_folds=5, seed=0))
    assert found[16] == 1.0 and found[1] == pytest.approx(0.5, abs=0.2)


def test_a_curve_by_components_is_a_loop_of_pca_within_each_fold() -> None:
    x = states(2) * np.geomspace(1, 50, 12) + 3
    found = values(size_curve(x, LABELS, GROUPS, sizes=[1, 2, 5, 12], control_draws=0, seed=3))
    for k in (1, 2, 5, 12):
        guess = LABELS.copy()
        for train, test in grouped_folds(LABELS, GROUPS, seed=3):
            reader = make_pipeline(StandardScaler(), PCA(k, svd_solver="full"), plain())
            guess[test] = reader.fit(x[train], LABELS[train]).predict(x[test])
        assert found[k] == pytest.approx(balanced(LABELS, guess)), k


def test_each_planted_dimension_doubles_what_is_read_until_all_three_are() -> None:
    """Eight classes are the signs of three axes, the strongest of sixteen; the Hadamard turn makes
    all features alike, so scaling them moves no component. k components tell 2^k classes apart.
    """
    rng = np.random.default_rng(0)
    code, groups = np.tile(np.arange(8), 24), np.repeat(np.arange(24), 8)
    scores = 0.2 * rng.standard_normal((192, 16))
    scores[:, :3] += (2 * ((code[:, None] >> np.arange(3)) & 1) - 1) * [3.0, 2.5, 2.0]
    x = scores @ hadamard(16) / 4
    found = values(size_curve(x, code, groups, sizes=[1, 2, 3, 4, 16], control_draws=0, seed=0))
    assert found[1] == pytest.approx(1 / 4, abs=0.07)
    assert found[2] == pytest.approx(1 / 2, abs=0.07)
    assert found[3] == found[4] == found[16] == 1.0


def test_all_components_are_the_plain_probe_and_its_control() -> None:
    x = states(4)
    for wide in (x, np.hstack([x, np.random.default_rng(0).standard_normal((96, 150))])):
        found = size_curve(wide, LABELS, GROUPS, seed=0)
        last = found[found["size"] == found["size"].max()].set_index("control")
        whole = probe_site(wide, LABELS, GROUPS, control_draws=3, seed=0)
        assert last.loc["", "value"] == pytest.approx(whole.accuracy.value)
        assert last.loc["control_task", "value"] == pytest.approx(whole.control.value)
        assert last.loc["control_task_train", "value"] == pytest.approx(whole.control_train)
        assert np.isnan(last.loc["control_task_train", "low"])


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_a_curve_by_hidden_units_is_a_loop_of_perceptrons() -> None:
    x = states(5)
    found = values(
        size_curve(x, LABELS, GROUPS, by="hidden", sizes=[3], C=0.5, control_draws=0, seed=7)
    )
    guess = LABELS.copy()
    for train, test in grouped_folds(LABELS, GROUPS, seed=7):
        net = MLPClassifier((3,), solver="lbfgs", alpha=2.0, max_iter=300, random_state=7)
        reader = make_pipeline(StandardScaler(), net)
        guess[test] = reader.fit(x[train], LABELS[train]).predict(x[test])
    assert found[3] == pytest.approx(balanced(LABELS, guess))


def test_hidden_units_read_what_no_linear_probe_can_and_memorise_more_the_more_they_are() -> None:
    """Exclusive or: two signs whose product is the label."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 2))
    x = np.sign(x) + 0.2 * x
    labels, groups = x[:, 0] * x[:, 1] > 0, np.repeat(np.arange(50), 4)
    linear = size_curve(x, labels, groups, control_draws=0, seed=0)
    assert values(linear).max() < 0.6
    found = size_curve(x, labels, groups, by="hidden", sizes=[1, 4, 32], control_draws=2, seed=0)
    assert values(found)[1] < 0.9 < 0.97 < values(found)[32]
    memory = values(found, "control_task_train")
    assert memory[1] < memory[4] < memory[32]
    assert values(found, "control_task").sub(0.5).abs().max() < 0.12
    assert list(found["draws"][:3]) == [1, 2, 2]


def test_types_on_both_sides_of_the_split_show_what_a_large_probe_learns_by_heart() -> None:
    """Twenty types, each one axis: all axes give the control away, and one axis says little."""
    rng = np.random.default_rng(0)
    types = rng.integers(0, 20, 200)
    groups = np.repeat(np.arange(50), 4)
    labels = types % 2
    x = np.eye(20)[types] + 0.05 * rng.standard_normal((200, 20))
    found = size_curve(x, labels, groups, types=types, sizes=[1, 20], control_draws=3, C=10, seed=0)
    assert values(found, "control_task")[20] > 0.95 and values(found)[20] > 0.95
    assert values(found, "control_task")[1] < 0.75
    apart = size_curve(x, labels, groups, sizes=[20], control_draws=3, C=10, seed=0)
    assert abs(values(apart, "control_task")[20] - 0.5) < 0.12


def test_labels_shuffled_by_group_stay_at_chance_at_every_size() -> None:
    whole = np.random.default_rng(1).permutation(np.arange(24) % 2).repeat(4)
    x = states(6, strength=0.0)
    for frame in (
        learning_curve(x, whole, GROUPS, seed=0),
        size_curve(x, whole, GROUPS, control_draws=0, seed=0),
    ):
        assert (frame["low"] < 0.5).all() and (frame["value"] < 0.75).all()


def test_bad_input_is_one_clear_sentence() -> None:
    x = states(0)
    with pytest.raises(ProbeError, match="A size is 0; it must be a whole number of at least 1"):
        learning_curve(x, LABELS, GROUPS, sizes=[0, 4], seed=0)
    with pytest.raises(ProbeError, match=r"A size is 2\.5"):
        size_curve(x, LABELS, GROUPS, sizes=[2.5], seed=0)  # pyright: ignore
    with pytest.raises(ProbeError, match="no size to try"):
        learning_curve(x, LABELS, GROUPS, sizes=[], seed=0)
    with pytest.raises(ProbeError, match="draws is 0"):
        learning_curve(x, LABELS, GROUPS, draws=0, seed=0)
    with pytest.raises(ProbeError, match="13 components are asked for, and there are 12"):
        size_curve(x, LABELS, GROUPS, sizes=[2, 13], seed=0)
    with pytest.raises(ProbeError, match="`by` is 'rank'"):
        size_curve(x, LABELS, GROUPS, by="rank", seed=0)  # pyright: ignore
    with pytest.raises(ProbeError, match="96 rows but 95 groups"):
        learning_curve(x, LABELS, GROUPS[:95], seed=0)
    with pytest.raises(ProbeError, match="one type 't'"):
        size_curve(x, LABELS, GROUPS, types=["t"] * 96, seed=0)
    with pytest.raises(ProbeError, match="control_draws is -1"):
        size_curve(x, LABELS, GROUPS, control_draws=-1, seed=0)
