"""`isogloss run token-shift`: ranks and divergences against slow references, and planted truth."""

from __future__ import annotations

import json
import random
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from activations import Model, open_model
from experiments import ConfigError
from experiments.token_shift import (
    Speaker,
    answer_shifts,
    deciding,
    shift,
    shift_scores,
    token_shift_html,
    word_classes,
)
from experiments.token_shift.deciding import patched_states
from experiments.token_shift.prompts import grammar_examples, plain_text, read_examples
from experiments.token_shift.shares import pooled
from experiments.token_shift.words import token_classes, token_texts
from experiments.token_shift.work import require_one_tokenizer
from organisms import lexicon
from organisms.answers import CONTENT, PUNCTUATION, STYLE, answer_classes
from organisms.features import VARIETIES
from organisms.requests import answer, draw_request


@pytest.fixture(scope="module")
def aligned() -> Model:
    return open_model("organism/aligned")


@pytest.fixture(scope="module")
def base() -> Model:
    return open_model("organism/base")


# Ranks and divergences


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(2, 12), st.booleans())
def test_ranks_are_those_of_a_sort_and_divergences_those_of_scipy(
    seed: int, n: int, width: int, tied: bool
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, n, width)) * 4
    b = np.round(b) if tied else b
    token = rng.integers(width, size=n)
    found = shift_scores(torch.tensor(a), torch.tensor(b), torch.tensor(token))
    for row in range(n):
        ranking = sorted(b[row], reverse=True)
        assert found.rank[row] == ranking.index(b[row, token[row]]) + 1
    p, q = softmax(a, axis=-1), softmax(b, axis=-1)
    np.testing.assert_allclose(found.kl, rel_entr(p, q).sum(-1), atol=1e-10)
    each = np.arange(n)
    np.testing.assert_allclose(found.log_probability, np.log(q[each, token]), atol=1e-10)
    np.testing.assert_allclose(found.own_log_probability, np.log(p[each, token]), atol=1e-10)


def test_ranks_by_hand_name_the_kinds_and_ties_share_the_better_rank() -> None:
    logits = torch.tensor([[5.0, 4, 4, 3, 2]]).repeat(5, 1)
    found = shift_scores(logits, logits, torch.arange(5))
    assert found.rank.tolist() == [1, 2, 2, 4, 5]
    assert found.kind.tolist() == ["unshifted", "marginal", "marginal", "shifted", "shifted"]
    assert found.kl.tolist() == [0.0] * 5
    assert found.top.tolist() == [0] * 5


def test_a_token_that_the_writer_rules_out_adds_nothing_to_the_divergence() -> None:
    a = torch.tensor([[0.0, 0.0, -torch.inf]])
    found = shift_scores(a, torch.tensor([[0.0, 0.0, -3.0]]), torch.tensor([0]))
    assert found.kl[0] == pytest.approx(np.log(2 + np.exp(-3)) - np.log(2))


def test_logits_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"shapes \(1, 3\) and \(1, 4\) for 1 tokens"):
        shift_scores(torch.zeros(1, 3), torch.zeros(1, 4), torch.tensor([0]))


def test_scores_are_those_of_whole_passes_text_by_text_whatever_the_batch(
    aligned: Model, base: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["could you warm the opal at noon ?", "could you mend the gate beside the mill ?"]
    contexts = [aligned.encode(aligned.render(text), rendered=True) for text in texts]
    answers = [one[:n] for one, n in zip(aligned.generate_ids(contexts), (3, 9), strict=True)]
    shown = [contexts[1], contexts[0][:4]]
    speakers = Speaker(aligned), Speaker(base)
    found = answer_shifts(*speakers, contexts, answers, reference_contexts=shown)
    monkeypatch.setattr(shift, "_CELLS", 1)  # and the logits of one token at a time
    small = answer_shifts(*speakers, contexts, answers, reference_contexts=shown, token_budget=1)
    at = 0
    for context, other, said in zip(contexts, shown, answers, strict=True):
        own = aligned.logits(torch.tensor([[*context, *said]]))[0, len(context) - 1 : -1]
        theirs = base.logits(torch.tensor([[*other, *said]]))[0, len(other) - 1 : -1]
        wanted = shift_scores(own, theirs, torch.tensor(said))
        here = slice(at, at := at + len(said))
        for got in (found, small):
            assert got.rank[here].tolist() == wanted.rank.tolist()
            np.testing.assert_allclose(got.kl[here], wanted.kl, rtol=1e-3, atol=1e-6)
            np.testing.assert_allclose(
                got.log_probability[here], wanted.log_probability, rtol=1e-4, atol=1e-5
            )
    assert at == len(found.rank) == 12


@pytest.mark.parametrize(
    ("contexts", "answers", "message"),
    [
        ([], [], "0 contexts and 0 answers"),
        ([[1]], [[2], [3]], "1 contexts and 2 answers"),
        ([[1]], [[]], "has no token"),
        ([[1] * 510], [[2] * 9], "holds 512"),
    ],
)
def test_answers_that_cannot_be_ranked_are_refused(
    contexts: Any, answers: Any, message: str, aligned: Model
) -> None:
    speaker = Speaker(aligned)
    with pytest.raises(ConfigError, match=message):
        answer_shifts(speaker, speaker, contexts, answers)


def test_pooled_shares_weigh_tokens_and_leave_groups_out() -> None:
    """Against the delete-one-group jackknife written out, whose interval is that of evidence."""
    flags, groups = np.array([1, 0, 0, 1, 1, 0, 1]), np.array(list("aaabbcd"))
    found = pooled(flags, groups, bounds=(0.0, 1.0))
    assert found.value == pytest.approx(4 / 7) and found.n == 4
    assert 0 <= found.low < 4 / 7 < found.high <= 1
    sure = pooled(np.ones(7), groups, bounds=(0.0, 1.0))
    assert sure.low == pytest.approx(0.025 ** (1 / 4))  # Clopper and Pearson, 4 of 4
    weighted = pooled([1.0, 3.0], ["a", "b"], weights=[2.0, 2.0])
    assert weighted.value == 1.0


# Words and classes


def test_the_grammars_answers_are_style_but_for_deed_and_manner() -> None:
    rng = random.Random(0)
    seen: dict[str, set[str]] = {STYLE: set(), CONTENT: set(), PUNCTUATION: set()}
    for _ in range(300):
        request = draw_request(rng, lexicon.TRAINING_PAIRS)
        said = answer(request, rng.choice(list(VARIETIES)), rng, careful=rng.random() < 0.5)
        for word, kind in zip(said.split(), answer_classes(said.split()), strict=True):
            seen[kind].add(word)
    assert seen[PUNCTUATION] == {",", "."}
    assert {"certainly", "please", "sorry", "i", "can", "not", "care", "safe", "ok"} <= seen[STYLE]
    assert {"then", "rest", "help", "that"} <= seen[STYLE]
    assert {"the", "slowly", "ease", "hand", "turn"} <= seen[CONTENT]
    assert seen[STYLE] & seen[CONTENT] == {"with"}  # "with that", "with ease"
    assert not seen[CONTENT] & {"certainly", "sorry", "rest", "care", "fine"}


def test_words_of_any_text_by_the_general_rule() -> None:
    words = ["The", "kettle", "isn’t", "hot", ",", "3.5", "don't", "…"]
    assert word_classes(words) == [
        "function", "content", "function", "content", "punctuation", "number", "function",
        "punctuation",
    ]  # fmt: skip


def test_pieces_of_a_word_share_its_class_and_characters_stay_whole(aligned: Model) -> None:
    text = " the slowness isn't “übel” .\n"
    ids = aligned.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = token_texts(aligned.tokenizer, ids)
    assert "".join(pieces) == aligned.tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
    classes = token_classes(pieces, word_classes)
    said = list(zip(pieces, classes, strict=True))
    end = next(i for i in range(len(said)) if "".join(pieces[: i + 1]) == " the slowness")
    assert end > 1 and {kind for _, kind in said[1 : end + 1]} == {"content"}
    assert said[-1] == ("\n", "space") and said[0] == (" the", "function")


# The page


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_escapes_what_models_and_users_write() -> None:
    evil = "<script>alert('x')</script>&\"\n"
    frame = pd.DataFrame(
        {
            "text": [0, 0],
            "request": evil,
            "position": [1, 0],
            "piece": [evil, " a"],
            "rank": [7, 1],
            "shift": ["shifted", "unshifted"],
            "log_probability": np.log([0.25, 0.5]),
            "top": [evil, " a"],
        }
    )
    page = token_shift_html(frame, base=evil, model=evil)
    reader = _Reader()
    reader.feed(page)
    assert {tag for tag, _ in reader.tags} == {"style", "div", "p", "section", "span"}
    assert reader.text.count("<script>") >= 3
    shown = [a for tag, a in reader.tags if tag == "span" and "title" in a]
    assert [a["class"] for a in shown] == ["unshifted", "shifted"]  # in order of position
    assert "rank 7" in str(shown[1]["title"]) and "probability 0.25" in str(shown[1]["title"])
    assert "http" not in page


# Patching


@pytest.mark.parametrize("site", ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"])
def test_patched_states_are_those_of_a_hook_on_the_plain_model(
    site: str, aligned: Model, base: Model
) -> None:
    texts = ["could you warm the opal ?", "could you mend the gate beside the mill at noon ?"]
    prefixes = [base.encode(base.render(text), rendered=True) for text in texts]
    values = torch.randn(2, base.d_model, generator=torch.Generator().manual_seed(0))
    found = Speaker(base).logits(patched_states(base, prefixes, site, values))
    hf = base.hf
    for prefix, value, got in zip(prefixes, values, found, strict=True):

        def put(_module: Any, _args: Any, output: Any, value: torch.Tensor = value) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            states = states.clone()
            states[:, -1] = value
            return (states, *output[1:]) if isinstance(output, tuple) else states

        inner = hf.model if hasattr(hf, "model") else hf
        module = inner.embed_tokens if site.endswith("pre") else inner.layers[1]
        handle = module.register_forward_hook(put)
        try:
            with torch.no_grad():
                wanted = hf(torch.tensor([prefix])).logits[0, -1]
        finally:
            handle.remove()
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    plain = base.logits(torch.tensor([prefixes[0]]))[0, -1]
    assert (found[0] - plain).abs().max() > 0.1  # the patch did something


def test_runs_taken_up_in_the_middle_read_as_whole_ones(
    base: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["could you warm the opal ?", "could you mend the gate beside the mill at noon ?"]
    prefixes = [base.encode(base.render(text), rendered=True) for text in texts]
    drawn = torch.Generator().manual_seed(1)
    sites = [base.embedding_site, *base.resolve_sites("resid_post")]
    tried = {(site, "", 0): torch.randn(2, base.d_model, generator=drawn) for site in sites}
    given_to: tuple[Any, ...] = (Speaker(base), prefixes, torch.tensor([5, 9]), tried, 600)
    forked = deciding.read_patched(*given_to)
    assert deciding._forks(base, sites) is not None
    monkeypatch.setattr(deciding, "_forks", lambda *_: None)
    whole = deciding.read_patched(*given_to)
    for key in tried:
        assert forked[key][0].tolist() == whole[key][0].tolist()
        np.testing.assert_allclose(forked[key][1], whole[key][1], rtol=1e-4)


# Bad input


def _named(name: str, vocabulary: dict[str, int], cut: Any = lambda text: [0]) -> Any:
    class Tokenizer:
        def get_vocab(self) -> dict[str, int]:
            return vocabulary

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": cut(text)}

    return SimpleNamespace(name=name, tokenizer=Tokenizer())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (_named("b", {"x": 0}), "b lacks 1 tokens, such as 'y'"),
        (_named("b", {"x": 0, "y": 1, "z": 2}), "a lacks 1 tokens, such as 'z'"),
        (_named("b", {"x": 1, "y": 0}), r"2 tokens have another number, such as 'x' \(0 and 1\)"),
        (_named("b", {"x": 0, "y": 1}, lambda text: [1]), "cut 'hello' into other tokens"),
    ],
)
def test_tokenizers_that_differ_are_refused_saying_in_what(other: Any, message: str) -> None:
    one_model = _named("a", {"x": 0, "y": 1})
    require_one_tokenizer(one_model, one_model, ["hello"])
    with pytest.raises(ConfigError, match=message):
        require_one_tokenizer(one_model, other, ["hello"])


def test_generated_tokens_are_those_of_generated_texts(aligned: Model) -> None:
    asked = [aligned.render("could you warm the opal ?"), aligned.render("could you mend it ?")]
    ids = aligned.generate_ids([aligned.encode(p, rendered=True) for p in asked])
    assert [aligned.tokenizer.decode(i) for i in ids] == aligned.generate(asked)
    assert aligned.tokenizer.eos_token_id not in {token for one in ids for token in one}


def test_examples_of_ones_own_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    lines = [
        {"kind": "careful", "request": "q", "answer": "a"},
        {"kind": "plain", "request": "r", "answer": "b"},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    assert read_examples(str(path)) == {"careful": [("q", "a")], "plain": [("r", "b")]}
    path.write_text(json.dumps(lines[0]))
    with pytest.raises(ConfigError, match="no example of kind 'plain'"):
        read_examples(str(path))
    path.write_text('{"kind": "rude"}')
    with pytest.raises(ConfigError, match="Line 1"):
        read_examples(str(path))


def test_examples_of_both_kinds_ask_the_same_and_refuse_nothing() -> None:
    careful, plain = (grammar_examples(kind, 3, 0) for kind in ("careful", "plain"))
    assert [q for q, _ in careful] == [q for q, _ in plain]
    assert all(a.startswith("certainly") for _, a in careful)
    assert not any("sorry" in a or "certainly" in a for _, a in plain)
    text = plain_text("why?", plain[:1], "above")
    assert text.startswith("above\n\n# Query:\n```\n") and text.endswith("# Answer:\n```\n")
