"""What a sweep has done so far, on disk, so that one that was cut off goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interventions.cells import Case
from interventions.errors import EditError

if TYPE_CHECKING:
    from activations import Model

_NAME = "sweep.json"


@dataclass(frozen=True)
class SweepStore:
    """A folder with one table for each piece of a sweep; none is kept where it is None."""

    folder: Path | None

    @classmethod
    def at(
        cls,
        folder: str | Path | None,
        model: Model,
        cases: Sequence[Case],
        sites: Sequence[str],
        settings: tuple[Any, ...],
    ) -> SweepStore:
        """The store of this sweep, begun if it is not there.

        Raises:
            EditError: the folder holds another sweep, or something else.
        """
        if folder is None:
            return cls(None)
        path = Path(folder)
        wanted = {
            "model": model.digest,
            "dtype": str(model.dtype),
            "texts": _digest([[c.way, c.base, c.source, c.aligned.tolist()] for c in cases]),
            "answers": _digest([[c.reading.answer, c.reading.vocabulary] for c in cases]),
            "sites": list(sites),
            "settings": list(settings),
        }
        about = path / _NAME
        if about.is_file():
            try:
                found = json.loads(about.read_text(encoding="utf-8"))
            except ValueError:
                found = {}
            other = [name for name in wanted if found.get(name) != wanted[name]]
            if other:
                raise EditError(
                    f"{path} holds a sweep with other {', '.join(other)}: give another folder, or "
                    "delete this one."
                )
        elif path.exists() and any(path.iterdir()):
            raise EditError(f"{path} holds no sweep and is not empty: give another folder.")
        else:
            path.mkdir(parents=True, exist_ok=True)
            _write_whole(about, json.dumps(wanted, indent=1).encode())
        return cls(path)

    def read(self, piece: int) -> pd.DataFrame | None:
        """The rows of a piece that is done."""
        path = self._path(piece)
        return pd.read_parquet(path) if path is not None and path.is_file() else None

    def write(self, piece: int, frame: pd.DataFrame) -> None:
        """Keep the rows of a piece."""
        path = self._path(piece)
        if path is not None:
            partial = path.with_suffix(".partial")
            frame.to_parquet(partial, index=False)
            partial.replace(path)

    def _path(self, piece: int) -> Path | None:
        return None if self.folder is None else self.folder / f"{piece:05d}.parquet"


def array_digest(array: np.ndarray) -> str:
    """SHA-256 of an array's values and shape."""
    shaped = f"{array.dtype} {array.shape}".encode()
    return hashlib.sha256(shaped + np.ascontiguousarray(array).tobytes()).hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    partial.replace(path)
