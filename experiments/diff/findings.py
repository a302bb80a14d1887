"""What a comparison of two models found, in plain sentences, each with its figure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from experiments.figures.look import control, figure, plain

_ALPHA = 0.05


def sentences(results: pd.DataFrame) -> list[str]:
    """Behaviour first, then what was read from the states, then geometry."""
    parts = (_refusals, _losses, _divergence, _probes, _transfer, _subspaces, _direction)
    told = [said for part in parts for said in part(results)]
    return [*told, *_shift(results), *_promoted(results)]


def _sides(results: pd.DataFrame, measure: str) -> pd.DataFrame:
    """One line a figure with before, after and change, as rows of their own."""
    rows = plain(results, measure, f"{measure}_change")
    if not (rows["measure"] == f"{measure}_change").any():
        return pd.DataFrame()
    keys = ["site", "layer", "position", "variety", "reference", "behaviour"]
    part = np.where(rows["edit"] == "", "before", "after")
    part = np.where(rows["measure"] == measure, part, "change")
    lines = []
    for key, own in rows.assign(part=part).groupby(keys, sort=False):
        found = {str(r["part"]): r for _, r in own.iterrows()}
        if len(found) == 3:
            lines.append(dict(zip(keys, key, strict=True)) | found)
    return pd.DataFrame(lines)


def _told(line: Any, *, signed: str = "+.3f") -> str:
    """As in `0.98 before, 0.97 after (change -0.004 [-0.012, 0.001])`."""
    before, after = (line[part]["value"] for part in ("before", "after"))
    text = f"{before:.2f} before, {after:.2f} after"
    return f"{text} (change {figure(line['change'], signed=True)}{_p(line['change'])})"


def _p(found: Any) -> str:
    return f", p = {found['p']:.2g}" if pd.notna(found["p"]) else ""


def _fine(found: Any) -> str:
    """A figure in three decimals, with its interval."""
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _changed(lines: pd.DataFrame) -> pd.Series:
    return pd.Series([found["p"] < _ALPHA for found in lines["change"]], index=lines.index)


def _size(lines: pd.DataFrame) -> pd.Series:
    return pd.Series([abs(found["value"]) for found in lines["change"]], index=lines.index)


def _refusals(results: pd.DataFrame) -> Iterator[str]:
    lines = _sides(results, "refusal_rate")
    if lines.empty:
        return
    whole = lines[lines["variety"] == ""]
    for _, line in whole.iterrows():
        yield f"Of {line['behaviour']} requests the share refused is {_told(line)}."
    lost = lines[(lines["variety"] != "") & (lines["behaviour"] == "harmful")]
    values = [found["value"] for found in lost["change"]]
    if len(lost) > 1 and max(values) != min(values):
        least, most = lost.iloc[int(np.argmax(values))], lost.iloc[int(np.argmin(values))]
        yield (
            f"By variety the share of harmful requests refused changes between "
            f"{min(values):+.2f} ({most['variety']}) and {max(values):+.2f} ({least['variety']}); "
            f"{min(f['n'] for f in lost['change'])} to {max(f['n'] for f in lost['change'])} "
            "requests each."
        )


def _losses(results: pd.DataFrame) -> Iterator[str]:
    for measure, unit in (("loss", "nats per token"), ("text_loss", "nats per character")):
        lines = _sides(results, measure)
        if lines.empty:
            continue
        sure = _changed(lines)
        most = lines.loc[_size(lines).idxmax()]
        yield (
            f"The loss on {int(sure.sum())} of {len(lines)} varieties changes beyond doubt "
            f"(p below {_ALPHA}, corrected); most on {most['variety']}: {_told(most)} {unit}."
        )


def _divergence(results: pd.DataFrame) -> Iterator[str]:
    rows = plain(results, "next_token_kl")
    texts = rows[(rows["variety"] != "") & (rows["position"] == -1)]
    parts = []
    if len(texts):
        most = texts.loc[texts["value"].idxmax()]
        parts.append(f"at most {_fine(most)} nats per token on texts ({most['variety']})")
    for _, found in rows[(rows["behaviour"] != "") & (rows["position"] == 0)].iterrows():
        parts.append(f"{_fine(found)} where replies to {found['behaviour']} requests begin")
    if parts:
        yield f"The next token's distribution moves by a KL of {'; '.join(parts)}."


def _probes(results: pd.DataFrame) -> Iterator[str]:
    for kind in ("variety", "behaviour"):
        lines = _sides(results, f"{kind}_probe_accuracy")
        if lines.empty:
            continue
        sure, most = _changed(lines), lines.loc[_size(lines).idxmax()]
        said = (
            f"A probe of {kind} changes in accuracy at {int(sure.sum())} of {len(lines)} sites "
            f"(p below {_ALPHA}, corrected)"
        )
        if most["change"]["value"]:
            said += f"; most at `{most['site']}`, where it is {_told(most)}"
        yield f"{said}."


def _transfer(results: pd.DataFrame) -> Iterator[str]:
    for kind in ("variety", "behaviour"):
        lines = _sides(results, f"{kind}_probe_transfer")
        if lines.empty:
            continue
        values = pd.Series([found["value"] for found in lines["change"]], index=lines.index)
        worst = lines.loc[values.idxmin()]
        if values.min() >= 0:
            yield f"A probe of {kind} fitted before reads the states after no worse at any site."
        else:
            yield (
                f"A probe of {kind} fitted before reads the states after worst at "
                f"`{worst['site']}`: {_told(worst)}."
            )


def _subspaces(results: pd.DataFrame) -> Iterator[str]:
    rows = plain(results, "model_subspace_overlap").dropna(subset=["value"])
    if len(rows):
        least = rows.loc[rows["value"].idxmin()]
        chance = control(results, "model_subspace_overlap", "random_subspace")["value"]
        yield (
            f"The subspace of a variety before shares {rows['value'].mean():.2f} with that after "
            f"on average (mean squared cosine, freed of noise; chance {chance.mean():.2f}); least "
            f"for {least['variety']} at `{least['site']}`: {figure(least)}."
        )
    lines = _sides(results, "mean_subspace_overlap")
    if len(lines):
        most = lines.loc[_size(lines).idxmax()]
        yield (
            f"What two varieties share on average changes most at `{most['site']}`: {_told(most)}."
        )


def _direction(results: pd.DataFrame) -> Iterator[str]:
    rows = plain(results, "model_direction_cosine").dropna(subset=["value"])
    if len(rows):
        most = rows.loc[rows["value"].idxmin()]
        degrees = np.degrees(np.arccos(np.clip(most["value"], -1.0, 1.0)))
        own = control(results, "model_direction_cosine", "split_half")
        own = own[own["site"] == most["site"]]["value"]
        yield (
            f"The harmful direction turns most at `{most['site']}`, by {degrees:.0f} degrees: "
            f"cosine {figure(most)}, freed of noise, where halves of the requests reproduce it to "
            f"{own.iloc[0]:.2f} before and {own.iloc[1]:.2f} after."
        )
    lines = _sides(results, "direction_length")
    if len(lines):
        most = lines.loc[_size(lines).idxmax()]
        yield (
            "Harmful and harmless requests lie apart most differently at "
            f"`{most['site']}`: {_told(most)} mean lengths of a state."
        )
    lines = _sides(results, "direction_subspace_cosine")
    sites = set(rows["site"])  # elsewhere there is no direction to speak of
    lines = lines[lines["site"].isin(sites)] if len(lines) else lines
    if len(lines):
        most = lines.loc[_size(lines).idxmax()]
        yield (
            f"Its cosine with a variety's subspace changes most for {most['variety']} at "
            f"`{most['site']}`: {_told(most)}."
        )


def _shift(results: pd.DataFrame) -> Iterator[str]:
    rows = plain(results, "state_shift")
    if rows.empty:
        return
    if not rows["value"].any():
        yield "No state moved."
        return
    most = rows.loc[rows["value"].idxmax()]
    alike = plain(results, "model_cka")
    beside = ""
    if len(alike):
        least = alike.loc[alike["value"].idxmin()]
        null = control(results, "model_cka", "shuffled_groups")
        null = null.set_index(["reference", "site"])["value"]
        beside = (
            f" CKA of the two models is least for {least['reference']} at `{least['site']}`: "
            f"{_fine(least)} (with groups exchanged {null[least['reference'], least['site']]:.3f})."
        )
    yield (
        f"Mean states move most on {most['variety'] or most['behaviour'] + ' requests'} at "
        f"`{most['site']}`, by {figure(most)} of a state's length.{beside}"
    )


def _promoted(results: pd.DataFrame) -> Iterator[str]:
    rows = plain(results, "promoted_token")
    if rows.empty:
        return
    last = rows[rows["layer"] == rows["layer"].max()]
    chance = control(results, "promoted_token", "random_subspace")
    chance = chance[(chance["layer"] == last["layer"].iloc[0]) & (chance["position"] == 1)]
    first = last[last["position"] == 1]
    names = [b for b in ("harmful", "harmless") if b in set(first["behaviour"])]
    texts = first[first["variety"] != ""]
    parts = [("behaviour", name) for name in names]
    if len(texts):
        parts.append(("variety", texts.loc[texts["value"].idxmax(), "variety"]))
    told = []
    for column, name in parts:
        own = last[last[column] == name].sort_values("position").head(5)
        words = ", ".join(f"`{token}`" for token in own["reference"])
        told.append(f"{name} {words} (first {own['value'].iloc[0]:.1f})")
    yield (
        "What the shift of the last states promotes (logit of the first token, for random "
        f"directions {chance['value'].iloc[0]:.1f} [{chance['low'].iloc[0]:.1f}, "
        f"{chance['high'].iloc[0]:.1f}]): {'; '.join(told)}."
    )
