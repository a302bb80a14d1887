"""Probes made of class means: their difference itself, and that difference over the spread."""

from __future__ import annotations

from typing import Any

import numpy as np

from geometry.within import Shrinkage, within_covariance
from probes.discriminant import LDAProbe
from probes.readout import LinearReadout


class DifferenceInMeansProbe(LinearReadout):
    """θ·(x - m), θ the difference of the class means and m halfway between them.

    (Marks & Tegmark 2023.) It is the direction to steer or to ablate along; to classify,
    `MassMeanProbe` is better, since θ also points to what merely varies together. With more than
    two classes the scores are μ_c·x - ½‖μ_c‖², so the class of the nearest mean is predicted, and
    the difference of two scores is θ·(x - m) of those two classes. Class sizes play no part:
    where one is larger, the mean of all rows would lie nearer to it.

    There is no `predict_proba`: σ(θ·(x - m)) changes with the units of the states.

    Attributes:
        coef_: `[classes or 1, d]`, θ where there are two classes. intercept_. classes_.
        center_: `[d]`, the mean of the class means. means_: `[classes, d]`.
    """

    def fit(self, X: Any, y: Any) -> DifferenceInMeansProbe:
        """Fits to states `X` `[n, d]` and labels `y` `[n]`.

        Raises:
            ValueError: values that are not finite, or one class only.
        """
        X, code = self._checked(X, y)
        self.means_ = within_covariance(X, code, shrinkage=0.0).means
        center = self.means_[0] + (self.means_ - self.means_[0]).mean(axis=0)
        offsets = self.means_ - center
        self._set(offsets, -np.sum(offsets**2, axis=1) / 2, center)
        return self

    def _provenance(self) -> dict[str, Any]:
        return {"method": "difference_in_means_probe"}


class MassMeanProbe(LDAProbe):
    """σ(θ·Σ⁻¹(x - m)), θ the difference of the class means and Σ the covariance about them.

    (Marks & Tegmark 2023.) That is `LDAProbe` with classes taken as equally likely,
    and so it is for more than two: the class whose mean is nearest in the metric Σ⁻¹. m lies
    halfway between the means, whatever the class sizes. Use `.subspace()`, Σ⁻¹θ, to read, and
    `.subspace(kind="pattern")`, θ, to intervene.

    Args:
        shrinkage: as `LDAProbe`.

    Attributes: as `LDAProbe`; `priors_` are equal.
    """

    def __init__(self, shrinkage: Shrinkage = "ledoit_wolf") -> None:
        super().__init__(shrinkage)

    def _priors(self, shares: np.ndarray) -> np.ndarray:
        return np.full(len(shares), 1 / len(shares))

    def _provenance(self) -> dict[str, Any]:
        return {"method": "mass_mean_probe", "shrinkage": float(self.shrinkage_)}
