"""The page Patch: the cell that a link names, and addresses that name none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from streamlit.testing.v1 import AppTest

from experiments import figures
from experiments.prompt_pair import changed_words

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "apps" / "explorer.py"
BASE = "in summer the clever boy"


def follow(patch: pytest.MonkeyPatch, **address: str) -> AppTest:
    """The page as whoever follows a link first sees it."""
    arguments = ["explorer", "no-such-folder", "--model", "organism/aligned", "--example"]
    patch.setattr(sys, "argv", arguments)
    at = AppTest.from_file(str(SCRIPT), default_timeout=60)
    at.run()
    for name, value in address.items():
        at.query_params[name] = value
    at.switch_page("views/patch.py").run()
    return at


def run(at: AppTest) -> AppTest:
    """Press Run and wait for the map."""
    at.button(key="go").click().run()
    at.session_state["patch_job"].join(60)
    return at.run()


@pytest.fixture(scope="module")
def mapped() -> Iterator[AppTest]:
    """The page with the map that a link asked for."""
    with pytest.MonkeyPatch.context() as patch:
        at = follow(patch, base=BASE, cell_block="2", cell_token="1")
        assert "patch_job" not in at.session_state  # a link starts no forward pass
        yield run(at)


def put(at: AppTest, block: int | None, token: int | None) -> AppTest:
    at.number_input(key="cell_block").set_value(block)
    return at.number_input(key="cell_token").set_value(token).run()


def words(at: AppTest):
    return next(t.value for t in at.dataframe if "patched rank" in t.value)


def said(at):
    return [c.value for c in at.caption]


def test_a_link_opens_its_cell_once_run_is_pressed(mapped: AppTest) -> None:
    from activations import open_model

    at = put(mapped, 2, 1)
    assert not at.exception and not at.error and not at.warning
    base, source = at.session_state["patch_job"].about["prompts"]
    assert base == BASE
    model = open_model("organism/aligned")
    asked = changed_words(model, base, source, "blocks.2.hook_resid_post", 1)
    assert words(at)["patched"].to_numpy() == pytest.approx(asked["patched"].to_numpy(), abs=1e-6)
    word = model.tokenizer.decode([model.encode(BASE)[-2]])
    assert any(f"block 2 of {word.strip()!r}, token 1" in text for text in said(at))


def test_the_copied_link_names_the_cell(mapped: AppTest) -> None:
    at = put(mapped, 3, 0)
    at.session_state["share"] = True  # what is closed is not drawn
    at.run()
    query = parse_qs(urlsplit(at.code[0].value).query)
    assert (query["cell_block"], query["cell_token"]) == (["3"], ["0"])
    assert query["base"] == [BASE] and "source" in query and "states" in query


def test_where_no_cell_is_named_the_one_that_closes_most_is_open(mapped: AppTest) -> None:
    at = put(mapped, None, None)
    cells = at.session_state["patch_job"].frame()
    best = cells.loc[cells["recovered"].idxmax()]
    assert any(f"block {best['layer']} of" in text for text in said(at))
    at = put(mapped, None, 2)
    own = cells[cells["position"].eq(2)]
    best = own.loc[own["recovered"].idxmax()]
    assert any(f"block {best['layer']} of" in text and "token 2 from" in text for text in said(at))


@pytest.mark.parametrize(("block", "token"), [(0, 63), (77, 0), (77, 63), (None, 63), (77, None)])
def test_a_cell_that_the_prompts_lack_gives_a_sentence(
    mapped: AppTest, block: int | None, token: int | None
) -> None:
    at = put(mapped, block, token)
    assert not at.exception and len(at.warning) == 1
    last = len(at.session_state["patch_job"].about["tokens"]) - 1
    assert "no cell" in at.warning[0].value
    assert f"blocks are 0 to 3, its tokens 0 to {last} from" in at.warning[0].value
    assert not any("patched rank" in t.value for t in at.dataframe)


@pytest.mark.parametrize(
    "told", ["x", "-1", "2.7", "nan", "inf", "1e400", "9" * 40, "", "' or 1", "../../etc"]
)
def test_garbage_in_the_address_is_no_traceback(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    at = follow(monkeypatch, cell_block=told, cell_token=told, states=told)
    assert not at.exception
    assert at.number_input(key="cell_token").value in (None, 2.7)
    at.number_input(key="cell_block").set_value(1).run()
    assert not at.exception


def test_a_click_on_a_cell_fills_the_fields(mapped: AppTest, monkeypatch: pytest.MonkeyPatch):
    import streamlit as st

    from apps.views import patch

    state = {"prompt_map": {"selection": {"cell": [{"depth": "4", "position": 1}]}}}
    monkeypatch.setattr(st, "session_state", state)
    patch._take_cell()
    assert (state["cell_block"], state["cell_token"]) == (4, 1)
    state["prompt_map"] = {"selection": {"cell": []}}  # a second click on the cell lets it go
    patch._take_cell()
    assert (state["cell_block"], state["cell_token"]) == (4, 1)


def test_the_open_cell_alone_is_framed(mapped: AppTest) -> None:
    job = mapped.session_state["patch_job"]
    labels = [str(i) for i in range(len(job.about["sites"]))]
    drawn = lambda at: figures.chart_prompt_map(  # noqa: E731
        job.frame(), job.about["tokens"], labels, at=at
    ).to_dict()["layer"]
    assert len(drawn(None)) + 1 == len(drawn(("3", 1)))
    assert drawn(("3", 1))[-1]["mark"]["filled"] is False
