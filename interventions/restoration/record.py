"""A restoration that can go on: its steps in a folder, each written whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from activations.atomic import write_whole
from interventions.errors import EditError
from interventions.restoration.moves import Moves

_ABOUT = "restoration.json"


class Record:
    """`restoration.json` says what was done; `step-NNN.safetensors` hold what moved."""

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self._folder = Path(folder).expanduser()
        self._settings = json.loads(json.dumps(dict(settings)))

    def earlier(self) -> tuple[bool, list[Moves], list[dict[str, Any]], str]:
        """(rollback on, moves, what was measured, why it stopped) of what is there already.

        Raises:
            EditError: a folder of something else, or of another restoration.
        """
        file = self._folder / _ABOUT
        if not file.is_file():
            if self._folder.exists() and (not self._folder.is_dir() or any(self._folder.iterdir())):
                raise EditError(f"{self._folder} holds no restoration: give a new folder.")
            return False, [], [], ""
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EditError(f"{file} is broken: give a new folder as `record`.") from error
        other = [k for k, v in self._settings.items() if told["settings"].get(k) != v]
        if other:
            raise EditError(
                f"{self._folder} holds a restoration with another {other[0]}: give a new folder."
            )
        count = sum(row["step"] > 0 for row in told["steps"])
        moves = [Moves.load(self._file(step)) for step in range(1, count + 1)]
        return told["rollback"], moves, told["steps"], told["stopped"]

    def add(self, step: int, moves: Moves) -> None:
        """Keep the moves of a step, which count once `tell` has told of it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        moves.save(self._file(step))

    def tell(self, *, rollback: bool, steps: Sequence[Mapping[str, Any]], stopped: str) -> None:
        """Say how far it has come."""
        self._folder.mkdir(parents=True, exist_ok=True)
        told = {
            "format": "isogloss.restoration.1",
            "settings": self._settings,
            "rollback": rollback,
            "stopped": stopped,
            "steps": list(steps),
        }
        write_whole(self._folder / _ABOUT, [(json.dumps(told, indent=2) + "\n").encode()])

    def _file(self, step: int) -> Path:
        return self._folder / f"step-{step:03d}.safetensors"
