"""Decoupling: a dialect's states kept out of the standard's subspace while a model is tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor

from geometry import Subspace
from interventions.decoupling.reference import Reference
from interventions.decoupling.settings import DecouplingSettings

if TYPE_CHECKING:
    import pandas as pd


class Decoupling:
    """Follows the standard's subspace while a causal language model is tuned, and decouples.

    ```python
    with Decoupling(model, reference, standard="arden") as decoupling:
        for batch, varieties in loader:
            with decoupling.rows(varieties):
                loss = model(**batch).loss
            (loss + decoupling.loss()).backward()
            decoupling.step(optimizer)
            optimizer.zero_grad()
    ```

    Forms (`settings.form`), P `[d, k]` the subspace's basis, h a state at a block's output; E is
    over the tokens that count of the batch's rows in other varieties than the standard:

    - `penalty` (ours): λ E‖Pᵀ(h - μ)‖², mean over layers.
    - `projection` (ours): h ← h - α P Pᵀ(h - μ) in the forward pass.
    - `gradient` (ours): of what an optimiser's step (with its momentum and weight decay) changes in
      the matrices and biases that write to the residual stream, the share α that writes into the
      subspace is taken back. Writers up to a decoupled layer are held out of the subspace of the
      first decoupled layer at or after them. In f32 or f64 weights only.
    - `paper`: λ E‖Pᵀh‖ over all rows, the standard's too, P from a probe fitted anew.
    - `l2`: λ E‖h‖² over all rows, the control without a subspace.

    "When Alignment Hurts" (2025) published no program: `paper` follows its text as far as known
    (linear variational probe, SVD of its weights, penalty, 500 steps), and all else about it is our
    reconstruction: the singular vectors are of the weights' rows, centred over the classes, in the
    units of the states; with two classes, as for k = 1, that is one row.

    Attributes:
        settings: as given, with defaults filled in.
        layers: blocks that are decoupled.
        n_steps: optimiser steps made. n_updates: estimates of the subspace after that at step 0.
    """

    settings: DecouplingSettings
    layers: tuple[int, ...]
    n_steps: int
    n_updates: int

    def __init__(
        self,
        model: Any,
        reference: Reference,
        *,
        standard: str,
        settings: DecouplingSettings | None = None,
        progress: Any = None,
    ) -> None:
        """Nothing is hooked, and nothing estimated, before the context is entered.

        Args:
            model: a Hugging Face causal language model, with a LoRA adapter of peft or without.
            progress: where each update is told: True for lines on standard error, a tqdm bar for
                its postfix, or a callable that takes the line.

        Raises:
            EditError: a standard or layers that are not there, only one variety, k above what the
                varieties allow, no blocks found, no writers found (`gradient`).
        """
        raise NotImplementedError

    def __enter__(self) -> Decoupling:
        """Hooks the model; the first time, also estimates the subspace at step 0."""
        raise NotImplementedError

    def __exit__(self, *_: object) -> None:
        """Takes all hooks away, so that the model computes what its weights say."""
        raise NotImplementedError

    def rows(
        self,
        varieties: str | Sequence[str],
        tokens: Bool[Tensor, "batch pos"] | Literal["targets", "all"] | None = None,
    ) -> AbstractContextManager[None]:
        """Says whose rows the passes within are: their varieties, or one for all of them.

        Args:
            tokens: which states count, in place of `settings.tokens`.

        Raises:
            EditError: (in the pass) another number of rows, a mask of another shape, `targets`
                without labels, checkpoints made with use_reentrant=True.
        """
        raise NotImplementedError

    def loss(self) -> Float[Tensor, ""]:
        """The penalty of the passes since it was last asked for, at the present strength.

        Zero for `projection` and `gradient`. To be divided as the task's loss is where gradients
        are accumulated. f32, whatever autocast says.
        """
        raise NotImplementedError

    def step(
        self, optimizer: Any | Callable[[], Any], *, task_loss: float | Tensor | None = None
    ) -> None:
        """One step of the optimiser (or a call such as `lambda: scaler.step(optimizer)`).

        Its update is projected if the form is `gradient`; the subspace is updated if it is due.

        Args:
            task_loss: for the telemetry, where the model's output has no loss of its own.

        Raises:
            EditError: passes under `rows` whose penalty was never asked for.
        """
        raise NotImplementedError

    @property
    def strength(self) -> float:
        """λ or α of the present step."""
        raise NotImplementedError

    @property
    def subspaces(self) -> Mapping[int, Subspace]:
        """What is decoupled from at each layer now; its mean is μ."""
        raise NotImplementedError

    def telemetry(self) -> pd.DataFrame:
        """A row for each update (0 is the estimate at step 0) and layer.

        Columns: step, update, layer, strength; `inside`, the share of the energy of the last
        batch's dialect states about their reference mean that lies in the subspace; `overlap`, mean
        squared cosine of the subspace with the dialect's leading principal directions (8, or as
        many as there are); `start_overlap` and `last_overlap` with the subspace at step 0 and at
        the last update; `code_nats` a row of the probe's states before they were learned, and
        `uniform_nats`; `probe_accuracy` of the same predictions; `task_loss`, `decoupling_loss` of
        the last step. NaN where there is nothing to say.
        """
        raise NotImplementedError

    def save_telemetry(self, path: str | Path) -> Path:
        """Write `telemetry()` as Parquet, whole or not at all."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """All that decides how it goes on: arrays under `arrays`, the rest as JSON can hold it."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on as the one that gave the state would have, to the bit.

        Raises:
            EditError: the state of other settings, varieties or layers.
        """
        raise NotImplementedError

    def save(self, folder: str | Path) -> Path:
        """Write the state as `decoupling.safetensors` and `decoupling.json`."""
        raise NotImplementedError

    def load(self, folder: str | Path) -> None:
        """`load_state_dict` from what `save` wrote.

        Raises:
            EditError: no such files, or the state of another decoupling.
        """
        raise NotImplementedError
