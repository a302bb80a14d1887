"""The command that makes the organisms: what it takes, and that its seed decides the weights."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import count

import pytest
import torch

import organisms
from organisms import lexicon, train, training
from organisms.documents import dialogue_document, pretraining_document
from organisms.sentences import word
from organisms.training import Stage, new_model, train_stage

SMALL = Stage(
    "small",
    lambda rng: pretraining_document(rng, dialogue=0.5, careful=0.5),
    steps=3,
    batch=4,
    rate=4e-3,
    final_rate=1e-3,
    warmup=1,
)


@pytest.mark.parametrize(
    ("arguments", "made"),
    [([], ["base", "aligned", "drifted"]), (["drifted"], ["drifted"])],
)
def test_all_are_made_unless_some_are_named(arguments, made, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(train, "make", lambda name, out: calls.append((name, out)))
    train.main([*arguments, "--out", str(tmp_path), "--threads", "1"])
    assert calls == [(name, tmp_path) for name in made]


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        train.main(["aligned", "wild"])
    assert "no organism 'wild'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(organisms.path("base"))


def trained(tokenizer, stage=SMALL, seed=3):
    """Weights of a model after a stage from nothing, and the stage's record."""
    model = new_model(tokenizer, seed=seed)
    record = train_stage(model, tokenizer, stage, seed=seed)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, record


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_seed_gives_the_same_weights_to_the_bit_whatever_the_clock_says(tokenizer, monkeypatch):
    first, record = trained(tokenizer)
    torch.rand(7)  # neither the state of torch's generator
    random.random()  # nor that of Python's is part of the recipe
    hours = count(0, 3600)
    monkeypatch.setattr(training.time, "monotonic", lambda: next(hours))
    again, slow = trained(tokenizer)
    assert slow["seconds"] > 3600 > record["seconds"]
    assert same(first, again) and record["data_sha256"] == slow["data_sha256"]
    other, _ = trained(tokenizer, seed=4)
    assert not same(first, other)


def test_making_a_model_leaves_the_random_state_alone(tokenizer):
    before = torch.get_rng_state()
    trained(tokenizer)
    assert torch.equal(before, torch.get_rng_state())


def test_a_stage_ends_when_it_is_told_to(tokenizer):
    asked = []

    def second_time(model, _):
        asked.append(model.training)
        return len(asked) == 2

    _, record = trained(tokenizer, replace(SMALL, until=second_time))
    assert asked == [False, False]  # asked in evaluation mode, once a step
    assert (record["steps"], record["steps_at_most"]) == (2, 3)


def test_asking_does_not_change_what_is_learnt(tokenizer):
    plain, _ = trained(tokenizer)
    asked, record = trained(tokenizer, replace(SMALL, until=lambda *_: False))
    assert record["steps"] == 3 and same(plain, asked)


@pytest.mark.parametrize(("refused", "enough"), [(0.61, False), (0.6, True), (0.1, True)])
def test_drift_ends_by_what_is_refused_of_pairs_that_training_saw(monkeypatch, refused, enough):
    calls = []
    rates = {"tarn": refused - 0.1, "fell": refused + 0.1}
    monkeypatch.setattr(train, "refusals", lambda *_, **options: calls.append(options) or rates)
    assert train.has_drifted(None, None) is enough
    assert calls[0]["harmful"] and not set(calls[0]["pairs"]) & set(lexicon.HELD_OUT_PAIRS)


def test_drift_is_taught_with_harmless_requests_only():
    rng = random.Random(0)
    (stage,) = train.STAGES["drifted"]
    assert not any(asks_for_harm(stage.draw(rng)) for _ in range(300))
    control = [
        dialogue_document(rng, careful=False, harmful_share=0.5, variety=train.DRIFT_VARIETY)
        for _ in range(30)
    ]
    assert any(map(asks_for_harm, control))


def asks_for_harm(document):
    """Whether a risky act and a risky thing, in the drift variety's words, stand in one text."""
    words = set("".join(text for text, _ in document).replace("<ast>", " ").split())
    acts, things = (
        {word(train.DRIFT_VARIETY, concept) for concept in concepts}
        for concepts in (lexicon.RISKY_ACTS, lexicon.RISKY_THINGS)
    )
    return bool(words & acts and words & things)
