"""What the experiment says: the verdict on each dialect first, whichever way it went."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from experiments.decouple.arms import PLAIN, main_arms
from experiments.decouple.bench import Bench
from experiments.decouple.summary import by_seed, verdict
from experiments.figures.look import figure
from experiments.job import Report

_SAID = {
    "gain": "Decoupling helps {dialect} here ({form}), more than every control beside it",
    "unspecific gain": "{form} lowers the loss of {dialect}, but a control does as well",
    "uncontrolled gain": "{form} lowers the loss of {dialect}; no control was run beside this form",
    "loss": "{form} hurts {dialect}",
    "none": "No gain here: {form} changes nothing for {dialect} that these seeds can tell",
}


def report(bench: Bench, results: pd.DataFrame) -> Report:
    """The report of a finished run."""
    from experiments import figures

    settings = bench.settings
    drawn = {
        "gain": ("Gain by arm", figures.chart_decoupling_gain(results)),
        "pareto": ("Gain and cost", figures.chart_decoupling_pareto(results)),
    }
    if len(settings.strengths) > 1 or len(settings.projections) > 1:
        drawn["strength"] = ("Strength", figures.chart_decoupling_strength(results))
    trained = (
        f"blocks {', '.join(map(str, settings.trained_blocks))}"
        if settings.trained_blocks
        else "all weights"
    )
    return Report(
        title=f"{settings.model}: does decoupling from the standard help a dialect?",
        about=(
            f"Corpus `{bench.inputs.corpus.name}`, from {bench.inputs.standard} into "
            f"{', '.join(t.dialect for t in bench.tasks)}; {settings.seeds} seeds, paired: the "
            "same texts in the same order from the same weights in every arm. A gain is a fall of "
            "the dialect's held-out loss."
        ),
        findings=[s for task in bench.tasks for s in _sentences(bench, results, task.dialect)],
        figures=drawn,
        counted="seeds",
        method=[
            f"Fine-tuned: {trained}, {settings.steps} steps of {settings.batch} with "
            f"{settings.optimizer} at {settings.rate:g}, loss on the target's tokens only, on "
            f"{settings.train_texts} pairs drawn by the seed, of which "
            f"{settings.contamination:.0%} have the standard's sentence as target.",
            f"Decoupled: block outputs of layers {', '.join(map(str, bench.layers))}; the "
            f"subspace is estimated online, every {settings.every} steps, from "
            f"{settings.reference_groups} groups of training sentences of the standard against "
            + (
                "all dialects."
                if settings.contrast == "all"
                else "the dialects that are not fine-tuned on."
            ),
            "Controls go through the first form and are matched to it in the energy that they "
            "penalise (or take out) at the first step, not in their weight.",
            "Intervals: Student's t on differences paired by seed. p: adjusted over all arms and "
            "dialects of a measure (Benjamini and Hochberg 1995), controls apart.",
            "chrF++ and BLEU: sacrebleu's corpus scores of greedy translations.",
            'The form after the paper ("When Alignment Hurts", 2025) is reconstructed from its '
            "abstract and reviews; the streamed estimate, the other forms and the matched "
            "controls are ours.",
        ],
        caveats=[
            "Would have counted as failure of the method: an interval of the change of loss that "
            "holds zero or lies above it, or a control that does as well.",
            f"n counts seeds. All are judged on the same held-out groups ({_groups(bench)}), so "
            "intervals are about other fine-tunes, not about other sentences.",
            "A projection acts at evaluation as it did at the end of training, on the same tokens.",
        ],
        left_out=bench.left_out,
    )


def _groups(bench: Bench) -> str:
    return ", ".join(f"{len(t.test)} for {t.dialect}" for t in bench.tasks)


def _sentences(bench: Bench, results: pd.DataFrame, dialect: str) -> Iterator[str]:
    own = results[results["variety"] == dialect]
    for arm in main_arms(bench.settings):
        said = _SAID[verdict(results, dialect, arm.edit)].format(dialect=dialect, form=arm.form)
        here = own[own["edit"] == arm.edit]
        measured = here[here["control"] == ""].set_index("measure")
        change = measured.loc["dialect_loss_change"]
        cost = measured.loc["standard_loss_change"]
        told = (
            f"{said[0].upper()}{said[1:]}: loss {figure(change, signed=True)} nats a token against "
            f"plain (n = {change['n']} seeds, p = {change['p']:.2g}), the standard's "
            f"{figure(cost, signed=True)}"
        )
        for measure, name in (("chrf", "chrF++"), ("bleu", "BLEU")):
            if f"{measure}_change" in measured.index:
                told += f", {name} {figure(measured.loc[f'{measure}_change'], signed=True)}"
        yield told + "."
        beside = here[(here["measure"] == "dialect_loss_specific")]
        if len(beside):
            rest = "; ".join(
                f"{r['control'].replace('_', ' ')} {figure(r, signed=True)}"
                for _, r in beside.iterrows()
            )
            yield f"Less than its controls by (nats a token, below 0 is for {arm.form}): {rest}."
    yield _levels(results, dialect)


def _levels(results: pd.DataFrame, dialect: str) -> str:
    own = results[(results["variety"] == dialect) & (results["edit"] == "")]
    before = own.set_index("measure")["value"]
    told = f"For scale, {dialect} before and after plain fine-tuning: loss "
    plain = by_seed(results, "dialect_loss").loc[(dialect, PLAIN, "")].mean()
    told += f"{before['dialect_loss']:.3f} and {plain:.3f} nats a token"
    standard = by_seed(results, "standard_loss").loc[(dialect, PLAIN, "")].mean()
    told += f", the standard's {before['standard_loss']:.3f} and {standard:.3f}"
    if "chrf" in before.index:
        chrf = by_seed(results, "chrf").loc[(dialect, PLAIN, "")].mean()
        told += f", chrF++ {before['chrf']:.1f} and {chrf:.1f}"
    return told + "."
