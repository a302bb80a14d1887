"""What the results themselves say against reading too much into them."""

from __future__ import annotations

import pandas as pd

from evidence.estimate import FEW_GROUPS

#: What two rows share when one is the control of the other.
_PLACE = [
    "measure", "site", "layer", "position", "variety", "reference", "behaviour", "edit", "unit",
]  # fmt: skip


def caveats_of(results: pd.DataFrame, counted: str = "groups") -> list[str]:
    """Sentences on units too few or alone, wide intervals, kept nulls and what else applies.

    Args:
        counted: what `n` counts, in the plural.
    """
    own = results[results["control"] == ""]
    said = [
        _few(own, counted),
        _alone(own),
        _wide(own),
        _null_kept(own),
        _not_beaten(own, results),
        _absent(own),
    ]
    return [sentence for sentence in said if sentence]


def _few(own: pd.DataFrame, counted: str) -> str:
    ranged = own[own["low"].notna() & (own["n"] > 0)]
    few = ranged[ranged["n"] < FEW_GROUPS]
    if few.empty:
        return ""
    return (
        f"{len(few)} of {len(ranged)} intervals rest on fewer than {FEW_GROUPS} {counted} (the "
        f"least on {few['n'].min()}): such intervals can cover less often than they say."
    )


def _alone(own: pd.DataFrame) -> str:
    alone = own[own["n"] == 1]
    if alone.empty:
        return ""
    return (
        f"{_count(alone, 'figure has', 'figures have')} n = 1 ({_measures(alone)}): nothing is "
        "repeated there, so what others would give is not known."
    )


def _absent(own: pd.DataFrame) -> str:
    absent = own[own["value"].isna()]
    if absent.empty:
        return ""
    return (
        f"{_count(absent, 'figure has', 'figures have')} no meaning on these data "
        f"({_measures(absent)}) and stay empty: that is not zero."
    )


def _wide(own: pd.DataFrame) -> str:
    ranged = own[own["low"].notna() & own["high"].notna() & own["value"].notna()]
    wide = ranged[ranged["high"] - ranged["low"] > ranged["value"].abs()]
    if wide.empty:
        return ""
    return (
        f"{len(wide)} of {len(ranged)} intervals are wider than the figure that they surround "
        f"({_measures(wide)}): of those the size is hardly known."
    )


def _null_kept(own: pd.DataFrame) -> str:
    tested = own[own["p"].notna()]
    kept = tested[tested["p"] > 0.05]
    if kept.empty:
        return ""
    return (
        f"{len(kept)} of {len(tested)} tests do not reject their null at 0.05 "
        f"({_measures(kept)}): that shows neither an effect nor that there is none."
    )


def _not_beaten(own: pd.DataFrame, results: pd.DataFrame) -> str:
    """Figures whose interval reaches that of a control at the same place."""
    beside = results[results["control"] != ""]
    pairs = own[own["low"].notna()].reset_index(names="figure")
    pairs = pairs.merge(beside, on=_PLACE, suffixes=("", "_beside"))
    if pairs.empty:
        return ""
    low = pairs["low_beside"].fillna(pairs["value_beside"])
    high = pairs["high_beside"].fillna(pairs["value_beside"])
    reached = pairs[(pairs["low"] <= high) & (low <= pairs["high"])].drop_duplicates("figure")
    if reached.empty:
        return ""
    return (
        f"{len(reached)} of {pairs['figure'].nunique()} figures with a control at the same place "
        f"have an interval that reaches the control's ({_measures(reached)}): there the two "
        "cannot be told apart."
    )


def _count(rows: pd.DataFrame, one: str, more: str) -> str:
    return f"{len(rows)} {one if len(rows) == 1 else more}"


def _measures(rows: pd.DataFrame, shown: int = 3) -> str:
    """The commonest measures of some rows, with how often each is there."""
    counts = rows["measure"].value_counts()
    named = [f"`{name}` {n}" for name, n in counts.head(shown).items()]
    return ", ".join(named) + (", others" if len(counts) > shown else "")
