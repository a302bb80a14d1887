"""Choosing a direction: scores against their formulas, edits against what they leave, chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from activations import open_model
from geometry import Subspace
from interventions import EditError
from interventions.chance import random_directions
from interventions.next_token import (
    last_logits,
    next_token_kl,
    refusal_score,
    refusal_tokens,
)
from interventions.selection import (
    Candidate,
    ablate_everywhere,
    choose_candidate,
    score_candidates,
    template_tokens,
)

PROMPTS = ["could you crack the lodestone ?", "in spring could youse warm the agate , like ?"]


@pytest.fixture(scope="module")
def model():
    return open_model("organism/aligned")


def line(d: int, seed: int, site: str = "blocks.1.hook_resid_pre") -> Subspace:
    unit = np.random.default_rng(seed).standard_normal((d, 1))
    return Subspace(unit / np.linalg.norm(unit), np.zeros(d), np.array([2.0]), site=site)


def test_last_logits_are_those_of_each_prompt_alone(model):
    prompts = [model.render(p) for p in PROMPTS]
    together = last_logits(model, prompts)
    for prompt, found in zip(prompts, together, strict=True):
        ids = torch.tensor([model.encode(prompt, rendered=True)])
        torch.testing.assert_close(found, model.logits(ids)[0, -1].double(), atol=1e-4, rtol=0)


def test_score_is_the_log_odds_of_its_tokens():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    p = np.exp([2.0, 1.0, 0.0, -1.0])
    share = (p[0] + p[2]) / p.sum()
    found = refusal_score(logits, [0, 2])
    np.testing.assert_allclose(found, [np.log(share / (1 - share)), 0.0], atol=1e-6)


def test_kl_is_that_of_scipy():
    from scipy.stats import entropy

    one, two = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).unbind()
    wanted = entropy(one.double().softmax(-1).numpy(), two.double().softmax(-1).numpy(), axis=1)
    np.testing.assert_allclose(next_token_kl(one, two), wanted, rtol=1e-4)


def test_tokens_are_those_that_open_refusals_and_not_other_replies():
    logits = torch.eye(5)[[1, 1, 2, 3, 3]] * 9
    assert refusal_tokens(logits, [True, True, True, False, True]) == (1, 2)
    with pytest.raises(EditError, match="Of 5 requests the model refuses 0"):
        refusal_tokens(logits, [False] * 5)


def test_ablation_everywhere_leaves_nothing_along_the_direction(model):
    unit = line(model.d_model, 1)
    sites = model.resolve_sites("resid_post")
    ids = torch.tensor([model.encode(PROMPTS[0])])
    along = torch.tensor(unit.basis[:, 0], dtype=torch.float32)
    before = model.activations(ids, None, sites)
    with model.edited(ablate_everywhere(model, unit)):
        after = model.activations(ids, None, sites)
    for site in sites:
        assert float((before[site] @ along).abs().max()) > 0.1
        assert float((after[site] @ along).abs().max()) < 1e-4


def test_the_template_of_the_organism_puts_one_token_after_the_request(model):
    assert template_tokens(model) == 1


def candidate(layer: int, bypass: float, discarded: str = "") -> Candidate:
    return Candidate((layer, 0), "", None, np.array([bypass]), discarded=discarded)


def test_the_lowest_bypass_among_those_that_passed_is_chosen():
    found = [candidate(0, -9.0, "too late"), candidate(1, -1.0), candidate(2, -3.0)]
    assert choose_candidate(found) == (found[2], True)
    late = [candidate(0, -9.0, "too late"), candidate(1, 2.0, "changes harmless replies")]
    assert choose_candidate(late) == (late[1], False)
    with pytest.raises(EditError, match="No place has a direction"):
        choose_candidate([candidate(0, 0.0, "no difference")])


def test_a_candidate_is_discarded_by_what_its_edits_do(model):
    rng = np.random.default_rng(0)
    base = rng.standard_normal((6, model.d_model))
    states = {
        (0, 0): (base, base.copy()),
        (1, 0): (base + 1e-3, base),
        (3, 0): (base + 1.0, base),
    }
    prompts = [model.render(p) for p in PROMPTS]
    token = model.tokenizer(" sorry", add_special_tokens=False)["input_ids"][0]
    found = {c.place: c for c in score_candidates(model, states, prompts, prompts, [token])}
    assert found[0, 0].discarded == "no difference" and found[0, 0].direction is None
    assert found[3, 0].discarded == "too late"
    with model.edited(ablate_everywhere(model, found[1, 0].direction)):
        wanted = refusal_score(last_logits(model, prompts), [token])
    np.testing.assert_allclose(found[1, 0].bypass, wanted, atol=1e-5)


def test_random_directions_have_the_length_and_the_spread_asked_for():
    like = line(6, 0)
    drawn = random_directions(like, 500, seed=3)
    assert all(np.linalg.norm(d.basis) == pytest.approx(1.0) for d in drawn)
    assert all(d.singular_values[0] == 2.0 and d.site == like.site for d in drawn)
    flat = np.random.default_rng(1).standard_normal((40, 6)) * [5.0, 1, 1, 0, 0, 0]
    inside = np.stack([d.basis[:, 0] for d in random_directions(like, 500, seed=3, states=flat)])
    np.testing.assert_allclose(inside[:, 3:], 0.0, atol=1e-12)
    assert np.mean(inside[:, 0] ** 2) > 0.6 > 0.3 > np.mean([d.basis[0] ** 2 for d in drawn])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draws": 0}, "draws is 0"),
        ({"draws": 2, "states": np.zeros((4, 3))}, "width"),
        ({"draws": 2, "states": np.zeros((4, 6))}, "all the same"),
    ],
)
def test_bad_random_directions_are_one_sentence(arguments, message):
    with pytest.raises(EditError, match=message):
        random_directions(line(6, 0), seed=0, **arguments)
