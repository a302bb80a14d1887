"""Rules say which tokens of each text are read; each against what a person would point at."""

from __future__ import annotations

import numpy as np
import pytest

from activations import CaptureError, StoreError, capture, open_model
from corpora import Corpus

from .conftest import tiny, tokenizer

QUIET = {"progress": False, "sites": "blocks.1.hook_resid_post"}
TEXTS = ["the big red cat sat", "a dog ran on the log", "the bird sat under the mat now"]
SPANS = ["red cat", "dog", "under the mat"]


@pytest.fixture(scope="module")
def model():
    return open_model(tiny("llama"), tokenizer=tokenizer(), device="cpu")


def corpus_with(spans=SPANS, texts=TEXTS):
    """Each text once in each of two varieties, one after the other."""
    frame = Corpus.from_parallel({"a": texts, "b": texts}).frame.copy()
    twice = [span for span in spans for _ in "ab"]
    starts = [t.index(s) for t, s in zip(frame["text"], twice)]
    frame["focus_start"] = starts
    frame["focus_end"] = [a + len(s) for a, s in zip(starts, twice)]
    return Corpus.from_frame(frame)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("last:focus", ["cat", "dog", "mat"]),
        ("all:focus", ["red cat", "dog", "under the mat"]),
        ("last", ["sat", "log", "now"]),
    ],
)
def test_spans_of_characters_give_the_tokens_that_lie_in_them(model, rule, expected):
    store = capture(model, corpus_with(), tokens=rule, **QUIET)
    twice = [words.split() for words in expected for _ in "ab"]
    assert store.rows["token"].tolist() == [word for words in twice for word in words]
    words = [t.split() for t in TEXTS for _ in "ab"]
    for row in store.rows.itertuples():
        assert words[row.example][row.position] == row.token


def test_the_mean_of_a_span_is_the_mean_of_its_rows(model):
    rows = capture(model, corpus_with(), tokens="all:focus", **QUIET)
    means = capture(model, corpus_with(), tokens="mean:focus", **QUIET)
    assert (means.rows["position"] == -1).all()
    site = QUIET["sites"]
    for example in range(6):
        own = rows[site][(rows.rows["example"] == example).to_numpy()]
        np.testing.assert_allclose(means[site][example], own.mean(0), rtol=1e-5, atol=1e-6)


def test_a_part_of_a_word_takes_the_whole_token(model):
    store = capture(model, corpus_with(["ig r", "o", "ir"]), tokens="all:focus", **QUIET)
    assert store.rows["token"].tolist()[::2] == ["big", "big", "dog", "bird"]


def test_a_rule_of_ones_own_sees_text_tokens_and_their_places(model):
    def long_words(text, ids, offsets):
        assert [text[a:b] for a, b in offsets] == text.split() and len(ids) == len(offsets)
        return [i for i, (a, b) in enumerate(offsets) if b - a > 3]

    texts = [f"{t} youse" for t in TEXTS]
    corpus = Corpus.from_parallel({"a": texts, "b": texts})
    store = capture(model, corpus, tokens=long_words, **QUIET)
    assert store.rows["token"].tolist()[1:8] == [*["youse"] * 3, "bird", "under", "youse", "bird"]
    assert store.manifest["tokens"] == "long_words"


def test_two_rules_of_one_name_do_not_share_a_store(model, tmp_path):
    def rule(text, ids, offsets):
        return [0]

    first = rule

    def rule(text, ids, offsets):
        return [1]

    capture(model, corpus_with(), tokens=first, store=tmp_path, **QUIET)
    with pytest.raises(StoreError, match="other positions"):
        capture(model, corpus_with(), tokens=rule, store=tmp_path, **QUIET)
    spans = corpus_with(["big red", "dog ran", "bird"])
    capture(model, corpus_with(), tokens="mean:focus", store=tmp_path / "mean", **QUIET)
    with pytest.raises(StoreError, match="other texts"):
        capture(model, spans, tokens="mean:focus", store=tmp_path / "mean", **QUIET)


def test_spans_count_from_the_text_inside_a_chat_template():
    reader = tokenizer()
    reader.chat_template = "{% for m in messages %}! {{ m['content'] }}{% endfor %} ,"
    model = open_model(tiny("gpt2"), tokenizer=reader, device="cpu")
    frame = corpus_with().frame.assign(behaviour=["harmful"] * 2 + ["harmless"] * 4)
    store = capture(model, Corpus.from_frame(frame), tokens="all:focus", **QUIET)
    assert store.rows["token"].tolist()[:5:2] == ["red", "red", "dog"]
    assert store.rows["position"].tolist()[:5] == [3, 4, 3, 4, 2]


@pytest.mark.parametrize(
    ("rule", "change", "said"),
    [
        ("first", {}, "Unknown token rule 'first'"),
        ("last:nothing", {}, "no column 'nothing_start'"),
        ("last:focus", {"focus_end": 99}, "is not in 'the big red"),
        ("last:focus", {"focus_start": float("nan")}, "from nan to"),
        ("all:focus", {"focus_start": 3, "focus_end": 4}, "No token lies in the span 'focus'"),
        (lambda text, ids, offsets: [], {}, r"positions \[\] for 'the big"),
        (
            lambda text, ids, offsets: [77],
            {},
            r"positions \[77\] .* give at least one, from 0 to 4",
        ),
    ],
)
def test_what_cannot_be_read_is_one_sentence(model, rule, change, said):
    corpus = Corpus.from_frame(corpus_with().frame.assign(**change))
    with pytest.raises(CaptureError, match=said):
        capture(model, corpus, tokens=rule, **QUIET)


def test_other_options_that_make_no_sense_are_one_sentence(model, tmp_path):
    corpus = corpus_with()
    with pytest.raises(CaptureError, match="hold float32, float16, bfloat16, not 'int8'"):
        capture(model, corpus, dtype="int8", **QUIET)
    with pytest.raises(CaptureError, match="token budget is 0"):
        capture(model, corpus, token_budget=0, **QUIET)
    with pytest.raises(CaptureError, match="at least one text"):
        capture(model, corpus, shard_bytes=0, **QUIET)
    with pytest.raises(CaptureError, match="No site was asked for"):
        capture(model, corpus, sites=[], progress=False)
