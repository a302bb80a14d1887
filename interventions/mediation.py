"""How much of a difference between two texts goes through given parts of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from evidence import Estimate, EvidenceError, cluster_bootstrap
from interventions.alignment import align_tokens
from interventions.cells import Align, Case, States, make_cases
from interventions.errors import EditError
from interventions.nodes import OUTPUT, Nodes, names, puts_of, resolved, some
from interventions.patching import (
    PASSES,
    Passes,
    names_of,
    pieces_of,
    require_counts,
    require_known,
)
from interventions.paths import figures_of
from interventions.readings import Metric, PlainMetric, as_metric
from interventions.sweep_runs import Task, runs_of

if TYPE_CHECKING:
    from activations import Model

_EFFECTS = ("total", "indirect", "direct", "interaction")


@dataclass(frozen=True, eq=False)
class Mediation:
    """What mediators carry.

    `frame` has a row for each pair × mediator, in the metric's unit: `total` = source run less base
    run; `indirect`: the base run with the mediators' source states, less the base run; `direct`:
    the source run with the mediators' base states, less the base run; `interaction` = total -
    direct - indirect, which is 0 where effects add up.

    `summary` has a row for each mediator × measure: means over groups of these four, and
    `proportion_mediated` = Σ indirect / Σ total over pairs, each with its interval.
    """

    frame: pd.DataFrame
    summary: pd.DataFrame
    metric: str = ""
    unit: str = ""

    def proportion(self, mediator: str) -> Estimate:
        """The proportion mediated by one mediator, by its name.

        Raises:
            EditError: there is no such mediator.
        """
        own = self.summary[
            (self.summary["mediator"] == mediator)
            & (self.summary["measure"] == "proportion_mediated")
        ]
        if own.empty:
            known = ", ".join(self.summary["mediator"].unique())
            raise EditError(f"There is no mediator {mediator!r}: {known}.")
        row = own.iloc[0]
        return Estimate(row["value"], row["low"], row["high"], row["level"], int(row["n"]))


def mediation(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    mediators: Sequence[Nodes],
    *,
    metric: Literal["kl"] | Metric | PlainMetric = "kl",
    align: Align = align_tokens,
    groups: Sequence[Any] | None = None,
    passes: Passes = "auto",
    token_budget: int | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> Mediation:
    """Total, direct and indirect effects of exchanging the base text for the source text.

    Causal mediation analysis (Pearl 2001; on language models Vig et al. 2020), in differences:
    with m(text; mediators' states), total = m(source) - m(base), natural indirect effect =
    m(base; of source) - m(base), natural direct effect = m(source; of base) - m(base). The two need
    not add up to the total. The metric means the same in every run: with "kl", how far the run is
    from the source run.

    Args:
        pairs: (base text, source text).
        mediators: nodes at any site; an entry of several is held or changed together.
        metric, align, groups, passes, token_budget: as for `patch_sweep`.

    Raises:
        EditError: as for `patch_sweep`; no mediators, or nodes that are none.
    """
    texts = [(str(base), str(source)) for base, source in pairs]
    own = names_of(texts, groups)
    require_counts(token_budget=token_budget)
    require_known("passes", passes, PASSES)
    measure = as_metric(metric)
    measure.check(len(texts))
    parts = [resolved(model, one) for one in some(mediators, "mediators")]
    sites = list(dict.fromkeys(node.site for nodes in parts for node in nodes))
    if OUTPUT.site in sites:
        raise EditError("The output mediates everything: give nodes before it.")
    cases = make_cases(model, texts, ("denoise", "noise"), measure, align)
    rows = []
    # Both ways of a pair are measured against the same runs, so they are kept together.
    for piece in pieces_of(model, [case for case in cases if case.way == "denoise"], len(sites)):
        inside = {case.pair for case in piece}
        both = [case for case in cases if case.pair in inside]
        with model.lock:
            rows += _rows(model, both, parts, sites, token_budget, passes)
    frame = pd.DataFrame(rows)
    summary = _summary(frame, np.asarray(own, dtype=object).astype(str), seed, level)
    return Mediation(frame, summary, measure.name, measure.unit)


def _rows(
    model: Model,
    cases: Sequence[Case],
    parts: Sequence[Any],
    sites: Sequence[str],
    budget: int | None,
    passes: Passes,
) -> list[dict[str, Any]]:
    runs = runs_of(model, cases, sites, budget, passes)
    plain = runs.plain()[0]
    states = States(model, cases, sites)
    forward = [case for case in cases if case.way == "denoise"]
    ends = {(case.pair, case.way): x for case, x in zip(cases, plain, strict=True)}
    goals = {id(c): (ends[c.pair, "noise"], ends[c.pair, "denoise"]) for c in cases}
    tasks = [
        Task(case, puts, (case.pair, case.way, number))
        for case in cases
        for number, nodes in enumerate(parts)
        if (puts := puts_of(states, case, nodes))
    ]
    figures = figures_of(runs, tasks, goals)
    rows = []
    for case in forward:
        source, base = goals[id(case)]
        two = torch.stack([base, source])
        start, end = case.reading.measure(two, source, base).double().tolist()
        for number, nodes in enumerate(parts):
            indirect = figures.get((case.pair, "denoise", number), start) - start
            direct = figures.get((case.pair, "noise", number), end) - start
            rows.append(
                {
                    "pair": case.pair,
                    "mediator": names(nodes),
                    "base": start,
                    "source": end,
                    "total": end - start,
                    "indirect": indirect,
                    "direct": direct,
                    "interaction": end - start - direct - indirect,
                }
            )
    return rows


def _summary(frame: pd.DataFrame, groups: np.ndarray, seed: int, level: float) -> pd.DataFrame:
    rows = []
    for mediator, part in frame.groupby("mediator", sort=False):
        member = np.unique(groups[part["pair"].to_numpy()], return_inverse=True)[1]
        sums = {name: np.bincount(member, weights=part[name]) for name in _EFFECTS}
        count = np.bincount(member)
        for name in _EFFECTS:
            rows.append((mediator, name, *_ratio(sums[name], count, seed, level)))
        share = _ratio(sums["indirect"], sums["total"], seed, level)
        rows.append((mediator, "proportion_mediated", *share))
    columns = ["mediator", "measure", "value", "low", "high", "level", "n"]
    return pd.DataFrame(rows, columns=columns)


def _ratio(above: np.ndarray, below: np.ndarray, seed: int, level: float) -> tuple[float, ...]:
    """Σ above / Σ below over groups: value, low, high, level, n."""
    n = len(below)
    if not below.sum():
        return np.nan, np.nan, np.nan, level, n
    value = float(above.sum() / below.sum())
    try:
        found = cluster_bootstrap(
            np.column_stack([above, below]), lambda x: x[..., 0] / x[..., 1], seed=seed, level=level
        )
    except EvidenceError:  # in too many resamples there is nothing to divide by
        return value, np.nan, np.nan, level, n
    return value, found.low, found.high, level, n
