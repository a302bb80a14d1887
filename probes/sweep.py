"""Probes at many sites, each beside its controls."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from evidence import Estimate, balanced_accuracy_interval, max_statistic_p
from probes.batched import FoldFits, fit_folds
from probes.checks import codes, names, states
from probes.controls import control_labels, permuted_codes, reader_accuracies, ridge_reader
from probes.errors import ProbeError
from probes.parallel import each
from probes.splits import grouped_folds

_UNIT = "balanced accuracy"
_NOTHING = Estimate(float("nan"))


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """Held-out accuracy at one site, and what it is set against.

    Attributes:
        site: hook name; layer: its block number, -1 where it has none.
        accuracy: balanced accuracy over held-out rows, with p where permutations were asked for.
        control: the same for labels drawn at random (`control_labels`), all draws together.
        control_train: accuracy on the training rows for those labels: what can be memorised.
        chance: one over the number of classes.
        predictions: `[n]` held-out predictions.
    """

    site: str
    layer: int
    accuracy: Estimate
    control: Estimate
    control_train: float
    chance: float
    predictions: np.ndarray = field(repr=False)

    @property
    def selectivity(self) -> float:
        """Accuracy less that of the control task (Hewitt & Liang 2019)."""
        return self.accuracy.value - self.control.value

    def _repr_html_(self) -> str:
        """Accuracy beside what it is set against."""
        shown = {"accuracy": str(self.accuracy), "chance": f"{self.chance:.2f}"}
        if not np.isnan(self.control.value):
            shown["control task"] = str(self.control)
            shown["control task, training rows"] = f"{self.control_train:.2f}"
        table = pd.Series(shown, dtype=object).to_frame(self.site or _UNIT)
        with pd.option_context("display.max_colwidth", 200):
            return table.to_html(border=0)

    @property
    def p(self) -> float:
        """Probability under permuted labels, for all sites of the sweep together."""
        return self.accuracy.p


def probe_site(
    x: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    n_folds: int = 5,
    C: float = 1.0,
    control_draws: int = 5,
    permutations: int = 0,
    seed: int,
    site: str = "",
) -> ProbeResult:
    """A `LinearProbe` on states `x` `[n, d]`, cross-validated over groups. See `probe_sites`."""
    return probe_sites(
        {site: x},
        labels,
        groups,
        n_folds=n_folds,
        C=C,
        control_draws=control_draws,
        permutations=permutations,
        seed=seed,
    )[0]


def probe_sites(
    store: Any,
    labels: ArrayLike,
    groups: ArrayLike,
    sites: Iterable[str] | None = None,
    *,
    n_folds: int = 5,
    C: float = 1.0,
    control_draws: int = 5,
    permutations: int = 200,
    workers: int | None = None,
    seed: int,
) -> list[ProbeResult]:
    """A probe at every site of `store`, on the same folds, with the same control labels.

    The probes are those of `LinearProbe`, fitted to the labels and the control labels of all folds
    together (`fit_folds`).

    Args:
        store: a mapping from site to states `[n, d]`, or an activation store.
        labels, groups: `[n]`.
        sites: those to probe; all by default.
        control_draws: labelings of the control task; 0 for none.
        permutations: draws for p; 0 for none. The p-value is for the cross-validated accuracy of
            ridge regression to one-hot labels, the same features and folds, because logistic fits
            to every permutation would take hours; each site is compared with the largest accuracy
            over all sites (Westfall & Young 1993), so it holds for all of them together.
        workers: sites probed at a time, each on one thread; one for each core by default. Results
            do not depend on it.

    Raises:
        ProbeError: values that are not finite, one class, too few groups, lengths that differ.
    """
    wanted = list(sites if sites is not None else getattr(store, "sites", None) or store)
    if not wanted:
        raise ProbeError("There is no site to probe; name at least one.")
    for name, number in (("control_draws", control_draws), ("permutations", permutations)):
        if number < 0:
            raise ProbeError(f"{name} is {number}; it must be 0 or more.")
    classes, code = codes(labels)
    member = names(groups, what="groups", n=len(code))
    folds = grouped_folds(labels, member, n_folds=n_folds, seed=seed)
    controls = [
        np.searchsorted(classes, control_labels(labels, member, seed=[seed, draw]))
        for draw in range(control_draws)
    ]
    fitted = np.vstack([code, *controls])
    permuted = np.vstack([code, permuted_codes(code, member, draws=permutations, seed=seed)])
    reading = Lock()  # a store need not expect several readers

    def probed(site: str) -> tuple[ProbeResult, np.ndarray]:
        with reading:
            x = states(store[site], site=site)
        if len(x) != len(code):
            raise ProbeError(
                f"There are {len(x)} rows of states at {site} but {len(code)} labels; "
                "give one for each row."
            )
        fits = fit_folds(x, fitted, folds, n_classes=len(classes), C=C)
        result = _result(fits, site, classes, fitted, member, seed)
        if not permutations:
            return result, np.empty(0)
        return result, reader_accuracies(ridge_reader(x, folds), permuted, len(classes))

    found = each(probed, wanted, workers=workers)
    if not permutations:
        return [result for result, _ in found]
    table = np.stack([seen for _, seen in found], axis=1)
    together = max_statistic_p(table[0], table[1:])
    return [
        replace(result, accuracy=replace(result.accuracy, p=float(p)))
        for (result, _), p in zip(found, together, strict=True)
    ]


def probe_frame(results: Sequence[ProbeResult], *, measure: str = "probe_accuracy") -> pd.DataFrame:
    """One row for each figure: columns site, layer, measure, control, value, low, high, n, p."""
    rows = []
    for result in results:
        where = {"site": result.site, "layer": result.layer, "measure": measure}
        figures = {"": result.accuracy, "chance": Estimate(result.chance)}
        if not np.isnan(result.control.value):
            figures["control_task"] = result.control
            figures["control_task_train"] = Estimate(result.control_train)
        rows += [
            {
                **where,
                "control": control,
                "value": e.value,
                "low": e.low,
                "high": e.high,
                "n": e.n,
                "p": e.p,
            }
            for control, e in figures.items()
        ]
    return pd.DataFrame(rows)


def _result(
    fits: FoldFits,
    site: str,
    classes: np.ndarray,
    fitted: np.ndarray,
    groups: np.ndarray,
    seed: int,
) -> ProbeResult:
    code, drawn = fitted[0], fitted[1:].ravel()
    predictions = fits.predictions
    accuracy = balanced_accuracy_interval(predictions[0] == code, code, groups, seed=seed)
    control, memorised = _NOTHING, float("nan")
    if len(drawn):
        control = balanced_accuracy_interval(
            predictions[1:].ravel() == drawn,
            drawn,
            np.tile(groups, len(fitted) - 1),
            seed=seed,
            null=1 / len(classes),
        )
        control = replace(control, unit=_UNIT)
        # Random labels on very few groups can leave a fold one class: nothing to be learnt.
        shares = [seen[~np.isnan(seen)] for seen in fits.train_accuracy[1:]]
        memorised = float(np.mean([seen.mean() if len(seen) else 1.0 for seen in shares]))
    return ProbeResult(
        site,
        _layer(site),
        replace(accuracy, unit=_UNIT),
        control,
        memorised,
        1 / len(classes),
        classes[predictions[0]],
    )


def _layer(site: str) -> int:
    block = re.search(r"(?:^|\.)blocks\.(\d+)\.", site)
    return int(block.group(1)) if block else -1
