"""Long work beside a page: it fills in as it is done, and can be stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pandas as pd

Made = TypeVar("Made")


class Job:
    """Parts of a table, made one after the other in a thread that never touches the page.

    Stop takes effect before the next part; what is done is kept. An exception ends the job and is
    kept for the page to tell.
    """

    def __init__(self, parts: Iterator[pd.DataFrame], count: int, **about: Any) -> None:
        self.count = count
        self.about = about
        self.error: BaseException | None = None
        self._parts = parts
        self._stopped = threading.Event()
        self._rows: list[pd.DataFrame] = []
        self._made: tuple[int, Any] | None = None
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for part in self._parts:
                self._rows.append(part)
                if self._stopped.is_set():
                    return
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """Begin no further part."""
        self._stopped.set()

    def join(self, seconds: float | None = None) -> None:
        """Wait for the end."""
        self._thread.join(seconds)

    @property
    def alive(self) -> bool:
        """Whether more is to come; a stopped job is over at once, even within its last part."""
        return self._thread.is_alive() and not self._stopped.is_set()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    @property
    def done(self) -> int:
        """How many parts are there."""
        return len(self._rows)

    @property
    def seconds_left(self) -> float | None:
        """What the remaining parts take if they go on as so far; None before the first."""
        if not self.done:
            return None
        return (time.monotonic() - self._began) / self.done * (self.count - self.done)

    def latest(self, stage: int, make: Callable[[], Made]) -> Made:
        """`make()`, once for each stage: a page looks more often than there is something new."""
        if self._made is None or self._made[0] != stage:
            self._made = stage, make()
        return self._made[1]

    def frame(self) -> pd.DataFrame:
        """All rows so far."""
        rows = list(self._rows)
        return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
