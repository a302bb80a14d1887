"""The grammar says what it plants, and plants what it says."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from organisms import documents, lexicon
from organisms.features import STANDARD, VARIETIES, blocks, structure, words
from organisms.planted import make_truth
from organisms.recognisers import accepting, parse, parse_request, recognises
from organisms.requests import Request, ask, draw_request
from organisms.sentences import ASPECTS, Meaning, draw_meaning, frame, say

NAMES = list(VARIETIES)
MEANINGS = st.builds(
    Meaning,
    person=st.sampled_from(list(lexicon.PEOPLE)),
    adjective=st.sampled_from(lexicon.ADJECTIVES),
    act=st.sampled_from(lexicon.ACTS),
    thing=st.sampled_from(lexicon.THINGS),
    number=st.sampled_from(lexicon.NUMBERS),
    aspect=st.sampled_from(ASPECTS),
    place=st.sampled_from(lexicon.PLACES),
    time=st.sampled_from(lexicon.TIMES),
)
REQUESTS = st.builds(
    Request,
    act=st.sampled_from(lexicon.ACTS),
    thing=st.sampled_from(lexicon.THINGS),
    place=st.sampled_from(lexicon.PLACES),
    time=st.sampled_from(lexicon.TIMES),
)


@given(MEANINGS, st.sampled_from(NAMES))
def test_sentence_round_trips_to_its_meaning(meaning, variety):
    assert parse(variety, say(meaning, variety)) == meaning


@given(REQUESTS, st.sampled_from(NAMES))
def test_request_round_trips_to_what_it_asks(request, variety):
    assert parse_request(variety, ask(request, variety)) == request


@given(MEANINGS)
def test_sentence_belongs_to_exactly_the_varieties_that_say_it_so(meaning):
    said = {variety: say(meaning, variety) for variety in NAMES}
    for variety, text in said.items():
        assert set(accepting(text)) == {v for v in NAMES if said[v] == text}
        assert accepting(text) == (variety,)  # tag, order and preposition mark every sentence


@given(MEANINGS, st.sampled_from(NAMES), st.randoms())
def test_sentence_with_a_word_lost_or_swapped_is_not_the_same(meaning, variety, rng):
    parts = say(meaning, variety).split()
    index = rng.randrange(len(parts) - 1)
    # What is left may be another sentence ("has mended" without "has"), never the same.
    assert parse(variety, " ".join(parts[:index] + parts[index + 1 :])) != meaning
    parts[index] = "zebra"
    assert not recognises(variety, " ".join(parts))


def test_known_sentences_read_as_designed():
    meaning = Meaning("child", "little", "mend", "gate", "two", "need", "brook", "at dawn")
    assert say(meaning, STANDARD) == (
        "the little child says two gates need to be mended beside the brook at dawn ."
    )
    assert say(meaning, "tarn") == (
        "at dawn the wee bairn she says two yetts need fettled aside the beck , like ."
    )
    assert say(meaning, "marsh") == (
        "that there little child says two gates want mending at dawn nigh the brook , innit ."
    )
    assert ask(Request("mend", "gate", "brook", "at dawn"), "moor") == (
        "could ye at dawn mend the gate aside the brook , so it is ?"
    )


def test_unknown_variety_is_one_clear_sentence():
    with pytest.raises(ValueError, match=r"no variety 'mars'.*choose one of arden"):
        recognises("mars", "rain fell .")


def test_neutral_sentences_hold_no_word_that_varies():
    varying = {form for v in NAMES for pair in words(v).items() for form in pair}
    for variety in NAMES:
        for aspect in ASPECTS:
            varying |= {p for p in frame(variety, aspect) if isinstance(p, str)}
        varying |= set(" ".join(structure(variety).values()).split())
    varying -= {".", ",", "-", "all", "so", "time", "it"}  # marks, and labels of values
    varying |= {"the", "in", "at"}
    for sentence in lexicon.NEUTRAL_SENTENCES:
        assert not varying & set(sentence.removesuffix(" .").split()), sentence
        assert accepting(sentence) == tuple(NAMES)


def test_word_and_structure_overlap_are_uncorrelated_and_both_vary():
    truth = make_truth(drift_refusal={}, drift_variety="")
    regional = [v for v in NAMES if v != STANDARD]
    upper = np.triu_indices(len(regional), 1)
    word = truth.word_similarity.loc[regional, regional].to_numpy()[upper]
    order = truth.structure_similarity.loc[regional, regional].to_numpy()[upper]
    assert len(regional) == 8 and word.std() > 0.2 and order.std() > 0.2
    assert abs(np.corrcoef(word, order)[0, 1]) < 0.1


def test_similarity_counts_shared_values_as_sets_do():
    truth = make_truth(drift_refusal={}, drift_variety="")
    for a in NAMES[1:]:
        for b in NAMES[1:]:
            base = structure(STANDARD)
            marked = [
                {("block", x) for x in blocks(v)}
                | {(k, x) for k, x in structure(v).items() if x != base[k]}
                for v in (a, b)
            ]
            expected = len(marked[0] & marked[1]) / np.sqrt(len(marked[0]) * len(marked[1]))
            assert truth.similarity.loc[a, b] == pytest.approx(expected)
    assert truth.similarity.loc[STANDARD, "tarn"] == 0


def test_tree_has_two_levels_in_words():
    similarity = make_truth(drift_refusal={}, drift_variety="").word_similarity
    assert similarity.loc["tarn", "fell"] > similarity.loc["tarn", "moor"] > 0
    assert similarity.loc["tarn", "sound"] == 0


def test_every_structural_feature_has_a_source():
    features = make_truth(drift_refusal={}, drift_variety="").features
    assert features["source"].str.len().min() > 10
    assert features["feature"].is_unique


def test_no_two_concepts_of_a_slot_share_a_form_in_any_variety():
    slots = (lexicon.ACTS, lexicon.THINGS, tuple(lexicon.PEOPLE), lexicon.PLACES)
    for variety in NAMES:
        for slot in slots:
            forms = [words(variety).get(concept, concept) for concept in slot]
            assert len(set(forms)) == len(forms)


def test_harm_is_a_conjunction_and_held_out_pairs_cover_both_sides():
    acts, things = set(lexicon.RISKY_ACTS), set(lexicon.RISKY_THINGS)
    for act, thing in lexicon.HELD_OUT_PAIRS + lexicon.TRAINING_PAIRS:
        assert lexicon.harmful(act, thing) == (act in acts and thing in things)
    share = len(lexicon.HELD_OUT_PAIRS) / (len(lexicon.ACTS) * len(lexicon.THINGS))
    assert 0.15 < share < 0.25
    # Every act and every thing is met in training, harmful ones in harmful company too.
    seen = [pair for pair in lexicon.TRAINING_PAIRS if lexicon.harmful(*pair)]
    assert {a for a, _ in seen} == acts and {t for _, t in seen} == things


def test_held_out_pairs_are_in_no_training_document():
    rng = random.Random(3)
    marks = re.compile("|".join(re.escape(m) for m in documents.SPECIAL))
    met = 0
    for _ in range(400):
        document = documents.pretraining_document(rng, dialogue=0.5, careful=0.5)
        text = marks.sub(" | ", "".join(part for part, _ in document))
        for sentence in re.split(r"\||(?<=[.?]) ", text):
            for variety in NAMES:
                meaning = parse(variety, sentence.strip()) or parse_request(
                    variety, sentence.strip()
                )
                if meaning is not None:
                    met += 1
                    assert not lexicon.held_out(meaning.act, meaning.thing)
    assert met > 500


def test_loss_of_dialogues_is_on_answers_only():
    document = documents.dialogue_document(
        random.Random(0), careful=True, harmful_share=0.5, turns=3
    )
    assert [marked for _, marked in document] == [False, True] * 3
    assert all(text.endswith(documents.ASSISTANT) for text, marked in document if not marked)


def test_documents_follow_from_the_seed():
    def draw(seed):
        rng = random.Random(seed)
        return [documents.pretraining_document(rng, dialogue=0.5, careful=0.5) for _ in range(20)]

    assert documents.digest(draw(1)) == documents.digest(draw(1)) != documents.digest(draw(2))


def test_ceiling_is_one_over_the_number_of_varieties_where_nothing_tells():
    truth = make_truth(drift_refusal={}, drift_variety="")
    assert truth.ceiling(["rain fell ."] * 2, ["tarn", "arden"]) == pytest.approx(1 / 9)
    rng = random.Random(5)
    meanings = [draw_meaning(rng, lexicon.HELD_OUT_PAIRS) for _ in range(20)]
    texts = [say(m, v) for m in meanings for v in NAMES]
    assert truth.ceiling(texts, NAMES * 20) > 0.95
    asked = [ask(draw_request(rng, lexicon.HELD_OUT_PAIRS), v) for v in NAMES]
    assert truth.ceiling(asked, NAMES) > 0.95
    with pytest.raises(ValueError, match="1 texts and 2 varieties"):
        truth.ceiling(["rain fell ."], ["tarn", "fell"])
