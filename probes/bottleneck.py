"""A probe that reads a label through a noisy code, and what it reads by how much it may pass."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from evidence import Estimate, cluster_mean
from geometry import Subspace
from probes.checks import codes, names, states
from probes.errors import ProbeError
from probes.linear import LinearProbe
from probes.precision import double
from probes.readout import LinearReadout, scales
from probes.splits import grouped_folds
from probes.variational import filled, padded

BETAS = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.2, 0.3, 0.5, 1.0)
DRAWS, READING_DRAWS = 64, 256
#: About p(1 - p) of a row, where the steps of the solver are scaled.
_H = 0.1
#: Bits of rate below which nothing is passed, and the probe says nothing of the states.
COLLAPSED = 0.01


class BottleneckProbe(LinearReadout):
    """Labels read from a noisy code of the states that may tell only so much about them.

    A code z ~ N(μ(x), diag σ²(x)), with μ and log σ² affine in the centred and scaled states, is
    read by a linear classifier, so that mean of E_z[-log p(y | z)] + β KL(p(z | x) || N(0, I)) is
    least (variational information bottleneck; Alemi et al. 2017). The mean of the second term, the
    rate, bounds the information I(X; Z) from above, which bounds I(Z; Y); so from β = 1 on no code
    pays for itself, and the classes' shares are predicted. Read a curve (`bottleneck_curve`) rather
    than one β: an empty code says that passing was too dear, not that there was nothing to pass.

    The weights from states to mean logits have the penalty of `LinearProbe`, and so have those of
    log σ²; with β near 0 the probe is that one. A linear decoder reads classes - 1 dimensions, and
    what is read from one costs more rate when it is spread over two, so that more hardly help.

    Args:
        beta: price of a nat of rate, in nats of loss; above 0.
        size: dimensions of z; classes - 1 where it is None. C: inverse penalty, as `LinearProbe`.
        scale: divide features by their standard deviation; centring alone otherwise.
        tol: largest element of the gradient at which the solver (L-BFGS) stops. max_iter: steps
            at most; where they did not suffice there is a `ConvergenceWarning`.
        random_state: of what dimensions beyond classes - 1 start from, and of the 64 draws of z
            for three classes or more; expectations for two are in closed form.

    Attributes:
        coef_: weights to the mean logits `[classes or 1, d]` in the units of the states.
        intercept_, center_, scale_, classes_. n_iter_.
        rate_: mean over the training rows, in bits. loss_: E_z[-log2 p(y | z)] likewise.
        channel_: the fitted `probes.channel.Channel`, for standardised states.
    """

    def __init__(
        self,
        beta: float = 0.1,
        *,
        size: int | None = None,
        C: float = 1.0,
        scale: bool = True,
        tol: float = 1e-5,
        max_iter: int = 2000,
        random_state: int = 0,
    ) -> None:
        self.beta = beta
        self.size = size
        self.C = C
        self.scale = scale
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> BottleneckProbe:
        """Fits to states `X` `[n, d]` and labels `y` `[n]`.

        Raises:
            ValueError: values that are not finite, one class only, or a beta, C or size that is
                not above 0.
        """
        return self._fit(X, y, start=None)

    def _fit(self, X: Any, y: Any, *, start: Any) -> BottleneckProbe:
        """Fits from `start`, the channel of a probe with the same rows, or from `LinearProbe`."""
        for name in ("beta", "C", "size"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ProbeError(f"{name} is {value}; it must be above 0.")
        if self.size is not None and self.size != int(self.size):
            raise ProbeError(f"size is {self.size}; it must be a whole number.")
        X, code = self._checked(X, y)
        self.center_ = X.mean(axis=0)
        self.scale_ = scales(X) if self.scale else np.ones(X.shape[1])
        if start is None:
            start = self._start((X - self.center_) / self.scale_, code)
        self.channel_, self.n_iter_ = self._solve((X - self.center_) / self.scale_, code, start)
        self.coef_ = (self.channel_.mean @ self.channel_.read).T / self.scale_
        level = self.channel_.mean_level @ self.channel_.read + self.channel_.level
        self.intercept_ = level - self.coef_ @ self.center_
        self.rate_ = float(self.rates(X).mean())
        self.loss_ = float(self.losses(X, self.classes_[code]).mean())
        return self

    def _start(self, z: np.ndarray, code: np.ndarray) -> Any:
        """The weights of a linear probe, factored so that codes have variance one."""
        from probes import channel

        linear = LinearProbe(self.C, scale=False).fit(z, code)
        weights, size = linear.coef_, int(self.size or len(self.classes_) - 1)
        left, values, right = np.linalg.svd(weights, full_matrices=False)
        used = min(size, int((values > 1e-9 * max(values[0], 1e-300)).sum()))
        rng = np.random.default_rng(int(self.random_state))
        mean = 1e-3 * rng.standard_normal((z.shape[1], size)) / np.sqrt(z.shape[1])
        read = 1e-3 * rng.standard_normal((size, len(weights)))
        spread = np.maximum((z @ right[:used].T).std(axis=0), 1e-12)
        mean[:, :used] = right[:used].T / spread
        read[:used] = (left[:, :used] * values[:used] * spread).T
        gain = np.linalg.norm(read, axis=1)
        log_variance = np.log(self.beta / (self.beta + gain**2 * _H))
        return channel.Channel(
            mean, np.zeros(size), np.zeros_like(mean), log_variance, read, linear.intercept_
        )

    def _solve(self, z: np.ndarray, code: np.ndarray, start: Any) -> tuple[Any, int]:
        """The channel at the least objective, and the steps taken; shapes are padded.

        Solved in principal components of the states, everything in `_units`.
        """
        from probes import channel, meanfield

        n, penalty = len(z), 1 / (self.C * len(z))
        left, sizes, axes = np.linalg.svd(z, full_matrices=False)
        there = max(int((sizes > 1e-9 * sizes[0]).sum()), 1)
        left, sizes, axes = left[:, :there], sizes[:there], axes[:there]
        rows, columns = padded(n, 64), padded(there, 16)
        wide = np.zeros((rows, columns))
        wide[:n, :there] = left * sizes
        labels = np.zeros(rows, dtype=int)
        labels[:n] = code
        y = meanfield.targets(labels, start.read.shape[1])
        weight = (np.arange(rows) < n).astype(float)
        more = ((0, columns - there), (0, 0))
        first = start._replace(
            mean=np.pad(axes @ start.mean, more),
            log_variance=np.pad(axes @ start.log_variance, more),
        )
        spread = np.pad(sizes**2 / n, (0, columns - there))
        units = self._units(spread, np.linalg.norm(start.read, axis=1), start, penalty)
        shapes = [np.shape(part) for part in first]
        cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
        # Were all rows to share their draws, the decoder would turn to where these are short.
        at = self._nodes(len(start.read), DRAWS, n=rows)

        def parts(flat: np.ndarray) -> Any:
            pieces = zip(np.split(flat, cuts), shapes, strict=True)
            return channel.Channel(*(piece.reshape(shape) for piece, shape in pieces))

        def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
            cost, slope = channel.objective(
                parts(flat), units, wide, weight, y, at, float(self.beta), penalty
            )
            return float(cost), np.concatenate([np.asarray(part).ravel() for part in slope])

        with double():
            done = minimize(
                value,
                np.concatenate([np.ravel(p / u) for p, u in zip(first, units, strict=True)]),
                jac=True,
                method="L-BFGS-B",
                options={
                    "maxiter": int(self.max_iter),
                    "maxfun": 2 * int(self.max_iter),
                    "gtol": float(self.tol),
                    "ftol": 1e-10,
                    "maxcor": 20,
                },
            )
        if done.status == 1:
            warnings.warn(
                f"The bottleneck probe did not converge in {done.nit} steps; raise max_iter.",
                ConvergenceWarning,
                stacklevel=4,
            )
        found = channel.Channel(*(p * u for p, u in zip(parts(done.x), units, strict=True)))
        mean, log_variance = (axes.T @ part[:there] for part in (found.mean, found.log_variance))
        return found._replace(mean=mean, log_variance=log_variance), int(done.nit)

    def _units(self, spread: np.ndarray, gain: np.ndarray, start: Any, penalty: float) -> Any:
        """For each parameter, one over the root of about the objective's curvature in it.

        With p(1 - p) near h, a code that is read with `gain` `[k]` has curvature gain² h + β in its
        mean, and β/2 in its log variance where that is best, at log(β / (β + gain² h)).

        Args:
            spread: `[d]`, variances of the states' components.
        """
        pull = gain**2 * _H + self.beta
        wide = spread[:, None]
        return start._replace(
            mean=(wide * pull + penalty * gain**2 + 1e-12) ** -0.5,
            mean_level=pull**-0.5,
            log_variance=np.broadcast_to(
                (wide * self.beta / 2 + penalty) ** -0.5, (len(spread), len(gain))
            ),
            log_variance_level=np.full(len(gain), (self.beta / 2) ** -0.5),
            read=np.full(start.read.shape, _H**-0.5),
            level=np.full(start.level.shape, _H**-0.5),
        )

    def _nodes(self, size: int, draws: int, *, n: int = 1) -> Any:
        """Draws of z, each with its opposite: for `n` rows apart, or the same for all."""
        from probes import expectations

        if len(self.classes_) == 2:
            return expectations.nodes(1)
        half = expectations.nodes(size, n=n, draws=draws // 2, seed=int(self.random_state))
        points = np.concatenate([half.points, -half.points])
        return expectations.Nodes(points, np.full(draws, 1 / draws))

    def _standard(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return (X - self.center_) / self.scale_

    def encode(self, X: Any) -> Float[np.ndarray, "n size"]:
        """The means of the codes of `X` `[n, d]`."""
        z = self._standard(X)
        return z @ self.channel_.mean + self.channel_.mean_level

    def rates(self, X: Any) -> Float[np.ndarray, " n"]:
        """What the code of each row tells about it, at most: KL(p(z | x) || N(0, I)) in bits."""
        from probes import channel

        z = self._standard(X)
        with double():
            return np.asarray(channel.rates(self.channel_, filled(z)))[: len(z)] / np.log(2)

    def losses(self, X: Any, y: Any) -> Float[np.ndarray, " n"]:
        """E_z[-log2 p(y | z)] of each row, in bits.

        Raises:
            ProbeError: a label that is none of the classes.
        """
        from probes import channel, meanfield

        z, given = self._standard(X), np.asarray(y)
        strange = np.setdiff1d(given, self.classes_)
        if len(strange):
            raise ProbeError(f"The label {str(strange[0])!r} is none of the classes.")
        code = np.searchsorted(self.classes_, given)
        read = self.channel_.read
        y = filled(meanfield.targets(code, read.shape[1]))
        with double():
            at = self._nodes(len(read), READING_DRAWS)
            return np.asarray(channel.losses(self.channel_, filled(z), y, at))[: len(z)] / np.log(2)

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n classes"]:
        """Probabilities averaged over z, in the order of `classes_`."""
        from probes import channel

        z = self._standard(X)
        with double():
            at = self._nodes(len(self.channel_.read), READING_DRAWS)
            found = channel.average_probabilities(self.channel_, filled(z), at)
            return np.asarray(found)[: len(z)]

    def decision_function(self, X: Any) -> np.ndarray:
        """Log of `predict_proba` `[n, classes]`, or the log-odds of the second of two `[n]`."""
        logs = np.log(np.maximum(self.predict_proba(X), 1e-300))
        return logs[:, 1] - logs[:, 0] if len(self.classes_) == 2 else logs

    def subspace(self, *, site: str = "") -> Subspace:
        """The readout: the span of the differences between the classes' mean logits.

        Raises:
            ProbeError: a code that passes less than 0.01 bits, so that nothing is read.
        """
        check_is_fitted(self)
        if self.rate_ < COLLAPSED:
            raise ProbeError(
                f"At a beta of {self.beta:g} the code passes {self.rate_:.1g} bits, so this probe "
                "reads no direction; lower beta."
            )
        return super().subspace(site=site)

    def _provenance(self) -> Mapping[str, Any]:
        return {
            "method": "bottleneck_probe",
            "beta": float(self.beta),
            "size": int(self.channel_.mean.shape[1]),
            "C": float(self.C),
            "rate_bits": self.rate_,
        }


def bottleneck_curve(
    x: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    betas: Sequence[float] = BETAS,
    size: int | None = None,
    C: float = 1.0,
    n_folds: int = 5,
    seed: int,
) -> pd.DataFrame:
    """What a `BottleneckProbe` passes and what its labels still cost, for each price.

    Both on held-out rows of `grouped_folds`; in each fold the price rises, and each fit starts
    from the one before. What was fitted counts as fixed in the intervals, which are over groups.

    Args:
        x: `[n, d]`. labels, groups: `[n]`. betas: prices, above 0. size, C: as `BottleneckProbe`.

    Returns:
        A row for each beta, ascending: beta; rate, rate_low, rate_high: bits passed, a bound on
        I(X; Z); cross_entropy, cross_entropy_low, cross_entropy_high: E_z[-log2 p(y | z)];
        label_entropy: the cross-entropy of the training rows' class shares; level; n (groups);
        collapsed: whether the rate is below 0.01 bits, so that nothing was passed.

    Raises:
        ProbeError: bad states, labels or groups, no betas or one that is not above 0, or as
            `grouped_folds`.
    """
    rows = states(x)
    classes, code = codes(labels, n=len(rows))
    member = names(groups, what="groups", n=len(rows))
    try:
        prices = np.unique(np.asarray(betas, dtype=np.float64).ravel())
    except (TypeError, ValueError):
        prices = np.array([])
    if len(prices) == 0 or not np.isfinite(prices).all() or prices[0] <= 0:
        raise ProbeError(f"betas is {betas!r}; give finite numbers above 0.")
    rate, loss = np.empty((2, len(prices), len(rows)))
    blank = np.empty(len(rows))
    for train, test in grouped_folds(code, member, n_folds=n_folds, seed=seed):
        shares = np.bincount(code[train], minlength=len(classes)) / len(train)
        blank[test] = -np.log2(shares[code[test]])
        start = None
        for place, beta in enumerate(prices):
            probe = BottleneckProbe(float(beta), size=size, C=C, random_state=seed)
            probe._fit(rows[train], code[train], start=start)
            start = probe.channel_
            rate[place, test] = probe.rates(rows[test])
            loss[place, test] = probe.losses(rows[test], code[test])
    label_entropy = cluster_mean(blank, member).value
    found = []
    for place, beta in enumerate(prices):
        passed = cluster_mean(rate[place], member, unit="bits")
        cost = cluster_mean(loss[place], member, unit="bits")
        found.append(
            {
                "beta": float(beta),
                **_columns("rate", passed),
                **_columns("cross_entropy", cost),
                "label_entropy": label_entropy,
                "level": cost.level,
                "n": cost.n,
                "collapsed": passed.value < COLLAPSED,
            }
        )
    return pd.DataFrame(found)


def _columns(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
