"""A run again with changed settings: what a page may change, where it goes, and the run itself.

A browser names no path. What it may say is checked here, by the settings class that the command
line uses; where the run is made follows from the run that it repeats.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from apps.child import Child
from apps.session import config
from experiments.registry import EXPERIMENTS, Experiment
from experiments.settings import ConfigError, Settings

#: Settings that name a model; a page offers those that it knows.
MODELS = ("model", "base", "after", "aligned", "other")
# Texts that are no path and run no code. Other texts, as `corpus` or `store`, stay as they are.
_FREE_TEXTS = ("standard", "device", "dtype")
_KEPT = ("trust_remote_code",)


def experiment_of(run: Path) -> Experiment:
    """What was run: by the folder runs/EXPERIMENT/RUN, or else by the settings that it has."""
    named = run.resolve().parent.name
    if named in EXPERIMENTS:
        return EXPERIMENTS[named]
    told = set(config(run))
    own = [e for e in EXPERIMENTS.values() if set(e.settings.model_fields) == told]
    return own[0] if len(own) == 1 else EXPERIMENTS["compare"]


def models_of(experiment: Experiment) -> list[str]:
    """Its settings that name a model."""
    return [name for name in MODELS if name in experiment.settings.model_fields]


def changeable(experiment: Experiment) -> list[str]:
    """Its settings that may be written anew, models apart."""
    free = []
    for name, about in experiment.settings.model_fields.items():
        path_like = about.annotation is str and name not in _FREE_TEXTS
        if not path_like and name not in (*_KEPT, *MODELS):
            free.append(name)
    return free


def as_text(experiment: Experiment, run: Path) -> str:
    """The run's settings that may be changed, as TOML.

    Raises:
        ConfigError: the run's settings are not this experiment's.
    """
    told = experiment.settings.read(options=config(run)).model_dump()
    return tomli_w.dumps({name: told[name] for name in changeable(experiment)})


def changed(
    experiment: Experiment,
    run: Path,
    text: str,
    models: Mapping[str, str],
    offered: list[str],
) -> Settings:
    """The run's settings with those of `text` and the models put in.

    Raises:
        ConfigError: no TOML, a setting that does not exist or cannot have the value, one that a
            page does not change, or a model that it does not offer.
    """
    try:
        written = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"The settings are not valid TOML: {error}.") from None
    if twice := [name for name in models if name in written]:
        raise ConfigError(f"{twice[0]!r} is chosen above the settings, not among them.")
    before = experiment.settings.read(options=config(run))
    after = experiment.settings.read(options=before.model_dump() | written | dict(models))
    free = changeable(experiment)
    if before.trust_remote_code and any(getattr(after, m) != getattr(before, m) for m in models):
        raise ConfigError(
            "This run runs the code that its model brings, so a page does not put another model in "
            "its place; on the command line, --model does."
        )
    for name, value in after.model_dump().items():
        if value == getattr(before, name) or name in free:
            continue
        if name not in MODELS:
            raise ConfigError(
                f"{name!r} stays as in the run: it can name a file or run code, and a page may "
                f"not; on the command line, --set {name}=… changes it."
            )
        if value not in offered:
            raise ConfigError(
                f"{value!r} is no model that is offered here; isogloss explore --model ID offers "
                "another."
            )
    return after


def place_for(experiment: Experiment, run: Path, root: Path, settings: Settings) -> Path:
    """A new folder beside the run; of a run from elsewhere, under the folder that is explored.

    Raises:
        ConfigError: what is explored is one run, which has no room beside it.
    """
    around = root.resolve().parent
    if (root / "config.toml").is_file() or (root / "results.parquet").is_file():
        raise ConfigError(
            f"The explorer was started on the run {root.resolve().name} alone; to run it again, "
            f"start it on the folder around it: isogloss explore {os.path.relpath(around)}."
        )
    beside = run.parent
    inside = beside.resolve().is_relative_to(root.resolve())
    if not (inside and (beside.resolve() == root.resolve() or beside.name == experiment.name)):
        beside = root / experiment.name
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{settings.digest()}"
    names = [stem, *(f"{stem}-{i}" for i in range(2, 100))]
    return next(beside / name for name in names if not (beside / name).exists())


@dataclass
class Rerun:
    """A run under way, or just ended."""

    experiment: str
    out: Path
    child: Child
    _folder: tempfile.TemporaryDirectory[str] = field(repr=False)

    @classmethod
    def begin(cls, experiment: Experiment, settings: Settings, out: Path) -> Rerun:
        """Start `isogloss run` with these settings into `out`, which it makes or goes on with."""
        # Not in `out`, which the command makes once it has checked its input.
        folder = tempfile.TemporaryDirectory(prefix="isogloss-")
        told = Path(folder.name) / "config.toml"
        settings.write(told)
        child = Child(command(experiment, told, out), Path(folder.name) / "output.txt")
        return cls(experiment.name, out, child, folder)

    @property
    def stages(self) -> list[str]:
        """The stages that are measured and kept, the oldest first; none once the run is done."""
        kept = list((self.out / "stages").glob("*.parquet"))
        return [p.stem for p in sorted(kept, key=lambda p: p.stat().st_mtime)]

    @property
    def refusal(self) -> str:
        """The command's sentence about bad input; empty where it ended otherwise."""
        said = self.child.lines(1)
        refused = self.child.code == 2 and said and said[0].startswith("isogloss: ")
        return said[0].removeprefix("isogloss: ") if refused else ""


def command(experiment: Experiment, settings: Path, out: Path) -> list[str]:
    """The command line that a child process carries out."""
    told = ["--config", str(settings), "--out", str(out)]
    return [sys.executable, "-m", "apps.cli", "run", experiment.name, *told]


class Desk:
    """The one run that a server carries out at a time, seen from every page of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._run: Rerun | None = None

    @property
    def run(self) -> Rerun | None:
        """What is under way or has ended last."""
        return self._run

    def at_work(self, run: Path | None = None) -> bool:
        """Whether a run is under way, or this one is."""
        now = self._run
        if now is None or not now.child.alive:
            return False
        return run is None or now.out.resolve() == run.resolve()

    def begin(self, experiment: Experiment, settings: Settings, out: Path) -> Rerun:
        """Start a run.

        Raises:
            ConfigError: another is under way.
        """
        with self._lock:
            if self._run is not None and self._run.child.alive:
                raise ConfigError(
                    f"The run {self._run.out.name} is still under way; wait for it or stop it."
                )
            self._run = Rerun.begin(experiment, settings, out)
            return self._run

    def clear(self) -> None:
        """Forget a run that has ended."""
        with self._lock:
            if self._run is not None and not self._run.child.alive:
                self._run = None


DESK = Desk()
