"""What a run found, in plain sentences with how sure they are, beside its figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.compare import findings
from experiments.inputs import Inputs
from experiments.job import Report
from experiments.runner import PROJECTION, PROJECTION_AXES
from experiments.settings import CompareSettings

if TYPE_CHECKING:
    from experiments.compare.bench import Bench
    from experiments.compare.projection import Projection


def report(bench: Bench, results: pd.DataFrame) -> Report:
    """The report of a finished run."""
    from experiments.compare import geometry_findings
    from experiments.compare.projection import projection

    settings, inputs, model = bench.settings, bench.inputs, bench.model
    seen = projection(bench)
    return Report(
        title=f"{settings.model}: where varieties and alignment lie",
        about=f"{len(inputs.corpus)} texts of the corpus `{inputs.corpus.name}`; "
        f"{model.n_layers} layers, {model.d_model} dimensions. Intervals are 95% over groups of "
        "parallel sentences.",
        findings=[
            *findings.sentences(results, inputs.standard),
            *geometry_findings.sentences(results),
        ],
        figures=_figures(results, seen),
        method=_method(settings, inputs),
        caveats=findings.caveats(results),
        left_out=inputs.left_out,
        captions=geometry_findings.captions(results, seen),
        beside={} if seen is None else {PROJECTION: seen.points, PROJECTION_AXES: seen.axes},
    )


def _figures(results: pd.DataFrame, seen: Projection | None) -> dict[str, tuple[str, Any]]:
    """Every figure that the results allow, with its title, by the file's stem."""
    from experiments import figures

    drawn: dict[str, tuple[str, Any]] = {}

    def keep(stem: str, title: str, chart: Any) -> None:
        drawn[stem] = title, chart

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
    _keep_geometry(results, seen, keep)
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


def _keep_geometry(
    results: pd.DataFrame, seen: Projection | None, keep: Callable[[str, str, Any], None]
) -> None:
    from experiments import figures
    from experiments.compare.geometry_findings import shown_site
    from experiments.compare.projection import pictured

    measured = results[results["control"] == ""]
    angles = measured[measured["measure"] == "principal_angle"]
    if len(angles):
        chart = figures.chart_angle_spectrum(results, site=shown_site(angles, results))
        keep("angle_spectrum", "The angles between varieties, beside their null", chart)
    distances = measured[measured["measure"] == "variety_distance"]
    if len(distances):
        chart = figures.chart_dendrogram(results, site=shown_site(distances, results))
        keep("dendrogram", "The tree of varieties", chart)
    alike = measured[measured["measure"] == "cka"]
    if (alike["site"] != alike["reference"]).any():
        keep("cka", "How alike the states of any two depths are", figures.chart_cka(results))
    if (measured["measure"] == "reliability").any():
        keep("reliability", "How sure the probe is", figures.chart_reliability(results))
    if seen is not None:
        chart = figures.chart_projection(*seen, site=pictured(seen.axes, results))
        keep("projection", "The texts on two directions", chart)


def summary(path: Path) -> str:
    """The findings of a finished run for the terminal."""
    text = (path / "report.md").read_text(encoding="utf-8")
    told = text.split("## Findings")[1].split("\n## ")[0].strip()
    return (
        f"\n{told}\n\nReport:   {path / 'report.md'}\n"
        f"Page:     {path / 'report.html'}\n"
        f"Results:  {path / 'results.parquet'}\n"
        f"Explorer: isogloss explore {path}"
    )


def _method(settings: CompareSettings, inputs: Inputs) -> list[str]:
    return [
        f"States at the {settings.tokens} token of each text, at {', '.join(settings.sites)} and "
        "the embedding; requests are put into the model's chat template first.",
        f"Probes: multinomial logistic regression (C = {settings.regularisation:g}), "
        f"{settings.folds} grouped folds, balanced accuracy; control task with "
        f"{settings.control_draws} random labelings (Hewitt and Liang 2019); on the same folds "
        "the baselines: the commonest class, the text's length, "
        + ("the token that is read, " if settings.tokens == "last" else "")
        + "character 1- to 4-grams"
        + (", and a model of the same shape with random weights" if settings.random_model else "")
        + "; p-values from "
        f"{settings.permutations} permutations, corrected over layers by the maximum.",
        f"Variety subspaces: the top {settings.k} directions of the differences to "
        f"{inputs.standard or 'the standard'}, sentence for sentence; the two members of an "
        "overlap come from disjoint halves of the sentences, since shared sentences make even "
        "noise overlap.",
        "The tree of varieties: average linkage of geodesic distances between subspaces, each "
        "from the other half of the sentences. CKA from rows of different groups, and shape: at "
        f"most {settings.cloud_rows} texts, whole groups; retrieval by CSLS; reliability: the "
        "probe's held-out probabilities on the same folds.",
        "Harmful direction: difference in means on the train side (Arditi et al. 2024). "
        "Ablation sets it to its mean over harmless requests at every block output; ablation to "
        "zero stands beside it. All effects are on the held-out side.",
        "Its drift over depth: cosines between disjoint halves of the train requests, corrected "
        "for attenuation. Its count: rounds of estimating on the train side, testing on the "
        f"held-out side ({settings.permutations} swaps of labels, corrected over sites) and "
        "projecting out, until one fails.",
        "Patching: the share of KL(standard, dialect) at the last token that is closed when "
        "the standard's states replace the dialect's; positions count from the end.",
    ]
