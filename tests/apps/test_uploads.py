"""A corpus uploaded to the Steer page: it changes the directions, or is refused as the CLI does."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from apps.cli import main
from organisms import bundled_corpus

SCRIPT = Path(__file__).resolve().parents[2] / "apps" / "explorer.py"


@pytest.fixture(scope="module")
def steer() -> Iterator[AppTest]:
    """The Steer page, at the block where the aligned organism's directions are."""
    with pytest.MonkeyPatch.context() as patch:
        told = ["explorer", "no-such-folder", "--model", "organism/aligned", "--example"]
        patch.setattr(sys, "argv", told)
        at = AppTest.from_file(str(SCRIPT), default_timeout=60).run()
        at.switch_page("views/steer.py").run()
        at.number_input(key="block").set_value(3)
        yield at


def rows(**varieties: str) -> pd.DataFrame:
    """Some requests and parallel sentences of the bundled corpus, its varieties renamed."""
    frame = bundled_corpus().frame[["text", "variety", "group", "behaviour"]]
    requests = frame[frame["behaviour"].ne("")].groupby("behaviour").head(24)
    renamed = {old: new for new, old in varieties.items()}
    own = frame[frame["behaviour"].eq("") & frame["variety"].isin(list(renamed))]
    sentences = own[own["group"].isin(own["group"].unique()[:24])]
    return pd.concat([requests.assign(variety=""), sentences.replace({"variety": renamed})])


def upload(at: AppTest, name: str, content: bytes, standard: str = "standard") -> AppTest:
    at.file_uploader(key="corpus").set_value((name, content, ""))
    at.text_input(key="standard").set_value(standard)
    return at.run()


def steered(at: AppTest, direction: str) -> list[float]:
    """What steering changes, by the page's own job."""
    at.selectbox(key="towards").select(direction)
    at.button(key="go").click().run()
    assert not at.exception and not at.error
    job = at.session_state["steer_job"]
    while job.done < 2 and job.alive:
        job.join(0.05)
    job.stop()
    job.join(60)
    assert job.error is None
    return list(job.frame().query("kind == 'steered' and strength == 1")["kl"])


@pytest.mark.slow
def test_an_uploaded_corpus_gives_its_own_directions_from_the_standard_that_is_named(
    steer: AppTest,
) -> None:
    offered = steer.selectbox(key="towards").options
    bundled = steered(steer, "harmful")
    one, two = [name for name in offered if name != "harmful"][:2]
    content = rows(plain="arden", uphill=one, downhill=two).to_csv(index=False).encode()
    upload(steer, "mine.csv", content, "plain")
    assert not steer.error
    assert set(steer.selectbox(key="towards").options) == {"harmful", "uphill", "downhill"}
    assert steered(steer, "harmful") != bundled
    from_plain = steered(steer, "uphill")
    # Towards the same dialect from another standard of the same file.
    steer.text_input(key="standard").set_value("downhill").run()
    assert set(steer.selectbox(key="towards").options) == {"harmful", "uphill", "plain"}
    assert steered(steer, "uphill") != from_plain
    steer.file_uploader(key="corpus").clear().run()
    assert steer.selectbox(key="towards").options == offered


_GOOD = rows(standard="arden", hill="tarn").to_csv(index=False).encode()
BAD = {
    "no text column": ("mine.csv", b"words,variety\nhello,standard\n", "standard", "text"),
    "neither variety nor behaviour": ("mine.csv", b"text\nhello\n", "standard", "neither"),
    "empty": ("mine.csv", b"", "standard", "mine.csv is empty"),
    "blank": ("mine.csv", b" \n", "standard", "mine.csv is empty"),
    "no rows": ("mine.csv", b"text,variety\n", "standard", "no texts"),
    "not UTF-8": ("mine.csv", "text,variety\ncafé,a\n".encode("latin-1"), "standard", "UTF-8"),
    "UTF-16": ("mine.csv", "text,variety\na,b\n".encode("utf-16"), "standard", "UTF-"),
    "ragged": ("mine.csv", b"text,variety\na,b,c,d\ne\n", "standard", "mine.csv"),
    "wrong ending": ("mine.docx", b"text,variety\na,b\n", "standard", "extension '.docx'"),
    "pickle": ("mine.pkl", b"\x80\x04N.", "standard", "pickle"),
    "no ending": ("mine", b"text,variety\na,b\n", "standard", "extension"),
    "broken Parquet": ("mine.parquet", b"PAR1", "standard", "Parquet"),
    "broken JSONL": ("mine.jsonl", b"{\n", "standard", "line 1"),
    "unknown behaviour": ("mine.csv", b"text,behaviour\na,rude\n", "standard", "rude"),
    "unknown standard": ("mine.csv", _GOOD, "mars", "mars"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_corpus_that_cannot_be_used_is_told_in_the_words_of_the_command_line(
    steer: AppTest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
) -> None:
    name, content, standard, part = BAD[case]
    (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    line = ["isogloss", "run", "steer", "--corpus", name, "--standard", standard]
    with monkeypatch.context() as told:
        told.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as ended:
            main()
    said = capsys.readouterr().err.strip().removeprefix("isogloss: ")
    assert ended.value.code == 2 and part in said
    upload(steer, name, content, standard)
    assert not steer.exception
    assert [error.value for error in steer.error] == [said]


def test_a_file_whose_name_points_elsewhere_stays_in_a_folder_that_is_removed(
    steer: AppTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "inner" / "most"
    inner.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(inner))
    content = rows(hill="arden", dale="tarn").to_csv(index=False).encode()
    for name in ("../../there.csv", str(tmp_path / "there.csv")):
        upload(steer, name, content, "hill")
        assert not steer.exception and not steer.error
        assert set(steer.selectbox(key="towards").options) == {"harmful", "dale"}
        assert [path for path in tmp_path.rglob("*") if path not in (inner, inner.parent)] == []
