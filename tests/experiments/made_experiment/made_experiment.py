"""An experiment that does as it is told: it ends well, fails, dies, or waits for a file."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from pydantic import Field

from evidence import Estimate
from experiments.results import as_frame, row
from experiments.runner import Run
from experiments.settings import ConfigError, Settings


class MadeSettings(Settings):
    """What to do, and a figure to give."""

    act: str = "well"
    corpus: str = ""
    figure: float = 1.0
    place: str = ""
    parts: list[int] = Field(default=[])


def run_made(settings: MadeSettings, *, out: Path, progress: bool) -> Run:
    """Tell `place` that it has begun, then act."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    with (Path(settings.place) / "begun").open("a") as told:
        told.write(f"{settings.act} {os.getpid()} {os.environ['OMP_NUM_THREADS']} {shown}\n")
    if settings.act == "fail":
        raise ConfigError("There is no such thing; give another.")
    if settings.act == "err":
        raise KeyError("a mistake of ours")
    if settings.act == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    while settings.act == "wait" and not (Path(settings.place) / "go").exists():
        time.sleep(0.02)
    run = Run.start("made", settings, out=out)
    rows: list[dict[str, Any]] = [
        row("figure", Estimate(settings.figure + i, i, settings.figure + 2 * i, n=9), layer=i)
        for i in range(4)
    ]
    rows.append(row("figure", 99.0, control="chance"))
    run.finish([as_frame(rows)])
    (run.path / "report.md").write_text("done")
    return run
