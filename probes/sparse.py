"""Logistic regression on the columns that are worth it, by the evidence (Tipping & Faul 2003)."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from probes.variational import INTERCEPT

#: Precisions of the prior that are considered: weights of 10 a standard deviation of the component
#: are the largest, since labels that are separated perfectly would ask for infinite ones.
LEAST, MOST = 1e-2, 1e8
_GRID = np.log(np.geomspace(LEAST, MOST, 81))
SWEEPS, _NEWTON = 200, 100


class Sparse(NamedTuple):
    """Components that were kept, of r, in the order of their numbers.

    Attributes:
        kept: their numbers `[k]`. precision: of the prior on each one's weights `[k]`.
        weights: at the mode `[k + 1, classes]`, the intercept last.
        determined: `[k]`, share of each one's weights that the data determine, not the prior.
        gains: `[k]`, nats of evidence that would be lost without it.
        evidence: Laplace's log p(labels), in nats. converged: whether precisions settled.
    """

    kept: Int[np.ndarray, " k"]
    precision: Float[np.ndarray, " k"]
    weights: Float[np.ndarray, "k1 classes"]
    determined: Float[np.ndarray, " k"]
    gains: Float[np.ndarray, " k"]
    evidence: float
    converged: bool


def sparse_fit(
    z: Float[np.ndarray, "n r"], code: Int[np.ndarray, " n"], n_classes: int, *, price: float
) -> Sparse:
    """The components of `z` that are worth `price` nats each, and the fit to them."""
    # With two classes the logit of the second; with more, coordinates in which the classes' sum,
    # which no label depends on, is left out.
    if n_classes == 2:
        contrast = np.array([[0.0], [1.0]])
    else:
        contrast = np.linalg.svd(np.eye(n_classes) - 1 / n_classes)[0][:, : n_classes - 1]
    model = _Model(z, np.eye(n_classes)[code], contrast)
    banned = np.zeros(z.shape[1], dtype=bool)
    settled = model.settle()
    while not (banned | model.inside).all():
        best, precision, gain = model.candidate(banned)
        if gain <= price:
            break
        model.add(best, precision)
        settled = model.settle()
        while (out := model.worthless(price)) is not None:
            # What was not worth its price beside the others must not come back for ever.
            banned[out] = True
            model.remove(out)
            settled = model.settle()
    return model.found(settled)


class _Model:
    """Laplace's approximation around the mode, with the components kept so far.

    Weights are `[k + 1, m]` in m contrasts between classes, those of the intercept last.
    """

    def __init__(self, z: np.ndarray, wanted: np.ndarray, contrast: np.ndarray) -> None:
        self.z, self.wanted, self.contrast = z, wanted, contrast
        self.kept: list[int] = []
        self.precision: list[float] = []
        self.weights = np.zeros((1, contrast.shape[1]))

    @property
    def inside(self) -> np.ndarray:
        found = np.zeros(self.z.shape[1], dtype=bool)
        found[self.kept] = True
        return found

    def add(self, component: int, precision: float) -> None:
        self.kept.append(component)
        self.precision.append(precision)
        self.weights = np.insert(self.weights, len(self.kept) - 1, 0.0, axis=0)

    def remove(self, component: int) -> None:
        place = self.kept.index(component)
        del self.kept[place], self.precision[place]
        self.weights = np.delete(self.weights, place, axis=0)

    def settle(self) -> bool:
        """Mode and precisions in turn until neither changes; whether they came to rest."""
        for sweep in range(SWEEPS):
            self._climb()
            if not self.kept:
                return True
            before, values = np.array(self.precision), _principal(*self._alone())[0]
            wanted = best_precision(*self._alone())[0]
            if sweep >= SWEEPS // 10:  # all at once they can overshoot in turn
                wanted = np.sqrt(wanted * before)
            self.precision = wanted.tolist()
            # Precisions far above what the data say may wander, for the fit does not feel it.
            change = _determined(values, wanted) - _determined(values, before)
            if np.abs(change).max() < 1e-5:
                self._climb()
                return True
        self._climb()
        return False

    def _climb(self) -> None:
        """Newton's method to the mode, and the posterior covariance there."""
        self.design = np.hstack([self.z[:, self.kept], np.ones((len(self.z), 1))])
        prior = np.append(self.precision, INTERCEPT)[:, None]
        value = self._objective(self.weights, prior)
        for _ in range(_NEWTON):
            self._curve(self.weights)
            m = self.contrast.shape[1]
            slope = self.design.T @ self.residual - prior * self.weights
            crossed = np.einsum("niab,nj->iajb", self._spread(), self.design, optimize=True)
            hessian = crossed.reshape(slope.size, slope.size)
            hessian += np.diag(np.repeat(prior[:, 0], m))
            self.covariance = np.linalg.inv((hessian + hessian.T) / 2)
            self.log_det = float(np.linalg.slogdet(hessian)[1])
            step = (self.covariance @ slope.ravel()).reshape(slope.shape)
            promised = float(np.sum(step * slope))
            if promised < 1e-12 * (1 + abs(value)):
                return
            size = 1.0
            while (new := self._objective(self.weights + size * step, prior)) < value:
                size /= 2
                if size < 1e-8:
                    return
            self.weights, value = self.weights + size * step, new

    def _logits(self, weights: np.ndarray) -> np.ndarray:
        return self.design @ weights @ self.contrast.T

    def _objective(self, weights: np.ndarray, prior: np.ndarray) -> float:
        logits = self._logits(weights)
        fit = np.sum(self.wanted * logits) - np.sum(np.logaddexp.reduce(logits, axis=1))
        return float(fit - np.sum(prior * weights**2) / 2)

    def _curve(self, weights: np.ndarray) -> None:
        """Residuals `[n, m]` and curvatures `[n, m, m]` of the rows, in contrasts."""
        logits = self._logits(weights)
        p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
        self.residual = (self.wanted - p) @ self.contrast
        inner = p @ self.contrast
        self.curvature = np.einsum("nc,ci,cj->nij", p, self.contrast, self.contrast, optimize=True)
        self.curvature -= inner[:, :, None] * inner[:, None]

    def _spread(self) -> np.ndarray:
        """Curvature times design `[n, k + 1, m, m]`."""
        return self.design[:, :, None, None] * self.curvature[:, None]

    def candidate(self, banned: np.ndarray) -> tuple[int, float, float]:
        """The component outside that would raise the evidence most: number, precision, gain.

        With its weights v at zero the log likelihood is q·v - v'Sv/2 to second order, after the
        weights inside have followed.
        """
        out = np.flatnonzero(~(banned | self.inside))
        m, z = self.contrast.shape[1], self.z[:, out]
        pull = z.T @ self.residual
        own = ((z * z).T @ self.curvature.reshape(len(z), -1)).reshape(-1, m, m)
        cross = z.T @ self._spread().reshape(len(z), -1)
        cross = cross.reshape(len(out), -1, m, m).transpose(0, 2, 1, 3).reshape(len(out), m, -1)
        stiff = own - cross @ self.covariance @ cross.transpose(0, 2, 1)
        precision, gain = best_precision(stiff, pull, refine=False)
        best = int(gain.argmax())
        return int(out[best]), float(precision[best]), float(gain[best])

    def _alone(self) -> tuple[np.ndarray, np.ndarray]:
        """S `[k, m, m]` and q `[k, m]` of each kept component, as if it alone were outside."""
        m = self.contrast.shape[1]
        blocks = [slice(i * m, (i + 1) * m) for i in range(len(self.kept))]
        inverse = np.stack([np.linalg.inv(self.covariance[b, b]) for b in blocks])
        pull = (inverse @ self.weights[:-1, :, None])[..., 0]
        return inverse - np.array(self.precision)[:, None, None] * np.eye(m), pull

    def worthless(self, price: float) -> int | None:
        """The kept component that adds the least evidence, if that is no more than `price`."""
        if not self.kept:
            return None
        values, pull = _principal(*self._alone())
        about = evidence_gain(np.log(self.precision)[:, None], values, pull)[:, 0]
        # To second order around the mode, which far from zero says too little: so look again.
        doubtful = np.flatnonzero(about <= price)
        gains = np.array([self.gain(self.kept[i]) for i in doubtful])
        if not (gains <= price).any():
            return None
        return self.kept[doubtful[gains.argmin()]]

    def gain(self, component: int) -> float:
        """The evidence, in nats, less that without a component and the same precisions."""
        other = copy.copy(self)
        other.kept, other.precision = list(self.kept), list(self.precision)
        other.remove(component)
        other._climb()
        return self.evidence() - other.evidence()

    def evidence(self) -> float:
        """Laplace's log p(labels): in it, factors of 2 pi of prior and posterior cancel."""
        prior = np.append(self.precision, INTERCEPT)
        determinant = self.contrast.shape[1] * np.log(prior).sum() - self.log_det
        return self._objective(self.weights, prior[:, None]) + float(determinant) / 2

    def found(self, converged: bool) -> Sparse:
        order = np.argsort(self.kept).astype(int)
        shares = np.zeros(0)
        if self.kept:
            shares = _determined(_principal(*self._alone())[0], np.array(self.precision))
        return Sparse(
            np.array(self.kept, dtype=int)[order],
            np.array(self.precision)[order],
            np.vstack([self.weights[:-1][order], self.weights[-1:]]) @ self.contrast.T,
            shares[order],
            np.array([self.gain(self.kept[i]) for i in order]),
            self.evidence(),
            converged,
        )


def evidence_gain(
    log_precision: np.ndarray, values: np.ndarray, pull: np.ndarray
) -> Float[np.ndarray, "k g"]:
    """Log evidence of weights with these log precisions `[k, g]`, less that of weights at zero.

    The log likelihood is q·v - v'Sv/2, with S's eigenvalues `values` and q along its eigenvectors
    `pull`, both `[k, m]`: the sum over m of (log α - log(α + s) + q²/(α + s)) / 2 (Tipping & Faul
    2003).
    """
    alpha = np.exp(log_precision)[..., None]
    s, q = values[:, None], pull[:, None]
    return np.sum(-np.log1p(s / alpha) + q**2 / (alpha + s), axis=-1) / 2


def best_precision(
    stiff: np.ndarray, pull: np.ndarray, *, refine: bool = True
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """The precision that gains the most evidence, and the gain, for S `[k, m, m]`, q `[k, m]`.

    Found on a grid, and by golden sections between its points where it is to be refined.
    """
    values, pull = _principal(stiff, pull)
    grid = np.broadcast_to(_GRID, (len(values), len(_GRID)))
    found = evidence_gain(grid, values, pull)
    best = found.argmax(axis=1)
    if not refine:
        return np.exp(_GRID[best]), found[np.arange(len(best)), best]
    low, high = _GRID[np.maximum(best - 1, 0)], _GRID[np.minimum(best + 1, len(_GRID) - 1)]
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(40):
        one, two = high - golden * (high - low), low + golden * (high - low)
        left, right = evidence_gain(np.stack([one, two], axis=1), values, pull).T
        low, high = np.where(left < right, one, low), np.where(left < right, high, two)
    at = (low + high) / 2
    return np.exp(at), evidence_gain(at[:, None], values, pull)[:, 0]


def _determined(values: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Share of weights that the data determine `[k]`, from eigenvalues of S and precisions."""
    return np.mean(values / (values + precision[:, None]), axis=1)


def _principal(stiff: np.ndarray, pull: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, axes = np.linalg.eigh((stiff + stiff.transpose(0, 2, 1)) / 2)
    return np.maximum(values, 0.0), np.einsum("kij,ki->kj", axes, pull)
