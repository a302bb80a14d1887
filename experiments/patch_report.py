"""What patching found, in sentences and figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pandas as pd

from experiments.figures.look import control, figure, plain
from experiments.job import Report

if TYPE_CHECKING:
    from experiments.patch import Work


def report(work: Work, results: pd.DataFrame) -> Report:
    """The report of a finished run."""
    from experiments import figures

    standard = work.inputs.standard
    drawn = {}
    for way in work.ways:
        edits, title, stem = _of(way, standard)
        own = results[results["edit"].str.match(edits)]
        if way == "noise":
            own = own.assign(reference="the dialects")
        maps = own[~own["edit"].str.contains(r"\bdialects\b")]
        drawn[stem] = (title, figures.chart_patching_map(maps))
        if work.settings.heads:
            drawn[f"heads_{way}"] = (f"{title}, by head", figures.chart_head_map(own))
    if work.settings.shuffled:
        chart = figures.chart_patching_control(results)
        drawn["shuffled"] = ("The last token, beside patches from other sentences", chart)
    pairs = max(len(p) for p in work.pairs.values())
    return Report(
        title=f"{work.settings.model}: which states carry the difference between varieties",
        about=(
            f"{pairs} groups of parallel sentences of the corpus `{work.inputs.corpus.name}`, in "
            f"{standard} and {len(work.pairs)} dialects; {work.model.n_layers} layers. Intervals "
            "are 95% over groups."
        ),
        findings=[*sentences(results, standard, work.ways)],
        figures=drawn,
        method=[
            "The metric is KL from the source's next-token distribution at the last token; a "
            "patch's share of the gap is 1 − Σ KL(source ‖ patched) / Σ KL(source ‖ base) over "
            "pairs. Both ways are exact runs, not a first-order guess.",
            f"{standard} into dialects asks whether a state suffices, dialects into {standard} "
            "whether it is needed; the two need not agree.",
            f"Texts are taken in at most {work.settings.positions} segments, counted from the end; "
            "tokens correspond by blocks of equal tokens, and those without a counterpart stay as "
            "they are.",
            "Patches from other sentences (`shuffled_pairs`) take the states of another group's "
            "sentence of the same variety and are measured against the pair's own source.",
            *(
                ["Each head's output (`attn.hook_z`) is patched at all positions together."]
                if work.settings.heads
                else []
            ),
        ],
        caveats=[
            "After the last block the last token's state is the prediction: its patch closes all "
            "of the gap by construction.",
            "The gap is that of one next token. A state that shapes only later ones shows nothing.",
            "Intervals hold for one cell; of many cells some stand out by chance. The best cell "
            "was chosen on half of the groups and is reported on the other half.",
        ],
        left_out=work.left_out,
    )


def _of(way: str, standard: str) -> tuple[str, str, str]:
    """The edits of a way as a pattern, its title and the stem of its figure."""
    import re

    if way == "denoise":
        return (
            rf"patch\({re.escape(standard)}→",
            "The standard's states in dialect runs",
            "into_dialects",
        )
    return (
        rf"patch\(.*→{re.escape(standard)}\)$",
        "Dialect states in the standard's runs",
        "into_standard",
    )


def sentences(results: pd.DataFrame, standard: str, ways: tuple[str, ...]) -> Iterator[str]:
    """One plain sentence for each finding."""

    for way in ways:
        pattern, _, _ = _of(way, standard)
        own = results[results["edit"].str.match(pattern)]
        told = (
            f"{standard} states in dialect runs"
            if way == "denoise"
            else f"Dialect states in {standard} runs"
        )
        last = plain(own, "recovered_fraction_pooled")
        last = last[last["position"] == 0].sort_values("layer")
        half = last[last["low"] >= 0.5]
        first = last.iloc[0]
        if len(half):
            at = half.iloc[0]
            before = (
                "" if at["site"] == first["site"] else f"; at `{first['site']}` {figure(first)}"
            )
            yield (
                f"{told}: at the last token more than half of the gap is closed from "
                f"`{at['site']}` on ({figure(at)} over {at['n']} groups{before})."
            )
        else:
            yield f"{told}: no site closes half of the gap at the last token for certain."
        yield from _beside_shuffled(own, last, told)
        best = plain(own, "recovered_fraction_best")
        if len(best):
            cell = best.iloc[0]
            beyond = "" if cell["low"] > 0 else ", which is not above zero for certain"
            yield (
                f"{told}: the earlier place that matters most is {int(cell['position'])} tokens "
                f"before the end at `{cell['site']}`, which closes {figure(cell)} of the gap in "
                f"the groups that it was not chosen on{beyond}."
            )
        heads = plain(own, "head_recovered_fraction")
        if len(heads):
            top = heads.loc[heads["value"].idxmax()]
            yield (
                f"{told}: of the {len(heads)} heads, head {int(top['position'])} of block "
                f"{int(top['layer'])} alone closes most, {figure(top)}."
            )


def _beside_shuffled(own: pd.DataFrame, last: pd.DataFrame, told: str) -> Iterator[str]:
    chance = control(own, "recovered_fraction_pooled", "shuffled_pairs")
    chance = chance[chance["position"] == 0].set_index("site")
    known = last[last["site"].isin(chance.index)]
    if known.empty:
        return
    own_last = known.iloc[-1]
    at = own_last["site"]
    there = chance.loc[at]
    if there["low"] > 0:
        meaning = "so a good part of what is carried is the variety, whatever the sentence says"
    elif there["high"] < 0:
        meaning = "so what is carried belongs to the sentence, and another one's leads away"
    elif there["high"] < own_last["low"]:
        meaning = "so what is carried belongs to the sentence"
    else:
        meaning = "which leaves open whether the variety or the sentence is carried"
    yield (
        f"{told}: states of other sentences of the same variety close {figure(there)} of the gap "
        f"at the last token of `{at}`, {meaning}."
    )
