"""The report in both of its forms: complete, one file, nothing fetched, nothing run."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import altair as alt
import pandas as pd
import pytest

from evidence import Estimate
from experiments.compare import findings
from experiments.figures.look import finish, palette
from experiments.inputs import read_inputs
from experiments.reporting import Report, write_pages, write_report
from experiments.reporting.pictures import darkened
from experiments.results import as_frame, row
from experiments.settings import CompareSettings, Settings

_VOID = {"meta", "img", "source", "br", "hr", "link", "input"}
HOSTILE = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """Text, tags and attributes of a page; fails on tags that do not balance."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:  # `<img />` closes itself
            assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def results() -> pd.DataFrame:
    at = {"site": "blocks.1.hook_resid_post", "layer": 1}
    return as_frame(
        [
            row("probe", Estimate(0.9, 0.8, 0.95, n=60, p=0.01), variety="tarn", **at),
            row("probe", Estimate(0.5, 0.45, 0.55, n=60), variety="tarn", control="task", **at),
            row("probe", Estimate(0.5, 0.1, 0.9, n=6, p=0.4), variety="mirr", **at),
            row("probe", 0.5, variety="mirr", control="task", **at),
        ]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    frame = pd.DataFrame({"x": [1, 2], "y": [3, 4]})
    chart = alt.Chart(frame, description="y grows with x").mark_line().encode(x="x", y="y")
    told = Report(
        title=f"What {HOSTILE} shows",
        about="Asked of two varieties, `tarn` and mirr.",
        findings=[
            "The probe reaches 0.90 [0.80, 0.95], chance being 0.50.",
            f"Nothing of {HOSTILE} & <img src=http://example.org/a.png onerror=x> was run.",
            "Nor does ![this](http://example.org/b.png) load, nor [that](javascript:alert(1)).",
        ],
        figures={"curve": ("The curve", finish(chart, "light"))},
        captions={"curve": "One line, upwards."},
        method=["Five folds."],
        caveats=["A made-up run."],
        tables={"By variety": pd.DataFrame({"variety": ["a|b", HOSTILE], "value": [0.5, 1.0]})},
    )
    write_report(path, "compare", Settings(corpus=f"{HOSTILE}.csv"), told, results())
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> Reader:
    return Reader((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_holds_every_sentence_of_the_markdown(folder: Path, page: Reader) -> None:
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    said = [line[2:].replace("`", "") for line in lines if line.startswith("- ")]
    assert len(said) >= 8
    for sentence in said:
        if "![" not in sentence:
            assert sentence in page.text
    for part in (
        "Findings",
        "By variety",
        "Figures",
        "The curve",
        "One line, upwards.",
        "Settings",
    ):
        assert part in page.text


def test_nothing_is_loaded_from_anywhere(folder: Path, page: Reader) -> None:
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"} == set()
    sources = [
        str(attrs[name]) for _, attrs in page.tags for name in ("src", "srcset") if name in attrs
    ]
    assert len(sources) == 2
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert all("style" not in attrs for _, attrs in page.tags)
    style = re.search(r"<style>(.*?)</style>", (folder / "report.html").read_text(), re.S)
    assert style is not None and "url(" not in style[1] and "@import" not in style[1]
    links = {str(link["href"]) for link in page.all("a")}
    assert {link for link in links if not link.startswith("#")} == {"figures/curve.html"}


def drawings(page: Reader) -> tuple[str, str]:
    """The light and the dark SVG of the page's one figure."""
    coded = [str(page.all(tag)[0][name]) for tag, name in (("img", "src"), ("source", "srcset"))]
    light, dark = (base64.b64decode(text.partition(",")[2]).decode() for text in coded)
    return light, dark


def test_a_dark_screen_gets_the_same_drawing_in_the_dark_themes_colours(page: Reader) -> None:
    """The oracle is the theme's palette: taking its colours out leaves one and the same drawing."""
    assert page.all("source")[0]["media"] == "screen and (prefers-color-scheme: dark)"
    light, dark = drawings(page)
    assert palette("light").ground in light and palette("dark").ground in dark
    assert palette("light").ink in light and palette("light").ink not in dark
    for old, new in palette("light").pairs(palette("dark")):
        light, dark = light.replace(old, "?"), dark.replace(new, "?")
    assert light == dark


def test_no_two_varieties_come_to_look_alike_in_the_dark() -> None:
    """The dark theme's blue of what is harmless is the light theme's hue of a sixth variety."""
    p = palette("light")
    assert palette("dark").harmless == "#56B4E9"
    hues = [p.harmless, "#56B4E9", p.harmful]
    frame = pd.DataFrame({"x": [1, 2, 3], "of": ["a", "b", "#ffffff"]})
    scale = alt.Scale(domain=list(frame["of"]), range=hues)
    chart = alt.Chart(frame).mark_point().encode(x="x:Q", color=alt.Color("of:N", scale=scale))
    spec = chart.to_dict()
    before = json.dumps(spec)
    changed = darkened(spec)
    assert json.dumps(spec) == before
    assert changed["datasets"] == spec["datasets"]  # a value that looks like a colour is none
    kept, sixth, turned = changed["encoding"]["color"]["scale"]["range"]
    assert (kept, sixth, turned) == (p.harmless, "#56B4E9", palette("dark").harmful)


def test_what_users_wrote_stays_text(page: Reader) -> None:
    assert HOSTILE in page.text
    assert page.text.count(HOSTILE) >= 4  # title, finding, table, settings
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_those_who_hear_or_tab_find_their_way(page: Reader) -> None:
    assert page.all("html")[0]["lang"] == "en"
    assert [picture["alt"] for picture in page.all("img")] == ["y grows with x"]
    assert len(page.all("h1")) == 1
    anchors = {f"#{attrs['id']}" for _, attrs in page.tags if "id" in attrs}
    targets = [str(link["href"]) for link in page.all("a")]
    assert all(target in anchors for target in targets if target.startswith("#"))
    assert sum(target.startswith("#") for target in targets) == len(page.all("h2"))
    assert all(cell.get("scope") == "col" for cell in page.all("th"))


def test_a_cell_keeps_its_bar_in_both_forms(folder: Path, page: Reader) -> None:
    assert "| a\\|b | 0.5 |" in (folder / "report.md").read_text()
    assert "a|b" in page.text


def test_the_results_own_weakness_is_said(page: Reader) -> None:
    """Counted by hand from `results()`: one interval on 6 groups, one p above 0.05."""
    assert "1 of 2 intervals rest on fewer than 20 groups (the least on 6)" in page.text
    assert "1 of 2 intervals are wider than the figure" in page.text
    assert "1 of 2 tests do not reject their null at 0.05 (probe 1)" in page.text
    assert "1 of 2 figures with a control at the same place" in page.text


def test_the_cell_that_a_patching_map_is_best_at_is_told_as_chosen_and_with_its_spread() -> None:
    """Means by hand: 0.4 at the best of three earlier cells, over two dialects."""
    at = {"site": "blocks.0.hook_resid_post", "layer": 0}
    closed = {("a", 2): 0.1, ("a", 1): 0.3, ("a", 3): 0.2, ("a", 0): 1.0}
    closed |= {("b", 2): 0.7, ("b", 1): 0.1, ("b", 3): 0.2, ("b", 0): 1.0}
    rows = [
        row(
            "recovered_fraction",
            Estimate(value, 0.0, 0.9),
            variety=variety,
            position=position,
            **at,
        )
        for (variety, position), value in closed.items()
    ]
    many = " ".join(findings.sentences(as_frame(rows), "std"))
    assert "2 tokens before the end" in many and "As the largest of 3 it is flattered" in many
    assert "closes 0.40 on average over 2 dialects (0.10 to 0.70) of the gap" in many
    one = " ".join(findings.sentences(as_frame(rows[:4]), "std"))
    assert "1 token before the end" in one and "closes 0.30 [0.00, 0.90] of the gap" in one


def said_with_care(path: Path) -> str:
    return (path / "report.md").read_text().split("## Read with care")[1].split("\n## ")[0]


def test_one_group_alone_and_figures_without_meaning_are_said(tmp_path: Path) -> None:
    frame = as_frame(
        [
            row("recovered", Estimate(0.5, float("nan"), float("nan"), n=1), variety="tarn"),
            row("recovered", Estimate(0.5, 0.45, 0.55, n=60), variety="mirr"),
            row("recovered", Estimate(0.1, float("nan"), float("nan"), n=1), control="other"),
            row("cosine", float("nan")),
        ]
    )
    write_report(tmp_path, "compare", Settings(), Report("T", "A.", [], {}, [], []), frame)
    care = said_with_care(tmp_path)
    assert "1 figure has n = 1 (`recovered` 1)" in care
    assert "1 figure has no meaning on these data (`cosine` 1)" in care


def test_caveats_name_what_was_counted(tmp_path: Path) -> None:
    told = Report("T", "A.", [], {}, [], [], counted="seeds")
    write_report(tmp_path, "decouple", Settings(), told, results())
    assert "1 of 2 intervals rest on fewer than 20 seeds (the least on 6)" in said_with_care(
        tmp_path
    )


def test_a_corpus_says_that_its_texts_count_as_independent_where_none_share_a_group(
    tmp_path: Path,
) -> None:
    requests = tmp_path / "requests.csv"
    for groups, said in (("abcd", True), ("abca", False)):
        behaviours = ("harmful", "harmful", "harmless", "harmless")
        lines = [
            f"request {n},{b},{g}" for n, (b, g) in enumerate(zip(behaviours, groups, strict=True))
        ]
        requests.write_text("\n".join(["text,behaviour,group", *lines]))
        inputs = read_inputs(CompareSettings(corpus=str(requests)))
        assert any("counts as independent" in care for care in inputs.caveats) == said
        assert not any("bundled" in care for care in inputs.caveats)
        assert any("fewer than two varieties" in left for left in inputs.left_out)


def test_strong_results_draw_no_general_caveat(tmp_path: Path) -> None:
    told = Report("T", "A.", ["F."], {}, ["M."], ["C."])
    write_report(tmp_path, "compare", Settings(), told, results().head(2))
    care = (tmp_path / "report.md").read_text().split("## Read with care")[1].split("\n## ")[0]
    assert care.strip() == "- C."


def test_a_link_to_another_report_leads_to_its_page_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "report.html").write_text("")
    lines = ["# T", "", "[a](runs/one/report.md) [b](runs/two/report.md)"]
    write_pages(tmp_path, lines)
    links = [link["href"] for link in Reader((tmp_path / "report.html").read_text()).all("a")]
    assert links == ["runs/one/report.html", "runs/two/report.md"]


def test_no_picture_from_outside_the_folder_is_taken_in(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    run = tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    write_pages(run, ["# T", "", f"![a](figures/../../secret.png) ![b]({secret})"])
    page = Reader((run / "report.html").read_text())
    assert page.all("img") == [] and "a b" in page.text
