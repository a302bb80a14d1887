"""The bundled corpus is parallel, balanced, held out, and ends where no variety shows."""

from __future__ import annotations

import pytest

import organisms
from organisms import lexicon
from organisms.features import STANDARD, VARIETIES
from organisms.recognisers import recognises


@pytest.fixture(scope="module")
def corpus():
    return organisms.bundled_corpus()


def test_generated_corpus_is_the_same_each_time(corpus):
    assert corpus.digest == organisms.bundled_corpus().digest
    assert corpus.digest != organisms.bundled_corpus(seed=2).digest


def test_each_meaning_is_said_once_in_every_variety(corpus):
    sentences = corpus.frame[corpus.frame["kind"] == "sentence"]
    assert sentences.groupby("group")["variety"].apply(set).map(len).eq(len(VARIETIES)).all()
    assert sentences["group"].nunique() == 60 and len(sentences) == 60 * len(VARIETIES)
    assert corpus.varieties[0] == corpus.standard == STANDARD
    assert (sentences["behaviour"] == "").all()


def test_every_text_is_of_its_variety(corpus):
    rows = zip(corpus.frame["variety"], corpus.frame["text"])
    assert all(recognises(variety, text) for variety, text in rows)


def test_last_sentence_is_neutral_and_the_same_in_all_varieties_of_a_meaning(corpus):
    sentences = corpus.frame[corpus.frame["kind"] == "sentence"]
    for _, rows in sentences.groupby("group"):
        ends = {text.split(" . ")[-1] for text in rows["text"]}
        assert len(ends) == 1 and ends <= set(lexicon.NEUTRAL_SENTENCES)


def test_splits_keep_pairs_and_groups_apart(corpus):
    frame = corpus.frame
    assert frame.groupby("group")["split"].nunique().eq(1).all()
    requests = frame[frame["kind"] == "request"]
    held = [lexicon.held_out(a, t) for a, t in zip(requests["act"], requests["thing"])]
    assert (requests["split"].eq("test") == held).all()
    sentences = frame[frame["kind"] == "sentence"]
    assert all(lexicon.held_out(a, t) for a, t in zip(sentences["act"], sentences["thing"]))
    assert sentences["split"].value_counts().nunique() == 1


def test_requests_balance_behaviours_over_splits_and_varieties(corpus):
    requests = corpus.frame[corpus.frame["kind"] == "request"]
    counts = requests.groupby(["behaviour", "split"]).size()
    assert counts.tolist() == [30] * 4
    by_variety = requests.groupby(["behaviour", "split", "variety"]).size()
    assert by_variety.min() >= 3 and by_variety.max() <= 4
