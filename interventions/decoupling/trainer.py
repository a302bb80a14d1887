"""Decoupling under `transformers.Trainer`, as a callback.

```python
decoupling = Decoupling(model, reference, standard="arden")
trainer = Trainer(model, args, train_dataset=..., callbacks=[DecouplingCallback(decoupling,
    varieties="moor")])
trainer.train()
```

The callback hooks the model for the time of training. A hook on the model adds the penalty to the
loss that it returns, so a plain `Trainer` (full fine-tuning, LoRA, mixed precision, accumulated
gradients, checkpoints) needs no subclass. Where a batch mixes varieties, `VarietyCollator` around
the data collator carries each row's variety into the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_callback import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
)
from transformers.training_args import TrainingArguments

from interventions.decoupling.decoupling import Decoupling
from interventions.errors import EditError

#: What a batch carries its rows' varieties under.
COLUMN = "varieties"
_FOLDER = "decoupling"


class VarietyCollator:
    """A data collator that keeps each row's variety, as a number, for `DecouplingCallback`.

    Args:
        collator: makes a batch of rows without their variety.
        varieties: all names; the callback is given the same, in the same order.
        column: where a row holds its variety. Set `remove_unused_columns=False`, or the Trainer
            takes the column away.
    """

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]],
        varieties: Sequence[str],
        *,
        column: str = "variety",
    ) -> None:
        self._collator, self._column = collator, column
        self._code = {name: number for number, name in enumerate(varieties)}

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch, with `varieties` `[batch]`.

        Raises:
            EditError: rows without a variety, or of one that was not named.
        """
        lacking = next((row for row in rows if self._column not in row), None)
        if lacking is not None:
            raise EditError(
                f"A row has no {self._column!r}: add the column, and set "
                "remove_unused_columns=False in the TrainingArguments, which else drop it."
            )
        names = [row[self._column] for row in rows]
        strange = next((name for name in names if name not in self._code), None)
        if strange is not None:
            raise EditError(f"A row's variety is {strange!r}; the collator knows {[*self._code]}.")
        plain = [{k: v for k, v in row.items() if k != self._column} for row in rows]
        codes = torch.tensor([self._code[name] for name in names])
        return {**self._collator(plain), COLUMN: codes}


class DecouplingCallback(TrainerCallback):
    """Decouples while a `Trainer` trains; saves and resumes with its checkpoints.

    Args:
        decoupling: of the very model that the Trainer is given.
        varieties: of all rows, if one name; else all names, as `VarietyCollator` was given them.
        telemetry: a Parquet file, written whenever the Trainer saves and at the end.
    """

    def __init__(
        self,
        decoupling: Decoupling,
        *,
        varieties: str | Sequence[str],
        telemetry: str | Path | None = None,
    ) -> None:
        self.decoupling = decoupling
        self._varieties = varieties if isinstance(varieties, str) else tuple(varieties)
        self._telemetry = telemetry
        self._handles: list[Any] = []
        self._rows: Any = None
        self._divisor = 1
        self._scaled = False
        self._tasks: list[torch.Tensor] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Hooks the model, and goes on from the checkpoint that training is resumed from."""
        model = self.decoupling.model
        if kwargs.get("model") is not None and kwargs["model"] is not model:
            raise EditError(
                "The decoupling is of another model than the Trainer's: make the adapter first, "
                "and give both the same model."
            )
        self.close()
        if state.global_step:
            self.decoupling.load(_checkpoint(args, state.global_step) / _FOLDER)
        self._divisor = args.gradient_accumulation_steps
        self.decoupling.__enter__()
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True, prepend=True),
            model.register_forward_hook(self._after),
        ]

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """The optimiser is about to step."""
        self.decoupling.begin_update()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """It has; the subspace is updated if that is due."""
        task = torch.stack(self._tasks).mean() if self._tasks else None
        self._tasks = []
        self.decoupling.end_update(task_loss=task)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **__: Any
    ) -> None:
        """Beside the Trainer's own checkpoint."""
        if state.is_world_process_zero:
            self.decoupling.save(_checkpoint(args, state.global_step) / _FOLDER)
            self._write()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Takes the hooks away."""
        self.close()
        self._write()

    def close(self) -> None:
        """Takes the hooks away; for after a training that broke off."""
        self._leave()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.decoupling.__exit__()

    def _write(self) -> None:
        if self._telemetry is not None:
            self.decoupling.save_telemetry(self._telemetry)

    def _before(
        self, module: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        codes = named.pop(COLUMN, None)
        self._leave()  # a pass that broke off never came to its end
        if module.training and torch.is_grad_enabled():
            # The Trainer divides by the accumulated batches only where it has not counted tokens.
            self._scaled = named.get("num_items_in_batch") is not None
            if isinstance(self._varieties, str):
                names: str | list[str] = self._varieties
            elif codes is None:
                raise EditError(
                    "The batch does not say its rows' varieties: put VarietyCollator around the "
                    "data collator, or name the one variety of all rows."
                )
            else:
                names = [self._varieties[int(code)] for code in codes]
            self._rows = self.decoupling.rows(names)
            self._rows.__enter__()
        return args, named

    def _after(self, _module: Any, _args: Any, output: Any) -> Any:
        if self._rows is None:
            return None
        self._leave()
        loss = getattr(output, "loss", None)
        if loss is None:
            raise EditError(
                "The model returned no loss to add the penalty to: give the batches labels, and "
                "use no compute_loss_func or label smoothing."
            )
        self._tasks.append(loss.detach() * (self._divisor if self._scaled else 1))
        output.loss = loss + self.decoupling.loss() / (self._divisor if self._scaled else 1)
        return output

    def _leave(self) -> None:
        rows, self._rows = self._rows, None
        if rows is not None:
            rows.__exit__(None, None, None)


def _checkpoint(args: TrainingArguments, step: int) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{step}"
