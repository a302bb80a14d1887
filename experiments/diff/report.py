"""The report of a comparison: findings, one table, one figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from experiments.diff.changes import wide
from experiments.diff.findings import sentences
from experiments.figures.look import rounded
from experiments.job import Report

if TYPE_CHECKING:
    from experiments.diff.job import Work

_SITES = 5  # of the table in the report; table.csv has all
_BY_SITE = (
    "variety_probe_accuracy",
    "variety_probe_transfer",
    "behaviour_probe_accuracy",
    "behaviour_probe_transfer",
    "mean_subspace_overlap",
    "model_cka",
    "model_direction_cosine",
    "direction_length",
)
_SHOWN = ("refusal_rate", "loss", "text_loss", "perplexity", "next_token_kl", *_BY_SITE)


def report(work: Work, results: pd.DataFrame) -> Report:
    """The report of a finished run."""
    from experiments import figures

    settings, inputs = work.settings, work.inputs
    table = wide(results)
    return Report(
        title=f"{settings.model} and {settings.after}: before and after",
        about=f"{len(inputs.corpus)} texts of the corpus `{inputs.corpus.name}`; {work.shape}. "
        f"Before is {settings.model}, after {settings.after}. Changes are paired: the same texts, "
        "folds and resamples in both models. Intervals are 95% over groups.",
        findings=sentences(results),
        figures={"before_after": ("Before and after", figures.chart_before_after(results))},
        tables={"Table": shown(table)},
        beside={"table.csv": table},
        method=_method(settings.tokens, settings.folds, settings.k, settings.text_groups),
        caveats=[
            "A change that is not told from none is not no change: look at its interval.",
            "p-values of probes, losses, refusals by variety and directions are corrected over "
            "sites or varieties (Benjamini and Hochberg 1995), not over measures; that of a figure "
            "between the models is against chance, not against no change.",
            "Where no group changed, an interval reaches to the exact limit for so many groups.",
            "Intervals of probes hold what was fitted fixed; those of variety subspaces and the "
            "harmful direction count few requests: halves say how far they reproduce.",
            "What a shift promotes is read by the head of the model after; in a middle layer later "
            "blocks read the state otherwise.",
            "Refusals are recognised by their words.",
        ],
        left_out=work.left_out,
    )


def _method(tokens: str, folds: int, k: int, texts: int) -> list[str]:
    return [
        f"States at the {tokens} token of each text; requests in the chat template first.",
        f"Probes: logistic regression, {folds} folds by group, the same in both models, balanced "
        "accuracy, beside a control task. Transfer: the probes of the model before, on the states "
        "of the model after, each on groups that it was not fitted to.",
        f"Variety subspaces: top {k} directions of the differences to the standard. Between the "
        "models: from disjoint halves of the groups, corrected for what halves of one model "
        "reproduce (Spearman 1904), so that a model with itself gives 1.",
        "Harmful direction: harmful mean less harmless mean on the train side; its cosine between "
        "the models from disjoint halves of the requests, corrected likewise.",
        f"Losses and KL(before, after) on at most {texts} texts of each variety, and KL at every "
        "token of the requests; refusals over all requests used, of both sides of the split.",
        "Shift: the mean of after less before, in mean lengths of a state; what it promotes: the "
        "last norm and the unembedding applied far out along it, beside random directions.",
    ]


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of the table that a report has room for, in words: the rest is in `table.csv`.

    Controls, single varieties' geometry and refusals, and sites between a few evenly spaced ones
    are left out.
    """
    rows = table[(table["control"] == "") & table["measure"].isin(_SHOWN)]
    rows = rows[~((rows["measure"] == "refusal_rate") & (rows["variety"] != ""))]
    rows = rows[
        ~((rows["measure"] == "next_token_kl") & (rows["variety"] != "") & (rows["position"] == 0))
    ]
    sites = list(dict.fromkeys(rows.loc[rows["site"] != "", "site"]))
    if len(sites) > _SITES:
        sites = [sites[i] for i in np.linspace(0, len(sites) - 1, _SITES).round().astype(int)]
    rows = rows[rows["site"].isin(["", *sites])]
    order = {measure: at for at, measure in enumerate(_SHOWN)}
    rows = rows.sort_values("measure", key=lambda m: m.map(order), kind="stable")
    lines = []
    for _, line in rows.iterrows():
        of = [line["variety"], line["behaviour"]]
        of += [line["reference"]] if line["measure"] == "model_cka" else []
        of += (
            ["reply's first token"]
            if line["measure"] == "next_token_kl" and line["position"] == 0
            else []
        )
        p = line["p"]
        lines.append(
            {
                "measure": line["measure"],
                "site": line["site"],
                "of": ", ".join(part for part in of if part),
                "before": _cell(line, "before"),
                "after": _cell(line, "after"),
                "change": _cell(line, "change", signed=True),
                "between the two": _cell(line, "between"),
                "p": "" if pd.isna(p) else f"{p:.2g}",
                "n": line["n"],
                "unit": line["unit"],
            }
        )
    return pd.DataFrame(lines)


def _cell(line: pd.Series, part: str, *, signed: bool = False) -> str:
    value, low, high = (line[f"{part}{end}"] for end in ("", "_low", "_high"))
    if pd.isna(value):
        return ""
    form = "+.3f" if signed else ".3f"
    text = rounded(value, form)
    return text if pd.isna(low) else f"{text} [{rounded(low, form)}, {rounded(high, form)}]"
