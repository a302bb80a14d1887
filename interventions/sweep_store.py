"""What a sweep has done so far, on disk, so that one that was cut off goes on."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from activations.atomic import remove_partials, write_whole
from interventions.cells import Case
from interventions.errors import EditError

if TYPE_CHECKING:
    from activations import Model

_NAME = "sweep.json"


@dataclass(frozen=True)
class SweepStore:
    """A folder with one table for each piece of a sweep; none is kept where it is None.

    Attributes:
        bounds: piece k is the cases from `bounds[k]` to `bounds[k + 1]`.
    """

    folder: Path | None
    bounds: tuple[int, ...]

    @classmethod
    def at(
        cls,
        folder: str | Path | None,
        model: Model,
        cases: Sequence[Case],
        sites: Sequence[str],
        settings: tuple[Any, ...],
        bounds: Sequence[int],
    ) -> SweepStore:
        """The store of this sweep, begun if it is not there; one that is there keeps its bounds.

        Raises:
            EditError: the folder holds another sweep, or something else.
        """
        if folder is None:
            return cls(None, tuple(bounds))
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
            other += ["pieces"] if not other and "pieces" not in found else []
            if other:
                raise EditError(
                    f"{path} holds a sweep with other {', '.join(other)}: give another folder, or "
                    "delete this one."
                )
            remove_partials(path)
        elif path.exists() and any(path.iterdir()):
            raise EditError(f"{path} holds no sweep and is not empty: give another folder.")
        else:
            path.mkdir(parents=True, exist_ok=True)
            found = {**wanted, "pieces": list(bounds)}
            write_whole(about, [json.dumps(found, indent=1).encode()])
        return cls(path, tuple(found["pieces"]))

    def has(self, piece: int) -> bool:
        """Whether a piece is done."""
        path = self._path(piece)
        return path is not None and path.is_file()

    def read(self, piece: int) -> pd.DataFrame | None:
        """The rows of a piece that is done."""
        path = self._path(piece)
        return pd.read_parquet(path) if path is not None and self.has(piece) else None

    def write(self, piece: int, frame: pd.DataFrame) -> None:
        """Keep the rows of a piece."""
        path = self._path(piece)
        if path is not None:
            table = io.BytesIO()
            frame.to_parquet(table, index=False)
            write_whole(path, [table.getbuffer()])

    def _path(self, piece: int) -> Path | None:
        return None if self.folder is None else self.folder / f"{piece:05d}.parquet"


def array_digest(array: np.ndarray) -> str:
    """SHA-256 of an array's values and shape."""
    shaped = f"{array.dtype} {array.shape}".encode()
    return hashlib.sha256(shaped + np.ascontiguousarray(array).tobytes()).hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
