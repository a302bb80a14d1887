"""A linear probe: multinomial logistic regression on centred and scaled states."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from probes.readout import ProbabilisticReadout, scales


class LinearProbe(ProbabilisticReadout):
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
        X, code = self._checked(X, y)
        self.center_ = X.mean(axis=0)
        self.scale_ = scales(X) if self.scale else np.ones(X.shape[1])
        z = (X - self.center_) / self.scale_
        z, axes = row_space(z)
        solver = LogisticRegression(C=self.C, tol=self.tol, max_iter=self.max_iter)
        solver.fit(z, code)
        coefficients = solver.coef_ if axes is None else solver.coef_ @ axes.T
        self.coef_ = coefficients / self.scale_
        self.intercept_ = solver.intercept_ - self.coef_ @ self.center_
        self.n_iter_ = int(np.max(solver.n_iter_))
        return self

    def _provenance(self) -> dict[str, Any]:
        return {"method": "linear_probe", "C": float(self.C)}


def row_space(z: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Coordinates of the rows in their own span, and its axes `[d, n]`.

    With an L2 penalty the weights lie in the span of the rows, so this changes no solution.
    """
    n, d = z.shape
    if 2 * n > d:
        return z, None
    axes = np.linalg.qr(z.T)[0]
    return z @ axes, axes
