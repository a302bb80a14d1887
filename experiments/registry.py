"""The experiments by name: what each asks, what it is told, and what runs it.

Nothing heavy loads before an experiment is run, so that help and batches of many stay quick.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.runner import Run
    from experiments.settings import Settings


@dataclass(frozen=True)
class Experiment:
    """One question, as `isogloss run NAME` asks it.

    Attributes:
        about: one sentence, for help.
        positionals: settings that the command line also takes without their names, all or none.
        settings_at, run_at: `module:name` of the class of its settings, and of the function that
            takes them with `out` and `progress` and returns a `Run`.
    """

    name: str
    about: str
    settings_at: str
    run_at: str
    positionals: tuple[str, ...] = ()

    @property
    def settings(self) -> type[Settings]:
        """The class of its settings."""
        return _load(self.settings_at)

    def run(
        self, settings: Settings, *, out: str | Path | None = None, progress: bool = True
    ) -> Run:
        """Carry it out into a run directory.

        Raises:
            CorpusError, ConfigError, ModelError, SiteError, CaptureError, StoreError: bad input, in
                one sentence.
        """
        return _load(self.run_at)(settings, out=out, progress=progress)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


#: Every experiment by its name on the command line.
EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "compare",
            "Where varieties and alignment lie in a model, what they share, and what depends on "
            "them.",
            "experiments.settings:CompareSettings",
            "experiments.compare:run_compare",
        ),
        Experiment(
            "patch",
            "Which states carry the difference between varieties, by layer, position and head.",
            "experiments.patch:PatchSettings",
            "experiments.patch:run_patch",
        ),
        Experiment(
            "directions",
            "Which one direction refusal hangs on: every place's is scored, the best verified.",
            "experiments.directions:DirectionsSettings",
            "experiments.directions:run_directions",
        ),
        Experiment(
            "steer",
            "How refusal and varieties follow the strength of steering, and what it costs.",
            "experiments.steer:SteerSettings",
            "experiments.steer:run_steer",
        ),
        Experiment(
            "restore",
            "Whether few weights of the aligned model give lost refusals back, and at what cost.",
            "experiments.restore:RestoreSettings",
            "experiments.restore:run_restore",
        ),
        Experiment(
            "diff",
            "What differs between two models: one table, with intervals, of before and after.",
            "experiments.diff:DiffSettings",
            "experiments.diff.job:run_diff",
            positionals=("model", "after"),
        ),
        Experiment(
            "token-shift",
            "Which tokens of a model's answers its base would not have written, and where they "
            "are decided.",
            "experiments.token_shift:TokenShiftSettings",
            "experiments.token_shift:run_token_shift",
            positionals=("base", "model"),
        ),
        Experiment(
            "decouple",
            "Whether fine-tuning on a dialect gains from decoupling it from the standard.",
            "experiments.decouple:DecoupleSettings",
            "experiments.decouple:run_decouple",
        ),
    )
}


def find(name: str) -> Experiment:
    """The experiment of a name.

    Raises:
        ConfigError: there is none; the sentence names the nearest.
    """
    if name in EXPERIMENTS:
        return EXPERIMENTS[name]
    from experiments.settings import ConfigError

    near = difflib.get_close_matches(name, list(EXPERIMENTS), n=1)
    hint = f"did you mean {near[0]}" if near else f"known: {', '.join(EXPERIMENTS)}"
    raise ConfigError(f"There is no experiment {name!r}; {hint}.")
