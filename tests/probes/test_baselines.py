"""Baselines against scikit-learn and tables made by hand: each reads what it may, and no more."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from probes import (
    ProbeError,
    baselines,
    grouped_folds,
    length_baseline,
    majority_baseline,
    text_baseline,
    token_baseline,
)

LABELS = np.tile(["a", "b", "c"], 30)
GROUPS = np.repeat([f"g{i}" for i in range(30)], 3)


def uneven(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and groups of uneven sizes, one class three times as common."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    return rng.choice(["a", "b", "c"], len(groups), p=[0.6, 0.2, 0.2]), groups


def in_turn(labels: np.ndarray, groups: np.ndarray, seed: int, guess) -> float:
    """Balanced accuracy by scikit-learn of `guess(train, test)` on the probes' folds."""
    found = labels.copy()
    for train, test in grouped_folds(labels, groups, seed=seed):
        found[test] = guess(train, test)
    return balanced_accuracy_score(labels, found)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_the_majority_of_training_is_chance_by_class(seed: int) -> None:
    labels, groups = uneven(seed)
    found = majority_baseline(labels, groups, seed=seed)
    assert found.value == pytest.approx(1 / 3, abs=1e-12)  # "a" is commonest in every fold
    assert found.null == pytest.approx(1 / 3) and found.n == 40


def test_majorities_that_differ_between_folds_fall_below_chance() -> None:
    """Two classes as common as each other: which leads in training is behind in the test."""
    labels, groups = np.repeat(["a", "b"], 20), np.arange(40)

    def commonest(train: np.ndarray, test: np.ndarray) -> str:
        return max("ab", key=lambda c: (np.sum(labels[train] == c), c == "a"))

    expected = in_turn(labels, groups, 3, commonest)
    assert majority_baseline(labels, groups, seed=3).value == pytest.approx(expected)
    odd = np.repeat(["a", "b"], [21, 20])
    assert majority_baseline(odd, np.arange(41), seed=0).value <= 0.5


def test_a_token_that_gives_the_label_away_is_read_and_a_table_says_how_well() -> None:
    """Oracle: the commonest class of each token in training, class frequencies being equal."""
    rng = np.random.default_rng(0)
    code = np.unique(LABELS, return_inverse=True)[1]
    tokens = np.where(rng.random(90) < 0.7, code, rng.integers(0, 3, 90)) + 1000

    def by_table(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        table = {
            t: np.bincount(code[train][tokens[train] == t], minlength=3).argmax()
            for t in np.unique(tokens)
        }
        return np.array(["a", "b", "c"])[[table[t] for t in tokens[test]]]

    expected = in_turn(LABELS, GROUPS, 0, by_table)
    assert 0.7 < expected < 0.95
    found = token_baseline(tokens, LABELS, GROUPS, seed=0)
    assert found.value == pytest.approx(expected) and found.low < expected < found.high
    words = np.array([f"w{t}" for t in tokens], dtype=object)
    assert token_baseline(words, LABELS, GROUPS, seed=0) == found


def test_a_token_number_is_a_name_and_no_quantity() -> None:
    """The middle one of three numbers is as easily known as the others."""
    tokens = np.unique(LABELS, return_inverse=True)[1]
    assert token_baseline(tokens, LABELS, GROUPS, seed=0).value == 1.0


def test_the_one_token_of_all_texts_and_tokens_unseen_in_training_are_chance() -> None:
    assert token_baseline(np.full(90, 4), LABELS, GROUPS, seed=0).value == pytest.approx(1 / 3)
    new = token_baseline(np.arange(90), LABELS, GROUPS, seed=0)
    assert new.value == pytest.approx(1 / 3)


def test_lengths_are_read_as_scikit_learn_reads_their_squares_and_products() -> None:
    labels, groups = uneven(5)
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 60, (len(labels), 2)) + 12 * (labels == "b")[:, None]

    def theirs(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        reader = make_pipeline(
            StandardScaler(),
            PolynomialFeatures(2, include_bias=False),
            StandardScaler(),
            LogisticRegression(C=10, tol=1e-8, max_iter=5000),
        )
        return reader.fit(lengths[train], labels[train]).predict(lengths[test])

    expected = in_turn(labels, groups, 2, theirs)
    assert length_baseline(lengths, labels, groups, seed=2).value == pytest.approx(expected)


def test_a_class_of_middling_length_is_found() -> None:
    code = np.unique(LABELS, return_inverse=True)[1]
    lengths = 40 + 10 * code + np.random.default_rng(0).integers(-3, 4, 90)
    assert length_baseline(lengths, LABELS, GROUPS, seed=0).value > 0.95
    assert length_baseline(np.full(90, 7), LABELS, GROUPS, seed=0).value == pytest.approx(1 / 3)


def test_the_letters_alone_tell_varieties_that_spell_apart() -> None:
    texts = [f"{'xyz'[i % 3] * 3} w{i // 3}" for i in range(90)]
    assert text_baseline(texts, LABELS, GROUPS, seed=0).value > 0.95
    same = text_baseline([f"w{i // 3}" for i in range(90)], LABELS, GROUPS, seed=0)
    assert same.value == pytest.approx(1 / 3, abs=0.1)


def test_all_baselines_are_those_by_name_and_only_length_sees_length() -> None:
    rng = np.random.default_rng(0)
    code = np.unique(LABELS, return_inverse=True)[1]
    letters = list("abcdefgh")
    texts = ["".join(rng.choice(letters, 30 + 10 * c)) for c in code]
    tokens, lengths = rng.integers(0, 3, 90), np.full(90, 9)
    found = baselines(texts, LABELS, GROUPS, token_ids=tokens, lengths=lengths, seed=0)
    assert list(found) == ["majority", "text_length", "read_token", "text_ngrams"]
    assert found["text_length"].value == 1.0 and found["read_token"].value < 0.5
    both = np.column_stack([[len(text) for text in texts], lengths])
    assert found["text_length"] == length_baseline(both, LABELS, GROUPS, seed=0)
    assert found["read_token"] == token_baseline(tokens, LABELS, GROUPS, seed=0)
    assert found["text_ngrams"] == text_baseline(texts, LABELS, GROUPS, seed=0)
    assert found["majority"] == majority_baseline(LABELS, GROUPS, seed=0)
    assert all(e.unit == "balanced accuracy" and e.n == 30 for e in found.values())
    assert "read_token" not in baselines(texts, LABELS, GROUPS, seed=0)


def test_lengths_in_tokens_count_beside_those_in_characters() -> None:
    texts, code = ["aaaa"] * 90, np.unique(LABELS, return_inverse=True)[1]
    found = baselines(texts, LABELS, GROUPS, lengths=5 + code, seed=0)
    assert found["text_length"].value == 1.0
    assert baselines(texts, LABELS, GROUPS, seed=0)["text_length"].value == pytest.approx(1 / 3)


def test_bad_input_is_one_clear_sentence() -> None:
    with pytest.raises(ProbeError, match="90 rows but 80 labels"):
        token_baseline(np.zeros(90), LABELS[:80], GROUPS[:80], seed=0)
    with pytest.raises(ProbeError, match="1 of the token ids are missing"):
        token_baseline([None, *range(89)], LABELS, GROUPS, seed=0)
    with pytest.raises(ProbeError, match="lengths are not finite"):
        length_baseline(np.full(90, np.nan), LABELS, GROUPS, seed=0)
    with pytest.raises(ProbeError, match="lengths are no numbers"):
        length_baseline(["long"] * 90, LABELS, GROUPS, seed=0)
    with pytest.raises(ProbeError, match="All texts are empty"):
        text_baseline([""] * 90, LABELS, GROUPS, seed=0)
    with pytest.raises(ProbeError, match=r"lengths have shape \(90, 1, 1\)"):
        length_baseline(np.ones((90, 1, 1)), LABELS, GROUPS, seed=0)
    with pytest.raises(ProbeError, match="90 rows but 3 lengths"):
        baselines(["x"] * 90, LABELS, GROUPS, lengths=[1, 2, 3], seed=0)
    with pytest.raises(ProbeError, match="one label 'a'"):
        majority_baseline(["a"] * 90, GROUPS, seed=0)
