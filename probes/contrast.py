"""Contrast-consistent search: a direction that tells true from false, found without labels."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from geometry import Subspace, probe_weights
from probes.checks import names, states
from probes.errors import ProbeError
from probes.readout import scales


class ContrastScores(NamedTuple):
    """Accuracies, each the better of a reading and its opposite, so chance lies above one half.

    Attributes:
        ccs: of the chosen restart. principal_component: of the first principal component.
        restarts: `[restarts]`, of every restart.
    """

    ccs: float
    principal_component: float
    restarts: np.ndarray


class ContrastProbe(BaseEstimator):
    """p⁺ = σ(θ·x̃⁺ + b) with the least mean of (p⁺ + p⁻ - 1)² + min(p⁺, p⁻)².

    (CCS; Burns et al. 2022.) A statement and its negation, x⁺ and x⁻, should be given
    opposite probabilities, and not one half. x̃ is each side less its own mean and over its own
    standard deviations, or the probe would read the word that tells the sides apart.

    It takes pairs and no labels, so it is not a scikit-learn classifier, though its parameters are
    read and set as those of one. Two warnings belong to the method. The sign is free: which answer
    is "true" cannot be known without labels. And any feature that is opposite on the two sides of
    a pair will do, not only truth (Farquhar et al. 2023): read `spread_` and the first principal
    component of x̃⁺ - x̃⁻ beside it, which often does as well.

    Args:
        restarts: from random θ of length one; that with the least loss is kept.
        decay: δ of the penalty δ/2 ‖θ‖². Without one θ grows without end where states have more
            dimensions than pairs, and every direction is a solution; lower it if `loss_` stays
            near 1/4, the loss of an undecided probe.
        max_iter: steps of L-BFGS at most, for each restart. seed: of the restarts.

    Attributes:
        direction_: `[d]`, θ of unit length in normalised states. coef_: `[2, d]`, θ in the units
            of the positive and the negative states. intercept_: b. loss_: penalty included.
        center_, scale_: `[2, d]` of the two sides.
        principal_component_: `[d]`, of unit length in normalised states.
        losses_: `[restarts]`. directions_: `[restarts, d]`.
        spread_: 1 less the mean absolute cosine between the kept direction and those of the other
            restarts: 0 where all agree; not a number with one restart.
    """

    def __init__(
        self, *, restarts: int = 10, decay: float = 0.01, max_iter: int = 1000, seed: int = 0
    ) -> None:
        self.restarts = restarts
        self.decay = decay
        self.max_iter = max_iter
        self.seed = seed

    def fit(self, x_positive: ArrayLike, x_negative: ArrayLike) -> ContrastProbe:
        """Fits to pairs: row i of `x_positive` and of `x_negative`, `[n, d]` both.

        Raises:
            ProbeError: values that are not finite, shapes that differ, fewer than two pairs, pairs
                that do not differ once each side is normalised, or parameters out of range.
        """
        whole = isinstance(self.restarts, int | np.integer) and not isinstance(self.restarts, bool)
        if not whole or self.restarts < 1:
            raise ProbeError(f"restarts is {self.restarts!r}; it must be a whole number above 0.")
        if not (np.isfinite(self.decay) and self.decay >= 0):
            raise ProbeError(f"decay is {self.decay!r}; it must be a number of at least 0.")
        sides = _pairs(x_positive, x_negative)
        if len(sides[0]) < 2:
            raise ProbeError("One pair says nothing about what pairs share; give at least two.")
        self.center_ = np.stack([side.mean(axis=0) for side in sides])
        self.scale_ = np.stack([scales(side) for side in sides])
        self.n_features_in_ = sides[0].shape[1]
        high, low = self._normalised(sides)
        _, sizes, axes = np.linalg.svd(high - low, full_matrices=False)
        # States of unit spread: what is smaller than this is rounding, or no contrast.
        if sizes[0] <= 1e-9 * np.sqrt(high.size):
            raise ProbeError(
                "The two sides do not differ once each is normalised, so there is no contrast; "
                "check that each pair holds a statement and its negation."
            )
        self.principal_component_ = axes[0]
        n = len(high)
        # With the penalty θ lies in the span of the rows; along nothing else is it pulled.
        left, sizes, span = np.linalg.svd(np.vstack([high, low]), full_matrices=False)
        kept = sizes > 1e-9 * sizes[0]
        stacked, span = left[:, kept] * sizes[kept], span[kept]
        rng = np.random.default_rng(self.seed)
        found = []
        for _ in range(int(self.restarts)):
            start = rng.standard_normal(len(span))
            start /= np.linalg.norm(start)
            found.append(
                minimize(
                    contrast_loss,
                    np.append(start, 0.0),
                    args=(stacked[:n], stacked[n:], self.decay),
                    jac=True,
                    method="L-BFGS-B",
                    options={"maxiter": int(self.max_iter), "gtol": 1e-8, "ftol": 1e-14},
                )
            )
        self.losses_ = np.array([float(one.fun) for one in found])
        best = int(self.losses_.argmin())
        thetas = np.stack([one.x[:-1] @ span for one in found])
        lengths = np.linalg.norm(thetas, axis=1)
        if lengths[best] <= 1e-4:  # states have unit spread: every p is one half
            raise ProbeError(
                f"The penalty of {self.decay} leaves no direction at all; lower decay."
            )
        self.directions_ = thetas / np.maximum(lengths, 1e-300)[:, None]
        self.direction_ = self.directions_[best]
        cosines = np.abs(np.delete(self.directions_, best, axis=0) @ self.direction_)
        self.spread_ = float(1 - cosines.mean()) if len(cosines) else float("nan")
        self.loss_ = float(self.losses_[best])
        self.coef_ = thetas[best] / self.scale_
        self.intercept_ = float(found[best].x[-1])
        self._levels = np.array([one.x[-1] for one in found])
        self._lengths = lengths
        return self

    def predict_proba(self, x_positive: ArrayLike, x_negative: ArrayLike) -> np.ndarray:
        """½ (p⁺ + 1 - p⁻) `[n]`: that the positive side is true, or that it is false.

        Raises:
            ProbeError: values that are not finite, or shapes that do not fit.
        """
        high, low = self._own(x_positive, x_negative)
        theta = self.coef_[0] * self.scale_[0]
        return _probability(high, low, theta, self.intercept_)

    def predict(self, x_positive: ArrayLike, x_negative: ArrayLike) -> np.ndarray:
        """1 where the positive side is more probable, else 0 `[n]`; the two may be exchanged.

        Raises:
            ProbeError: as `predict_proba`.
        """
        return (self.predict_proba(x_positive, x_negative) > 0.5).astype(int)

    def compare(self, x_positive: ArrayLike, x_negative: ArrayLike, y: ArrayLike) -> ContrastScores:
        """Accuracies for labels `y` `[n]` of two classes, of every restart and of the component.

        Each may be turned round, and all alike, so that none is favoured.

        Raises:
            ProbeError: as `predict_proba`, or labels that are not of two classes.
        """
        high, low = self._own(x_positive, x_negative)
        classes, code = np.unique(names(y, what="labels", n=len(high)), return_inverse=True)
        if len(classes) > 2:
            raise ProbeError(f"The labels have {len(classes)} classes; give true and false.")
        thetas = self.directions_ * self._lengths[:, None]
        restarts = np.array(
            [
                _either(_probability(high, low, theta, level) > 0.5, code)
                for theta, level in zip(thetas, self._levels, strict=True)
            ]
        )
        component = _either((high - low) @ self.principal_component_ > 0, code)
        return ContrastScores(float(restarts[self.losses_.argmin()]), component, restarts)

    def subspace(
        self, *, side: Literal["positive", "negative"] = "positive", site: str = ""
    ) -> Subspace:
        """θ as a direction for the states of one side, measured from its mean; its sign is free.

        The sides have directions of their own, since each has its own scale.

        Raises:
            ProbeError: another side.
        """
        check_is_fitted(self)
        if side not in ("positive", "negative"):
            raise ProbeError(f"side is {side!r}; it must be 'positive' or 'negative'.")
        own = 0 if side == "positive" else 1
        return probe_weights(
            self.coef_[own : own + 1],
            self.center_[own],
            site=site,
            provenance={
                "method": "contrast_probe",
                "side": side,
                "restarts": int(self.restarts),
                "decay": float(self.decay),
                "seed": int(self.seed),
                "spread": self.spread_ if np.isfinite(self.spread_) else None,
            },
        )

    def _own(self, x_positive: ArrayLike, x_negative: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self)
        sides = _pairs(x_positive, x_negative)
        if sides[0].shape[1] != self.n_features_in_:
            raise ProbeError(
                f"The states have {sides[0].shape[1]} features, but this probe was fitted to "
                f"{self.n_features_in_}; take both from one site."
            )
        return self._normalised(sides)

    def _normalised(self, sides: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        high, low = (
            (side - self.center_[own]) / self.scale_[own] for own, side in enumerate(sides)
        )
        return high, low


def contrast_loss(
    parameters: np.ndarray, high: np.ndarray, low: np.ndarray, decay: float
) -> tuple[float, np.ndarray]:
    """The loss of θ and b, `parameters` `[d + 1]`, on normalised pairs `[n, d]`; and its gradient.

    (Burns et al. 2022: consistency and confidence, with equal weight.)
    """
    theta, level = parameters[:-1], parameters[-1]
    p, q = expit(high @ theta + level), expit(low @ theta + level)
    both, least = p + q - 1, np.minimum(p, q)
    loss = np.mean(both**2 + least**2) + decay / 2 * theta @ theta
    dp = 2 * (both + least * (p <= q)) * p * (1 - p) / len(p)
    dq = 2 * (both + least * (p > q)) * q * (1 - q) / len(q)
    slope = dp @ high + dq @ low + decay * theta
    return float(loss), np.append(slope, dp.sum() + dq.sum())


def _pairs(x_positive: ArrayLike, x_negative: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    high, low = states(x_positive), states(x_negative)
    if high.shape != low.shape:
        raise ProbeError(
            f"The positive states have shape {high.shape} and the negative {low.shape}; "
            "pairs need the same rows in the same order."
        )
    return high, low


def _probability(high: np.ndarray, low: np.ndarray, theta: np.ndarray, level: float) -> np.ndarray:
    return (expit(high @ theta + level) + 1 - expit(low @ theta + level)) / 2


def _either(found: np.ndarray, code: np.ndarray) -> float:
    right = float(np.mean(found == code))
    return max(right, 1 - right)
