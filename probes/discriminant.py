"""Linear discriminant analysis: classes that are Gaussian with one covariance, which is shrunk."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from sklearn.utils.validation import check_is_fitted

from geometry import Subspace
from geometry.discriminant import discriminants_of
from geometry.within import Shrinkage, within_covariance
from probes.readout import ProbabilisticReadout


class LDAProbe(ProbabilisticReadout):
    """Logits w_c·x + b_c with w_c = Σ⁻¹μ_c and b_c = -½ μ_c·Σ⁻¹μ_c + log π_c.

    (Fisher 1936; Hastie, Tibshirani & Friedman 2009, eq. 4.10.) μ_c is the mean of class c, π_c
    its share of the rows, and Σ = (1 - γ) S + γ (tr S / d) I with S the covariance about the class
    means. No step is iterated, so it costs one factor of a matrix of size min(n, d).

    Shrinkage is towards equal variances, so unlike the other probes this one changes with the
    units of single features, and not where all states are rotated, moved or scaled.

    Args:
        shrinkage: γ in [0, 1], or "ledoit_wolf" for the γ of Ledoit & Wolf (2004) on the rows
            about their class means. That takes rows for independent: where groups are large and
            alike, it shrinks too little, and a number chosen over groups is better.

    Attributes:
        coef_: `[classes or 1, d]`, up to a vector that all classes share. intercept_. classes_.
        center_: `[d]`, the mean of the rows. means_: `[classes, d]`. priors_: `[classes]`.
        shrinkage_: γ. ratios_: `[k]`, √κ of `geometry.linear_discriminants`.
    """

    def __init__(self, shrinkage: Shrinkage = "ledoit_wolf") -> None:
        self.shrinkage: Shrinkage = shrinkage

    def fit(self, X: Any, y: Any) -> LDAProbe:
        """Fits to states `X` `[n, d]` and labels `y` `[n]`.

        Raises:
            ValueError: values that are not finite, one class only, class means that coincide,
                or a covariance that has no inverse (fewer rows than dimensions and γ = 0).
        """
        X, code = self._checked(X, y)
        within = within_covariance(X, code, shrinkage=self.shrinkage)
        self._spaces = {
            "readout": discriminants_of(within, kind="readout"),
            "pattern": discriminants_of(within, kind="pattern"),
        }
        self.means_, self.shrinkage_ = within.means, within.shrinkage
        self.priors_ = self._priors(within.weights)
        self.ratios_ = self._spaces["readout"].singular_values
        center = self._spaces["readout"].mean
        offsets = within.means - center
        weights = within.solve(offsets.T).T
        self._set(weights, np.log(self.priors_) - np.sum(offsets * weights, axis=1) / 2, center)
        return self

    def subspace(
        self, *, kind: Literal["readout", "pattern"] = "readout", site: str = ""
    ) -> Subspace:
        """Fisher's discriminants, as `geometry.linear_discriminants` gives them.

        Args:
            kind: "readout" for the axes that tell the classes apart, "pattern" for those along
                which the states differ, which is what an intervention moves.
        """
        check_is_fitted(self)
        space = self._spaces[kind]
        provenance = {
            **space.provenance,
            **self._provenance(),
            "classes": [str(c) for c in self.classes_],
        }
        return replace(space, site=site, provenance=provenance)

    def _priors(self, shares: np.ndarray) -> np.ndarray:
        return shares

    def _provenance(self) -> dict[str, Any]:
        return {"method": "lda_probe", "shrinkage": float(self.shrinkage_)}
