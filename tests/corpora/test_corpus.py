"""Corpora keep what they were given, in every file format alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpora import Corpus, CorpusError, grouped_halves, grouped_split, read_corpus

ROWS = pd.DataFrame(
    {
        "text": ["color", "colour", "¿qué, tal?", "3"],
        "variety": ["us", "uk", "us", "uk"],
        "group": ["1", "1", "2", "2"],
        "source": ["a", "b", "", "NA"],
    }
)


def _write(frame: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True, force_ascii=False)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"])
def test_every_format_gives_the_same_corpus(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"mine{suffix}"
    _write(ROWS, path)
    read = read_corpus(path, standard="uk")
    assert read.digest == Corpus.from_frame(ROWS, standard="uk").digest
    assert read.frame["source"].tolist() == ["a", "b", "", "NA"]
    assert read.varieties == ("uk", "us")
    assert read.name == path.name


def test_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    ROWS.to_csv(path, index=False, encoding="utf-8-sig")
    assert read_corpus(path).digest == Corpus.from_frame(ROWS).digest


def test_missing_values_are_empty_and_numbers_are_strings() -> None:
    frame = pd.DataFrame(
        {
            "text": [1, 2, 3],
            "variety": ["a", "b", None],
            "group": [1.0, np.nan, 1.0],
            "source": ["s", None, np.nan],
        }
    )
    corpus = Corpus.from_frame(frame)
    assert corpus.frame["text"].tolist() == ["1", "2", "3"]
    assert corpus.frame["source"].tolist() == ["s", "", ""]
    assert corpus.frame["variety"].tolist() == ["a", "b", ""]
    assert corpus.frame["group"].tolist()[::2] == ["1", "1"]
    assert corpus.frame["group"].nunique() == 2
    assert corpus.frame["behaviour"].tolist() == ["", "", ""]


def test_without_groups_each_row_stands_alone_but_equal_texts_share_one() -> None:
    frame = pd.DataFrame({"text": ["x", "y", "x"], "variety": ["a", "a", "b"]})
    groups = Corpus.from_frame(frame).frame["group"]
    assert groups[0] == groups[2] != groups[1]


def test_renamed_columns_are_found_and_metadata_stays() -> None:
    frame = pd.DataFrame({"prompt": ["x", "y"], "label": ["Harmful", "harmless"], "id": [7, 8]})
    corpus = Corpus.from_frame(frame, text="prompt", behaviour="label")
    assert corpus.has_behaviours and not corpus.has_varieties
    assert corpus.frame["id"].tolist() == [7, 8]
    assert corpus.behaviours == ("harmful", "harmless")


def test_pairs_stand_beside_their_own_group() -> None:
    corpus = Corpus.from_parallel({"a": ["p", "q"], "b": ["P", "Q"]}, standard="b")
    pairs = corpus.pairs("a", "b")
    assert pairs["text"].str.upper().tolist() == pairs["reference_text"].tolist() == ["P", "Q"]
    texts = corpus.frame["text"]
    assert texts[pairs["example"]].tolist() == pairs["text"].tolist()
    assert texts[pairs["reference_example"]].tolist() == pairs["reference_text"].tolist()


def test_requests_take_no_part_in_variety_questions_where_plain_text_suffices() -> None:
    frame = pd.DataFrame(
        {
            "text": ["x", "y", "r", "s"],
            "variety": ["a", "b", "a", ""],
            "behaviour": ["", "", "harmful", "harmless"],
        }
    )
    corpus = Corpus.from_frame(frame)
    assert corpus.variety_rows().tolist() == [0, 1]
    assert corpus.behaviour_rows().tolist() == [2, 3]
    assert corpus.take([0, 2, 3]).variety_rows().tolist() == [0, 1]


def test_where_and_take_renumber_and_digest_follows_content() -> None:
    corpus = Corpus.from_frame(ROWS)
    part = corpus.where(variety="uk")
    assert part.frame.index.tolist() == [0, 1]
    assert part.digest == corpus.take([1, 3]).digest != corpus.digest
    assert corpus.where(variety=["uk", "us"]).digest == corpus.digest
    assert corpus.take(np.array([False, True, False, True])).digest == part.digest


def test_html_is_escaped_and_short() -> None:
    shown = Corpus.from_parallel({"a": ["<script>", *list("bcdefg")], "b": list("hijklmn")})
    html = shown._repr_html_()
    assert "<script>" not in html and len(html) < 3000
    assert "14 texts; 7 groups; varieties a, b" in repr(shown)


def test_spaces_around_a_header_do_not_hide_a_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(" text, variety \nx,a\ny,b\n")
    assert read_corpus(tmp_path / "a.csv").varieties == ("a", "b")


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2), st.integers(0, 99))
def test_no_group_crosses_a_split(groups: list[str], seed: int) -> None:
    if len(set(groups)) < 2:
        with pytest.raises(CorpusError, match="at least two are needed"):
            grouped_split(groups, seed=seed)
        return
    one, two = grouped_halves(groups, seed=seed)
    names = np.array(groups)
    assert set(names[one]).isdisjoint(names[two]) and one.any() and two.any()
    assert np.array_equal(one ^ two, np.ones(len(groups), dtype=bool))
    assert abs(len(set(names[one])) - len(set(names[two]))) <= 1
    order = np.random.default_rng(seed).permutation(len(groups))
    assert np.array_equal(grouped_split(names[order], seed=seed), one[order])


def test_fraction_must_lie_between_none_and_all() -> None:
    with pytest.raises(CorpusError, match=r"fraction of groups is 1\.5"):
        grouped_split(["a", "b"], fraction=1.5, seed=0)


@pytest.mark.data
def test_real_parallel_corpus_is_read(data_dir: Path) -> None:
    path = data_dir / "redial_aave_sae" / "pairs.jsonl"
    if not path.exists():
        pytest.skip("the ReDial pairs are not in ISOGLOSS_DATA")
    wide = pd.read_json(path, lines=True)
    long = wide.melt(["id"], ["sae", "aave"], "variety", "text")
    long = long.drop_duplicates(["text", "variety"])
    corpus = Corpus.from_frame(long, group="id", standard="sae")
    assert corpus.varieties == ("sae", "aave")
    assert len(corpus.pairs("aave", "sae")) > 0.9 * len(wide)


@pytest.mark.data
def test_real_labels_that_are_not_ours_are_refused_then_converted(data_dir: Path) -> None:
    path = data_dir / "xstest" / "xstest_prompts.csv"
    if not path.exists():
        pytest.skip("XSTest is not in ISOGLOSS_DATA")
    with pytest.raises(CorpusError, match="unknown behaviour 'safe'"):
        read_corpus(path, text="prompt", behaviour="label")
    frame = pd.read_csv(path)
    frame["label"] = frame["label"].map({"safe": "harmless", "unsafe": "harmful"})
    corpus = Corpus.from_frame(frame, text="prompt", behaviour="label", group="id")
    assert corpus.has_behaviours and not corpus.has_varieties


def test_texts_alone_are_a_corpus_where_nothing_is_to_be_compared():
    corpus = Corpus.from_texts(["one text", "another", "one text"])
    assert corpus.frame["text"].tolist() == ["one text", "another", "one text"]
    assert corpus.frame["group"].nunique() == 2
    assert not corpus.has_varieties and not corpus.has_behaviours
    with pytest.raises(CorpusError, match="neither a column 'variety'"):
        Corpus.from_frame(corpus.frame[["text"]])
    with pytest.raises(CorpusError, match="holds no texts"):
        Corpus.from_texts([])
