"""How many dimensions a label needs: automatic relevance determination over components."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from evidence import Estimate, permutation_p
from geometry import Subspace
from probes.checks import codes, names, states
from probes.controls import permuted_codes
from probes.errors import ProbeError
from probes.readout import ProbabilisticReadout
from probes.sparse import SWEEPS, sparse_fit


class RelevanceProbe(ProbabilisticReadout):
    """Logistic regression on few principal components, each with a prior precision of its own.

    States are written in the principal components of the training rows, each divided by its
    standard deviation (whitened). Weights of component j have the prior N(0, 1/α_j), one α_j for
    all classes, and α maximises Laplace's approximation of the evidence p(labels | states, α)
    (automatic relevance determination; MacKay 1995). α_j is infinite, and the component left out,
    unless it raises the log evidence by more than `price`: components are added one at a time,
    the best first, re-estimated and left out again (Tipping & Faul 2003; the price is ours).

    Without a price about a third of all components that have nothing to do with the labels would
    stay in, with small weights, since noise is as often somewhat too large as too small for α_j to
    be infinite. log r nats, r the number of components, are what it costs to name one of them.

    The coordinates of states are no privileged basis, so the components' is used; the result does
    not change when states are rotated or scaled. A direction oblique to the components counts once
    for each component that it needs. Whitening changes the unit of `relevance_` and nothing else,
    since α_j takes up any scale. Rows count as independent: where they are not, because groups
    hold several, read the number beside its null by `relevant_dimensions`.

    Args:
        price: nats that a component must be worth; log r where it is None.
        components: of the largest variance, to choose from; all where it is None.

    Attributes:
        n_dimensions_: how many components carry the label: those kept.
        effective_dimensions_: sum of `determined_`: like it, but a component whose weights the
            data determine half counts one half (γ of MacKay 1992 over classes - 1).
        relevance_: `[r]`, precision α of each component, per standard deviation of it, of the one
            weight vector where there are two classes; infinite where it was left out.
        determined_: `[r]`, in [0, 1]. gains_: `[r]`, nats of evidence lost without the component.
        axes_: `[r, d]`, the components. deviations_: `[r]`, their standard deviations.
        log_evidence_: nats. price_: used. basis_: "principal components, whitened".
        coef_: `[classes or 1, d]` in the units of the states. intercept_, center_, classes_.
    """

    def __init__(self, *, price: float | None = None, components: int | None = None) -> None:
        self.price = price
        self.components = components

    def fit(self, X: Any, y: Any) -> RelevanceProbe:
        """Fits to states `X` `[n, d]` and labels `y` `[n]`.

        Raises:
            ValueError: values that are not finite, one class only, a price below 0, or no
                components.
        """
        X, code = self._checked(X, y)
        self.center_ = X.mean(axis=0)
        z, self.axes_, self.deviations_ = whitened(X - self.center_, self.components)
        self.price_ = _price(self.price, z.shape[1])
        c, r = len(self.classes_), z.shape[1]
        found = sparse_fit(z, code, c, price=self.price_)
        if not found.converged:
            warnings.warn(
                f"The relevances did not settle in {SWEEPS} sweeps; raise the price.",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.relevance_, self.determined_, self.gains_ = (
            np.full(r, np.inf),
            np.zeros(r),
            np.zeros(r),
        )
        self.relevance_[found.kept] = found.precision
        self.determined_[found.kept] = found.determined
        self.gains_[found.kept] = found.gains
        self.n_dimensions_ = len(found.kept)
        self.effective_dimensions_ = float(found.determined.sum())
        self.log_evidence_ = found.evidence
        self.basis_ = "principal components, whitened"
        axes = self.axes_[found.kept] / self.deviations_[found.kept, None]
        self._set(found.weights[:-1].T @ axes, found.weights[-1], self.center_)
        return self

    def subspace(
        self, *, kind: Literal["readout", "components"] = "readout", site: str = ""
    ) -> Subspace:
        """The readout within the kept components, or the span of those components.

        The readout has classes - 1 dimensions at most, however many components it needs. The
        components are in order of the evidence that each adds, their singular values in nats.

        Raises:
            ProbeError: no component was kept, or another kind.
        """
        check_is_fitted(self)
        if kind not in ("readout", "components"):
            raise ProbeError(f"kind is {kind!r}; it must be 'readout' or 'components'.")
        if self.n_dimensions_ == 0:
            raise ProbeError(
                f"No component is worth the price of {self.price_:.3g} nats, so this probe reads "
                "no direction; lower the price."
            )
        if kind == "readout":
            return super().subspace(site=site)
        order = np.argsort(-self.gains_, kind="stable")[: self.n_dimensions_]
        return Subspace(
            self.axes_[order].T,
            self.center_,
            self.gains_[order],
            site=site,
            provenance={
                **self._provenance(),
                "classes": [str(c) for c in self.classes_],
                "space": "components",
                "singular_values": "nats of evidence",
            },
        )

    def _provenance(self) -> Mapping[str, Any]:
        return {
            "method": "relevance_probe",
            "basis": self.basis_,
            "dimensions": int(self.n_dimensions_),
            "price": float(self.price_),
        }


def relevant_dimensions(
    x: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    price: float | None = None,
    components: int | None = None,
    permutations: int = 99,
    seed: int,
) -> Estimate:
    """`RelevanceProbe.n_dimensions_`, beside what it is when labels are exchanged between groups.

    `null` is the mean number for labels that were permuted as groups allow, `p` the share of those
    whose evidence is as large (numbers this small are mostly ties). The number grows with the rows,
    so that an interval by resampling them would not be about it; there is none.

    Args:
        x: `[n, d]`. labels, groups: `[n]`. price, components: as `RelevanceProbe`.

    Raises:
        ProbeError: bad states, labels or groups, or no permutations.
    """
    rows = states(x)
    classes, code = codes(labels, n=len(rows))
    member = names(groups, what="groups", n=len(rows))
    if permutations < 1:
        raise ProbeError(f"permutations is {permutations}; it must be at least 1.")
    z, _, _ = whitened(rows - rows.mean(axis=0), components)
    worth = _price(price, z.shape[1])

    found = sparse_fit(z, code, len(classes), price=worth)
    null = [
        sparse_fit(z, drawn, len(classes), price=worth)
        for drawn in permuted_codes(code, member, draws=permutations, seed=seed)
    ]
    return Estimate(
        float(len(found.kept)),
        n=len(np.unique(member)),
        null=float(np.mean([len(one.kept) for one in null])),
        p=permutation_p(found.evidence, [one.evidence for one in null]),
        unit="dimensions",
        method=f"components worth {worth:.3g} nats each; {permutations} permutations over groups",
        seed=seed,
    )


def whitened(
    centred: np.ndarray, components: int | None
) -> tuple[Float[np.ndarray, "n r"], Float[np.ndarray, "r d"], Float[np.ndarray, " r"]]:
    """Rows in principal components of variance one, the components, and their deviations.

    Raises:
        ProbeError: fewer than one component asked for.
    """
    if components is not None and (components != int(components) or components < 1):
        raise ProbeError(f"components is {components}; it must be a whole number above 0.")
    left, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    # One is lost to the mean; what is smaller than this is rounding of single precision.
    there = int((sizes > 1e-6 * sizes[0]).sum()) if sizes[0] > 0 else 0
    r = min(there, len(centred) - 1, int(components or there))
    root = np.sqrt(len(centred))
    return left[:, :r] * root, axes[:r], sizes[:r] / root


def _price(price: float | None, r: int) -> float:
    if price is None:
        return float(np.log(max(r, 1)))
    if not (np.isfinite(price) and price >= 0):
        raise ProbeError(f"price is {price!r}; it must be a number of at least 0.")
    return float(price)
