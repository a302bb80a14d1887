"""What a run found, in plain sentences with how sure they are, beside its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from experiments.compare import findings
from experiments.settings import CompareSettings


def write_figures(path: Path, results: pd.DataFrame) -> dict[str, str]:
    """Draw every figure that the results allow; title of each by its file's stem."""
    from experiments import figures

    drawn: dict[str, str] = {}

    def keep(stem: str, title: str, chart: Any) -> None:
        figures.save_chart(chart, path / "figures" / stem)
        drawn[stem] = title

    present = set(results["measure"])
    for kind in ("variety", "behaviour"):
        measure = f"{kind}_probe_accuracy"
        if measure in present:
            chart = figures.chart_probe_curve(results, measure=measure)
            keep(f"{kind}_probe", f"{kind.capitalize()} read from the states, by layer", chart)
    if findings.pairs_of_varieties(results):
        site = findings.best_site(results, "variety_probe_accuracy") or ""
        keep(
            "overlap_matrix",
            "What every two varieties share",
            figures.chart_overlap_matrix(results, site=site),
        )
        keep(
            "overlap_by_layer",
            "Overlap of varieties by layer, beside its nulls",
            figures.chart_overlap_by_layer(results),
        )
    if {"direction_cosine", "direction_subspace_cosine"} & present:
        keep(
            "directions",
            "The harmful direction beside refusal and beside each variety",
            figures.chart_direction_cosine(results),
        )
    if "direction_layer_cosine" in present:
        keep(
            "direction_layers",
            "The harmful direction at every two depths",
            figures.chart_direction_layers(results),
        )
    if "loss_change" in present:
        keep(
            "ablation_loss",
            "Loss on each variety when a variety's subspace is taken out",
            figures.chart_ablation_loss(results),
        )
    if "refusal_rate" in present:
        keep("refusal", "Refusals under each change", figures.chart_refusal(results))
    if "recovered_fraction" in present:
        keep(
            "patching",
            "Standard states patched into dialect runs",
            figures.chart_patching_map(results),
        )
    return drawn


def write_report(
    path: Path,
    settings: CompareSettings,
    inputs: Any,
    model: Any,
    results: pd.DataFrame,
    pictures: dict[str, str],
) -> None:
    """`report.md`: findings first, then figures, method and caveats."""
    corpus = inputs.corpus
    lines = [
        f"# {settings.model}: where varieties and alignment lie",
        "",
        f"{len(corpus)} texts of the corpus `{corpus.name}`; {model.n_layers} layers, "
        f"{model.d_model} dimensions. Intervals are 95% over groups of parallel sentences.",
        "",
        "## Findings",
        "",
        *(f"- {sentence}" for sentence in findings.sentences(results, inputs.standard)),
        "",
    ]
    if inputs.left_out:
        lines += ["## Left out", "", *(f"- {said}" for said in inputs.left_out), ""]
    lines += ["## Figures", ""]
    for stem, title in pictures.items():
        lines += [f"### {title}", "", f"![{title}](figures/{stem}.png)", ""]
        lines += [f"[interactive](figures/{stem}.html)", ""]
    lines += ["## How it was measured", "", *_method(settings, inputs), ""]
    lines += ["## Read with care", "", *(f"- {said}" for said in findings.caveats(results)), ""]
    partial = path / "report.partial"
    partial.write_text("\n".join(lines), encoding="utf-8")
    partial.replace(path / "report.md")


def summary(path: Path) -> str:
    """The findings of a finished run for the terminal."""
    text = (path / "report.md").read_text(encoding="utf-8")
    told = text.split("## Findings")[1].split("\n## ")[0].strip()
    return (
        f"\n{told}\n\nReport:   {path / 'report.md'}\n"
        f"Results:  {path / 'results.parquet'}\n"
        f"Explorer: isogloss explore {path}"
    )


def _method(settings: CompareSettings, inputs: Any) -> list[str]:
    return [
        f"- States at the {settings.tokens} token of each text, at {', '.join(settings.sites)} and "
        "the embedding; requests are put into the model's chat template first.",
        f"- Probes: multinomial logistic regression (C = {settings.regularisation:g}), "
        f"{settings.folds} grouped folds, balanced accuracy; control task with "
        f"{settings.control_draws} random labelings (Hewitt and Liang 2019); on the same folds "
        "the baselines: the commonest class, the text's length, "
        + ("the token that is read, " if settings.tokens == "last" else "")
        + "character 1- to 4-grams"
        + (", and a model of the same shape with random weights" if settings.random_model else "")
        + "; p-values from "
        f"{settings.permutations} permutations, corrected over layers by the maximum.",
        f"- Variety subspaces: the top {settings.k} directions of the differences to "
        f"{inputs.standard or 'the standard'}, sentence for sentence; the two members of an "
        "overlap come from disjoint halves of the sentences, since shared sentences make even "
        "noise overlap.",
        "- Harmful direction: difference in means on the train side (Arditi et al. 2024). "
        "Ablation sets it to its mean over harmless requests at every block output; ablation to "
        "zero stands beside it. All effects are on the held-out side.",
        "- Its drift over depth: cosines between disjoint halves of the train requests, corrected "
        "for attenuation. Its count: rounds of estimating on the train side, testing on the "
        f"held-out side ({settings.permutations} swaps of labels, corrected over sites) and "
        "projecting out, until one fails.",
        "- Patching: the share of KL(standard, dialect) at the last token that is closed when "
        "the standard's states replace the dialect's; positions count from the end.",
        f"- Seed {settings.seed}. `config.toml` beside this file repeats the run: "
        "`isogloss run compare --config config.toml`.",
    ]
