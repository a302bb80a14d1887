"""What every linear probe shares: logits that are affine in the states, and the span they read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from geometry import GeometryError, Subspace, probe_weights
from probes.errors import ProbeError


class LinearReadout(ClassifierMixin, BaseEstimator):
    """A scikit-learn classifier by weights and a level.

    Attributes:
        coef_: `[classes or 1, d]` in the units of the states. intercept_: `[classes or 1]`.
        center_: `[d]`, the point from which the states are measured. classes_.
    """

    classes_: np.ndarray
    coef_: np.ndarray
    intercept_: np.ndarray
    center_: np.ndarray

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits or scores `[n, classes]`, or `[n]` of the second class where there are two."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        # Centred first: with states far from zero the intercept would swallow the digits.
        logits = (X - self.center_) @ self.coef_.T + (self.intercept_ + self.coef_ @ self.center_)
        return logits[:, 0] if len(self.classes_) == 2 else logits

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class `[n]`."""
        logits = self.decision_function(X)
        best = (logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)
        return self.classes_[best]

    def subspace(self, *, site: str = "") -> Subspace:
        """The readout: the span of the differences between the classes' weight vectors.

        Of dimension classes - 1 at most; with two classes it is the direction that points to the
        second. Singular values are those of the weights, per unit of the states; the mean is
        `center_`.

        Raises:
            ProbeError: weights that are all zero, since nothing could be read.
        """
        check_is_fitted(self)
        provenance = {**self._provenance(), "classes": [str(c) for c in self.classes_]}
        try:
            return probe_weights(self.coef_, self.center_, site=site, provenance=provenance)
        except GeometryError as error:
            raise ProbeError(str(error)) from None

    def _provenance(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def _checked(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        X, code, self.classes_ = labelled(self, X, y)
        return X, code

    def _set(self, weights: np.ndarray, levels: np.ndarray, center: np.ndarray) -> None:
        """Stores `weights` `[classes, d]` and `levels` `[classes]`, the logits at `center`."""
        if len(self.classes_) == 2:
            weights, levels = weights[1:] - weights[:1], levels[1:] - levels[:1]
        self.coef_, self.center_ = weights, center
        self.intercept_ = levels - weights @ center


class ProbabilisticReadout(LinearReadout):
    """A linear readout whose logits are log-odds."""

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities `[n, classes]`, in the order of `classes_`."""
        logits = self.decision_function(X)
        if logits.ndim == 1:
            logits = np.stack([np.zeros_like(logits), logits], axis=1)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)


def labelled(probe: Any, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a probe is fitted to: states `[n, d]` in f64, class numbers `[n]`, and the classes.

    Raises:
        ValueError: values that are not finite, or one class only.
    """
    X, y = validate_data(probe, X, y, dtype=np.float64, ensure_min_samples=2)
    check_classification_targets(y)
    classes, code = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ProbeError(
            f"All rows have one class, {str(classes[0])!r}; a probe needs at least two."
        )
    return X, code, classes


def scales(X: np.ndarray) -> np.ndarray:
    """Standard deviations `[d]`, and 1 for features that are constant but for rounding."""
    spread = X.std(axis=0)
    constant = spread <= 1e-12 * np.abs(X).max(axis=0)
    return np.where(constant, 1.0, spread)
