"""A batch's folder: where each run lies, and how far it has come."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from experiments.batch.grid import Planned
from experiments.settings import ConfigError


class State(StrEnum):
    """How far a run has come."""

    done = "done"
    failed = "failed"
    to_do = "to do"


@dataclass(frozen=True)
class BatchFolder:
    """`runs/NAME/` are the run directories, `status/NAME.json` how each ended, `logs/NAME.log`
    what it said; `grid.toml`, `results.parquet`, `report.md` and `figures/` are the batch's own.
    """

    root: Path

    @classmethod
    def at(cls, root: str | Path) -> BatchFolder:
        """The folder, which need not be there yet.

        Raises:
            ConfigError: something else is there.
        """
        path = Path(root).absolute()
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--out {root} is a file; name a folder.")
        if path.exists() and any(path.iterdir()) and not (path / "grid.toml").is_file():
            raise ConfigError(f"--out {root} is not empty and holds no batch; name another folder.")
        return cls(path)

    def begin(self, grid: str) -> None:
        """Make the folder, and keep the grid in it as it is now.

        Raises:
            ConfigError: it cannot be made.
        """
        from activations.atomic import write_whole

        try:
            for name in ("runs", "status", "logs"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            write_whole(self.root / "grid.toml", [grid.encode()])
        except OSError as error:
            raise ConfigError(
                f"--out {self.root} cannot be made ({error.strerror}); name another folder."
            ) from None

    def run(self, run: Planned) -> Path:
        """The run directory."""
        return self.root / "runs" / run.name

    def results(self, run: Planned) -> Path:
        """The run's table of measurements."""
        return self.run(run) / "results.parquet"

    def log(self, run: Planned) -> Path:
        """What the run's process said, also what killed it."""
        return self.root / "logs" / f"{run.name}.log"

    def status_file(self, run: Planned) -> Path:
        """How the run ended, in JSON."""
        return self.root / "status" / f"{run.name}.json"

    def status(self, run: Planned) -> dict[str, Any]:
        """What is put down of how the run ended; empty where it has not."""
        try:
            return json.loads(self.status_file(run).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def put_down(self, run: Planned, status: Mapping[str, Any]) -> None:
        """Keep how the run ended."""
        from activations.atomic import write_whole

        text = json.dumps(dict(status), indent=1) + "\n"
        write_whole(self.status_file(run), [text.encode()])

    def state(self, run: Planned) -> State:
        """Done is what has its report, whatever else is put down."""
        if (self.run(run) / "report.md").is_file() and self.results(run).is_file():
            return State.done
        return State.failed if self.status(run).get("state") == State.failed else State.to_do
