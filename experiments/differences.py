"""Two runs side by side: which settings differ, and the same measures in both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

_KEYS = [
    "measure",
    "site",
    "layer",
    "position",
    "variety",
    "reference",
    "behaviour",
    "edit",
    "control",
]
_ORDER = ["measure", "layer", *(k for k in _KEYS if k not in ("measure", "layer"))]
_ENDS = ["value", "low", "high"]


def compare_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> pd.DataFrame:
    """Settings that two runs do not share: columns setting, this, other."""
    differ = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    return pd.DataFrame(
        {
            "setting": differ,
            "this": [str(one.get(name, "")) for name in differ],
            "other": [str(other.get(name, "")) for name in differ],
        }
    )


def compare_results(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Figures that both runs have, with their difference, other less this.

    Rows correspond where everything but the figure agrees: measure, site, varieties, edit, control.
    A row that a run has several times, such as angles by rank, has no single counterpart and is
    left out.

    Returns:
        The key columns; value, low, high and the same with `_other`; `difference`.
    """
    sides = [side.drop_duplicates(_KEYS, keep=False)[_KEYS + _ENDS] for side in (one, other)]
    found = sides[0].merge(sides[1], on=_KEYS, suffixes=("", "_other"))
    return found.assign(difference=found["value_other"] - found["value"])


def readable(found: pd.DataFrame) -> pd.DataFrame:
    """What `compare_results` found, to be read: each run's figure with its interval as one text.

    Returns:
        The key columns that say something, without the layer, which the site names; `this` and
        `other`, such as `0.600 [0.550, 0.660]`; and `difference`, other less this.
    """
    found = found.sort_values([k for k in _ORDER if k in found], ignore_index=True)
    told = [k for k in _KEYS if k in found and k != "layer"]
    used = [k for k in told if not (found[k].isna() | found[k].isin(["", -1])).all()]
    return found[used].assign(
        this=_said(found, ""), other=_said(found, "_other"), difference=found["difference"]
    )


def _said(found: pd.DataFrame, suffix: str) -> list[str]:
    columns = [found[f"{end}{suffix}"] for end in _ENDS]
    return [
        f"{value:.3f}" + ("" if pd.isna(low) or pd.isna(high) else f" [{low:.3f}, {high:.3f}]")
        for value, low, high in zip(*columns, strict=True)
    ]
