"""Retrieval against plain loops, scikit-learn's neighbours and planted hubs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from geometry import GeometryError, all_but_the_top, parallel_cosine, retrieval, retrieve

seeds = st.integers(0, 2**31)


def pairs(seed: int, n: int = 30, d: int = 6, noise: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    return x, x + noise * rng.standard_normal((n, d))


def csls_by_loop(x: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    def cos(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    r_x = [np.mean(sorted(cos(a, b) for b in y)[-k:]) for a in x]
    r_y = [np.mean(sorted(cos(a, b) for a in x)[-k:]) for b in y]
    return np.array([[2 * cos(a, b) - r_x[i] - r_y[j] for j, b in enumerate(y)]
                     for i, a in enumerate(x)])  # fmt: skip


@given(seeds)
def test_csls_equals_the_double_loop_in_both_directions(seed: int) -> None:
    x, y = pairs(seed, n=14)
    scores = csls_by_loop(x, y, 3)
    found = retrieve(x, y, at=(1, 4), csls=3)
    for hits, table in ((found.forward_hits, scores), (found.backward_hits, scores.T)):
        rank = np.array([np.sum(row > row[i]) for i, row in enumerate(table)])
        np.testing.assert_array_equal(hits, np.stack([rank < 1, rank < 4], axis=1))
    np.testing.assert_allclose(found.forward, found.forward_hits.mean(axis=0))
    np.testing.assert_allclose(found.chance, [1 / 14, 4 / 14])


@given(seeds)
def test_without_csls_it_is_sklearns_nearest_neighbours_by_cosine(seed: int) -> None:
    x, y = pairs(seed)
    near = NearestNeighbors(n_neighbors=5, metric="cosine").fit(y).kneighbors(x)[1]
    expected = [
        np.mean(near[:, 0] == np.arange(30)),
        np.mean((near == np.arange(30)[:, None]).any(axis=1)),
    ]
    np.testing.assert_allclose(retrieve(x, y, at=(1, 5), csls=None).forward, expected)


@given(seeds)
def test_rotation_scale_of_rows_and_order_change_nothing(seed: int) -> None:
    x, y = pairs(seed)
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    order, lengths = rng.permutation(30), np.exp(rng.uniform(-14, 14, (30, 1)))
    one, two = retrieve(x, y), retrieve((lengths * x @ turn)[order], (1e6 * y @ turn)[order])
    np.testing.assert_array_equal(one.forward_hits[order], two.forward_hits)
    np.testing.assert_array_equal(one.backward_hits[order], two.backward_hits)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pairs(0)
    whole = retrieve(x, y)
    monkeypatch.setattr(retrieval, "_CELLS", 30 * 7)
    parts = retrieve(x, y)
    for one, two in zip(whole[1:], parts[1:], strict=True):
        np.testing.assert_allclose(one, two)


def test_unrelated_rows_are_found_at_chance_and_parallel_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 400, 20))
    for csls in (None, 10):
        found = retrieve(x, y, csls=csls)
        error = 4 * np.sqrt(found.chance / 400)
        assert np.all(np.abs(found.forward - found.chance) < error)
        assert np.all(retrieve(x, x + 0.1 * y, csls=csls).backward > 0.95)


def test_hubs_mislead_cosine_more_than_csls() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, 8)) + np.eye(8)[0] * 1.5
    y = x + 0.6 * rng.standard_normal((200, 8))
    y[:5] = x.mean(axis=0) + 0.05 * rng.standard_normal((5, 8))  # near to everything
    plain, corrected = retrieve(x, y, csls=None), retrieve(x, y)
    assert corrected.forward_hits[5:, 0].mean() > plain.forward_hits[5:, 0].mean() + 0.02


def test_duplicates_count_as_a_random_order_of_them() -> None:
    x, _ = pairs(0, n=12)
    x[3] = x[4] = x[5]
    found = retrieve(x, x, at=(1, 2, 3), csls=None)
    np.testing.assert_allclose(found.forward_hits[4], [1 / 3, 2 / 3, 1])
    same = retrieve(np.ones((12, 3)), np.ones((12, 3)))
    np.testing.assert_allclose(same.forward, same.chance)


@given(seeds)
def test_the_parallel_cosine_and_its_chance_are_sklearns(seed: int) -> None:
    x, y = pairs(seed)
    table = cosine_similarity(x, y)
    found = parallel_cosine(x, y)
    np.testing.assert_allclose(found.cosines, np.diag(table))
    assert found.value == pytest.approx(np.trace(table) / 30)
    assert found.chance == pytest.approx(table[~np.eye(30, dtype=bool)].mean())


@given(seeds, st.integers(0, 4))
def test_the_top_removed_is_that_of_sklearns_pca(seed: int, components: int) -> None:
    x, y = pairs(seed)
    pca = PCA(5, svd_solver="full").fit(y)
    kept = pca.components_[components:]
    last = np.linalg.svd(pca.components_)[2][5:]  # the sixth axis
    axes = np.vstack([kept, last])
    expected = (x - y.mean(axis=0)) @ axes.T @ axes
    np.testing.assert_allclose(
        all_but_the_top(x, components=components, fit=y), expected, atol=1e-9
    )


def test_isotropy_correction_finds_pairs_that_a_shared_offset_hid() -> None:
    x, y = pairs(0, noise=0.2)
    far = 1e3 * np.ones(6)
    raw = parallel_cosine(x + far, y + far)
    fair = parallel_cosine(
        all_but_the_top(x + far, components=0), all_but_the_top(y + far, components=0)
    )
    assert raw.value - raw.chance < 1e-4
    assert fair.value > 0.9 and abs(fair.chance) < 0.1


def test_bad_input_is_one_clear_sentence() -> None:
    x, y = pairs(0, n=12)
    with pytest.raises(GeometryError, match="same order and one space"):
        retrieve(x, y[:11])
    with pytest.raises(GeometryError, match="at is 13, but at most 12"):
        retrieve(x, y, at=(1, 13))
    with pytest.raises(GeometryError, match="at is empty"):
        retrieve(x, y, at=())
    with pytest.raises(GeometryError, match="csls is 20"):
        retrieve(x, y, csls=20)
    with pytest.raises(GeometryError, match="all zeros"):
        retrieve(np.zeros_like(x), y)
    with pytest.raises(GeometryError, match="NaN"):
        parallel_cosine(x * np.nan, y)
    with pytest.raises(GeometryError, match="1 pair"):
        parallel_cosine(x[:1], y[:1])
    with pytest.raises(GeometryError, match="rank 6"):
        all_but_the_top(x, components=6)
    with pytest.raises(GeometryError, match="rank 1"):
        all_but_the_top(x, components=1, fit=y[:2])
    with pytest.raises(GeometryError, match="components is -1"):
        all_but_the_top(x, components=-1)
    with pytest.raises(GeometryError, match="6 columns and fit 5"):
        all_but_the_top(x, components=0, fit=y[:, :5])
