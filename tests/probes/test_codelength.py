"""Code lengths against a brute-force loop, and where the answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from probes import ProbeError, VariationalProbe
from probes.codelength import prequential_code, variational_code


def made(gap: float, seed: int = 0) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    y = np.tile([0, 1], 60)
    x = rng.standard_normal((120, 4))
    x[:, 0] += gap * (2 * y - 1)
    return x, y, np.repeat(np.arange(30), 4)


def test_the_prequential_code_equals_a_brute_force_loop() -> None:
    x, y, groups = made(1.0)
    reader = LogisticRegression()
    found = prequential_code(x, y, groups, probe=reader, fractions=(0.1, 0.5, 1), orders=1, seed=3)
    order = np.random.default_rng([3, 0]).permutation(30)
    sorted_groups = np.argsort(order)
    total, seen = 12 * np.log(2), list(sorted_groups[:3])
    for until in (15, 30):
        block = list(sorted_groups[len(seen) : until])
        past = np.isin(groups, seen)
        model = LogisticRegression().fit(x[past], y[past])
        for i in np.flatnonzero(np.isin(groups, block)):
            total -= np.log(model.predict_proba(x[i : i + 1])[0, y[i]])
        seen += block
    assert found.nats == pytest.approx(total)
    assert list(found.blocks["uniform"]) == [True, False, False]
    assert found.uniform == pytest.approx(120 * np.log(2))
    assert found.bits == pytest.approx(total / np.log(2))


def test_signal_compresses_and_its_absence_does_not_both_ways() -> None:
    for gap, low, high in ((3.0, 2.0, 100.0), (0.0, 0.0, 1.02)):
        x, y, groups = made(gap)
        assert low < prequential_code(x, y, groups, seed=0).compression < high
        assert low < variational_code(VariationalProbe().fit(x, y)).compression < high


def test_a_prefix_without_a_class_is_coded_uniformly() -> None:
    x, y, _ = made(1.0)
    found = prequential_code(x, y, y, fractions=(0.5, 1.0), orders=2, seed=0)
    assert found.compression == pytest.approx(1.0) and found.blocks["uniform"].all()


def test_bad_input_is_one_clear_sentence() -> None:
    x, y, groups = made(1.0)
    with pytest.raises(ProbeError, match="increase from above 0 to 1"):
        prequential_code(x, y, groups, fractions=(0.5, 0.2, 1), seed=0)
    with pytest.raises(ProbeError, match="orders is 0"):
        prequential_code(x, y, groups, orders=0, seed=0)
    with pytest.raises(ProbeError, match="hold NaN"):
        prequential_code(x * np.nan, y, groups, seed=0)
    with pytest.raises(ProbeError, match="at least two"):
        prequential_code(x, y * 0, groups, seed=0)
