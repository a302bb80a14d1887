"""Every bad corpus is refused in one clear sentence that says what to do."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from corpora import Corpus, CorpusError, read_corpus

GOOD = "text,variety\ncolor,us\ncolour,uk\n"

FILES = {
    "missing text column names the nearest": (
        "a.csv",
        "texts,variety\nx,a\ny,b\n",
        r"no column 'text'.*'texts'.*its columns are texts, variety",
    ),
    "neither variety nor behaviour": ("a.csv", "text,kind\nx,a\n", "neither a column 'variety'"),
    "blank texts by row": (
        "a.csv",
        'text,variety\nx,a\n"  ",a\ny,b\n,b\n',
        r"blank texts.*rows 2 and 4: fill",
    ),
    "duplicates by row": ("a.csv", "text,variety\nx,a\ny,b\nx,a\n", r"duplicate rows.*row 3"),
    "one text under two behaviours": (
        "a.csv",
        "text,group,behaviour\nx,1,harmful\nx,1,harmless\ny,2,harmful\n",
        r"labelled both harmful and harmless, rows 1 and 2",
    ),
    "one variety and no behaviour": ("a.csv", "text,variety\nx,a\ny,a\n", r"one variety \(a\)"),
    "one behaviour and no variety": ("a.csv", "text,behaviour\nx,harmful\n", "only harmful texts"),
    "unknown behaviour names the nearest": (
        "a.csv",
        "text,behaviour\nx,harmfull\ny,harmless\n",
        r"unknown behaviour 'harmfull' \(did you mean 'harmful'\?\) in row 1",
    ),
    "group on both sides of a split": (
        "a.csv",
        "text,variety,group,split\nx,a,g,train\ny,b,g,test\n",
        r"groups on both sides of the split \('g'\)",
    ),
    "unknown split": ("a.csv", "text,variety,split\nx,a,dev\ny,b,\n", "unknown split 'dev'"),
    "empty file": ("a.csv", "", "is empty"),
    "header only": ("a.csv", "text,variety\n", "holds no texts"),
    "only white space": ("a.jsonl", "\n\n", "is empty"),
    "surplus cells": ("a.csv", "text,variety\nx,y,a\nz,w,b\n", "more cells in its rows"),
    "ragged rows": ("a.csv", GOOD + "a,b,c,d\n", r"not a table that can be read \(.*line 4"),
    "open quote": ("a.csv", 'text,variety\n"x,a\n', "not a table that can be read"),
    "broken JSON line": ("a.jsonl", '{"text": "x", "variety": "a"}\n{"tex\n', "line 2 is not JSON"),
    "JSON line without names": ("a.jsonl", '["x"]\n', "line 1 is not a JSON object"),
    "JSON lists as texts": (
        "a.jsonl",
        '{"text": ["x"], "variety": "a"}\n{"text": "y", "variety": "b"}\n',
        "lists or objects in place of texts.*row 1",
    ),
    "half a surrogate pair": (
        "a.jsonl",
        '{"text": "\\ud800", "variety": "a"}\n{"text": "y", "variety": "b"}\n',
        "broken characters.*row 1",
    ),
    "unknown extension": ("a.xlsx", "x", "unknown extension '.xlsx': give one of .csv"),
    "pickle": ("a.pkl", "x", "is a pickle"),
    "broken Parquet": ("a.parquet", "PAR1 broken", "not a readable Parquet file"),
}


@pytest.mark.parametrize("case", FILES, ids=list(FILES))
def test_a_bad_file_is_refused_by_one_sentence(case: str, tmp_path: Path) -> None:
    name, content, message = FILES[case]
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(CorpusError, match=message) as caught:
        read_corpus(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_file_names_its_neighbour_and_is_a_corpus_error(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(GOOD)
    with pytest.raises(CorpusError, match=r"no corpus file .*did you mean mine\.csv"):
        read_corpus(tmp_path / "mien.csv")
    with pytest.raises(CorpusError, match="check the path"):
        read_corpus(tmp_path / "nowhere" / "x.csv")


def test_a_path_that_no_system_takes_is_a_corpus_error() -> None:
    with pytest.raises(CorpusError, match="check the path"):
        read_corpus("x" * 5000 + ".csv")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is a folder"):
        read_corpus(tmp_path)


def test_cut_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame({"text": ["x", "y"], "variety": ["a", "b"]}).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorpusError, match="broken or cut short"):
        read_corpus(path)


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("latin-1", r"not UTF-8 \(byte 0xe9 in line 2\)"),
        ("utf-16", "not UTF-8"),
        ("utf-16-le", "UTF-16 or no text"),
    ],
)
def test_wrong_encoding_names_the_line(encoding: str, message: str, tmp_path: Path) -> None:
    content = "text,variety\ncafé,a\nx,b\n" if encoding != "utf-16-le" else GOOD
    (tmp_path / "a.csv").write_bytes(content.encode(encoding))
    with pytest.raises(CorpusError, match=message):
        read_corpus(tmp_path / "a.csv")


def test_many_bad_rows_are_counted_not_listed() -> None:
    frame = pd.DataFrame({"text": ["x"] + [""] * 40, "variety": "a"})
    with pytest.raises(CorpusError, match=r"rows 2, 3, 4, 5, 6 and 35 more: fill"):
        Corpus.from_frame(frame)


def test_unknown_standard_names_the_nearest() -> None:
    with pytest.raises(CorpusError, match=r"no variety 'englsh'.*did you mean 'english'"):
        Corpus.from_parallel({"english": ["a"], "scots": ["b"]}, standard="englsh")


def test_parallel_lists_of_different_length_are_refused() -> None:
    with pytest.raises(CorpusError, match="a has 1, b has 2"):
        Corpus.from_parallel({"a": ["x"], "b": ["y", "z"]})


def test_pairs_that_are_not_there_are_refused() -> None:
    corpus = Corpus.from_frame(pd.DataFrame({"text": ["x", "y"], "variety": ["a", "b"]}))
    with pytest.raises(CorpusError, match="No group holds both 'a' and 'b'"):
        corpus.pairs("a", "b")
    with pytest.raises(CorpusError, match="no variety 'c': its varieties are a, b"):
        corpus.pairs("c", "a")


def test_unknown_column_in_where_is_refused() -> None:
    corpus = Corpus.from_parallel({"a": ["x"], "b": ["y"]})
    with pytest.raises(CorpusError, match="no column 'colour': choose from text"):
        corpus.where(colour="red")


def test_column_that_was_asked_for_must_exist() -> None:
    frame = pd.DataFrame({"text": ["x", "y"], "label": ["a", "b"]})
    with pytest.raises(CorpusError, match=r"no column 'labels' for the variety.*'label'"):
        Corpus.from_frame(frame, variety="labels")


def test_two_columns_of_one_name_are_refused() -> None:
    frame = pd.DataFrame([["x", "y", "a"]], columns=["text", "text", "variety"])
    with pytest.raises(CorpusError, match="two columns called 'text'"):
        Corpus.from_frame(frame)
