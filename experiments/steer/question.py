"""One thing to steer: its direction at every site, how it acts, and what is observed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as with_fields
from typing import TYPE_CHECKING, Any

import numpy as np

from geometry import Subspace
from interventions.chance import random_directions
from interventions.dose import Observer, Outcome
from interventions.edits.where import Rule
from interventions.steering import Kind, steer

if TYPE_CHECKING:
    from activations.edit import Edit

Key = tuple[str, str, str]
CONTROLS = {"random_subspace": False, "covariance_null": True}


@dataclass(frozen=True, eq=False)
class Question:
    """What is steered and how it is judged.

    Attributes:
        name: `refusal`, or `variety:NAME`.
        directions: by site.
        within: by site, states less their class's mean: the spread that random directions have.
        train: what is observed when site and strength are chosen, on the train side.
        test: all that is observed on the held-out side.
        beside: the part of it that is observed under random directions as well.
        effects: the figures that should follow the strength, the first of which chooses.
        cost: the figure that may not rise too far when it is chosen; its mean over varieties.
    """

    name: str
    kind: Kind
    positions: Rule
    directions: Mapping[str, Subspace]
    within: Mapping[str, np.ndarray]
    train: Observer
    test: Observer
    beside: Observer
    effects: tuple[Key, ...]
    cost: str = "loss"
    said: Mapping[str, str] = field(default_factory=dict)

    def label(self, strength: float | None = None) -> str:
        """The edit as it is called in the results, as in `add(refusal, 0.5)`."""
        amount = "" if strength is None else f", {strength:g}"
        return f"{self.kind}({self.name}{amount})"

    def edit_at(
        self, sites: Sequence[str], directions: Mapping[str, Subspace] | None = None
    ) -> Callable[[float], Edit]:
        """The edit of a strength at some sites; a push is shared out evenly among them."""
        chosen = {site: (directions or self.directions)[site] for site in sites}
        share = len(chosen) if self.kind == "add" else 1

        def edit(strength: float) -> Edit:
            return steer(
                chosen,
                strength / share,
                kind=self.kind,
                positions=self.positions,
                name=self.label(strength),
            )

        return edit

    def random(
        self, sites: Sequence[str], draws: int, seed: int
    ) -> dict[str, list[dict[str, Subspace]]]:
        """Random directions as long as the real ones, by control and draw; another at each site."""
        drawn: dict[str, list[dict[str, Subspace]]] = {}
        for number, (control, spread) in enumerate(CONTROLS.items()):
            by_site = {
                site: random_directions(
                    self.directions[site],
                    draws,
                    seed=[seed, 21, number, place],
                    states=self.within[site] if spread else None,
                )
                for place, site in enumerate(sites)
            }
            drawn[control] = [{s: lines[i] for s, lines in by_site.items()} for i in range(draws)]
        return drawn


def together(*observers: Observer) -> Observer:
    """Several observers as one; of one figure that two give, the first counts."""

    def observe(model: Any, edit: Any) -> list[Outcome]:
        found: dict[Key, Outcome] = {}
        for observer in observers:
            for outcome in observer(model, edit):
                found.setdefault(outcome.key, outcome)
        return list(found.values())

    return observe


def mean_of(outcomes: Sequence[Outcome], measure: str) -> float:
    """Mean over the outcomes of one measure, each weighing the same; NaN where there is none."""
    found = [float(np.mean(o.values)) for o in outcomes if o.measure == measure]
    return float(np.mean(found)) if found else float("nan")


def pooled(drawn: Sequence[Outcome]) -> Outcome:
    """One outcome of several random draws: each item by its mean over them."""
    return with_fields(drawn[0], values=np.mean([o.values for o in drawn], axis=0))
