"""What a frame must be before it is a corpus: every refusal names the rows and the remedy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from corpora.errors import CorpusError, nearest, some_rows

BEHAVIOURS = ("harmful", "harmless")
SPLITS = ("train", "test")


def tidy(
    frame: pd.DataFrame,
    *,
    columns: Mapping[str, str],
    standard: str | None,
    name: str,
    comparable: bool = True,
) -> pd.DataFrame:
    """The canonical frame of a corpus: named columns first, as strings, missing values as `""`.

    Where it need not be `comparable`, texts alone are enough, and copies may be among them.
    `columns` maps each role (`text`, `variety`, `group`, `behaviour`, `split`) to the source's
    column. Row numbers in messages count from 1 at the first text.

    Raises:
        CorpusError: whatever makes the frame no corpus.
    """
    source = frame.reset_index(drop=True)
    source.columns = [str(column).strip() for column in source.columns]
    names = list(source.columns)
    twice = [column for column in names if names.count(column) > 1]
    if twice:
        raise CorpusError(f"{name} has two columns called {twice[0]!r}: rename one of them.")
    _require_columns(source, columns, name, comparable)
    if source.empty:
        raise CorpusError(f"{name} holds no texts: give at least one row below the header.")
    _refuse_nested(source[columns["text"]], columns["text"], name)
    out = pd.DataFrame({"text": _strings(source[columns["text"]], strip=False)})
    _refuse_blank(out["text"], columns["text"], name)
    for role in ("variety", "behaviour"):
        given = columns[role] in source.columns
        out[role] = _strings(source[columns[role]]) if given else ""
    out["behaviour"] = _closed(out["behaviour"], BEHAVIOURS, "behaviour", name)
    out.insert(2, "group", _groups(source, columns["group"], out["text"]))
    if columns["split"] in source.columns:
        out["split"] = _closed(_strings(source[columns["split"]]), SPLITS, "split", name)
        _refuse_crossing(out, name)
    if comparable:
        _refuse_duplicates(out, name)
        _require_contrast(out, name)
    _refuse_relabelled(out, name)
    _require_standard(out, name, standard)
    for column in names:
        if column not in out.columns and column not in columns.values():
            kept = source[column]
            texts = kept.dtype == object or isinstance(kept.dtype, pd.StringDtype)
            out[column] = kept.astype(object).where(kept.notna(), "") if texts else kept
    return out


def _strings(column: pd.Series, *, strip: bool = True) -> pd.Series:
    def one(value: object) -> str:
        if value is None or value is pd.NA or value is pd.NaT:
            return ""
        if isinstance(value, (float, np.floating)):
            if np.isnan(value):
                return ""
            # A column of whole numbers with a gap is read as floats; 3 must stay "3".
            return str(int(value)) if float(value).is_integer() else str(value)
        if isinstance(value, bytes):
            return value.decode("utf-8", errors="replace")
        return str(value)

    values = [one(value) for value in column]
    return pd.Series([v.strip() for v in values] if strip else values, dtype=object)


def _require_columns(
    source: pd.DataFrame, columns: Mapping[str, str], name: str, comparable: bool
) -> None:
    known = list(source.columns)
    asked = [role for role, column in columns.items() if role == "text" or column != role]
    for role in asked:
        if columns[role] not in known:
            near = nearest(columns[role], known)
            hint = f"did you mean {' or '.join(map(repr, near))}" if near else "name another"
            raise CorpusError(
                f"{name} has no column {columns[role]!r} for the {role}: {hint} "
                f"(its columns are {', '.join(known) or 'none'})?"
            )
    if comparable and columns["variety"] not in known and columns["behaviour"] not in known:
        raise CorpusError(
            f"{name} has neither a column {columns['variety']!r} nor a column "
            f"{columns['behaviour']!r}: add one, or say which of its columns "
            f"({', '.join(known)}) holds the variety or the behaviour."
        )


def _refuse_nested(values: pd.Series, column: str, name: str) -> None:
    kinds = (list, tuple, dict, set, np.ndarray)
    nested = np.flatnonzero([isinstance(value, kinds) for value in values])
    if len(nested):
        raise CorpusError(
            f"{name} has lists or objects in place of texts in column {column!r}, "
            f"{some_rows(nested, offset=1)}: give one string per row."
        )


def _refuse_blank(texts: pd.Series, column: str, name: str) -> None:
    torn = np.flatnonzero([any("\ud800" <= c <= "\udfff" for c in text) for text in texts])
    if len(torn):
        raise CorpusError(
            f"{name} has broken characters (half of a surrogate pair) in column {column!r}, "
            f"{some_rows(torn, offset=1)}: write those texts again as UTF-8."
        )
    blank = np.flatnonzero([not text.strip() for text in texts])
    if len(blank):
        raise CorpusError(
            f"{name} has blank texts in column {column!r}, {some_rows(blank, offset=1)}: "
            "fill them in or leave those rows out."
        )


def _closed(values: pd.Series, allowed: tuple[str, ...], role: str, name: str) -> pd.Series:
    lowered = values.str.lower()
    wrong = np.flatnonzero(~lowered.isin([*allowed, ""]))
    if len(wrong):
        value = values.iloc[wrong[0]]
        near = nearest(value, allowed, shown=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise CorpusError(
            f"{name} has the unknown {role} {value!r}{hint} in {some_rows(wrong, offset=1)}: "
            f"use {' or '.join(map(repr, allowed))}, or leave it empty."
        )
    return lowered


def _groups(source: pd.DataFrame, column: str, texts: pd.Series) -> pd.Series:
    """The group of each row; a row without one is its own group, shared by equal texts."""
    given = _strings(source[column]) if column in source.columns else pd.Series([""] * len(texts))
    taken = set(given)
    alone = pd.Series(pd.factorize(texts)[0]).map(str)
    # A made-up group must not meet one of the source's own.
    prefix = "" if taken == {""} else "text"
    while any(prefix + number in taken for number in alone):
        prefix += "_"
    return given.where(given != "", prefix + alone).astype(object)


def _refuse_duplicates(out: pd.DataFrame, name: str) -> None:
    twice = np.flatnonzero(out.duplicated(["text", "variety", "behaviour"]).to_numpy())
    if len(twice):
        raise CorpusError(
            f"{name} has duplicate rows (same text, variety and behaviour as an earlier row), "
            f"{some_rows(twice, offset=1)}: remove them, since a copy is not new evidence."
        )


def _refuse_relabelled(out: pd.DataFrame, name: str) -> None:
    """Equal texts of one group may differ in variety (spelt alike), but not in behaviour."""
    behaved = out[out["behaviour"] != ""]
    kinds = behaved.groupby(["group", "text"], sort=False)["behaviour"].transform("nunique")
    both = behaved.index[kinds > 1].to_numpy()
    if len(both):
        raise CorpusError(
            f"{name} has the same text in the same group labelled both harmful and harmless, "
            f"{some_rows(both, offset=1)}: keep one label."
        )


def _refuse_crossing(out: pd.DataFrame, name: str) -> None:
    named = out[out["split"] != ""]
    sides = named.groupby("group", sort=False)["split"].nunique()
    crossing = sides.index[sides > 1]
    if len(crossing):
        shown = ", ".join(map(repr, crossing[:3]))
        more = f" and {len(crossing) - 3} more" if len(crossing) > 3 else ""
        raise CorpusError(
            f"{name} has groups on both sides of the split ({shown}{more}): a group must be "
            "wholly train or wholly test."
        )


def _require_contrast(out: pd.DataFrame, name: str) -> None:
    varieties = [v for v in out["variety"].unique() if v]
    behaviours = [b for b in out["behaviour"].unique() if b]
    if len(varieties) < 2 and len(behaviours) < 2:
        told = " and ".join(
            [
                f"one variety ({varieties[0]})" if varieties else "no variety",
                f"only {behaviours[0]} texts" if behaviours else "no behaviour",
            ]
        )
        raise CorpusError(
            f"{name} has {told}: give at least two varieties, or both harmful and harmless texts."
        )


def _require_standard(out: pd.DataFrame, name: str, standard: str | None) -> None:
    varieties = [v for v in out["variety"].unique() if v]
    if standard is not None and standard not in varieties:
        near = nearest(standard, varieties)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise CorpusError(
            f"{name} has no variety {standard!r} to be the standard: {hint}"
            f"Its varieties are {', '.join(varieties) or 'none'}."
        )
