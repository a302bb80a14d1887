"""`report.md` and `report.html` of a folder, from one text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from experiments.reporting.caveats import caveats_of
from experiments.reporting.page import as_page
from experiments.reporting.pictures import Picture, picture_of
from experiments.reporting.told import Report
from experiments.results import write_frame
from experiments.settings import Settings


def write_report(
    path: Path, name: str, settings: Settings, told: Report, results: pd.DataFrame
) -> None:
    """Write a run's tables and figures, then the report in both forms.

    Args:
        path: the run directory.
        name: of the experiment, as the command line knows it.
        results: all rows of the run, from which the general caveats are drawn.
    """
    from experiments.figures import save_chart

    for file, frame in told.beside.items():
        write_frame(frame, path / file)
    pictures = {}
    for stem, (title, chart) in told.figures.items():
        spec = chart.to_dict()
        save_chart(spec, path / "figures" / stem)
        pictures[f"figures/{stem}.png"] = picture_of(spec, title)
    write_pages(path, _lines(name, settings, told, results), pictures)


def write_pages(
    folder: Path, lines: Sequence[str], pictures: Mapping[str, Picture] | None = None
) -> None:
    """Write Markdown `lines` as `report.html`, and then as `report.md`, whose presence says done.

    Args:
        pictures: what the page shows for each picture that the lines name, by its path.
    """
    text = "\n".join(lines) + "\n"
    for name, content in (("html", as_page(text, folder, pictures or {})), ("md", text)):
        partial = folder / "report.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(folder / f"report.{name}")


def _lines(name: str, settings: Settings, told: Report, results: pd.DataFrame) -> list[str]:
    lines = [f"# {told.title}", "", told.about, "", "## Findings", ""]
    lines += [f"- {sentence}" for sentence in told.findings]
    if told.left_out:
        lines += ["", "## Left out", "", *(f"- {said}" for said in told.left_out)]
    for heading, frame in told.tables.items():
        lines += ["", f"## {heading}", "", *_table(frame)]
    if told.figures:
        lines += ["", "## Figures", ""]
    for stem, (title, _) in told.figures.items():
        lines += [f"### {title}", ""]
        lines += [told.captions[stem], ""] if stem in told.captions else []
        lines += [f"![{title}](figures/{stem}.png)", "", f"[interactive](figures/{stem}.html)", ""]
    repeat = (
        f"Seed {settings.seed}. `config.toml` beside this file repeats the run: "
        f"`isogloss run {name} --config config.toml`."
    )
    lines += ["## How it was measured", "", *(f"- {said}" for said in (*told.method, repeat))]
    lines += ["", "## Read with care", ""]
    lines += [f"- {said}" for said in (*told.caveats, *caveats_of(results, told.counted))]
    return [*lines, "", "## Settings", "", *_table(_settings(settings))]


def _settings(settings: Settings) -> pd.DataFrame:
    values = settings.model_dump(mode="json")
    shown = [f"`{json.dumps(value, ensure_ascii=False)}`" for value in values.values()]
    return pd.DataFrame({"setting": [f"`{name}`" for name in values], "value": shown})


def _table(frame: pd.DataFrame) -> list[str]:
    """A frame as a table in Markdown."""
    cells = [[" ".join(str(cell).split()) for cell in line] for line in frame.to_numpy()]
    rows = [[str(name) for name in frame.columns], ["---"] * frame.shape[1], *cells]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in rows]
    return [f"| {' | '.join(line)} |" for line in escaped]
