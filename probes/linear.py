"""A linear probe: multinomial logistic regression on centred and scaled states."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from geometry import Subspace
from probes.errors import ProbeError


class LinearProbe(ClassifierMixin, BaseEstimator):
    """Logistic regression with an L2 penalty, as a scikit-learn classifier.

    Features are centred and divided by their standard deviation over the training rows, without
    regard to labels, so that one `C` means the same at every layer although norms grow with depth.
    The penalty applies in that space and spares the intercept. With two classes the penalty is on
    the one vector between them; with more, on one vector for each class.

    Args:
        C: inverse strength of the penalty, on the sum over rows (scikit-learn's convention).
        scale: divide by the standard deviation; centring alone otherwise.
        tol: largest gradient, per row, at which the solver stops. scikit-learn's own default of
            1e-4 leaves coefficients some percent off.
        max_iter: steps at most.

    Attributes:
        coef_: `[classes or 1, d]` in the units of the states. intercept_: `[classes or 1]`.
        center_, scale_: `[d]`. classes_. n_iter_: steps taken.
    """

    def __init__(
        self, C: float = 1.0, *, scale: bool = True, tol: float = 1e-6, max_iter: int = 5000
    ) -> None:
        self.C = C
        self.scale = scale
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> LinearProbe:
        """Fits to states `X` `[n, d]` and labels `y` `[n]`.

        Raises:
            ValueError: values that are not finite, or one class only.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ProbeError(
                f"All rows have one class, {str(self.classes_[0])!r}; a probe needs at least two."
            )
        self.center_ = X.mean(axis=0)
        self.scale_ = _scales(X) if self.scale else np.ones(X.shape[1])
        z = (X - self.center_) / self.scale_
        z, axes = _row_space(z)
        solver = LogisticRegression(C=self.C, tol=self.tol, max_iter=self.max_iter)
        solver.fit(z, y)
        coefficients = solver.coef_ if axes is None else solver.coef_ @ axes.T
        self.coef_ = coefficients / self.scale_
        self.intercept_ = solver.intercept_ - self.coef_ @ self.center_
        self.n_iter_ = int(np.max(solver.n_iter_))
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits `[n, classes]`, or `[n]` of the second class where there are two."""
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

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities `[n, classes]`, in the order of `classes_`."""
        logits = self.decision_function(X)
        if logits.ndim == 1:
            logits = np.stack([np.zeros_like(logits), logits], axis=1)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def subspace(self, *, site: str = "") -> Subspace:
        """The readout: the span of the differences between the classes' weight vectors.

        Of dimension classes - 1 at most; with two classes it is the direction that points to the
        second. Singular values are those of the weights, in nats per unit of the states; the mean
        is that of the training rows.

        Raises:
            ProbeError: weights that are all zero, since nothing could be read.
        """
        check_is_fitted(self)
        weights = self.coef_ if len(self.classes_) == 2 else self.coef_ - self.coef_.mean(axis=0)
        _, values, axes = np.linalg.svd(weights, full_matrices=False)
        kept = values > 1e-9 * values[0]
        if values[0] == 0 or not kept.any():
            raise ProbeError("All weights of this probe are zero, so it reads no direction.")
        basis = axes[kept].T
        if len(self.classes_) == 2 and basis[:, 0] @ weights[0] < 0:
            basis = -basis
        return Subspace(
            basis,
            self.center_,
            values[kept],
            site=site,
            provenance={
                "method": "linear_probe",
                "C": float(self.C),
                "classes": [str(c) for c in self.classes_],
            },
        )


def _scales(X: np.ndarray) -> np.ndarray:
    """Standard deviations `[d]`, and 1 for features that are constant but for rounding."""
    spread = X.std(axis=0)
    constant = spread <= 1e-12 * np.abs(X).max(axis=0)
    return np.where(constant, 1.0, spread)


def _row_space(z: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Coordinates of the rows in their own span, and its axes `[d, n]`.

    With an L2 penalty the weights lie in the span of the rows, so this changes no solution.
    """
    n, d = z.shape
    if 2 * n > d:
        return z, None
    axes = np.linalg.qr(z.T)[0]
    return z @ axes, axes
