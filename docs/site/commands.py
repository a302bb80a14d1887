"""The page of the command line: what `--help` says of every command when the site is built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

PAGE = "command-line.md"
#: Columns of a line of help.
WIDTH = 80


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from typer.main import get_command

    from apps.cli import app

    lines = [
        "# The command line",
        "",
        "What `--help` says of every command. `isogloss run` takes further settings of each "
        "experiment by `--set`: [experiments](experiments.md).",
    ]
    for path, said in _helps(get_command(app), "isogloss", None):
        lines += ["", f"## {path}", "", "```text", said, "```"]
    files.append(File.generated(config, PAGE, content="\n".join(lines) + "\n"))
    return files


def _helps(command: Any, path: str, above: Any) -> Iterator[tuple[str, str]]:
    """Every command below one, by its path, with its help in plain text."""
    command.rich_markup_mode = None  # no boxes, no colours
    for below in getattr(command, "commands", {}).values():
        below.short_help = (below.help or "").partition("\n\n")[0]  # whole, not cut at a width
    name = path.rpartition(" ")[2]
    context = command.make_context(
        name, [], parent=above, resilient_parsing=True, terminal_width=WIDTH
    )
    yield path, command.get_help(context)
    for below in getattr(command, "commands", {}).values():
        yield from _helps(below, f"{path} {below.name}", context)
