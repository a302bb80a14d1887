"""Subspaces of activation space: estimated, compared, and set against chance.

from geometry import paired_differences, haar_overlap

egyptian = paired_differences(x_egyptian, x_standard, k=4)
gulf = paired_differences(x_gulf, x_standard, k=4)
egyptian.overlap(gulf), haar_overlap(egyptian.d, 4, 4)
"""

from __future__ import annotations

from geometry.angles import containment, overlap, principal_angles
from geometry.cca import canonical_correlations, cca_similarity, pwcca, svcca
from geometry.cone import DirectionCount, cone_sample, independent_directions
from geometry.cosines import DirectionCosines
from geometry.direction_subspace import direction_subspace_cosine
from geometry.directions import DirectionGrid, direction_grid
from geometry.discriminant import linear_discriminants, mean_differences, probe_weights
from geometry.distances import (
    angle_matrix,
    containment_matrix,
    distance_matrix,
    overlap_matrix,
    subspace_distance,
)
from geometry.erasure import LeaceEraser, LeaceFitter, NullspaceResult, iterated_nullspace
from geometry.errors import GeometryError
from geometry.estimates import (
    canonical_estimate,
    cka_estimate,
    dimension_estimate,
    effective_rank_estimate,
    participation_ratio_estimate,
    retrieval_estimate,
)
from geometry.estimation import mean_difference, paired_differences, random_subspace
from geometry.joint import JointSubspaces, joint_null, joint_subspaces
from geometry.karcher import (
    KarcherMean,
    ProjectorMean,
    karcher_mean,
    projector_mean,
    running_projector_mean,
)
from geometry.layer_cka import LayerCKA, layer_cka
from geometry.nulls import (
    CosineNull,
    HaarMoments,
    angle_sample,
    cosine_null,
    covariance_overlap_sample,
    haar_overlap,
    haar_overlap_sample,
)
from geometry.overlap_estimates import angle_estimate, direction_estimate, overlap_estimate
from geometry.retrieval import (
    ParallelCosine,
    Retrieval,
    all_but_the_top,
    parallel_cosine,
    retrieve,
)
from geometry.shape import (
    Separability,
    anisotropy,
    effective_rank,
    fisher_ratio,
    mle_dimension,
    participation_ratio,
    trace_ratio,
    two_nn,
)
from geometry.similarity import (
    cka_matrix,
    debiased_cka,
    dissimilarities,
    linear_cka,
    procrustes_angle,
    procrustes_distance,
    rsa,
)
from geometry.span import DirectionSpan, direction_span
from geometry.subspace import Subspace
from geometry.tree import (
    CladeComparison,
    VarietyTree,
    clade_support,
    clades,
    compare_clades,
    compare_distances,
    nested_distances,
    variety_tree,
)

__all__ = [
    "Subspace",
    "GeometryError",
    "mean_difference",
    "mean_differences",
    "paired_differences",
    "linear_discriminants",
    "probe_weights",
    "LeaceEraser",
    "LeaceFitter",
    "iterated_nullspace",
    "NullspaceResult",
    "random_subspace",
    "principal_angles",
    "overlap",
    "containment",
    "direction_grid",
    "DirectionGrid",
    "DirectionCosines",
    "direction_span",
    "DirectionSpan",
    "independent_directions",
    "DirectionCount",
    "cone_sample",
    "direction_subspace_cosine",
    "subspace_distance",
    "distance_matrix",
    "angle_matrix",
    "overlap_matrix",
    "containment_matrix",
    "karcher_mean",
    "projector_mean",
    "running_projector_mean",
    "KarcherMean",
    "ProjectorMean",
    "joint_subspaces",
    "joint_null",
    "JointSubspaces",
    "variety_tree",
    "clades",
    "compare_clades",
    "nested_distances",
    "compare_distances",
    "clade_support",
    "VarietyTree",
    "CladeComparison",
    "linear_cka",
    "debiased_cka",
    "cka_matrix",
    "layer_cka",
    "LayerCKA",
    "canonical_correlations",
    "cca_similarity",
    "svcca",
    "pwcca",
    "dissimilarities",
    "rsa",
    "procrustes_distance",
    "procrustes_angle",
    "retrieve",
    "Retrieval",
    "parallel_cosine",
    "ParallelCosine",
    "all_but_the_top",
    "effective_rank",
    "participation_ratio",
    "two_nn",
    "mle_dimension",
    "anisotropy",
    "trace_ratio",
    "fisher_ratio",
    "Separability",
    "overlap_estimate",
    "angle_estimate",
    "direction_estimate",
    "cka_estimate",
    "participation_ratio_estimate",
    "effective_rank_estimate",
    "canonical_estimate",
    "retrieval_estimate",
    "dimension_estimate",
    "haar_overlap",
    "haar_overlap_sample",
    "covariance_overlap_sample",
    "angle_sample",
    "cosine_null",
    "HaarMoments",
    "CosineNull",
]
