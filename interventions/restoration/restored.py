"""Which weights were restored, by layer and kind, and the folder of the model that has them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interventions.restoration.moves import Moves, moved
from interventions.restoration.scope import Scope
from interventions.weights.edited import EditedModel, save_edited, versions

if TYPE_CHECKING:
    from activations import Model

#: Beside the weights of a saved model.
ABOUT, TABLE, PLACES = "isogloss_restoration.json", "restored.parquet", "restored.safetensors"


@dataclass(frozen=True, eq=False)
class Restoration:
    """What was restored, step by step.

    Attributes:
        model: the fine-tuned model, as it was.
        aligned: what the aligned model is called.
        moves: of each step, net of what went back.
        steps: measurements, the first (step 0) of the model as it was: `step`, `restored` (weights
            of that step), `cosine` (of its mean harmful state with A's), `harmful_metric`,
            `task_metric` (None where not measured).
        stopped: `target`, `task metric`, `steps`, or `no candidates`.
        rollback: whether it was on at the end.
    """

    model: Model
    aligned: str
    scope: Scope
    moves: tuple[Moves, ...]
    steps: tuple[Mapping[str, Any], ...]
    stopped: str
    rollback: bool
    settings: Mapping[str, Any]
    source: Mapping[str, Any]

    def share(self, step: int | None = None) -> float:
        """The share of all the model's weights that are restored after a step, or at the end."""
        return sum(one.count for one in self.moves[:step]) / self.scope.total

    @contextmanager
    def applied(self, step: int | None = None) -> Iterator[Model]:
        """The model with the weights restored up to a step, or all; as before on leaving."""
        with moved(self.model, self.moves[:step]) as model:
            yield model

    def frame(self, step: int | None = None) -> pd.DataFrame:
        """How many weights were restored: one row for each movable weight matrix and step.

        Columns parameter, layer (block, -1 for none), kind, step, restored, of (its size).
        """
        sizes = {name: one.numel() for name, one in self.model.hf.named_parameters()}
        rows = [
            {
                "parameter": name,
                "layer": self.scope.layers[name],
                "kind": self.scope.kinds[name],
                "step": number,
                "restored": len(one.places.get(name, ())),
                "of": sizes[name],
            }
            for number, one in enumerate(self.moves[:step], start=1)
            for name in self.scope.movable
        ]
        columns = ["parameter", "layer", "kind", "step", "restored", "of"]
        return pd.DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        return (
            f"Restoration({self.model.name!r} from {self.aligned!r}: {self.share():.2%} of "
            f"{self.scope.total} weights in {len(self.moves)} steps, below layer "
            f"{self.scope.layer}; stopped by {self.stopped})"
        )


def save_restored(restoration: Restoration, folder: str | Path, *, step: int | None = None) -> Path:
    """Write the restored model as an ordinary Hugging Face folder, with what was restored beside.

    `isogloss_restoration.json` says what was done and measured; `restored.parquet` is
    `Restoration.frame`; `restored.safetensors` holds for each weight matrix the flat indices that
    were restored and, under NAME|step, in which step. In the dtype in which the model is open.

    Args:
        folder: new, or empty.
        step: only the weights restored up to this step.

    Raises:
        EditError: a folder that holds something.
    """
    about = {
        "format": "isogloss.restoration.1",
        "kind": "restoration",
        "source": dict(restoration.source),
        "aligned": restoration.aligned,
        "settings": dict(restoration.settings),
        "rollback": restoration.rollback,
        "stopped": restoration.stopped,
        "share": restoration.share(step),
        "steps": [dict(row) for row in restoration.steps[: None if step is None else step + 1]],
        "versions": versions(),
    }

    def beside(partial: Path) -> None:
        text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        (partial / ABOUT).write_text(text, encoding="utf-8")
        restoration.frame(step).to_parquet(partial / TABLE, index=False)
        _save_places(restoration.moves[:step], partial / PLACES)

    with restoration.applied(step) as model:
        edited = EditedModel(model.hf, model.tokenizer, about)
        return save_edited(edited, folder, beside=beside)


def _save_places(moves: tuple[Moves, ...], file: Path) -> None:
    import torch
    from safetensors.torch import save_file

    held = {}
    for name in dict.fromkeys(n for one in moves for n in one.places):
        parts = [(k, one.places[name]) for k, one in enumerate(moves, 1) if name in one.places]
        held[name] = torch.cat([index for _, index in parts])
        held[f"{name}|step"] = torch.cat(
            [torch.full((len(index),), number, dtype=torch.int16) for number, index in parts]
        )
    save_file(held, str(file))
