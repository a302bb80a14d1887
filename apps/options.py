"""Options that several commands share, and how their text is read."""

from __future__ import annotations

from typing import Annotated

import typer

ModelOption = Annotated[
    str | None,
    typer.Option(help="organism/NAME, a local Hugging Face folder, or a hub id."),
]
CorpusOption = Annotated[
    str | None, typer.Option(help="CSV, TSV, JSONL or Parquet; the bundled corpus if left out.")
]
SitesOption = Annotated[
    str | None, typer.Option(help="Sites, comma-separated: resid_post, attn_out, a full name.")
]
LayersOption = Annotated[
    str | None, typer.Option(help="Layers, comma-separated, as 0,2,4 or 0-5; all if left out.")
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="Any other setting, as key=value.")
]


def names(text: str | None) -> list[str] | None:
    """`a,b` as its parts."""
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def numbers(text: str | None) -> list[int] | None:
    """`0,2,4-6` as numbers.

    Raises:
        ConfigError: a part that is neither a number nor a range.
    """
    if not text:
        return None
    from experiments.settings import ConfigError

    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ConfigError(f"--layers takes numbers and ranges as 0,2,4-6, not {text!r}.")
        found += range(int(first), int(last or first) + 1)
    return found
