"""What differs between two measurements of the same rows, against scipy and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import balanced_accuracy_score

from evidence import EvidenceError, cluster_mean
from evidence.paired import balanced_accuracy_change, paired_change


def test_one_row_a_group_is_scipys_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=40)
    after = before + rng.normal(0.3, 0.5, size=40)
    found = paired_change(before, after, np.arange(40))
    plain = cluster_mean(after - before, np.arange(40), null=0.0, method="t")
    peer = stats.ttest_rel(after, before)
    assert plain.p == pytest.approx(peer.pvalue)
    assert (plain.low, plain.high) == pytest.approx(tuple(peer.confidence_interval(0.95)))
    # The default allows for skewness, so it is never the narrower.
    assert found.value == pytest.approx(np.mean(after - before))
    assert found.low <= plain.low and found.high >= plain.high and found.p >= plain.p


def test_pairing_takes_out_what_both_share() -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 10, size=30)
    found = paired_change(shared, shared + 0.5, np.arange(30))
    assert found.low == pytest.approx(0.5) == found.high
    apart = cluster_mean(shared, np.arange(30))
    assert apart.high - apart.low > 5


def test_change_of_balanced_accuracy_is_scikit_learns_and_its_interval_the_jackknifes() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(25), 4)
    labels = np.tile(["a", "b", "b", "c"], 25)
    said = [np.where(rng.random(100) < share, labels, "a") for share in (0.5, 0.8)]
    hits = [guess == labels for guess in said]
    found = balanced_accuracy_change(hits[0], hits[1], labels, groups, seed=0)

    def change(rows: np.ndarray) -> float:
        one, two = (balanced_accuracy_score(labels[rows], guess[rows]) for guess in said)
        return two - one

    whole = change(np.arange(100))
    assert found.value == pytest.approx(whole)
    pseudo = [25 * whole - 24 * change(np.flatnonzero(groups != g)) for g in range(25)]
    by_hand = cluster_mean(pseudo, np.arange(25))
    assert found.high - found.low == pytest.approx(by_hand.high - by_hand.low)
    assert found.p < 0.05 and found.n == 25


def test_nothing_changed_leaves_the_exact_limit_for_so_many_groups() -> None:
    hits = np.ones(60, dtype=bool)
    for found in (
        paired_change(hits, hits, np.arange(60), bounds=(0, 1)),
        balanced_accuracy_change(hits, hits, np.tile(["a", "b"], 30), np.arange(60), seed=0),
    ):
        limit = stats.binomtest(0, 60).proportion_ci(0.95, method="exact").high
        assert found.value == 0 and found.p == 1
        assert (found.low, found.high) == pytest.approx((-limit, limit))
    # A figure that can take any value has no such limit.
    assert paired_change(hits, hits, np.arange(60)).high == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: paired_change([1.0], [1.0, 2.0], ["a"]), "1 figures before and 2 after"),
        (lambda: paired_change([], [], []), "at least one"),
        (
            lambda: balanced_accuracy_change([1], [1], ["a", "b"], ["g"], seed=0),
            "1 rows before, 1 after, 2 labels and 1 groups",
        ),
    ],
)
def test_rows_that_do_not_pair_are_refused(call, said: str) -> None:
    with pytest.raises(EvidenceError, match=said):
        call()
