"""A Bayesian linear probe, and one compiled program that fits many of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted, validate_data

from geometry import Subspace
from probes.checks import codes, states
from probes.errors import ProbeError
from probes.precision import double
from probes.readout import labelled

READING_DRAWS = 512
INTERCEPT = 1e-2


@dataclass(frozen=True, eq=False)
class Predictive:
    """What a posterior says of rows, in the order of the probe's classes.

    Attributes:
        probabilities: averaged over the posterior. spread: their standard deviation under it.
        entropy: of the average, in nats: all that is uncertain.
        information: between the label and the weights, in nats: the part of the entropy that more
            data could remove (BALD; Houlsby et al. 2011).
    """

    probabilities: Float[np.ndarray, "n classes"]
    spread: Float[np.ndarray, "n classes"]
    entropy: Float[np.ndarray, " n"]
    information: Float[np.ndarray, " n"]


class VariationalProbe(ClassifierMixin, BaseEstimator):
    """Logistic regression with a mean-field Gaussian posterior over its weights.

    y | x, W ~ Categorical(softmax(W x + b)), prior N(0, 1/precision) for each weight and
    N(0, 100) for the intercept, q = prod N(m, s^2), on centred and scaled states. With two classes
    there is one vector of weights, that of the second class. The ELBO is maximised over Gaussian
    logits (local reparameterisation; Kingma, Salimans & Welling 2015): for two classes its
    expectations are closed sums, within 1e-10 a row; for more they are averages over 16 shifted
    Sobol' points a row, and `elbo_error_` says how far off the ELBO is.
    Mean-field posteriors ignore that features are correlated, so each s is that of a weight with
    the others held still: smaller than its marginal spread.

    Args:
        precision: of the prior, the inverse of scikit-learn's `C`.
        scale: divide by the standard deviation; centring alone otherwise.
        tol: largest gradient, per row, at which it stops.
        max_iter: steps at most. Where they did not suffice there is a `ConvergenceWarning`.
        random_state: seed of the draws. With two classes nothing is drawn.

    Attributes:
        coef_: posterior means `[classes or 1, d]` in the units of the states. intercept_.
        coef_sd_: posterior standard deviations `[classes or 1, d]`, likewise.
        mean_, variance_: `[classes or 1, d + 1]` in standardised units, the intercept last.
        elbo_: nats over the training rows. elbo_error_: its standard error. kl_: its KL term.
        center_, scale_: `[d]`. classes_. n_iter_. gradient_: largest left, per row.
    """

    def __init__(
        self,
        precision: float = 1.0,
        *,
        scale: bool = True,
        tol: float = 1e-6,
        max_iter: int = 2000,
        random_state: int = 0,
    ) -> None:
        self.precision = precision
        self.scale = scale
        self.tol = tol
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> VariationalProbe:
        """Fits to states `X` `[n, d]` and labels `y` `[n]`.

        Raises:
            ValueError: values that are not finite, one class only, or a precision of 0 or less.
        """
        X, code, self.classes_ = labelled(self, X, y)
        self._take(X, code, self._precisions(X.shape[1]))
        return self

    def _precisions(self, d: int) -> np.ndarray:
        if not (np.isfinite(self.precision) and self.precision > 0):
            raise ProbeError(f"The precision is {self.precision}; it must be positive.")
        return np.append(np.full(d, float(self.precision)), INTERCEPT)

    def _take(self, X: np.ndarray, code: np.ndarray, precisions: np.ndarray) -> None:
        """Sets the fitted values, from states, class numbers and prior precisions `[d + 1]`."""
        n, d = X.shape
        self.center_, self.scale_ = X.mean(axis=0), np.ones(d)
        if self.scale:
            spread = X.std(axis=0)
            self.scale_ = np.where(spread <= 1e-12 * np.abs(X).max(axis=0), 1.0, spread)
        found = posterior(
            self._standard(X),
            code,
            len(self.classes_),
            precisions,
            tol=self.tol,
            max_iter=self.max_iter,
            seed=int(self.random_state),
        )
        self.mean_, self.variance_ = found.mean.T, found.variance.T
        self.elbo_, self.elbo_error_ = float(found.elbo), float(found.elbo_error)
        self.kl_, self.gradient_ = float(found.kl), float(found.gradient)
        self.n_iter_, self.n_rows_ = int(found.steps), n
        if not found.converged:
            warnings.warn(
                f"The posterior did not converge in {self.n_iter_} steps (the largest gradient is "
                f"{self.gradient_:.1e} per row, tol is {self.tol:g}); raise max_iter or precision.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.coef_ = self.mean_[:, :-1] / self.scale_
        self.coef_sd_ = np.sqrt(self.variance_[:, :-1]) / self.scale_
        self.intercept_ = self.mean_[:, -1] - self.coef_ @ self.center_

    def _standard(self, X: np.ndarray) -> np.ndarray:
        return np.hstack([(X - self.center_) / self.scale_, np.ones((len(X), 1))])

    def _logits(self, X: Any) -> tuple[np.ndarray, np.ndarray, Any]:
        """Means and variances of the logits `[n, columns]`, and draws to average them over."""
        from probes import expectations

        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        z = self._standard(X)
        at = expectations.nodes(len(self.mean_), draws=READING_DRAWS, seed=int(self.random_state))
        return z @ self.mean_.T, (z * z) @ self.variance_.T, at

    def predict_proba(self, X: Any) -> np.ndarray:
        """Posterior predictive probabilities `[n, classes]`, in the order of `classes_`."""
        from probes import expectations

        mu, variance, at = self._logits(X)
        with double():
            found = expectations.expected_probabilities(filled(mu), filled(variance), at)
            return np.asarray(found)[: len(mu)]

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class `[n]`."""
        found = self.predict_proba(X).argmax(axis=1)
        return self.classes_[found]

    def predictive(self, X: Any) -> Predictive:
        """Predictive probabilities and how sure the posterior is of them."""
        from probes import expectations

        mean, (mu, variance, at) = self.predict_proba(X), self._logits(X)
        with double():
            found = expectations.expected_uncertainty(filled(mu), filled(variance), at)
            spread, entropy = (np.asarray(part)[: len(mu)] for part in found)
        total = _entropy(mean)
        return Predictive(mean, spread, total, np.maximum(total - entropy, 0.0))

    def subspace(self, k: int | None = None, *, site: str = "") -> Subspace:
        """The readout: the k contrasts between classes that the posterior is surest of.

        With D the class-centred means, contrasts are the left singular vectors of D/s, and their
        singular values sqrt(sum (D/s)^2) are signal-to-noise ratios: about sqrt(d) where the
        states say nothing. All classes - 1 of them by default, and then the span is that of the
        differences between the classes' weights. With two classes the direction points to the
        second.

        Raises:
            ProbeError: weights that are all zero, or fewer than k contrasts.
        """
        check_is_fitted(self)
        basis, ratios = contrasts(self.mean_[:, :-1], self.variance_[:, :-1], self.scale_, k)
        return Subspace(
            basis,
            self.center_,
            ratios,
            site=site,
            provenance={
                "method": "variational_probe",
                "space": "weights",
                "precision": float(self.precision),
                "classes": [str(c) for c in self.classes_],
                "singular_values": "signal-to-noise",
            },
        )


def contrasts(
    mean: np.ndarray, variance: np.ndarray, scale: np.ndarray, k: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Basis `[d, k]` in input coordinates and signal-to-noise ratios `[k]`, surest first.

    Args:
        mean, variance: `[C, d]` in standardised units. scale: `[d]`.
    """
    noise = np.sqrt(variance.mean(axis=0))
    centred = mean - mean.mean(axis=0) if len(mean) > 1 else mean
    mixing, ratios, _ = np.linalg.svd(centred / noise, full_matrices=False)
    there = int((ratios > 1e-9 * max(ratios[0], 1e-12)).sum()) if np.abs(centred).max() > 0 else 0
    if there == 0:
        raise ProbeError("All weights of this probe are zero, so it reads no direction.")
    k = there if k is None else k
    if not 1 <= k <= there:
        raise ProbeError(f"k is {k}; this probe has {there} contrasts, so ask for 1 to {there}.")
    rows = (mixing[:, :k].T @ centred) / scale
    basis, triangle = np.linalg.qr(rows.T)
    basis = basis * np.where(np.diag(triangle) < 0, -1.0, 1.0)
    if len(mean) == 1 and basis[:, 0] @ (mean[0] / scale) < 0:
        basis = -basis
    return basis, ratios[:k]


def _entropy(p: np.ndarray) -> np.ndarray:
    return -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)


def padded(size: int, least: int) -> int:
    """The next of 4, 5, 6 or 7 eighths of a power of two: few shapes, so few compilations."""
    power = max(least, 1 << (size - 1).bit_length())
    return next(
        (power * e // 8 for e in (5, 6, 7) if power > least and power * e // 8 >= size), power
    )


def filled(rows: np.ndarray) -> np.ndarray:
    """`rows` `[n, ...]` and then zeros, up to one of few numbers of rows (`padded`)."""
    more = padded(len(rows), 64) - len(rows)
    return np.concatenate([rows, np.zeros((more, *rows.shape[1:]))])


def posterior(
    z: np.ndarray,
    code: np.ndarray,
    n_classes: int,
    precisions: np.ndarray,
    *,
    tol: float,
    max_iter: int,
    seed: int,
) -> Any:
    """`meanfield.Posterior` in numpy, from standardised states `[n, d + 1]`, the intercept last.

    Rows of weight zero and features that are zero change nothing, so shapes are padded.
    """
    from probes import expectations, meanfield

    n, d = z.shape
    rows, columns = padded(n, 64), padded(d, 16)
    c = 1 if n_classes == 2 else n_classes
    wide = np.zeros((rows, columns))
    wide[:n, :d] = z
    prior = np.append(precisions, np.ones(columns - d))
    full = np.zeros(rows, dtype=int)
    full[:n] = code
    with double():
        found = meanfield.compiled_fit()(
            wide,
            (np.arange(rows) < n).astype(float),
            meanfield.targets(full, c),
            prior,
            expectations.nodes(c, n=rows, seed=seed),
            meanfield.fresh_nodes(c, n=rows, seed=seed),
            tol=tol,
            max_iter=max_iter,
        )
        found = found._replace(**{k: np.asarray(v) for k, v in found._asdict().items()})
    return found._replace(mean=found.mean[:d], variance=found.variance[:d])


@dataclass(frozen=True, eq=False)
class ManyFits:
    """What `fit_many` found, for L layers, T labelings, F folds and S seeds.

    Attributes:
        probabilities: held out; NaN for rows that no fold holds out.
        elbo: nats over the training rows of a fold. elbo_error: its standard error.
        mean, variance: of the posterior, in the standardised units of each fold's training rows,
            the intercept last; `classes` is 1 where there are two.
        gradient: largest left, per row. steps: taken. converged: whether `tol` was reached.
    """

    probabilities: Float[np.ndarray, "L T S n classes"]
    elbo: Float[np.ndarray, "L T F S"]
    elbo_error: Float[np.ndarray, "L T F S"]
    mean: Float[np.ndarray, "L T F S classes d1"]
    variance: Float[np.ndarray, "L T F S classes d1"]
    gradient: Float[np.ndarray, "L T F S"]
    steps: Any
    converged: Bool[np.ndarray, "L T F S"]


def fit_many(
    x: Any,
    labels: Any,
    train: Any,
    *,
    seeds: Sequence[int] = (0,),
    precision: float = 1.0,
    tol: float = 1e-6,
    max_iter: int = 2000,
    draws: int = 16,
    dtype: Literal["float32", "float64"] = "float64",
    spread: bool = True,
) -> ManyFits:
    """A `VariationalProbe` for every layer, labelling, fold and seed, in one compiled program.

    Each fit is that of a single probe on the fold's training rows, scaled by those rows alone. All
    labelings and seeds of a layer and fold share one Gram matrix.

    Args:
        x: states `[L, n, d]`. labels: `[T, n]`, each labelling with the same number of classes.
        train: `[F, n]`, true for the rows that a fold trains on; the others are held out. Folds
            that keep groups whole come from `grouped_folds`.
        seeds: `[S]`, of the draws. With two classes nothing is drawn and they make no difference.
        tol, max_iter: as `VariationalProbe`. Fits that did not converge are counted in a
            `ConvergenceWarning`; `converged` says which.
        draws: a row, for three classes or more; a power of two. With many more features than rows
            and a weak prior, more draws find a better posterior.
        dtype: f32 halves memory and time; then ask for a `tol` of 1e-5.
        spread: run labelings and seeds side by side (vmap), which was up to twice as fast as one
            after another (lax.map) on two cores but takes as many times the memory.

    Raises:
        ProbeError: shapes that do not fit, values that are not finite, a labelling with another
            number of classes or whose training rows lack one, a row that two folds hold out.
    """
    import jax

    from probes import expectations, meanfield

    layers = np.asarray(x)
    if layers.ndim != 3:
        raise ProbeError(f"The states have shape {layers.shape}; give [layers, rows, features].")
    layers = np.stack([states(layer, site=f"layer {i}") for i, layer in enumerate(layers)])
    given = np.asarray(labels)
    if given.ndim != 2:
        raise ProbeError(f"The labels have shape {given.shape}; give [labelings, rows].")
    coded = [codes(row, n=layers.shape[1]) for row in given]
    sizes = {len(classes) for classes, _ in coded}
    if len(sizes) > 1:
        raise ProbeError(
            f"The labelings have {sorted(sizes)} classes; fit those with equal numbers together."
        )
    code, n_classes = np.stack([c for _, c in coded]), sizes.pop()
    inside = _training(train, code, n_classes)
    if not (np.isfinite(precision) and precision > 0):
        raise ProbeError(f"The precision is {precision}; it must be positive.")
    c, n = (1 if n_classes == 2 else n_classes), len(code[0])
    each = [expectations.nodes(c, n=n, draws=draws, seed=s) for s in seeds]
    fresh = [meanfield.fresh_nodes(c, n=n, draws=draws, seed=s) for s in seeds]
    reading = expectations.nodes(c, draws=READING_DRAWS, seed=seeds[0])
    with double():
        found, p = meanfield.fit_grid(
            *(np.asarray(a, dtype=dtype) for a in (layers, meanfield.targets(code, c), inside)),
            np.append(np.full(layers.shape[2], precision), INTERCEPT).astype(dtype),
            *(
                expectations.Nodes(
                    np.stack([s.points for s in group]).astype(dtype),
                    group[0].weights.astype(dtype),
                )
                for group in (each, fresh)
            ),
            expectations.Nodes(*(a.astype(dtype) for a in reading)),
            tol=tol,
            max_iter=max_iter,
            spread=spread,
        )
        found, p = jax.tree.map(np.asarray, (found, p))
    values = {k: np.swapaxes(v, 1, 2) for k, v in found._asdict().items()}
    failed = int((~values["converged"]).sum())
    if failed:
        warnings.warn(
            f"{failed} of {values['converged'].size} fits did not converge in {max_iter} steps "
            f"(the largest gradient is {values['gradient'].max():.1e} per row, tol is {tol:g}); "
            "raise max_iter or precision, or in float32 ask for a tol of 1e-5.",
            ConvergenceWarning,
            stacklevel=2,
        )
    held = np.full((len(layers), len(code), len(seeds), n, n_classes), np.nan)
    for fold, rows in enumerate(~inside):
        held[..., rows, :] = p[:, fold][..., rows, :]
    return ManyFits(
        held,
        values["elbo"],
        values["elbo_error"],
        np.swapaxes(values["mean"], -1, -2),
        np.swapaxes(values["variance"], -1, -2),
        values["gradient"],
        values["steps"],
        values["converged"],
    )


def _training(train: Any, code: np.ndarray, n_classes: int) -> np.ndarray:
    """Which rows `[F, n]` each fold trains on, once that is known to make sense."""
    inside = np.asarray(train)
    if inside.dtype != bool or inside.ndim != 2 or inside.shape[1] != code.shape[1]:
        raise ProbeError(
            f"train has shape {inside.shape} and dtype {inside.dtype}; give true for each fold's "
            f"training rows, [folds, {code.shape[1]}]."
        )
    if ((~inside).sum(axis=0) > 1).any():
        raise ProbeError("Two folds hold out the same row; fit one partition at a time.")
    for fold, rows in enumerate(inside):
        if any(len(np.unique(row[rows])) < n_classes for row in code):
            raise ProbeError(f"The training rows of fold {fold} lack a class of some labelling.")
    return inside
