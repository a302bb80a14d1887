"""The standard's subspace at one layer, estimated at step 0 and followed from there.

A follower sees reference states and their varieties, batch by batch. The streamed one keeps an
`OnlineVariationalProbe`, the moments of the states, and an average of the projectors.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from geometry import Subspace, random_subspace, running_projector_mean
from interventions.decoupling.settings import DecouplingSettings
from interventions.errors import EditError
from probes.errors import ProbeError
from probes.online import OnlineVariationalProbe
from probes.variational import VariationalProbe

#: The averaged projector is kept at so many times k directions.
_KEPT = 8


@dataclass(frozen=True)
class Reading:
    """How well the varieties of a batch were told before they were learned; NaN for not at all."""

    nats: float
    accuracy: float


class Follower:
    """One layer's subspace; `varieties` names those of the reference, in a fixed order."""

    def __init__(
        self, settings: DecouplingSettings, varieties: Sequence[str], standard: str, layer: int
    ) -> None:
        self._settings = settings
        self._layer = layer
        self._standard = list(varieties).index(standard)
        self._n_varieties = len(varieties)
        several = len(varieties) > 2 and settings.k != 1
        self._columns = len(varieties) if several else 2
        most = len(varieties) - 1 if several else 1
        if settings.k is not None and settings.k > most:
            raise EditError(
                f"k is {settings.k}, and a probe of {len(varieties)} varieties contrasts the "
                f"standard in {most}: give the reference more varieties, or a smaller k."
            )
        self._k = settings.k
        self._probe: OnlineVariationalProbe | VariationalProbe | None = None
        self._average: tuple[np.ndarray, np.ndarray] | None = None
        self._moments: dict[str, np.ndarray] = {}
        self.followed = np.zeros((0, 0))
        self._fixed: np.ndarray | None = None
        self._fixed_mean: np.ndarray | None = None

    @property
    def n_classes(self) -> int:
        """Classes of the probe."""
        return self._columns

    @property
    def k(self) -> int:
        """Dimensions of the subspace that is decoupled from."""
        return self.basis.shape[1]

    @property
    def basis(self) -> Float[np.ndarray, "d k"]:
        """What is decoupled from: the followed subspace, or a control's."""
        return self.followed if self._fixed is None else self._fixed

    @property
    def mean(self) -> Float[np.ndarray, " d"]:
        """μ."""
        return self._mean() if self._fixed_mean is None else self._fixed_mean

    def subspace(self) -> Subspace:
        """What is decoupled from, about μ."""
        return Subspace(
            self.basis,
            self.mean,
            np.ones(self.k),
            site=f"blocks.{self._layer}.hook_resid_post",
            provenance={
                "method": "decoupling",
                "source": self._settings.source,
                "form": self._settings.form,
                "space": "weights" if self._refits else self._settings.space,
            },
        )

    def start(
        self,
        x: Float[np.ndarray, "n d"],
        variety: Int[np.ndarray, " n"],
        label: Int[np.ndarray, " n"],
        text: Int[np.ndarray, " n"],
    ) -> Reading:
        """The estimate at step 0; `label` is what the probe is told, `text` each state's row."""
        order = np.unique(text)
        np.random.default_rng([self._settings.seed, 3]).shuffle(order)
        size = len(order) if self._refits else self._settings.reference_rows
        readings = []
        for start in range(0, len(order), size):
            chosen = np.isin(text, order[start : start + size])
            readings.append(self.update(x[chosen], variety[chosen], label[chosen]))
        self._fix(x)
        return readings[-1]

    def update(
        self,
        x: Float[np.ndarray, "n d"],
        variety: Int[np.ndarray, " n"],
        label: Int[np.ndarray, " n"],
    ) -> Reading:
        """Takes a batch of reference states in."""
        self._add_moments(x, variety)
        y = label if self._columns > 2 else (label == self._standard).astype(np.int64)
        return self._refit(x, y) if self._refits else self._stream(x, y)

    @property
    def _refits(self) -> bool:
        return self._settings.form == "paper"

    def _stream(self, x: np.ndarray, y: np.ndarray) -> Reading:
        probe = self._probe
        if probe is None:
            probe = OnlineVariationalProbe(
                self._settings.precision,
                forget=self._settings.forget,
                random_state=self._settings.seed,
            )
            self._probe = probe
        assert isinstance(probe, OnlineVariationalProbe)
        before = _right(probe)
        steps = getattr(probe, "n_steps_", 0)
        if len(x) > self._settings.states:
            rng = np.random.default_rng([self._settings.seed, 5, steps])
            kept = rng.permutation(len(x))[: self._settings.states]
            x, y = x[kept], y[kept]
        probe.partial_fit(x, y, classes=np.arange(self._columns))
        right = _right(probe) - before
        try:
            rows = self._contrasts(probe.mean_[:, :-1], probe.variance_[:, :-1], probe.scale_)
        except ProbeError:  # nothing told apart yet, so nothing turns
            rows = None
        if rows is not None:
            vectors = rows.T
            if self._settings.space == "patterns":
                vectors = self._covariance() @ vectors
            self._turn(np.linalg.qr(vectors)[0])
        return Reading(float(probe.step_codes_[-1]), right / len(x))

    def _refit(self, x: np.ndarray, y: np.ndarray) -> Reading:
        """The published way: the old probe is thrown away, and a new one fitted."""
        reading = Reading(float("nan"), float("nan"))
        if isinstance(self._probe, VariationalProbe):
            p = self._probe.predict_proba(x)
            code = np.searchsorted(self._probe.classes_, y)
            reading = Reading(
                float(-np.log(np.maximum(p[np.arange(len(y)), code], 1e-300)).mean()),
                float((p.argmax(axis=1) == code).mean()),
            )
        if len(np.unique(y)) < self._columns:
            return reading
        with warnings.catch_warnings():  # a subspace is wanted, not the last digit of a bound
            warnings.simplefilter("ignore")
            self._probe = VariationalProbe(
                self._settings.precision, random_state=self._settings.seed
            ).fit(x, y)
        weights = self._probe.coef_ - (self._probe.coef_.mean(axis=0) if self._columns > 2 else 0)
        _, values, right = np.linalg.svd(weights, full_matrices=False)
        if self._k is None:
            self._k = min(_enough(values, self._settings.explained), self._columns - 1)
        self.followed = np.ascontiguousarray(right[: self._k].T)
        return reading

    def _contrasts(self, mean: np.ndarray, variance: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """The standard's surest contrasts `[k, d]`, in the units of the states.

        With D `[classes - 1, d]` the standard's weights less each other class's, they are its left
        singular vectors after each dimension was divided by its posterior deviation.
        """
        if len(mean) == 1:
            found = mean
            noise = np.sqrt(variance[0])
        else:
            others = np.arange(len(mean)) != self._standard
            found = mean[self._standard] - mean[others]
            noise = np.sqrt(variance[self._standard] + variance[others].mean(axis=0))
        mixing, ratios, _ = np.linalg.svd(found / noise, full_matrices=False)
        if not ratios[0] > 0:
            raise ProbeError("All weights of this probe are zero, so it reads no direction.")
        if self._k is None:
            self._k = _enough(ratios, self._settings.explained)
        return (mixing[:, : self._k].T @ found) / scale

    def _turn(self, basis: np.ndarray) -> None:
        """The chordal mean of the subspaces so far, each weighted `smooth` times the next."""
        k = basis.shape[1]
        self._average = running_projector_mean(
            self._average, basis, smooth=self._settings.smooth, most=_KEPT * k
        )
        self.followed = np.ascontiguousarray(self._average[0][:, :k])

    def _add_moments(self, x: np.ndarray, variety: np.ndarray) -> None:
        """Counts, sums by variety and, for patterns, products: old ones count `smooth` times.

        Not `forget` times: the states' spread must be the present one, or directions that the model
        has left still turn the patterns.
        """
        d = x.shape[1]
        if not self._moments:
            self._moments = {
                "point": x.mean(axis=0),
                "count": np.zeros(self._n_varieties),
                "sum": np.zeros((self._n_varieties, d)),
            }
            if self._settings.space == "patterns" and not self._refits:
                self._moments["product"] = np.zeros((d, d))
        kept, held = self._settings.smooth, self._moments
        away = x - held["point"]
        held["count"] = kept * held["count"] + np.bincount(variety, minlength=self._n_varieties)
        held["sum"] = kept * held["sum"]
        held["sum"] += np.eye(self._n_varieties)[variety].T @ away
        if "product" in held:
            held["product"] = kept * held["product"] + away.T @ away

    def _covariance(self) -> np.ndarray:
        held = self._moments
        mean = held["sum"].sum(axis=0) / held["count"].sum()
        return held["product"] / held["count"].sum() - np.outer(mean, mean)

    def _mean(self) -> np.ndarray:
        """The mean of the varieties that `origin` names, each state counted once."""
        held, origin = self._moments, self._settings.origin
        if origin == "zero" or self._refits:
            return np.zeros_like(held["point"])
        chosen = np.ones(self._n_varieties, dtype=bool)
        if origin != "all":
            chosen = (np.arange(self._n_varieties) == self._standard) == (origin == "standard")
        return held["point"] + held["sum"][chosen].sum(axis=0) / held["count"][chosen].sum()

    def _fix(self, x: np.ndarray) -> None:
        """A source that does not move is set, from the states at step 0."""
        if not self.followed.size:
            raise EditError(
                f"The states of layer {self._layer} tell no variety from another, so there is no "
                "subspace to decouple from."
            )
        source = self._settings.source
        if source in ("estimated", "shuffled"):
            return
        k, d = self.followed.shape[1], x.shape[1]
        seed = [self._settings.seed, 4, self._layer]
        if source == "frozen":
            fixed = self.followed
        elif source == "random":
            fixed = random_subspace(d, k, seed=int(np.random.default_rng(seed).integers(2**31)))
            fixed = fixed.basis
        else:
            centred = x - x.mean(axis=0)
            if source == "covariance":
                drawn = np.random.default_rng(seed).standard_normal((k, len(x))) @ centred
                fixed = np.linalg.qr(drawn.T)[0]
            else:
                fixed = np.linalg.svd(centred, full_matrices=False)[2][:k].T
        self._fixed, self._fixed_mean = np.ascontiguousarray(fixed), self._mean()

    def state(self) -> dict[str, np.ndarray]:
        """All that decides how it goes on, as arrays."""
        held: dict[str, Any] = {f"moments.{name}": x.copy() for name, x in self._moments.items()}
        held["followed"] = self.followed.copy()
        if self._average is not None:
            held["average.basis"], held["average.weights"] = (a.copy() for a in self._average)
        if self._fixed is not None:
            held["fixed.basis"], held["fixed.mean"] = self._fixed.copy(), self.mean.copy()
        probe = self._probe
        if isinstance(probe, OnlineVariationalProbe):
            held |= {f"probe.{name}": x for name, x in probe.state().items()}
        elif isinstance(probe, VariationalProbe):
            for name in _FITTED:
                held[f"probe.{name}"] = np.array(getattr(probe, name))
        return held

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from what `state` gave."""
        parts: dict[str, dict[str, np.ndarray]] = {}
        for name, value in state.items():
            group, _, rest = name.rpartition(".")
            parts.setdefault(group, {})[rest] = np.array(value)
        self._moments = parts["moments"]
        self.followed = parts[""]["followed"]
        self._k = self.followed.shape[1]
        average, fixed = parts.get("average"), parts.get("fixed")
        self._average = None if average is None else (average["basis"], average["weights"])
        self._fixed = None if fixed is None else fixed["basis"]
        self._fixed_mean = None if fixed is None else fixed["mean"]
        told = parts["probe"]
        seed = self._settings.seed
        if self._refits:
            self._probe = VariationalProbe(self._settings.precision, random_state=seed)
            for name in _FITTED:
                setattr(self._probe, name, told[name])
            self._probe.__dict__["n_features_in_"] = len(self._probe.center_)
        else:
            self._probe = OnlineVariationalProbe(
                self._settings.precision, forget=self._settings.forget, random_state=seed
            ).with_state(told)


_FITTED = ("classes_", "center_", "scale_", "mean_", "variance_", "coef_", "intercept_")


def _right(probe: OnlineVariationalProbe) -> int:
    """How many rows it has predicted rightly."""
    return round(probe.online_accuracy_ * probe.n_rows_) if hasattr(probe, "n_rows_") else 0


def _enough(values: np.ndarray, explained: float) -> int:
    """How many of the values, largest first, hold that share of the sum of their squares."""
    held = np.cumsum(values**2) / np.sum(values**2)
    return int(np.searchsorted(held, explained - 1e-12) + 1)
