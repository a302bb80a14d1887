"""What a run found, in plain sentences with how sure they are, beside its figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.compare import findings
from experiments.runner import PROJECTION
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
    _keep_geometry(results, read_points(path), keep)
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
    results: pd.DataFrame, points: pd.DataFrame | None, keep: Callable[[str, str, Any], None]
) -> None:
    from experiments import figures
    from experiments.compare.geometry_findings import shown_site

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
    if points is not None:
        keep("projection", "The texts on two directions", figures.chart_projection(points))


def read_points(path: Path) -> pd.DataFrame | None:
    """The projected states of a run, where it kept some."""
    return pd.read_parquet(path / PROJECTION) if (path / PROJECTION).is_file() else None


def write_report(
    path: Path,
    settings: CompareSettings,
    inputs: Any,
    model: Any,
    results: pd.DataFrame,
    pictures: dict[str, str],
) -> None:
    """`report.md`: findings first, then figures, method and caveats."""
    from experiments.compare import geometry_findings

    corpus = inputs.corpus
    found = findings.sentences(results, inputs.standard) + geometry_findings.sentences(results)
    captions = geometry_findings.captions(results, read_points(path))
    lines = [
        f"# {settings.model}: where varieties and alignment lie",
        "",
        f"{len(corpus)} texts of the corpus `{corpus.name}`; {model.n_layers} layers, "
        f"{model.d_model} dimensions. Intervals are 95% over groups of parallel sentences.",
        "",
        "## Findings",
        "",
        *(f"- {sentence}" for sentence in found),
        "",
    ]
    if inputs.left_out:
        lines += ["## Left out", "", *(f"- {said}" for said in inputs.left_out), ""]
    lines += ["## Figures", ""]
    for stem, title in pictures.items():
        lines += [f"### {title}", ""]
        lines += [captions[stem], ""] if stem in captions else []
        lines += [f"![{title}](figures/{stem}.png)", ""]
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
        "- The tree of varieties: average linkage of geodesic distances between subspaces, each "
        "from the other half of the sentences. CKA from rows of different groups, and shape: at "
        f"most {settings.cloud_rows} texts, whole groups; retrieval by CSLS; reliability: the "
        "probe's held-out probabilities on the same folds.",
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
