"""Steering: directions against their formulas, edits by hand, trends against scipy and planted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from geometry import Subspace
from interventions import EditError
from interventions.dose import Outcome, dose_response, dose_trend, reversal
from interventions.fluency import TextLosses, reply_losses
from interventions.steering import steer, steering_direction
from interventions.text_variety import TextVarieties

SITE = "blocks.1.hook_resid_post"


def two_classes(seed: int = 0, n: int = 40, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    low = rng.standard_normal((n, d)) * [1, 1, 1, 1, 1, 5]
    return low + [2.0, 0, 0, 0, 0, 1] + 0.1 * rng.standard_normal((n, d)), low


def vector(direction: Subspace) -> np.ndarray:
    return direction.basis[:, 0] * direction.singular_values[0]


@pytest.mark.parametrize("estimator", ["means", "contrastive"])
def test_strength_one_carries_the_one_mean_to_the_other(estimator):
    high, low = two_classes()
    found = steering_direction(high, low, estimator=estimator, site=SITE)
    np.testing.assert_allclose(vector(found), high.mean(0) - low.mean(0))
    np.testing.assert_allclose(found.mean, low.mean(0))


def test_a_probe_direction_reaches_the_mean_along_its_weights_and_leans_off_the_noise():
    high, low = two_classes()
    found = steering_direction(high, low, estimator="probe", site=SITE)
    gap = (high.mean(0) - low.mean(0)) @ found.basis[:, 0]
    assert gap == pytest.approx(found.singular_values[0]) and gap > 0
    means = steering_direction(high, low, site=SITE)
    assert abs(found.basis[5, 0]) < abs(means.basis[5, 0])


def test_pairs_of_unequal_number_are_refused():
    high, low = two_classes()
    with pytest.raises(ValueError, match="pairs need the same rows"):
        steering_direction(high[1:], low, estimator="contrastive")
    with pytest.raises(EditError, match="'means', 'probe' or 'contrastive'"):
        steering_direction(high, low, estimator="mean")  # type: ignore[arg-type]


def test_adding_and_affine_steering_by_hand():
    high, low = two_classes()
    line = steering_direction(high, low, site=SITE)
    r, u = vector(line), line.basis[:, 0]
    h = np.random.default_rng(1).standard_normal((2, 3, 6))
    given_states = torch.tensor(h)
    pushed = steer(line, 0.7)(given_states, SITE, None).numpy()
    np.testing.assert_allclose(pushed, h + 0.7 * r)
    affine = steer(line, 0.7, kind="affine")(given_states, SITE, None).numpy()
    wanted = h - ((h - low.mean(0)) @ u)[..., None] * u + 0.7 * r
    np.testing.assert_allclose(affine, wanted)
    plane = np.linalg.qr(np.stack([u, np.eye(6)[3]], axis=1))[0]
    within = {SITE: Subspace(plane, np.zeros(6), np.ones(2), site=SITE)}
    cleared = steer(line, 0.7, kind="affine", within=within)(given_states, SITE, None).numpy()
    p = plane @ plane.T
    np.testing.assert_allclose(cleared, h - (h - low.mean(0)) @ p + 0.7 * r, atol=1e-12)


def test_steering_that_makes_no_sense_is_refused():
    high, low = two_classes()
    line = steering_direction(high, low, site=SITE)
    with pytest.raises(EditError, match="'add' or 'affine'"):
        steer(line, 1.0, kind="push")  # type: ignore[arg-type]
    with pytest.raises(EditError, match="strength is nan"):
        steer(line, float("nan"))
    with pytest.raises(EditError, match="leave it out"):
        steer(line, 1.0, within={SITE: line})


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 7), st.integers(2, 9))
def test_rho_is_scipys_of_the_mean_curve(seed, doses, n):
    values = np.random.default_rng(seed).standard_normal((doses, n))
    strengths = np.arange(doses) ** 2.0
    found = dose_trend(values, range(n), strengths, draws=20, seed=0)
    assert found.value == pytest.approx(spearmanr(strengths, values.mean(1)).statistic)
    assert found.n == n


def test_p_is_that_of_all_exchanges_of_strengths():
    """Three strengths, three groups: 6³ exchanges, enumerated."""
    values = np.array([[0.0, 0.3, 0.1], [0.5, 0.2, 0.4], [0.6, 0.9, 0.3]])
    own = spearmanr(range(3), values.mean(1)).statistic
    orders = [list(o) for o in itertools.permutations(range(3))]
    every = [
        spearmanr(range(3), np.mean([values[o, g] for g, o in enumerate(os)], axis=0)).statistic
        for os in itertools.product(orders, repeat=3)
    ]
    wanted = np.mean(np.array(every) >= own - 1e-12)
    found = dose_trend(values, range(3), range(3), draws=4000, seed=1)
    assert found.p == pytest.approx(wanted, abs=0.025)


def test_rows_of_one_group_count_once():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((4, 5)) + np.arange(4)[:, None]
    once = dose_trend(values, range(5), range(4), draws=50, seed=0)
    twice = dose_trend(np.repeat(values, 3, 1), np.repeat(range(5), 3), range(4), draws=50, seed=0)
    assert (once.value, once.low, once.p, once.n) == (twice.value, twice.low, twice.p, twice.n)


def test_a_flat_curve_follows_nothing_and_a_wave_goes_back():
    flat = dose_trend(np.ones((4, 6)), range(6), range(4), draws=30, seed=0)
    assert (flat.value, flat.p) == (0.0, 1.0)
    assert reversal([0, 1, 1, 2]) == 0.0
    assert reversal([0, 3, 1, 2]) == 2.0
    assert reversal([3, 1, 2, 0], increasing=False) == 1.0


def test_too_few_strengths_are_refused(model):
    with pytest.raises(EditError, match="three strengths or more"):
        dose_trend(np.ones((2, 3)), range(3), [0, 1], seed=0)
    with pytest.raises(EditError, match="each once"):
        dose_response(model, lambda m, e: [], lambda c: None, [0.0, 0.0])  # type: ignore[arg-type]


def test_what_is_observed_at_a_strength_is_what_a_context_gives(model):
    line = Subspace(
        np.eye(model.d_model)[:, :1], np.zeros(model.d_model), np.array([3.0]), site=SITE
    )
    texts = ["a b c d", "b c d e", "c d e f g"]
    observe = TextLosses(texts, ["x", "x", "y"], ["1", "2", "1"], pair=("y", "x"))
    found = dose_response(model, observe, lambda c: steer(line, c), [1.0, -1.0, 0.0])
    assert found.strengths == (-1.0, 0.0, 1.0)
    with model.edited(steer(line, 1.0)):
        nll, tokens = model.losses(texts)
    np.testing.assert_allclose(found.values(("loss", "x", ""))[2], nll[:2] / tokens[:2], rtol=1e-5)
    odds = found.values(("variety_log_odds", "y", ""))[2]
    np.testing.assert_allclose(odds, nll[0] - nll[2], rtol=1e-5)
    # A strength of nothing is the plain model.
    still = found.values(("loss", "y", ""))[1]
    np.testing.assert_allclose(still, found.plain[1].values, rtol=1e-6)
    assert set(found.frame()["strength"].dropna()) == {-1.0, 0.0, 1.0}


def test_the_loss_of_a_reply_is_the_text_less_its_prompt(model):
    """Where each word is one token, so that tokens of parts are those of the whole."""
    prompts, replies = ["a b c", "b d"], ["d e f", "a a a a"]
    whole, n = model.losses([f"{p} {r}" for p, r in zip(prompts, replies, strict=True)])
    head, m = model.losses(prompts)
    found = reply_losses(model, prompts, [f" {r}" for r in replies], rendered=False)
    np.testing.assert_allclose(found, (whole - head) / (n - m), rtol=1e-4)
    assert reply_losses(model, prompts, ["", " d"], rendered=False)[0] == 0.0


def test_letters_tell_planted_varieties_and_are_never_sure_of_the_rest():
    texts = [f"{w} {end}" for end in ("eh", "innit") for w in ("boat", "mill", "barn", "kirk")]
    reader = TextVarieties(texts, ["fell"] * 4 + ["crag"] * 4)
    assert reader.varieties == ("crag", "fell")
    assert reader.accuracy(["road innit", "road eh"], ["crag", "fell"]) == 1.0
    np.testing.assert_allclose(reader.probabilities(["road"]).sum(), 1.0)
    with pytest.raises(EditError, match="two varieties"):
        TextVarieties(["a", "b"], ["x", "x"])


def test_an_outcome_weighs_groups_alike():
    told = Outcome("loss", np.array([1.0, 1.0, 4.0]), np.array(["a", "a", "b"])).estimate()
    assert (told.value, told.n) == (2.5, 2)
