"""Controls of equal energy: what a control must weigh to touch as much of the states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from interventions.decoupling.decoupling import Decoupling
from interventions.decoupling.reference import Reference
from interventions.decoupling.settings import SHARES, DecouplingSettings
from interventions.errors import EditError


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
    if (settings.form in SHARES) != (control.form in SHARES):
        raise EditError(
            f"The form {control.form} cannot be matched to {settings.form}: a penalty's weight and "
            "a share of the states are not of one kind."
        )
    of = replace(settings, warmup=0)
    wanted = _energy(model, reference, standard, of, dialects)
    energy = _energy(model, reference, standard, replace(control, warmup=0), dialects)
    assert settings.strength is not None
    if not energy > 0:
        raise EditError(
            f"The dialect's reference states have no energy that {control.form} with "
            f"{control.source} would touch, so no strength matches."
        )
    if settings.form not in SHARES:
        wanted *= settings.strength
        return MatchedStrength(wanted / energy, energy, wanted, 1.0)
    wanted *= settings.strength**2
    share = min(1.0, math.sqrt(wanted / energy))
    reached = share**2 * energy / wanted if wanted else 1.0
    return MatchedStrength(share, energy, wanted, reached)


def _energy(
    model: Any,
    reference: Reference,
    standard: str,
    settings: DecouplingSettings,
    dialects: str | Sequence[str] | None,
) -> float:
    """Of the dialects' reference states at step 0, mean over layers."""
    if settings.form == "gradient":  # what it would take from states; nothing is trained yet
        settings = replace(settings, form="projection")
    decoupling = Decoupling(model, reference, standard=standard, settings=settings)
    names = [dialects] if isinstance(dialects, str) else dialects
    if names is None:
        names = sorted(set(reference.varieties) - {standard})
    return decoupling.reference_energy(names)
