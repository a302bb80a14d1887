"""Decoupling: a dialect's states kept out of the standard's subspace while a model is tuned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from geometry import Subspace, overlap
from interventions.decoupling import records, storing
from interventions.decoupling.blocks import blocks_of
from interventions.decoupling.following import Follower, Reading
from interventions.decoupling.penalties import ENERGIES
from interventions.decoupling.reading import Reader, States
from interventions.decoupling.reference import Reference
from interventions.decoupling.settings import BOTH, SHARES, DecouplingSettings
from interventions.decoupling.tap import Pass, Plane, Tap
from interventions.decoupling.updates import UpdateProjector, trained_writers
from interventions.errors import EditError

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
        model: as given. settings: as given, with defaults filled in.
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
        self.settings = settings or DecouplingSettings()
        self.model, self._standard, self._progress = model, standard, progress
        blocks = blocks_of(model)
        wanted = range(len(blocks)) if self.settings.layers is None else self.settings.layers
        outside = [layer for layer in wanted if not 0 <= layer < len(blocks)]
        if outside:
            raise EditError(
                f"layers names block {outside[0]}; the model has blocks 0 to {len(blocks) - 1}."
            )
        self.layers = tuple(sorted(set(wanted)))
        chosen = {layer: blocks[layer] for layer in self.layers}
        self._reader = Reader(
            model,
            chosen,
            reference,
            standard=standard,
            shuffled=self.settings.source == "shuffled",
            seed=self.settings.seed,
        )
        self._reference = _digest(reference)
        self._followers = self._new_followers()
        self._tap = Tap(model, chosen)
        self._projector = (
            UpdateProjector(trained_writers(model, self.layers))
            if self.settings.form == "gradient"
            else None
        )
        self.n_steps = self.n_updates = 0
        self._records: list[records.Record] = []
        self._planes: dict[int, Plane] = {}
        self._started: dict[int, np.ndarray] = {}
        self._penalty = float("nan")

    def __enter__(self) -> Decoupling:
        """Hooks the model; the first time, also estimates the subspace at step 0."""
        self._tap.hook()
        try:
            if not self._started:
                self._start()
            self._lay()
            self._prepare()
        except BaseException:
            self._tap.unhook()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Takes all hooks away, so that the model computes what its weights say."""
        self._tap.unhook()

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
        names = [varieties] if isinstance(varieties, str) else list(varieties)
        asked = tokens if tokens is not None else self.settings.tokens
        if isinstance(asked, str) and asked not in ("targets", "all"):
            raise EditError(f"tokens is {asked!r}; use targets, all, or a mask [batch, pos].")
        standard = [name == self._standard for name in names]
        return self._tap.within(standard, asked, one_for_all=isinstance(varieties, str))  # type: ignore[arg-type]

    def loss(self) -> Float[Tensor, ""]:
        """The penalty of the passes since it was last asked for, at the present strength.

        Zero for `projection` and `gradient`. To be divided as the task's loss is where gradients
        are accumulated. f32, whatever autocast says.
        """
        passes, self._tap.unread = self._tap.unread, []
        device = next(self.model.parameters()).device
        if self.settings.form in SHARES:
            return torch.zeros((), device=device)
        if not passes:
            raise EditError(
                "No pass was made under `rows` since the penalty was last asked for: call loss() "
                "after each, outside torch.no_grad()."
            )
        with torch.autocast(device.type, enabled=False):
            parts = [self._layer_penalty(layer, passes) for layer in self.layers]
            found = self.strength * torch.stack([part.to(device) for part in parts]).mean()
        self._penalty = float(found.detach())
        return found

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
        self.begin_update()
        optimizer() if callable(optimizer) and not hasattr(optimizer, "step") else optimizer.step()
        self.end_update(task_loss=task_loss)

    def begin_update(self) -> None:
        """What `step` does before the optimiser's own; for loops that do not leave it to `step`.

        Raises:
            EditError: as `step`.
        """
        if self._tap.unread and self.settings.form not in SHARES:
            self._tap.forget()
            raise EditError(
                "A pass was made under `rows` and loss() was not called after it, so its penalty "
                "reached no gradient: add decoupling.loss() to the task's loss."
            )
        if self._projector is not None:
            self._projector.begin()

    def end_update(self, *, task_loss: float | Tensor | None = None) -> None:
        """What `step` does after the optimiser's own."""
        if self._projector is not None:
            self._projector.end(self._planes, self.strength)
        said = self._tap.task_loss if task_loss is None else task_loss
        last, strength = self._tap.last, self.strength
        self.n_steps += 1
        if self.n_steps % self._every == 0:
            self.n_updates += 1
            rows = self._reader.drawn(self._rows, self.n_updates)
            before = {layer: one.followed for layer, one in self._followers.items()}
            read = self._take(self._reader.states(rows))
            seen = {} if last is None else last.dialect
            self._record(
                strength, read, seen, before, float("nan") if said is None else float(said)
            )
            self._lay()
        self._tap.forget()
        self._prepare()

    @property
    def strength(self) -> float:
        """λ or α of the present step."""
        return self.settings.strength_at(self.n_steps)

    @property
    def subspaces(self) -> Mapping[int, Subspace]:
        """What is decoupled from at each layer now; its mean is μ. Empty before it is entered."""
        if not self._started:
            return {}
        return {layer: one.subspace() for layer, one in self._followers.items()}

    def reference_energy(self, dialects: Sequence[str]) -> float:
        """What the form touches of the dialects' reference states at strength 1, mean over layers.

        Of the texts behind the estimate at step 0, which is made if it was not.

        Raises:
            EditError: a dialect that these texts have none of.
        """
        if not self._started:
            self._start()
        states = self._reader.states(self._reader.drawn(self.settings.start_rows, 0))
        codes = {name: number for number, name in enumerate(self._reader.varieties)}
        lacking = next((n for n in dialects if codes.get(n) not in set(states.variety)), None)
        if lacking is not None:
            raise EditError(f"The reference has no text in {lacking!r}.")
        chosen = np.isin(states.variety, [codes[name] for name in dialects])
        energy = ENERGIES[self.settings.form]
        return float(
            np.mean(
                [
                    energy(torch.from_numpy(x[chosen]), self._plane(layer, double=True)).mean()
                    for layer, x in states.layers.items()
                ]
            )
        )

    def telemetry(self) -> pd.DataFrame:
        """A row for each update (0 is the estimate at step 0) and layer.

        Columns: step, update, layer, strength, k; `inside`, the share of the variance of the last
        batch's dialect states (at step 0, of the other varieties' reference states) that lies in
        the standard's subspace, tr(PΣ)/tr Σ; `overlap`, mean squared cosine of that subspace with
        the states' 8 leading principal directions, and what it is by `chance`; `start_overlap` and
        `last_overlap` with the subspace at step 0 and at the last update; `code_nats` a state of
        the reference (the prequential code: before it was learned), `uniform_nats` without a probe;
        `probe_accuracy` of the same predictions; `task_loss`, `decoupling_loss` of the last step.
        The standard's subspace is always the followed one, also where a control is decoupled from
        another; for `shuffled` it is the shuffled probe's. NaN where there is nothing to say.
        """
        return records.frame(self._records)

    def save_telemetry(self, path: str | Path) -> Path:
        """Write `telemetry()` as Parquet, whole or not at all."""
        return records.write(self._records, path)

    def state_dict(self) -> dict[str, Any]:
        """All that decides how it goes on: arrays under `arrays`, the rest as JSON can hold it."""
        if not self._started:
            raise EditError("This decoupling was never entered, so it has no state yet.")
        arrays = {
            f"{layer}.{name}": value
            for layer, one in self._followers.items()
            for name, value in one.state().items()
        }
        arrays |= {f"{layer}.started": basis for layer, basis in self._started.items()}
        return {
            **self._identity(),
            "n_steps": self.n_steps,
            "n_updates": self.n_updates,
            "records": [asdict(record) for record in self._records],
            "arrays": arrays,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on as the one that gave the state would have, to the bit.

        Raises:
            EditError: the state of other settings, varieties or layers.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise EditError(
                    f"The state is that of another decoupling: its {name} are not this one's. Make "
                    "it with the settings, layers, standard and reference that it was saved with."
                )
        parts: dict[int, dict[str, np.ndarray]] = {layer: {} for layer in self.layers}
        for name, value in state["arrays"].items():
            layer, _, rest = name.partition(".")
            parts[int(layer)][rest] = np.asarray(value)
        self._started = {layer: held.pop("started") for layer, held in parts.items()}
        self._followers = self._new_followers()
        for layer, held in parts.items():
            self._followers[layer].load(held)
        self.n_steps, self.n_updates = int(state["n_steps"]), int(state["n_updates"])
        self._records = [records.Record(**record) for record in state["records"]]
        self._lay()
        self._prepare()

    def save(self, folder: str | Path) -> Path:
        """Write the state as `decoupling.safetensors` and `decoupling.json`."""
        return storing.write_state(self.state_dict(), folder)

    def load(self, folder: str | Path) -> None:
        """`load_state_dict` from what `save` wrote.

        Raises:
            EditError: no such files, or the state of another decoupling.
        """
        self.load_state_dict(storing.read_state(folder))

    @property
    def _every(self) -> int:
        assert self.settings.every is not None
        return self.settings.every

    @property
    def _rows(self) -> int:
        """Reference texts of an update: a probe that is fitted anew needs as many as at step 0."""
        fresh = self.settings.form == "paper"
        return self.settings.start_rows if fresh else self.settings.reference_rows

    def _new_followers(self) -> dict[int, Follower]:
        names = self._reader.varieties
        return {
            layer: Follower(self.settings, names, self._standard, layer) for layer in self.layers
        }

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a state to be this one's, as JSON gives it back."""
        told = asdict(self.settings) | {"layers": list(self.layers)}
        return {
            "settings": told,
            "varieties": list(self._reader.varieties),
            "standard": self._standard,
            "reference": self._reference,
        }

    def _start(self) -> None:
        states = self._reader.states(self._reader.drawn(self.settings.start_rows, 0))
        read = {
            layer: one.start(states.layers[layer], states.variety, states.label, states.text)
            for layer, one in self._followers.items()
        }
        self._started = {layer: one.followed for layer, one in self._followers.items()}
        dialect = states.variety != self._reader.varieties.index(self._standard)
        seen = {layer: torch.from_numpy(x[dialect]) for layer, x in states.layers.items()}
        self._record(self.strength, read, seen, self._started, float("nan"))

    def _take(self, states: States) -> dict[int, Reading]:
        return {
            layer: one.update(states.layers[layer], states.variety, states.label)
            for layer, one in self._followers.items()
        }

    def _lay(self) -> None:
        """The planes are where the subspaces have come to, until they move again."""
        self._planes = {layer: self._plane(layer) for layer in self.layers}
        self._tap.planes = self._planes

    def _prepare(self) -> None:
        """The tap does what the coming step needs."""
        form = self.settings.form
        self._tap.share = self.strength if form == "projection" else 0.0
        self._tap.keeps_states = form not in SHARES
        self._tap.keeps_dialect = (self.n_steps + 1) % self._every == 0

    def _plane(self, layer: int, *, double: bool = False) -> Plane:
        """Where the layer's weights lie; `double` in f64 on the CPU."""
        follower = self._followers[layer]
        if double:
            return Plane(torch.tensor(follower.basis), torch.tensor(follower.mean))
        block = self._tap.block(layer)
        weight = next((p for p in block.parameters()), next(self.model.parameters()))
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        basis, mean = (
            torch.tensor(x, dtype=dtype, device=weight.device)
            for x in (follower.basis, follower.mean)
        )
        return Plane(basis, mean)

    def _layer_penalty(self, layer: int, passes: Sequence[Pass]) -> Tensor:
        """Mean energy of the tokens that count in some passes, at one layer."""
        plane = self._planes[layer]
        energy = ENERGIES[self.settings.form]
        total, count = plane.basis.new_zeros(()), 0
        for one in passes:
            states, tokens = one.states.get(layer), one.tokens
            if states is None or tokens is None:  # a pass that broke off
                continue
            wanted = tokens if self.settings.form in BOTH else one.of_dialect(tokens)
            chosen = states[wanted.to(states.device)].to(plane.basis.dtype)
            total = total + energy(chosen, plane).sum()
            count += len(chosen)
        return total / max(count, 1)

    def _record(
        self,
        strength: float,
        read: Mapping[int, Reading],
        seen: Mapping[int, Tensor],
        before: Mapping[int, np.ndarray],
        task_loss: float,
    ) -> None:
        now = []
        for layer, follower in self._followers.items():
            basis = follower.followed
            inside, shared, chance = records.look(seen.get(layer), basis)
            now.append(
                records.Record(
                    step=self.n_steps,
                    update=self.n_updates,
                    layer=layer,
                    strength=strength,
                    k=follower.k,
                    inside=inside,
                    overlap=shared,
                    chance=chance,
                    start_overlap=overlap(basis, self._started[layer]),
                    last_overlap=overlap(basis, before[layer]),
                    code_nats=read[layer].nats,
                    uniform_nats=float(np.log(follower.n_classes)),
                    probe_accuracy=read[layer].accuracy,
                    task_loss=task_loss,
                    decoupling_loss=self._penalty,
                )
            )
        self._records += now
        records.tell(self._progress, now)


def _digest(reference: Reference) -> str:
    held = hashlib.sha256()
    for tensor in (reference.ids, reference.counted):
        held.update(repr(tuple(tensor.shape)).encode())
        held.update(tensor.cpu().contiguous().numpy().tobytes())
    held.update(repr((reference.varieties, reference.groups)).encode())
    return held.hexdigest()
