"""How sure we are: estimates, intervals over groups, permutation tests and their corrections."""

from __future__ import annotations

from evidence.bootstrap import balanced_accuracy_interval, cluster_bootstrap, cluster_mean
from evidence.estimate import Estimate, EvidenceError
from evidence.jackknife import grouped_jackknife, jackknife_estimate
from evidence.permutation import (
    benjamini_hochberg,
    max_statistic_p,
    permutation_p,
    spearman_permutation,
)
from evidence.resampling import grouped_bootstrap, grouped_permutation, permuted_groups

__all__ = [
    "Estimate",
    "EvidenceError",
    "cluster_mean",
    "cluster_bootstrap",
    "balanced_accuracy_interval",
    "jackknife_estimate",
    "grouped_jackknife",
    "grouped_bootstrap",
    "permuted_groups",
    "grouped_permutation",
    "permutation_p",
    "max_statistic_p",
    "benjamini_hochberg",
    "spearman_permutation",
]
