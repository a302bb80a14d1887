"""A command beside the server: its last lines while it goes on, its end, and how it is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Around the command, in its group: it ends the group once the server's end of its input is closed,
# as it is however the server ends.
_GUARD = """
import os, signal, subprocess, sys, threading

def watch():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)

threading.Thread(target=watch, daemon=True).start()
sys.exit(subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL))
"""
_GRACE = 3.0
_READ = 20_000


class Child:
    """A command in a process group of its own, so that all it starts can be stopped with it.

    It goes on when the page that began it is closed, and ends when this process does.

    Args:
        output: the file that what it writes goes to.

    Raises:
        OSError: no process can be started, or the file not be written.
    """

    def __init__(self, command: Sequence[str], output: Path) -> None:
        self._output = output
        self._began, self._ended = time.monotonic(), 0.0
        self._stopped = False
        with output.open("wb") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _GUARD, *command],
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether it goes on."""
        going = self._process.poll() is None
        if not going and not self._ended:
            self._ended = time.monotonic()
        return going

    @property
    def code(self) -> int | None:
        """Its exit code, not 0 where a signal ended it; None while it goes on."""
        return self._process.poll()

    @property
    def stopped(self) -> bool:
        """Whether `stop` ended it."""
        return self._stopped

    @property
    def seconds(self) -> float:
        """How long it has gone on, or did."""
        return (time.monotonic() if self.alive else self._ended) - self._began

    def lines(self, most: int) -> list[str]:
        """The last lines of what it wrote; of a progress bar, its last state."""
        with self._output.open("rb") as file:
            file.seek(max(0, self._output.stat().st_size - _READ))
            written = file.read(_READ).decode(errors="replace").split("\n")
        seen = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in written]
        return [line for line in seen if line][-most:]

    def stop(self) -> None:
        """End it with all that it started: asked first, made to after some seconds."""
        if not self.alive:
            return
        self._stopped = True
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        # Those that it started may outlive it, or not have listened either.
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, kind: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, kind)
