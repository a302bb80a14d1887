"""What a report says, before it is written in any form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Report:
    """What `report.md` and `report.html` say.

    Attributes:
        figures: title and chart by the file's stem.
        captions: a sentence above some of them, by the same stem.
        beside: tables that the run directory keeps beside the results, by the file's name
            (Parquet, or CSV by its ending).
        counted: what `n` counts in the results, in the plural.
        tables: those that the report shows, their cells in words, by their headings.
    """

    title: str
    about: str
    findings: Sequence[str]
    figures: Mapping[str, tuple[str, Any]]
    method: Sequence[str]
    caveats: Sequence[str]
    left_out: Sequence[str] = ()
    captions: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    counted: str = "groups"
