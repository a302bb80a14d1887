"""Who is given whose states when texts are resampled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from activations import ActivationStore, capture
from activations.edit import Texts
from corpora import Corpus
from interventions import EditError, resample

from .by_hand import RESID, D, Z

TEXTS = ["a b c d e", "f g", "h i j", "k l m n"]


def donors(edit: Any, rows: list[int]) -> list[int]:
    """Which source text each row is given, from a source whose states are their numbers."""
    texts = Texts(torch.tensor(rows), torch.ones(len(rows)), 99)
    got = edit.for_texts(texts)(torch.full((len(rows), 1, D), -1.0), RESID, None)
    return got[:, 0, 0].long().tolist()


@given(n=st.integers(2, 40), seed=st.integers(0, 999))
def test_every_text_gets_another_one_and_each_is_used_once(n: int, seed: int) -> None:
    numbers = np.repeat(np.arange(n)[:, None], D, axis=1)
    edit = resample({RESID: numbers}, seed=seed)
    found = donors(edit, list(range(n)))
    assert sorted(found) == list(range(n))
    assert all(own != other for own, other in enumerate(found))
    assert donors(resample({RESID: numbers}, seed=seed), list(range(n))) == found
    assert donors(edit, [n - 1, n, 0]) == [found[n - 1], found[0], found[0]]


def test_draws_with_other_seeds_are_other_and_uniform() -> None:
    numbers = np.repeat(np.arange(4)[:, None], D, axis=1)
    count = np.zeros(4)
    for seed in range(600):
        count[donors(resample({RESID: numbers}, seed=seed), [0])[0]] += 1
    assert count[0] == 0
    # Each of three others 200 times; four standard deviations of a binomial count.
    assert np.abs(count[1:] - 200).max() < 4 * np.sqrt(600 * (1 / 3) * (2 / 3))


def whole_store(model: Any) -> ActivationStore:
    frame = pd.DataFrame({"text": TEXTS, "variety": ["x", "y"] * 2, "group": list("1122")})
    corpus = Corpus.from_frame(frame)
    return capture(model, corpus, sites=[RESID, Z], tokens="all", progress=False)


def test_a_store_gives_states_by_position_and_the_last_beyond_the_end(model: Any) -> None:
    store = whole_store(model)
    edit = resample(store, seed=3)
    ids, mask = model.pad([model.encode(text) for text in TEXTS])
    plain = model.activations(ids, mask, [RESID, Z])
    with model.edited(edit):
        got = model.activations(ids, mask, [RESID, Z])
    lengths = mask.sum(-1).tolist()
    seen = []
    for site in (RESID, Z):
        for row, length in enumerate(lengths):
            fits = []
            for donor in range(len(TEXTS)):
                own = [min(t, lengths[donor] - 1) for t in range(length)]
                if torch.allclose(got[site][row, :length], plain[site][donor, own], atol=1e-5):
                    fits.append(donor)
            assert len(fits) == 1 and fits[0] != row
            seen.append(fits[0])
    assert seen[:4] == seen[4:]  # the same donor at both sites
    assert sorted(seen[:4]) == [0, 1, 2, 3]


def test_arrays_and_a_store_of_the_same_states_do_the_same(model: Any) -> None:
    texts = ["a b c", "d e f", "g h i", "j k l"]
    frame = pd.DataFrame({"text": texts, "variety": ["x", "y"] * 2, "group": list("1122")})
    store = capture(model, Corpus.from_frame(frame), sites=[Z], tokens="all", progress=False)
    ids = torch.tensor([model.encode(text) for text in texts])
    arrays = model.activations(ids, None, [Z])  # [n, T, heads, d_head]
    found = []
    for source in (store, arrays, {Z: arrays[Z].flatten(2)}):
        with model.edited(resample(source, seed=1, heads=1)):
            found.append(model.logits(ids))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)
    assert (found[0] - model.logits(ids)).abs().max() > 1e-3


def test_a_source_that_cannot_be_drawn_from_is_refused(model: Any) -> None:
    other = "blocks.0.hook_resid_post"
    with pytest.raises(EditError, match="no other to draw"):
        resample({RESID: np.zeros((1, D))}, seed=0)
    with pytest.raises(EditError, match=r"give \[n, d\]"):
        resample({RESID: np.zeros(D)}, seed=0)
    with pytest.raises(EditError, match="of 3 texts with 1 positions and those of"):
        resample({RESID: np.zeros((2, D)), other: np.zeros((3, D))}, seed=0)
    with pytest.raises(EditError, match="not all finite"):
        resample({RESID: np.full((2, D), np.nan)}, seed=0)
    with pytest.raises(EditError, match="made for 8 dimensions"):
        resample({Z: np.zeros((2, 8))}, seed=0)(torch.zeros(1, 1, 2, 8), Z)
    with pytest.raises(EditError, match="0 texts"):
        resample(whole_store(model).select(variety="none"), seed=0)
