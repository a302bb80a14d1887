"""A run directory: where an experiment's settings, figures, findings and log live together."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.results import as_frame, write_frame
from experiments.settings import ConfigError, Settings

#: The texts of a run on chosen directions, to look at beside its `results.parquet`, and those
#: directions.
PROJECTION = "projection.parquet"
PROJECTION_AXES = "projection_axes.parquet"

_PACKAGES = [
    "isogloss",
    "torch",
    "transformers",
    "transformer-lens",
    "nnsight",
    "scikit-learn",
    "jax",
    "einops",
    "numpy",
    "scipy",
    "pandas",
]


class Run:
    """One run directory, made or continued.

    Each stage's table is kept under `stages/` as soon as it is measured; a run that was killed
    goes on after the last one.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.settings = settings
        self.log = logging.getLogger(f"isogloss.{path.name}")

    def __repr__(self) -> str:
        state = "done" if (self.path / "report.md").is_file() else "unfinished"
        return f"Run({str(self.path)!r}, {self.settings.model}, {state})"

    def _repr_html_(self) -> str:
        """Where it is and what was set otherwise than by default; its results are not read."""
        facts = {"run": str(self.path), "model": self.settings.model}
        facts["state"] = "done" if (self.path / "report.md").is_file() else "unfinished"
        for name, given in type(self.settings).model_fields.items():
            value = getattr(self.settings, name)
            if name != "model" and value != given.get_default(call_default_factory=True):
                facts[name] = str(value)
        return pd.Series(facts, dtype=object).to_frame().to_html(header=False, border=0)

    @classmethod
    def start(
        cls,
        experiment: str,
        settings: Settings,
        *,
        out: str | Path | None,
        root: str | Path = "runs",
    ) -> Run:
        """Continue the unfinished run of these settings, or begin one.

        Raises:
            ConfigError: `out` holds something else than a run of the same settings.
        """
        path = Path(out) if out else cls._unfinished(Path(root) / experiment, settings)
        if path is None:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            path = Path(root) / experiment / f"{stamp}-{settings.digest()}"
        check_out(path, settings)
        _make(path)
        run = cls(path, settings)
        settings.write(path / "config.toml")
        run._open_log()
        return run

    @staticmethod
    def _unfinished(folder: Path, settings: Settings) -> Path | None:
        runs = sorted(folder.glob(f"*-{settings.digest()}"))
        return next((run for run in reversed(runs) if not (run / "report.md").exists()), None)

    def _open_log(self) -> None:
        self.log.setLevel(logging.INFO)
        self.log.propagate = False
        for handler in list(self.log.handlers):
            self.log.removeHandler(handler)
        handler = logging.FileHandler(self.path / "log.txt", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self.log.addHandler(handler)

    def stage(self, name: str, measure: Callable[[], Iterable[Mapping[str, Any]]]) -> pd.DataFrame:
        """The stage's rows: read back if they are there, else measured and kept."""
        path = self.path / "stages" / f"{name}.parquet"
        if path.exists():
            self.log.info("%s: kept from before", name)
            return pd.read_parquet(path)
        began = time.perf_counter()
        frame = as_frame(measure())
        write_frame(frame, path)
        self.log.info("%s: %d rows in %.1f s", name, len(frame), time.perf_counter() - began)
        return frame

    def write_environment(self, **facts: Any) -> None:
        """Versions, device, seed and the source's commit, for whoever repeats the run."""
        facts |= {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "packages": {name: _version(name) for name in _PACKAGES},
            "commit": _commit(),
            "seed": self.settings.seed,
        }
        text = json.dumps(facts, indent=2, default=str) + "\n"
        (self.path / "environment.json").write_text(text, encoding="utf-8")

    def finish(self, frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
        """Join the stages into `results.parquet`; the stage files have then served."""
        results = pd.concat([f for f in frames if len(f)], ignore_index=True)
        write_frame(results, self.path / "results.parquet")
        return results

    def clean(self) -> None:
        """Once the report stands, what only served to continue goes."""
        shutil.rmtree(self.path / "stages", ignore_errors=True)


def check_out(path: Path, settings: Settings) -> None:
    """Refuse a folder that holds anything but an earlier run of the same settings."""
    if path.is_file():
        raise ConfigError(f"--out {path} is a file; name a folder.")
    above = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        raise ConfigError(f"--out {path} cannot be made in {above}; name another folder.")
    if not path.exists() or not any(path.iterdir()):
        return
    earlier = path / "config.toml"
    if not earlier.exists():
        raise ConfigError(
            f"--out {path} is not empty and not a run directory; name another folder."
        )
    same = type(settings).read(earlier).digest() == settings.digest()
    if not same:
        raise ConfigError(f"--out {path} holds a run with other settings; name another folder.")


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out {path} cannot be made ({error.strerror}); name another folder."
        ) from None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout this code runs from; None for an installed wheel."""
    import subprocess

    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return None
    done = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
