"""One fine-tune: a fixed budget of steps on one dialect, decoupled in one way or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from experiments.decouple.arms import Arm
from experiments.decouple.judging import target_loss
from experiments.decouple.pairs import Batch, Example, Task
from experiments.decouple.settings import DecoupleSettings
from experiments.settings import ConfigError

if TYPE_CHECKING:
    from activations import Model
    from interventions.decoupling import Decoupling


class Weights:
    """A model's weights as they were, to begin each fine-tune from."""

    def __init__(self, model: Model, trained_blocks: Sequence[int]) -> None:
        bad = [b for b in trained_blocks if not 0 <= b < model.n_layers]
        if bad:
            raise ConfigError(
                f"trained_blocks names block {bad[0]}; the model has blocks 0 to "
                f"{model.n_layers - 1}."
            )
        self._hf = model.hf
        self.trained = trained_parameters(model, trained_blocks)
        self._before = [p.detach().clone() for p in self.trained]
        self._flags = [(p, p.requires_grad) for p in model.hf.parameters()]

    def __enter__(self) -> list[torch.nn.Parameter]:
        chosen = set(map(id, self.trained))
        for parameter, _ in self._flags:
            parameter.requires_grad_(id(parameter) in chosen)
        return self.trained

    def __exit__(self, *_: object) -> None:
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
            parameter.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        """The model as it was before any fine-tune."""
        for parameter, before in zip(self.trained, self._before, strict=True):
            parameter.copy_(before)


def trained_parameters(model: Model, blocks: Sequence[int]) -> list[torch.nn.Parameter]:
    """All parameters, or those of the named blocks."""
    if not blocks:
        return list(model.hf.parameters())
    lists = [
        m
        for m in model.hf.modules()
        if isinstance(m, torch.nn.ModuleList) and len(m) == model.n_layers
    ]
    if not lists:
        raise ConfigError(f"{model.name} shows no list of its blocks: leave trained_blocks empty.")
    return [p for b in blocks for p in lists[0][b].parameters()]


def batches(examples: Sequence[Example], settings: DecoupleSettings, seed: int) -> Iterator[Batch]:
    """`steps` batches, each text once before any comes again; the same order in every arm."""
    rng = np.random.default_rng([seed, 1])
    size = min(settings.batch, len(examples))
    order: list[int] = []
    for _ in range(settings.steps):
        if len(order) < size:
            order += list(rng.permutation(len(examples)))
        yield Batch.of([examples[i] for i in order[:size]])
        order = order[size:]


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model's own context, and how the subspace went while it was tuned."""

    decoupling: Decoupling
    dialect: str
    projected: bool
    decoupled: Literal["targets", "all"]

    @contextmanager
    def in_force(self) -> Iterator[Tuned]:
        """A projection is part of what was tuned: it acts within, on the dialect's passes."""
        if not self.projected:
            yield self
            return
        with self.decoupling:
            yield self

    def acting(self, tokens: Bool[Tensor, "batch pos"]) -> AbstractContextManager[None]:
        """Around a pass over the dialect's texts, of which `tokens` are the target's."""
        if not self.projected:
            return nullcontext()
        return self.decoupling.rows(
            self.dialect, tokens if self.decoupled == "targets" else torch.ones_like(tokens)
        )


@torch.no_grad()
def start(model: Model, weights: Weights, task: Task, settings: DecoupleSettings) -> None:
    """The weights that every arm starts from."""
    weights.restore()
    if settings.aliased:
        known = model.tokenizer.get_vocab()
        mine, theirs = (f"<{v}>" for v in (task.dialect, task.standard[0].variety))
        table = model.hf.get_input_embeddings().weight
        table[known[mine]] = table[known[theirs]]


def fine_tune(
    model: Model,
    weights: Weights,
    task: Task,
    arm: Arm,
    settings: DecoupleSettings,
    layers: tuple[int, ...],
    seed: int,
) -> Tuned:
    """Tune the model in place, from the weights as they were, with one arm and seed.

    Texts, their order and the start are the same in every arm of a seed.
    """
    from experiments.decouple.opening import open_decoupling

    start(model, weights, task, settings)
    examples = task.drawn(seed, count=settings.train_texts, contamination=settings.contamination)
    decoupling = open_decoupling(model, task, arm, settings, layers, seed)
    with weights as trained, decoupling:
        optimizer = _optimizer(trained, settings)
        for batch in batches(examples, settings, seed):
            batch = batch.to(model.device)
            counted = batch.target if settings.decoupled == "targets" else batch.mask.bool()
            with decoupling.rows(batch.varieties, counted):
                logits = model.hf(input_ids=batch.ids, attention_mask=batch.mask).logits
            loss = target_loss(logits, batch).mean()
            optimizer.zero_grad()
            (loss + decoupling.loss()).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            decoupling.step(optimizer, task_loss=loss.detach())
    return Tuned(decoupling, task.dialect, arm.form == "projection", settings.decoupled)


def _optimizer(
    trained: Sequence[torch.nn.Parameter], settings: DecoupleSettings
) -> torch.optim.Optimizer:
    """Without weight decay, which would be a penalty of its own in every arm."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=settings.rate, momentum=0.9)
    return torch.optim.AdamW(trained, lr=settings.rate, betas=(0.9, 0.98), weight_decay=0.0)
