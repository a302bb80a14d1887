"""Charts of a results frame: pure functions from rows to a picture, alike for reports and pages."""

from __future__ import annotations

from experiments.figures.angles import chart_angle_spectrum
from experiments.figures.causes import chart_ablation_loss, chart_patching_map, chart_refusal
from experiments.figures.changes import chart_before_after
from experiments.figures.decoupling import (
    chart_decoupling_gain,
    chart_decoupling_pareto,
    chart_decoupling_strength,
)
from experiments.figures.decoupling_telemetry import chart_decoupling_telemetry
from experiments.figures.directions import chart_direction_cosine, chart_direction_layers
from experiments.figures.kinds import kinds_of, of_kind
from experiments.figures.kinship import chart_dendrogram
from experiments.figures.lasso import WIDTH as LASSO_WIDTH
from experiments.figures.lasso import Lasso, lasso_projection
from experiments.figures.lenses import (
    chart_lens_divergence,
    chart_logit_lens,
    chart_promoted_tokens,
)
from experiments.figures.likeness import chart_cka
from experiments.figures.look import Figure, Theme, depths, save_chart, variety_colours
from experiments.figures.pairs import chart_pair_by_layer, pairs_of
from experiments.figures.patching import chart_head_map, chart_patching_control
from experiments.figures.probing import chart_probe_curve
from experiments.figures.projection import (
    chart_projection,
    directions_of,
    no_picture,
    usual_directions,
)
from experiments.figures.prompts import chart_prompt_doses, chart_prompt_map
from experiments.figures.reliability import chart_reliability
from experiments.figures.restoring import chart_restored_weights, chart_restoring
from experiments.figures.selection import chart_cone, chart_model_cosine, chart_selection
from experiments.figures.steering import chart_dose_response, steered
from experiments.figures.subspaces import chart_overlap_by_layer, chart_overlap_matrix
from experiments.figures.token_shift import (
    chart_shift_classes,
    chart_shift_examples,
    chart_shift_kl,
    chart_shift_layers,
    chart_shift_positions,
)

__all__ = [
    "chart_probe_curve",
    "chart_overlap_matrix",
    "chart_overlap_by_layer",
    "chart_pair_by_layer",
    "pairs_of",
    "chart_angle_spectrum",
    "chart_dendrogram",
    "chart_cka",
    "chart_reliability",
    "chart_projection",
    "directions_of",
    "no_picture",
    "lasso_projection",
    "Lasso",
    "LASSO_WIDTH",
    "kinds_of",
    "of_kind",
    "usual_directions",
    "chart_direction_cosine",
    "chart_direction_layers",
    "chart_ablation_loss",
    "chart_refusal",
    "chart_patching_map",
    "chart_logit_lens",
    "chart_lens_divergence",
    "chart_promoted_tokens",
    "chart_head_map",
    "chart_prompt_map",
    "chart_prompt_doses",
    "chart_patching_control",
    "chart_selection",
    "chart_cone",
    "chart_model_cosine",
    "chart_dose_response",
    "steered",
    "chart_restoring",
    "chart_restored_weights",
    "chart_before_after",
    "chart_shift_positions",
    "chart_shift_kl",
    "chart_shift_classes",
    "chart_shift_layers",
    "chart_shift_examples",
    "chart_decoupling_telemetry",
    "chart_decoupling_gain",
    "chart_decoupling_pareto",
    "chart_decoupling_strength",
    "save_chart",
    "depths",
    "variety_colours",
    "Figure",
    "Theme",
]
