"""Erasure against the theorem, the package concept-erasure, and the optimum found by search."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from concept_erasure import LeaceFitter as PackageFitter
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss

from geometry import (
    GeometryError,
    LeaceEraser,
    LeaceFitter,
    containment,
    iterated_nullspace,
    linear_discriminants,
    mean_differences,
    principal_angles,
)

seeds = st.integers(0, 2**31)


def made(
    seed: int = 0, n: int = 240, d: int = 6, classes: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.minimum(np.arange(n) % (classes + 1), classes - 1)  # the last class is twice as large
    mixed = rng.standard_normal((n, d)) @ rng.standard_normal((d, d))
    return mixed + 3 * rng.standard_normal((classes, d))[y], y


def logistic(x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    z = (x - x.mean(0)) / x.std()
    return LogisticRegression(C=1e6, solver="newton-cg", tol=1e-10, max_iter=500).fit(z, y)


@pytest.mark.parametrize("method", ["leace", "orthogonal"])
@pytest.mark.parametrize("classes", [2, 4])
def test_after_erasure_logistic_regression_reads_nothing_and_before_it_did(
    method: str, classes: int
) -> None:
    x, y = made(1, classes=classes)
    erase = LeaceEraser.fit(x, y, method=method)  # pyright: ignore[reportArgumentType]
    one_hot = np.eye(classes)[y]
    shares = one_hot.mean(0)
    entropy = -np.sum(shares * np.log(shares))
    losses, sizes = [], []
    for states in (x, erase(x)):
        model = logistic(states, y)
        z = (states - states.mean(0)) / states.std()
        losses.append(log_loss(y, model.predict_proba(z)))
        sizes.append(np.abs(model.coef_).max())
    assert losses[0] < entropy - 0.3 and sizes[0] > 0.5
    assert losses[1] == pytest.approx(entropy, abs=1e-9) and sizes[1] < 1e-6
    before = (x - x.mean(0)).T @ one_hot / len(x)
    after = (erase(x) - x.mean(0)).T @ one_hot / len(x)
    np.testing.assert_allclose(erase.covariance, before, atol=1e-12)
    assert np.abs(before).max() > 0.1 and np.abs(after).max() < 1e-12


@settings(max_examples=20, deadline=None)
@given(seeds, st.integers(2, 4), st.sampled_from([(40, 6), (12, 30)]))
def test_the_map_is_a_projection_of_rank_classes_less_one(
    seed: int, classes: int, shape: tuple[int, int]
) -> None:
    x, y = made(seed, *shape, classes)
    erase = LeaceEraser.fit(x, y)
    p = erase.projection
    np.testing.assert_allclose(p @ p, p, atol=1e-8)
    np.testing.assert_allclose(erase(erase(x)), erase(x), atol=1e-8)
    assert erase.rank == classes - 1
    assert np.linalg.matrix_rank(x - erase(x), tol=1e-8) <= classes - 1
    np.testing.assert_allclose(erase(x).mean(0), x.mean(0), atol=1e-10)


@pytest.mark.parametrize("method", ["leace", "orth"])
def test_the_map_equals_that_of_the_package_concept_erasure(method: str) -> None:
    x, y = made(2)
    z = np.eye(3)[y]
    package = PackageFitter.fit(
        torch.from_numpy(x),
        torch.from_numpy(z),
        method=method,
        shrinkage=False,
        constrain_cov_trace=False,
        svd_tol=1e-9,
    ).eraser
    ours = LeaceEraser.fit(x, y, method="leace" if method == "leace" else "orthogonal")
    np.testing.assert_allclose(ours.projection, package.P.numpy(), atol=1e-10)
    np.testing.assert_allclose(ours(x), package(torch.from_numpy(x)).numpy(), atol=1e-9)


def test_no_affine_map_that_erases_moves_states_less() -> None:
    x, y = made(3, d=3, classes=2)
    cross = (x - x.mean(0)).T @ (y - y.mean())
    free = np.linalg.svd(cross[:, None])[0][:, 1:]  # maps A with A cross = 0 are B freeᵀ

    def moved(flat: np.ndarray) -> float:
        change = (x - x.mean(0)) @ (flat.reshape(3, 2) @ free.T - np.eye(3)).T
        return float(np.mean(np.sum(change**2, axis=1)))

    best = scipy.optimize.minimize(moved, np.zeros(6), tol=1e-12).fun
    own = {
        m: float(np.mean(np.sum((LeaceEraser.fit(x, y, method=m)(x) - x) ** 2, axis=1)))
        for m in ("leace", "orthogonal")
    }
    assert own["leace"] == pytest.approx(best, rel=1e-6)
    assert own["leace"] < 0.99 * own["orthogonal"]


def test_batches_and_their_order_change_nothing() -> None:
    x, y = made(4)
    x, z = x + 1e3, np.eye(3)[y]
    order = np.random.default_rng(0).permutation(len(x))
    fitter = LeaceFitter(6, 3)
    for part in np.array_split(order, [1, 2, 9, 100]):
        fitter.update(x[part], z[part])
    whole = LeaceEraser.fit(x, y)
    np.testing.assert_allclose(fitter.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(fitter.covariance, np.cov(x.T, bias=True), atol=1e-8)
    np.testing.assert_allclose(fitter.eraser().projection, whole.projection, atol=1e-8)


def test_a_real_valued_concept_in_any_unit_is_erased_for_least_squares() -> None:
    x, _ = made(5)
    z = x @ np.array([1.0, -1, 0, 2, 0, 0]) + np.random.default_rng(0).standard_normal(len(x))
    for unit in (1.0, 1e-6, 1e6):
        erase = LeaceFitter(6, 1).update(x, unit * z[:, None]).eraser()
        assert erase.rank == 1
        assert LinearRegression().fit(x, z).score(x, z) > 0.5
        assert LinearRegression().fit(erase(x), z).score(erase(x), z) == pytest.approx(0, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(seeds)
def test_erasing_goes_with_any_change_of_coordinates(seed: int) -> None:
    x, y = made(seed)
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(rng.standard_normal((6, 6)))[0] @ np.diag(rng.uniform(0.3, 3, 6)) * 1e6
    one, two = LeaceEraser.fit(x, y), LeaceEraser.fit(x @ mix + 1e6, y)
    np.testing.assert_allclose(two(x @ mix + 1e6), one(x) @ mix + 1e6, rtol=1e-6, atol=1)


def test_what_is_erased_is_the_span_of_the_means_and_what_reads_it_is_not() -> None:
    x, y = made(6)
    erase = LeaceEraser.fit(x, y)
    pattern, readout = erase.subspace(), erase.subspace(kind="readout")
    assert principal_angles(pattern.basis, mean_differences(x, y).basis).max() < 1e-6
    # By Woodbury the readout of the whole covariance is that of the covariance within classes.
    own = linear_discriminants(x, y, shrinkage=0.0)
    assert principal_angles(readout.basis, own.basis).max() < 1e-6
    assert principal_angles(readout.basis, pattern.basis).max() > 0.1
    assert pattern.provenance["whitened"] and pattern.provenance["method"] == "leace_pattern"
    straight = LeaceEraser.fit(x, y, method="orthogonal").subspace()
    assert principal_angles(straight.basis, pattern.basis).max() < 1e-6


def test_few_rows_constant_features_and_shrinkage_still_erase() -> None:
    x, y = made(7, 12, 30, 2)
    x = np.hstack([x, x[:, :2], np.full((12, 2), 7.1)])
    for gamma in (0.0, 0.2, 1.0):
        erase = LeaceEraser.fit(x, y, shrinkage=gamma)
        after = (erase(x) - x.mean(0)).T @ (np.eye(2)[y] - np.eye(2)[y].mean(0))
        assert np.abs(after).max() < 1e-9 * np.abs(erase.covariance).max() * len(x)
    flat = LeaceEraser.fit(np.ones((12, 4)), y)
    assert flat.rank == 0
    np.testing.assert_array_equal(flat(x[:, :4]), x[:, :4])
    with pytest.raises(GeometryError, match="nothing is erased"):
        flat.subspace()


def test_nullspace_rounds_take_the_reader_to_chance_and_are_orthogonal() -> None:
    x, y = made(8, classes=2)
    result = iterated_nullspace(x, y, rounds=10, enough=lambda z: logistic(z, y).score(z, y) < 0.68)
    assert logistic(x, y).score(x, y) > 0.85
    assert logistic(result.subspace.reject(x), y).score(x, y) < 0.68  # the majority is 2 in 3
    assert 1 <= len(result.rounds) < 6
    joined = np.hstack([space.basis for space in result.rounds])
    np.testing.assert_allclose(joined.T @ joined, np.eye(joined.shape[1]), atol=1e-10)
    np.testing.assert_allclose(
        result.subspace.basis @ result.subspace.basis.T, joined @ joined.T, atol=1e-10
    )
    assert result.rounds[0].direction @ (x[y == 1].mean(0) - x[y == 0].mean(0)) > 0


def test_the_first_round_is_scikit_learns_least_squares_and_a_given_readers_weights() -> None:
    x, y = made(9)
    weights = LinearRegression().fit(x, np.eye(3)[y]).coef_
    first = iterated_nullspace(x, y, rounds=1).subspace
    assert first.k == 2 and containment(weights[:2].T, first.basis) == pytest.approx(1)
    given = iterated_nullspace(x, y, rounds=2, fit=lambda a, b: logistic(a, b).coef_)
    own = logistic(x, y).coef_
    assert containment((own[1:] - own[0]).T, given.rounds[0].basis) == pytest.approx(1)
    assert given.subspace.k == 4 and given.subspace.provenance["reader"] != "least_squares"


def test_rounds_end_where_no_dimension_is_left() -> None:
    x, y = made(10, d=3, classes=2)
    assert iterated_nullspace(x, y, rounds=50).subspace.k <= 3
    wide, y = made(10, 8, 20, 2)
    assert iterated_nullspace(wide, y, rounds=50).subspace.k <= 7


def test_bad_input_is_one_clear_sentence() -> None:
    x, y = made()
    with pytest.raises(GeometryError, match="at least two classes"):
        LeaceEraser.fit(x, np.zeros(len(x)))
    with pytest.raises(GeometryError, match="classes one-hot"):
        LeaceFitter(6, 3).update(x, np.eye(2)[y % 2])
    with pytest.raises(GeometryError, match="at least two"):
        LeaceFitter(6, 3).update(x[:1], np.eye(3)[y[:1]]).eraser()
    with pytest.raises(GeometryError, match="'leace' or 'orthogonal'"):
        LeaceEraser.fit(x, y, method="orth")  # pyright: ignore[reportArgumentType]
    with pytest.raises(GeometryError, match="between 0 and 1"):
        LeaceEraser.fit(x, y, shrinkage=-0.1)
    with pytest.raises(GeometryError, match=r"needs \[..., 6\]"):
        LeaceEraser.fit(x, y)(x[:, :4])
    with pytest.raises(GeometryError, match="'readout' or 'pattern'"):
        LeaceEraser.fit(x, y).subspace(kind="left")  # pyright: ignore[reportArgumentType]
    with pytest.raises(GeometryError, match="first reader reads nothing"):
        iterated_nullspace(np.ones((6, 2)), y[:6], rounds=2)
    with pytest.raises(GeometryError, match=r"must be \[classes, 6\]"):
        iterated_nullspace(x, y, rounds=1, fit=lambda a, b: np.ones((1, 3)))
    with pytest.raises(GeometryError, match="rounds is 0"):
        iterated_nullspace(x, y, rounds=0)
    fitter = LeaceFitter(6, 3)
    x[0, 0] = np.nan
    with pytest.raises(GeometryError, match="1 values that are NaN"):
        fitter.update(x, np.eye(3)[y])
    assert fitter.n == 0
