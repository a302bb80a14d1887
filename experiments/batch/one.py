"""One run of a batch, in a process of its own: what it breaks or leaves in memory is its own.

The process is told what to run in the first line of its standard input, and ends when that is
closed: a run that nobody waits for is taken up later, not computed twice at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from experiments.batch.folder import BatchFolder, State
from experiments.batch.grid import Planned
from experiments.registry import find

#: Exit code where another process is at the same run.
TAKEN = 75
#: Errors of these packages are about the input; others are mistakes of ours, or of the machine.
_OURS = ("activations", "corpora", "evidence", "experiments", "geometry", "interventions",
         "organisms", "probes")  # fmt: skip


def main() -> None:
    """Run what standard input says and put down how it ended."""
    told = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_reader, daemon=True).start()
    kind = find(told["experiment"])
    run = Planned(kind.name, kind.settings(**told["settings"]))
    folder = BatchFolder(Path(told["root"]))
    lock = _taken(folder.status_file(run).with_suffix(".lock"))
    if lock is None:
        sys.exit(TAKEN)
    began = time.perf_counter()
    status: dict[str, object] = {"state": State.done, "seconds": 0.0}
    try:
        kind.run(run.settings, out=folder.run(run), progress=False)
    except Exception as error:
        traceback.print_exc()
        status = {"state": State.failed, "error": one_sentence(error)}
    status["seconds"] = round(time.perf_counter() - began, 2)
    folder.put_down(run, status)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if status["state"] == State.done else 1)  # libraries' own threads may linger


def one_sentence(error: Exception) -> str:
    """What was wrong, on one line; of what is not about the input, also what kind of error."""
    said = " ".join(str(error).split())
    if type(error).__module__.split(".")[0] in _OURS:
        return said
    return f"{type(error).__name__}: {said[:300]}".rstrip(": ")


def _end_with_reader() -> None:
    sys.stdin.read()
    os._exit(TAKEN)


def _taken(path: Path) -> object | None:
    """An open file that is this process's alone for as long as it lives; None if another has it."""
    opened = path.open("w")
    try:
        import fcntl

        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        opened.close()
        return None
    except (ImportError, OSError):  # no locks on this system or this disk: nobody is kept out
        pass
    return opened
