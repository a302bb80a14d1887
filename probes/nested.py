"""The penalty of a logistic probe, chosen over groups within the rows that it is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from evidence import Estimate, balanced_accuracy_interval
from probes.checks import codes, names, states
from probes.errors import ProbeError
from probes.linear import LinearProbe
from probes.readout import ProbabilisticReadout
from probes.splits import grouped_folds

CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


class LinearProbeCV(ProbabilisticReadout):
    """`LinearProbe` with C chosen by cross-validation over groups, then fitted to all rows.

    For each fold of `grouped_folds` and each C a probe is fitted to the other folds, centring and
    scaling included. The C with the least log loss, per row of all folds, is chosen; of equal
    ones the smallest. Fit it inside each training fold of another cross-validation, or call
    `nested_probe`: its own `losses_` flatter the C that they chose.

    Args:
        Cs: penalties to compare (as `LinearProbe`); on the sum over rows, so that with more rows
            smaller ones are called for.
        n_folds: of the cross-validation. seed: of the folds.
        scale, tol, max_iter: as `LinearProbe`.

    Attributes:
        C_: the one chosen. Cs_: those compared, ascending. C_by_fold_: `[folds]`, that with the
            least loss on each fold alone: where these scatter, C is not well determined.
        losses_: `[folds, Cs]`, held-out log loss in nats per row.
        coef_, intercept_, center_, scale_, classes_, n_iter_: as `LinearProbe`.
    """

    def __init__(
        self,
        Cs: Sequence[float] = CS,
        *,
        n_folds: int = 5,
        seed: int = 0,
        scale: bool = True,
        tol: float = 1e-6,
        max_iter: int = 5000,
    ) -> None:
        self.Cs = Cs
        self.n_folds = n_folds
        self.seed = seed
        self.scale = scale
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any, groups: Any = None) -> LinearProbeCV:
        """Fits to states `X` `[n, d]`, labels `y` `[n]` and `groups` `[n]`.

        Without groups every row is one, which is right for independent rows only.

        Raises:
            ValueError: values that are not finite, one class only, no C or one that is not above
                0, too few groups for the folds, or groups that do not match the rows.
        """
        X, code = self._checked(X, y)
        member = np.arange(len(X)) if groups is None else names(groups, what="groups", n=len(X))
        self.Cs_ = _checked(self.Cs)
        folds = grouped_folds(code, member, n_folds=self.n_folds, seed=self.seed)
        losses = np.empty((len(folds), len(self.Cs_)))
        for number, (train, test) in enumerate(folds):
            for place, C in enumerate(self.Cs_):
                probe = self._probe(C).fit(X[train], code[train])
                losses[number, place] = _log_loss(probe, X[test], code[test])
        self.losses_ = losses
        sizes = np.array([len(test) for _, test in folds])
        self.C_ = float(self.Cs_[(sizes @ losses).argmin()])
        self.C_by_fold_ = self.Cs_[losses.argmin(axis=1)]
        probe = self._probe(self.C_).fit(X, code)
        for name in ("coef_", "intercept_", "center_", "scale_", "n_iter_"):
            setattr(self, name, getattr(probe, name))
        return self

    def _probe(self, C: float) -> LinearProbe:
        return LinearProbe(float(C), scale=self.scale, tol=self.tol, max_iter=self.max_iter)

    def _provenance(self) -> dict[str, Any]:
        return {"method": "linear_probe", "C": self.C_, "C_chosen_from": self.Cs_.tolist()}


@dataclass(frozen=True, eq=False)
class NestedResult:
    """Held-out accuracy of a probe whose penalty was chosen in each training fold.

    Attributes:
        accuracy: balanced accuracy over held-out rows, with an interval over groups.
        Cs: `[Cs]`, those compared. C_by_fold: `[folds]`, those chosen.
        losses: `[folds, Cs]`, the mean held-out log loss of the inner folds, in nats per row.
        predictions: `[n]`, held out.
    """

    accuracy: Estimate
    Cs: Float[np.ndarray, " Cs"]
    C_by_fold: Float[np.ndarray, " folds"]
    losses: Float[np.ndarray, "folds Cs"]
    predictions: np.ndarray = field(repr=False)


def nested_probe(
    x: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    Cs: Sequence[float] = CS,
    n_folds: int = 5,
    inner_folds: int = 5,
    scale: bool = True,
    seed: int,
) -> NestedResult:
    """`LinearProbeCV` in each training fold, judged on the fold that it has not seen.

    No group crosses a split, of the outer folds or of the inner ones. `x` is `[n, d]`, `labels`
    and `groups` `[n]`.

    Raises:
        ProbeError: values that are not finite, one class, lengths that differ, or too few groups
            for the outer folds, or in a training fold for the inner ones.
    """
    rows = states(x)
    classes, code = codes(labels, n=len(rows))
    member = names(groups, what="groups", n=len(rows))
    folds = grouped_folds(code, member, n_folds=n_folds, seed=seed)
    found = np.empty_like(code)
    chosen, losses = [], []
    for train, test in folds:
        probe = LinearProbeCV(Cs, n_folds=inner_folds, seed=seed, scale=scale)
        probe.fit(rows[train], code[train], groups=member[train])
        found[test] = probe.predict(rows[test])
        chosen.append(probe.C_)
        losses.append(probe.losses_.mean(axis=0))
    accuracy = balanced_accuracy_interval(found == code, code, member, seed=seed)
    return NestedResult(
        replace(accuracy, unit="balanced accuracy"),
        _checked(Cs),
        np.array(chosen),
        np.stack(losses),
        classes[found],
    )


def _checked(Cs: Sequence[float]) -> Float[np.ndarray, " Cs"]:
    try:
        grid = np.unique(np.asarray(Cs, dtype=np.float64).ravel())
    except (TypeError, ValueError):
        grid = np.array([])
    if len(grid) == 0 or not np.isfinite(grid).all() or grid[0] <= 0:
        raise ProbeError(f"Cs is {Cs!r}; give finite numbers above 0.")
    return grid


def _log_loss(probe: LinearProbe, x: np.ndarray, code: np.ndarray) -> float:
    logits = probe.decision_function(x)
    if logits.ndim == 1:
        logits = np.stack([np.zeros_like(logits), logits], axis=1)
    own = logits[np.arange(len(code)), code]
    return float(np.mean(np.logaddexp.reduce(logits, axis=1) - own))
