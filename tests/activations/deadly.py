"""Work that ends its workers, in a file that loads nothing heavy, since each worker imports it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from activations import CaptureError


@dataclass(frozen=True)
class Deadly:
    """Pieces that write their number, but for one, which ends whoever computes it."""

    folder: Path
    threads = 1
    gpus = 0

    def compute(self, piece: int, device: str) -> int:
        if piece == 1:
            with (self.folder / "deaths").open("a") as told:
                told.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        if piece == 3:
            raise KeyError("a mistake in piece 3")
        (self.folder / str(piece)).touch()
        return piece * 10

    def lost(self, piece: int, how: str) -> None:
        raise CaptureError(f"Piece {piece} {how}.")
