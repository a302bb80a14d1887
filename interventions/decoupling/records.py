"""What is told of each update: numbers by layer, a line for the terminal, a Parquet file."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from activations.atomic import write_whole
from geometry import overlap

if TYPE_CHECKING:
    import pandas as pd

#: Of the dialect's leading principal directions that are compared with the subspace.
_LEADING = 8
#: States that are looked at, spread evenly over those there are.
_MOST = 512


@dataclass(frozen=True)
class Record:
    """One layer at one update; columns as `Decoupling.telemetry` says."""

    step: int
    update: int
    layer: int
    strength: float
    k: int
    inside: float
    overlap: float
    chance: float
    start_overlap: float
    last_overlap: float
    code_nats: float
    uniform_nats: float
    probe_accuracy: float
    task_loss: float
    decoupling_loss: float


def look(
    states: Float[torch.Tensor, "n d"] | None, basis: Float[np.ndarray, "d k"]
) -> tuple[float, float, float]:
    """(share inside, overlap, overlap of chance) of a dialect's states with a subspace.

    The share is of their variance about their own mean; the overlap is the mean squared cosine
    with their leading principal directions; by chance it is max(k, directions) / d on average.
    """
    nothing = float("nan")
    if states is None or len(states) < 2:
        return nothing, nothing, nothing
    x = states[:: -(-len(states) // _MOST)].double().cpu().numpy()
    x = x - x.mean(axis=0)
    total = float((x * x).sum())
    if total == 0:
        return nothing, nothing, nothing
    spread, axes = np.linalg.eigh(x.T @ x)
    there = min(_LEADING, int((spread > 1e-12 * spread[-1]).sum()))
    leading = axes[:, -there:]
    chance = max(leading.shape[1], basis.shape[1]) / basis.shape[0]
    return float(((x @ basis) ** 2).sum() / total), overlap(leading, basis), chance


def frame(records: list[Record]) -> pd.DataFrame:
    """A row for each record."""
    import pandas as pd

    names = [one.name for one in fields(Record)]
    return pd.DataFrame([vars(record) for record in records], columns=names)  # type: ignore[arg-type]


def write(records: list[Record], path: str | Path) -> Path:
    """The frame as Parquet, whole or not there."""
    file = Path(path).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    held = io.BytesIO()
    frame(records).to_parquet(held, index=False)
    write_whole(file, [held.getvalue()])
    return file


def line(records: list[Record]) -> Mapping[str, str]:
    """What is told of an update: means over layers."""
    first = records[0]
    said = {"step": str(first.step), "strength": f"{first.strength:.3g}"}
    for name, title, form in (
        ("inside", "inside", ".4f"),
        ("overlap", "overlap", ".3f"),
        ("code_nats", "code", ".3f"),
        ("probe_accuracy", "probe", ".3f"),
        ("task_loss", "task", ".4f"),
        ("decoupling_loss", "decoupling", ".3g"),
    ):
        values = np.array([getattr(record, name) for record in records], dtype=float)
        if np.isfinite(values).any():
            said[title] = format(float(np.nanmean(values)), form)
    return said


def tell(progress: Any, records: list[Record]) -> None:
    """Says it where `progress` asks: a tqdm bar, a callable, or True for standard error."""
    if progress is None or progress is False:
        return
    said = line(records)
    if hasattr(progress, "set_postfix"):
        progress.set_postfix(said)
        return
    text = "decoupling  " + "  ".join(f"{name} {value}" for name, value in said.items())
    if callable(progress):
        progress(text)
    else:
        print(text, file=sys.stderr)
