"""The mean state of prompts at a layer, and the gradient of its cosine with a direction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from interventions.errors import EditError
from interventions.restoration.scope import Scope, state_after

if TYPE_CHECKING:
    from activations import Model


def mean_state(model: Model, prompts: Sequence[str], scope: Scope, *, batch: int) -> Tensor:
    """Mean state of the prompts' last tokens after block E - 1, f64 `[d]` on the CPU.

    Edits that are open play no part.

    Raises:
        EditError: no prompts, or a state that is not finite.
    """
    total = torch.zeros(model.d_model, dtype=torch.float64)
    with model.lock, torch.no_grad():
        for inputs, last in _batches(model, prompts, batch):
            total += _last(model, scope, inputs, last).double().sum(0).cpu()
    if not bool(torch.isfinite(total).all()):
        raise EditError(
            f"States of {model.name} after {scope.block} are NaN or infinite: its weights are "
            "broken, or its dtype is too narrow (open it with dtype float32 or bfloat16)."
        )
    return total / len(prompts)


def cosine_gradient(
    model: Model, prompts: Sequence[str], direction: Tensor, scope: Scope, *, batch: int
) -> dict[str, Tensor]:
    """Gradient of -cos(mean state of a batch, direction), summed over batches, by movable weight.

    A batch weighs as many times as it has prompts. Only the blocks below E run, only the movable
    weights get gradients, and those are summed in f32 one weight after another, so that beside the
    model it holds one f32 copy of the movable weights and one weight's gradient.

    Raises:
        EditError: no prompts, or a gradient that is not finite.
    """
    named = dict(model.hf.named_parameters())
    summed = {
        name: torch.zeros(named[name].shape, dtype=torch.float32, device=named[name].device)
        for name in scope.movable
    }
    with model.lock, _only(model.hf, summed), torch.inference_mode(False), torch.enable_grad():
        for inputs, last in _batches(model, prompts, batch):
            mean = _last(model, scope, inputs, last).float().mean(0)
            loss = -cosine_similarity(mean, direction.to(mean), dim=0)
            (loss * len(last)).backward()
    for name, one in summed.items():
        if not bool(torch.isfinite(one).all()):
            raise EditError(
                f"The gradient in {name} of {model.name} is NaN or infinite: its weights are "
                "broken, or its dtype is too narrow (open it with dtype float32 or bfloat16)."
            )
    return summed


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two states `[d]`."""
    return float(cosine_similarity(a.double(), b.double(), dim=0))


def _last(model: Model, scope: Scope, inputs: dict[str, Any], last: Tensor) -> Tensor:
    """State of each row's last token, `[batch, d]`."""
    states = state_after(model.hf, scope.block, inputs)
    rows = torch.arange(len(last), device=states.device)
    return states[rows, last.to(states.device)]


def _batches(
    model: Model, prompts: Sequence[str], batch: int
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    if not len(prompts):
        raise EditError("There are no prompts: give at least one.")
    coded = model.encode_many(
        [model.render(text) for text in prompts], rendered=model.has_chat_template
    )
    for start in range(0, len(coded), batch):
        ids = coded[start : start + batch]
        tokens, mask = model.pad(ids)
        inputs: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask}
        if model._takes("use_cache"):
            inputs["use_cache"] = False
        yield inputs, torch.tensor([len(one) - 1 for one in ids])


@contextmanager
def _only(hf: Any, summed: dict[str, Tensor]) -> Iterator[None]:
    """Gradients in these weights alone, added to `summed` as soon as they are there."""
    named = dict(hf.named_parameters())
    flags = [(one, one.requires_grad, one.grad) for one in named.values()]
    handles = []

    def adder(total: Tensor) -> Any:
        def add(parameter: Tensor) -> None:
            assert parameter.grad is not None
            total.add_(parameter.grad)
            parameter.grad = None

        return add

    try:
        for name, one in named.items():
            one.requires_grad_(name in summed)
            one.grad = None
        for name, total in summed.items():
            handles.append(named[name].register_post_accumulate_grad_hook(adder(total)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for one, flag, gradient in flags:
            one.requires_grad_(flag)
            one.grad = gradient
