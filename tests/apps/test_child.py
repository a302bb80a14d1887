"""A command beside the server: what is seen of it, and that stopping leaves nothing behind."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from apps.child import Child


def python(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", code]


def until(ready: Callable[[], object], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_there(pid: int) -> bool:
    """Whether a process of that number runs; one that only waits to be reaped does not."""
    told = Path(f"/proc/{pid}/stat")
    try:
        os.kill(pid, 0)
        return not told.exists() or told.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_lines_and_code_are_the_commands(tmp_path: Path) -> None:
    code = "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"
    child = Child(python(code), tmp_path / "out")
    until(lambda: not child.alive)
    assert child.code == 3 and not child.stopped
    assert child.lines(5) == ["one", "two"] and child.lines(1) == ["two"]
    held = child.seconds
    time.sleep(0.05)
    assert child.seconds == held


def test_a_bar_is_its_last_state_and_a_long_output_its_end(tmp_path: Path) -> None:
    code = "print('x' * 99, *range(20000), sep='\\n'); print('\\r'.join(f'{i}%' for i in range(9)))"
    child = Child(python(code), tmp_path / "out")
    until(lambda: not child.alive)
    assert child.lines(3) == ["19998", "19999", "8%"]


def test_lines_come_while_it_goes_on(tmp_path: Path) -> None:
    child = Child(python("import time; print('here'); time.sleep(60)"), tmp_path / "out")
    until(lambda: child.lines(1) == ["here"])
    assert child.alive and child.code is None
    child.stop()
    assert not child.alive and child.stopped


@pytest.mark.parametrize("deaf", [False, True])
def test_stop_ends_what_the_command_started_too(tmp_path: Path, deaf: bool) -> None:
    listen = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else ""
    inner = f"{listen}import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    outer = f"{listen}import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    child = Child(python(outer), tmp_path / "out")
    until(lambda: child.lines(1))
    pid = int(child.lines(1)[0])
    assert is_there(pid)
    began = time.monotonic()
    child.stop()
    assert not child.alive and time.monotonic() - began < 6
    until(lambda: not is_there(pid), 2)
    child.stop()  # of one that has ended: nothing


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_child_ends_with_the_process_that_began_it(tmp_path: Path, end: str) -> None:
    inner = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    code = (
        "import os, signal, sys, time; from pathlib import Path; from apps.child import Child\n"
        f"child = Child([sys.executable, '-c', {inner!r}], Path({str(tmp_path / 'out')!r}))\n"
        "while not child.lines(1): time.sleep(0.02)\n"
        f"print(child.lines(1)[0])\n{end}"
    )
    outer = Child(python(code), tmp_path / "outer")
    until(lambda: not outer.alive)
    assert outer.lines(1)[0].isdigit()
    until(lambda: not is_there(int(outer.lines(1)[0])), 5)


def test_a_command_that_is_not_there_fails_and_says_so(tmp_path: Path) -> None:
    child = Child([str(tmp_path / "none")], tmp_path / "out")
    until(lambda: not child.alive)
    assert child.code and "none" in child.lines(1)[0]


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Child(python("pass"), tmp_path / "no" / "out")
