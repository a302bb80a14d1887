"""Controls of equal energy: what a control must weigh to touch as much of the states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interventions.decoupling.reference import Reference
from interventions.decoupling.settings import DecouplingSettings


@dataclass(frozen=True)
class MatchedStrength:
    """A control's strength, and what of the states it touches at step 0.

    Attributes:
        strength: for `dataclasses.replace(control, strength=...)`.
        energy: of the dialect's reference states at strength 1, mean over layers: E‖Pᵀ(h-μ)‖², or
            E‖Pᵀh‖ for `paper` and E‖h‖² for `l2`, for the control.
        wanted: energy times strength (times its square for shares) of what it is matched to.
        reached: share of `wanted` that the control reaches: 1, or less where a share α would have
            to be above 1 and is 1 instead.
    """

    strength: float
    energy: float
    wanted: float
    reached: float


def matched_strength(
    model: Any,
    reference: Reference,
    *,
    standard: str,
    settings: DecouplingSettings,
    control: DecouplingSettings,
    dialects: str | Sequence[str] | None = None,
) -> MatchedStrength:
    """The strength at which `control` touches as much energy at step 0 as `settings` does.

    Energy is what is penalised of the reference states of `dialects` (all but the standard where
    None), before any training: a penalty's value at its strength; for `projection` and `gradient`
    the squared length of what is taken from a state at share α, α² E‖Pᵀ(h-μ)‖². The strength of
    `control` itself is not used, and warm-up counts as over.

    Raises:
        EditError: a penalty matched to a share or the reverse, a dialect that the reference has no
            text of, states without energy in the control's subspace.
    """
    raise NotImplementedError
