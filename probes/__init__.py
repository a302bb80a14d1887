"""Linear probes over sites, each beside the controls without which its accuracy says little.

from probes import probe_sites, probe_frame

results = probe_sites(store, rows["variety"], rows["group"], seed=0)
probe_frame(results)
"""

from __future__ import annotations

from probes.baselines import (
    baselines,
    length_baseline,
    majority_baseline,
    text_baseline,
    token_baseline,
)
from probes.batched import FoldFits, fit_folds
from probes.bottleneck import BottleneckProbe, bottleneck_curve
from probes.calibration import brier_score, expected_calibration_error, log_loss, reliability_curve
from probes.calibration_estimates import (
    brier_estimate,
    calibration_estimate,
    code_estimate,
    log_loss_estimate,
)
from probes.codelength import CodeLength, prequential_code, variational_code
from probes.contrast import ContrastProbe, ContrastScores
from probes.controls import control_labels
from probes.curves import learning_curve, size_curve
from probes.discriminant import LDAProbe
from probes.errors import ProbeError
from probes.linear import LinearProbe
from probes.means import DifferenceInMeansProbe, MassMeanProbe
from probes.nested import LinearProbeCV, NestedResult, nested_probe
from probes.online import Lag, OnlineVariationalProbe, tracking_lag
from probes.relevance import RelevanceProbe, relevant_dimensions
from probes.ridge import RidgeLabelings, RidgePath, RidgeProbe, ridge_labelings
from probes.splits import check_no_leak, grouped_folds
from probes.sweep import ProbeResult, probe_frame, probe_site, probe_sites
from probes.usable import UsableInformation, usable_information
from probes.variational import ManyFits, Predictive, VariationalProbe, fit_many

__all__ = [
    "LinearProbe",
    "LinearProbeCV",
    "nested_probe",
    "NestedResult",
    "RidgeProbe",
    "RidgePath",
    "ridge_labelings",
    "RidgeLabelings",
    "LDAProbe",
    "DifferenceInMeansProbe",
    "MassMeanProbe",
    "ContrastProbe",
    "ContrastScores",
    "ProbeError",
    "ProbeResult",
    "probe_site",
    "probe_sites",
    "probe_frame",
    "fit_folds",
    "FoldFits",
    "grouped_folds",
    "check_no_leak",
    "control_labels",
    "baselines",
    "majority_baseline",
    "length_baseline",
    "token_baseline",
    "text_baseline",
    "learning_curve",
    "size_curve",
    "BottleneckProbe",
    "bottleneck_curve",
    "usable_information",
    "UsableInformation",
    "RelevanceProbe",
    "relevant_dimensions",
    "VariationalProbe",
    "Predictive",
    "fit_many",
    "ManyFits",
    "OnlineVariationalProbe",
    "Lag",
    "tracking_lag",
    "reliability_curve",
    "expected_calibration_error",
    "brier_score",
    "log_loss",
    "calibration_estimate",
    "brier_estimate",
    "log_loss_estimate",
    "CodeLength",
    "prequential_code",
    "variational_code",
    "code_estimate",
]
