"""A Bayesian linear probe of a stream, which follows representations while they drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from geometry import Subspace, principal_angles, running_projector_mean
from probes.checks import states
from probes.errors import ProbeError
from probes.precision import double
from probes.variational import INTERCEPT, READING_DRAWS, contrasts, filled


class OnlineVariationalProbe(ClassifierMixin, BaseEstimator):
    """A `VariationalProbe` in which each step's posterior is the next step's prior.

    Before a batch is taken, the posterior q is drawn towards the base prior p0, as q^rho p0^(1-rho)
    (power prior; Ibrahim & Chen 2000): precisions become rho L + (1-rho) L0, and precision times
    mean rho L m. Then a few sweeps raise the batch's ELBO, its expectations as in
    `VariationalProbe`, and the precisions grow by sum x^2 E[p(1-p)] (streaming variational Bayes;
    Broderick et al. 2013). Precisions and precision-weighted means are kept, in f64, and only ever
    added to, so that nothing drifts over long streams. Labels are coded before they are learned, so
    that the sum of -log p(y | x, past) is the stream's prequential code length.

    States are centred and scaled by the first batch (by all rows in `fit`) and by nothing after
    it: later units would change what the posterior means. Give a first batch of some dozens of
    rows, or set `scale=False`.

    Args:
        precision: of the base prior. forget: rho, in (0, 1]; 1 forgets nothing.
        smooth: weight of the past in the averaged projector, in [0, 1); see `subspace`.
        k: directions of the subspace; classes - 1 by default.
        sweeps: steps of the mean for each batch.
        batch_size: rows of a batch in `fit`.
        scale: divide by the standard deviation of the first batch; centring alone otherwise.
        random_state: seed of the draws (three classes or more) and of the order in `fit`.

    Attributes:
        mean_, variance_: `[classes or 1, d + 1]` in standardised units, the intercept last.
        coef_: `[classes or 1, d]` in the units of the states. intercept_. classes_.
        n_steps_, n_rows_: batches and rows seen.
        code_length_: prequential code of all labels seen, in nats; uniform_length_: n log classes.
        online_accuracy_: share of rows that were predicted before they were learned.
        step_codes_: nats a row at each step of `partial_fit` and `stream`, `[steps]`.
    """

    def __init__(
        self,
        precision: float = 1.0,
        *,
        forget: float = 1.0,
        smooth: float = 0.9,
        k: int | None = None,
        sweeps: int = 5,
        batch_size: int = 32,
        scale: bool = True,
        random_state: int = 0,
    ) -> None:
        self.precision = precision
        self.forget = forget
        self.smooth = smooth
        self.k = k
        self.sweeps = sweeps
        self.batch_size = batch_size
        self.scale = scale
        self.random_state = random_state

    @property
    def memory_(self) -> float:
        """Effective memory in steps, 1/(1 - rho): a batch that old weighs 1/e of a new one."""
        return float("inf") if self.forget == 1 else 1 / (1 - self.forget)

    @property
    def smoothing_memory_(self) -> float:
        """Steps that the averaged projector looks back over: 1/(1 - smooth)."""
        return 1 / (1 - self.smooth)

    def fit(self, X: Any, y: Any) -> OnlineVariationalProbe:
        """One pass over `X` `[n, d]` in batches of a shuffled order, from the base prior.

        Raises:
            ValueError: values that are not finite, one class, or options out of range.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self._begin(X, np.unique(y))
        order = np.random.default_rng(self.random_state).permutation(len(X))
        for start in range(0, len(X), self.batch_size):
            rows = order[start : start + self.batch_size]
            self._step(X[rows], y[rows])
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> OnlineVariationalProbe:
        """One step with the batch `X` `[b, d]`, `y` `[b]`; the first names all `classes`.

        Raises:
            ValueError: values that are not finite, a label that is none of the classes, fewer than
                two classes, another number of features.
        """
        first = not hasattr(self, "classes_")
        X, y = validate_data(self, X, y, dtype=np.float64, reset=first)
        check_classification_targets(y)
        if first:
            self._begin(X, np.unique(y if classes is None else classes))
        self._step(X, y)
        return self

    def stream(self, X: Any, y: Any) -> OnlineVariationalProbe:
        """Many steps in one compiled program: as `partial_fit` for each of `X` `[steps, b, d]`.

        The averaged projector takes up the last step only. Call `partial_fit` once before.

        Raises:
            ProbeError: shapes that do not fit, or values that are not finite.
        """
        check_is_fitted(self, "classes_")
        x, labels, d = np.asarray(X, dtype=np.float64), np.asarray(y), len(self.center_)
        if x.ndim != 3 or labels.shape != x.shape[:2] or x.shape[2] != d:
            raise ProbeError(
                f"The states have shape {x.shape} and the labels {labels.shape}; give "
                f"[steps, rows, {d}] and [steps, rows]."
            )
        states(x.reshape(-1, x.shape[2]))
        self._advance(x, self._coded(labels.ravel()).reshape(labels.shape))
        return self

    def state(self) -> dict[str, np.ndarray]:
        """All that was learned, as arrays; `with_state` goes on from it to the bit.

        Raises:
            NotFittedError: nothing learned yet.
        """
        check_is_fitted(self, "classes_")
        counts = np.array([self.n_steps_, self.n_rows_, self._right], dtype=np.int64)
        there = self._average is not None
        basis, weights = self._average if self._average is not None else (np.zeros((0, 0)),) * 2
        return {
            "narrow": self._narrow.copy(),
            "pull": self._pull.copy(),
            "center": self.center_.copy(),
            "scale": self.scale_.copy(),
            "classes": self.classes_.copy(),
            "counts": counts,
            "code_length": np.array([self.code_length_]),
            "codes": self.step_codes_ if self._codes else np.zeros(0),
            **({"average_basis": basis.copy(), "average_weights": weights.copy()} if there else {}),
        }

    def with_state(self, state: Mapping[str, ArrayLike]) -> OnlineVariationalProbe:
        """This probe with what `state` holds; options are the caller's to keep the same.

        Raises:
            ProbeError: arrays that are not those of one state.
        """
        try:
            held = {name: np.asarray(value) for name, value in state.items()}
            center, classes = held["center"], held["classes"]
            self._begin(np.zeros((1, len(center))), classes)
            if held["narrow"].shape != self._narrow.shape or held["scale"].shape != center.shape:
                raise KeyError("arrays of one shape")
            self._narrow, self._pull = held["narrow"].copy(), held["pull"].copy()
            self.center_, self.scale_ = center.copy(), held["scale"].copy()
            self.n_steps_, self.n_rows_, self._right = (int(n) for n in held["counts"])
            self.code_length_ = float(held["code_length"][0])
            self._codes = [held["codes"].copy()]
            if "average_basis" in held:
                self._average = held["average_basis"].copy(), held["average_weights"].copy()
        except KeyError as error:
            raise ProbeError(f"This is no state of an online probe: it lacks {error}.") from error
        self.n_features_in_ = len(self.center_)
        self._publish()
        return self

    def _begin(self, X: np.ndarray, classes: np.ndarray) -> None:
        """The base prior, and units from the first rows."""
        for name, value, fine in (
            ("precision", self.precision, np.isfinite(self.precision) and self.precision > 0),
            ("forget", self.forget, 0 < self.forget <= 1),
            ("smooth", self.smooth, 0 <= self.smooth < 1),
            ("sweeps", self.sweeps, self.sweeps >= 1),
            ("batch_size", self.batch_size, self.batch_size >= 1),
        ):
            if not fine:
                raise ProbeError(f"{name} is {value}, which is out of its range.")
        if len(classes) < 2:
            raise ProbeError(
                f"All rows have one class, {str(classes[0])!r}; name at least two in `classes`."
            )
        d, columns = X.shape[1], 1 if len(classes) == 2 else len(classes)
        self.center_, self.scale_ = X.mean(axis=0), np.ones(d)
        if self.scale and len(X) > 1:
            spread = X.std(axis=0)
            self.scale_ = np.where(spread <= 1e-12 * np.abs(X).max(axis=0), 1.0, spread)
        self.classes_ = classes
        self._base = np.append(np.full(d, float(self.precision)), INTERCEPT)[:, None]
        self._narrow = np.repeat(self._base, columns, axis=1)
        self._pull = np.zeros((d + 1, columns))
        self._average: tuple[np.ndarray, np.ndarray] | None = None
        self._codes: list[np.ndarray] = []
        self.n_steps_, self.n_rows_, self._right, self.code_length_ = 0, 0, 0, 0.0
        self._publish()

    def _coded(self, y: np.ndarray) -> np.ndarray:
        strange = np.setdiff1d(y, self.classes_)
        if len(strange):
            raise ProbeError(
                f"The label {str(strange[0])!r} is none of the classes; name all of them in "
                "`classes` at the first step."
            )
        return np.searchsorted(self.classes_, y)

    def _step(self, X: np.ndarray, y: np.ndarray) -> None:
        self._advance(X[None], self._coded(y)[None])

    def _advance(self, x: np.ndarray, code: np.ndarray) -> None:
        """Steps through `x` `[steps, b, d]`."""
        from probes import expectations, meanfield, streaming

        columns, b = self._pull.shape[1], x.shape[1]
        rows = b if len(x) > 1 else 1 << (b - 1).bit_length()
        z = np.zeros((len(x), rows, x.shape[2] + 1))
        z[:, :b, :-1], z[:, :b, -1] = (x - self.center_) / self.scale_, 1.0
        padded = np.zeros((len(x), rows), dtype=int)
        padded[:, :b] = code
        with double():
            state, (nats, right) = streaming.run(
                (self._narrow, self._pull),
                z,
                meanfield.targets(padded, columns),
                self._base,
                float(self.forget),
                expectations.nodes(columns, seed=int(self.random_state)),
                sweeps=int(self.sweeps),
            )
            self._narrow, self._pull, nats, right = (np.asarray(a) for a in (*state, nats, right))
        self.n_steps_ += len(x)
        self.n_rows_ += len(x) * b
        self._right += int(right.sum())
        self.code_length_ += float(nats.sum())
        self._codes.append(nats / b)
        self._publish()
        self._smooth()

    def _publish(self) -> None:
        """Fitted values, from precisions and precision-weighted means."""
        self.variance_ = (1 / self._narrow).T
        self.mean_ = (self._pull / self._narrow).T
        self.coef_ = self.mean_[:, :-1] / self.scale_
        self.intercept_ = self.mean_[:, -1] - self.coef_ @ self.center_
        self.uniform_length_ = self.n_rows_ * float(np.log(len(self.classes_)))
        self.online_accuracy_ = self._right / max(self.n_rows_, 1)

    @property
    def step_codes_(self) -> np.ndarray:
        """Nats a row that each step's labels cost before they were learned, `[steps]`."""
        return np.concatenate(self._codes)

    def _smooth(self) -> None:
        """Takes the present subspace into the averaged projector, kept at rank 8k."""
        wanted = min(self.k or max(len(self.classes_) - 1, 1), len(self.classes_) - 1)
        try:
            basis, _ = contrasts(self.mean_[:, :-1], self.variance_[:, :-1], self.scale_, wanted)
        except ProbeError:
            return
        self._average = running_projector_mean(
            self._average, basis, smooth=self.smooth, most=8 * wanted
        )

    def predict_proba(self, X: Any) -> np.ndarray:
        """Posterior predictive probabilities `[n, classes]`, in the order of `classes_`."""
        from probes import expectations

        check_is_fitted(self, "classes_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        z = np.hstack([(X - self.center_) / self.scale_, np.ones((len(X), 1))])
        at = expectations.nodes(len(self.mean_), draws=READING_DRAWS, seed=int(self.random_state))
        mu, variance = filled(z @ self.mean_.T), filled((z * z) @ self.variance_.T)
        with double():
            return np.asarray(expectations.expected_probabilities(mu, variance, at))[: len(z)]

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class `[n]`."""
        found = self.predict_proba(X).argmax(axis=1)
        return self.classes_[found]

    def subspace(self, *, site: str = "", smoothed: bool = True) -> Subspace:
        """The readout, smoothed on the Grassmann manifold so that one batch does not turn it.

        Smoothed: the top k eigenvectors of the running average of the steps' projectors (the
        chordal mean), P <- smooth P + (1 - smooth) QQ', so that its memory is `smoothing_memory_`
        steps; singular values are the eigenvalues, at most 1, near 1 where steps agree, and
        `eigen_gap` in the provenance is the last one less the next: near 0 the subspace is not
        defined. Otherwise that of the present posterior, with its signal-to-noise ratios.

        Raises:
            ProbeError: nothing learned yet.
        """
        check_is_fitted(self, "classes_")
        wanted = min(self.k or len(self.classes_) - 1, len(self.classes_) - 1)
        provenance = {
            "method": "online_variational_probe",
            "space": "weights",
            "forget": float(self.forget),
            "steps": int(self.n_steps_),
            "classes": [str(c) for c in self.classes_],
        }
        if not smoothed:
            basis, values = contrasts(
                self.mean_[:, :-1], self.variance_[:, :-1], self.scale_, wanted
            )
        elif self._average is None:
            raise ProbeError("All weights of this probe are zero, so it reads no direction.")
        else:
            basis, values = (a[..., :wanted] for a in self._average)
            beyond = self._average[1][wanted:]
            provenance |= {
                "smooth": float(self.smooth),
                "eigen_gap": float(values[-1] - (beyond[0] if len(beyond) else 0.0)),
            }
            if len(self.coef_) == 1 and basis[:, 0] @ self.coef_[0] < 0:
                basis = -basis
        return Subspace(basis, self.center_, values, site=site, provenance=provenance)


@dataclass(frozen=True)
class Lag:
    """How far behind a moving truth a run of subspaces is.

    Attributes:
        steps: the delay at which the planted subspaces fit best. angle: mean largest principal
        angle to the truth of the same step, in radians; angle_at_lag: to that of `steps` before.
    """

    steps: float
    angle: float
    angle_at_lag: float


def tracking_lag(
    found: Sequence[Subspace], planted: Sequence[ArrayLike], *, every: int = 1, longest: int
) -> Lag:
    """The delay, up to `longest` entries, at which `planted` bases `[d, k]` match `found` best.

    Entries are `every` steps apart; the same later entries are compared at all delays.

    Raises:
        ProbeError: runs of different length, or shorter than the longest delay.
    """
    if len(found) != len(planted) or len(found) <= longest:
        raise ProbeError(
            f"There are {len(found)} subspaces and {len(planted)} planted ones for delays up to "
            f"{longest}; give runs of the same length that are longer than that."
        )
    truth = [np.asarray(p, dtype=np.float64) for p in planted]
    angles = [
        float(
            np.mean(
                [
                    principal_angles(found[t].basis, truth[t - delay]).max()
                    for t in range(longest, len(found))
                ]
            )
        )
        for delay in range(longest + 1)
    ]
    best = int(np.argmin(angles))
    return Lag(float(best * every), angles[0], angles[best])
