"""The arms of the experiment: plain, each way to decouple, and the controls it is read beside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from experiments.decouple.settings import DecoupleSettings

#: What `results.parquet` calls the subspaces that are controls.
CONTROLS = {
    "random": "random_subspace",
    "frozen": "frozen_subspace",
    "shuffled": "shuffled_labels",
    "covariance": "covariance_null",
    "top_component": "top_component",
    "l2": "l2_penalty",
}
#: Controls that a gain must beat to be called specific: `frozen` is the same subspace, held still.
RIVALS = tuple(name for key, name in CONTROLS.items() if key != "frozen")
#: The edit of rows about the model that is fine-tuned and not decoupled.
PLAIN = "tune"


@dataclass(frozen=True)
class Arm:
    """One way to fine-tune. `source` says where the subspace is from; `l2` has none.

    Attributes:
        strength: the weight of a penalty, or the share that a projection takes out. That of a
            control is the strength that it is matched to.
    """

    form: str = ""
    source: str = "estimated"
    k: int = 1
    strength: float = 0.0

    @property
    def plain(self) -> bool:
        return not self.form

    @property
    def edit(self) -> str:
        """As the `edit` column has it: a control's is that of the arm it is read beside."""
        return PLAIN if self.plain else f"{PLAIN}+{self.form}(k={self.k}, {self.strength:g})"

    @property
    def control(self) -> str:
        return "" if self.source == "estimated" else CONTROLS[self.source]

    @property
    def slug(self) -> str:
        """As a file's name has it."""
        if self.plain:
            return "plain"
        return f"{self.form}-{self.source}-k{self.k}-{self.strength:g}"


def arms(settings: DecoupleSettings) -> list[Arm]:
    """Every arm once, plain first; the controls stand beside each form's main k and strength."""
    return list(dict.fromkeys(_arms(settings)))


def main_arms(settings: DecoupleSettings) -> list[Arm]:
    """Each form at its main k and strength."""
    return [
        Arm(form, "estimated", settings.k[0], _doses(settings, form)[0])
        for form in _forms(settings)
    ]


def _arms(settings: DecoupleSettings) -> Iterator[Arm]:
    yield Arm()
    for main in main_arms(settings):
        yield main
        yield from (replace(main, strength=dose) for dose in _doses(settings, main.form))
        yield from (replace(main, k=k) for k in settings.k)
    for main in main_arms(settings)[:1]:
        yield from (replace(main, source=source) for source in settings.controls)
        if settings.l2:
            yield replace(main, source="l2")


def _forms(settings: DecoupleSettings) -> list[str]:
    return list(dict.fromkeys(settings.forms))


def _doses(settings: DecoupleSettings, form: str) -> list[float]:
    return settings.strengths if form in ("paper", "penalty") else settings.projections
