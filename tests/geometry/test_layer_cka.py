"""CKA of layers over groups: against pairs one by one, plain permuted rows, and invariances."""

from __future__ import annotations

import numpy as np
import pytest

from geometry import GeometryError, cka_estimate, debiased_cka, layer_cka

GROUPS = np.repeat([f"g{i}" for i in range(8)], 2)


def gaussian(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def layers() -> list[np.ndarray]:
    shared = gaussian(0, 16, 4)
    return [shared + 0.3 * gaussian(1, 16, 4), shared, gaussian(2, 16, 6)]


def exchange(seed: int, groups: np.ndarray = GROUPS) -> np.ndarray:
    """Groups of as many rows change places, by a plain loop."""
    rng = np.random.default_rng(seed)
    order = np.empty(len(groups), dtype=int)
    rows = {g: np.flatnonzero(groups == g) for g in dict.fromkeys(groups)}
    for size in {len(r) for r in rows.values()}:
        same = [g for g in rows if len(rows[g]) == size]
        for place, g in zip(rng.permutation(same), same, strict=True):
            order[rows[place]] = rows[g]
    return order


def test_every_pair_is_the_estimate_of_that_pair() -> None:
    given = layers()
    found = layer_cka(given, GROUPS)
    assert found.permuted.shape == (0, 3, 3)
    np.testing.assert_array_equal(np.diagonal(found.value), 1.0)
    for i in range(3):
        for j in range(i):
            pair = cka_estimate(given[i], given[j], GROUPS, draws=0, seed=0)
            told = [m[i, j] for m in (found.value, found.low, found.high)]
            np.testing.assert_allclose(told, [pair.value, pair.low, pair.high], atol=1e-12)
            assert found.value[j, i] == found.value[i, j]


@pytest.mark.parametrize("sizes", [[2] * 8, [1, 1, 1, 2, 2, 2, 3, 3]])
def test_permuted_values_are_those_of_permuted_rows(sizes: list[int]) -> None:
    groups = np.repeat(np.arange(len(sizes)).astype(str), sizes)
    given = [gaussian(s, len(groups), 5) for s in range(3)]
    orders = np.array([exchange(s, groups) for s in range(4)])
    found = layer_cka(given, groups, orders=orders).permuted
    for drawn, order in zip(found, orders, strict=True):
        for i in range(3):
            for j in range(3):
                pair = cka_estimate(given[i], given[j][order], groups, draws=0, seed=0)
                assert drawn[i, j] == pytest.approx(pair.value, abs=1e-12)


def test_with_one_row_a_group_it_is_debiased_cka() -> None:
    given = layers()
    found = layer_cka(given, np.arange(16), orders=[np.arange(16)])
    assert found.value[0, 1] == pytest.approx(debiased_cka(given[0], given[1]))
    np.testing.assert_allclose(found.permuted[0], found.value, atol=1e-12)


def test_turning_and_scaling_a_layer_changes_nothing() -> None:
    given = layers()
    turned = [3 * x @ np.linalg.qr(gaussian(9, x.shape[1], x.shape[1]))[0] + 7 for x in given]
    np.testing.assert_allclose(
        layer_cka(given, GROUPS).value, layer_cka(turned, GROUPS).value, atol=1e-10
    )


def test_bad_input_is_one_clear_sentence() -> None:
    x = gaussian(0, 16, 3)
    with pytest.raises(GeometryError, match="4 groups, too few"):
        layer_cka([x], np.arange(16) // 4)
    with pytest.raises(GeometryError, match=r"\[15, 16\] rows"):
        layer_cka([x, x[1:]], GROUPS)
    with pytest.raises(GeometryError, match="Layer 1 does not vary"):
        layer_cka([x, np.ones((16, 3))], GROUPS)
    with pytest.raises(GeometryError, match="permutations of 0 to 15"):
        layer_cka([x], GROUPS, orders=[[0] * 16])
    with pytest.raises(GeometryError, match="move whole groups"):
        layer_cka([x], GROUPS, orders=[[0, 2, 1, *range(3, 16)]])
