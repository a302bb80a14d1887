"""Gradients of figures of a run in the states that it passes through."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from activations.edit import Edit
from activations.errors import ModelError
from activations.model import Model


def gradients(
    model: Model,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    sites: Sequence[str],
    measure: Callable[[Tensor], Tensor],
    *,
    after: Sequence[Edit] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Figures of some runs, and at each site the gradient of each run's own figure.

    A gradient is of all that follows from a state, other sites included, and passes through norms
    as they are (their scales are not frozen). Edits that are open are made before the state whose
    gradient is taken. Weights get none.

    Args:
        measure: from logits `[batch, pos, vocabulary]` to figures `[batch]`, each of its own row.
        after: edits made after that, such as one that lets no gradient through.

    Returns:
        Figures `[batch]`, and by site gradients `[batch, pos, *row]` in the model's precision.

    Raises:
        ModelError: another engine than TransformerLens, no head, or figures that do not follow
            from the logits by steps that have a gradient.
    """
    if model.engine.name != "transformer_lens":
        raise ModelError(
            f"{model.name} runs on {model.engine.name}, which gives no gradients here: open it "
            "with engine='transformer_lens'."
        )
    model._require_head()
    probe = _Probe([model.site(site).name for site in sites])
    with torch.inference_mode(False), model.edited(probe, *after):
        logits = model._pass(input_ids, attention_mask, grad=True)[0].logits
        with torch.enable_grad():
            figures = measure(logits)
        missing = [site for site in probe.sites if site not in probe.zeros]
        if missing:
            raise ModelError(f"The forward pass of {model.name} never reaches {missing[0]}.")
        if not figures.requires_grad:
            raise ModelError(
                "The figures have no gradient in the states: make them of the logits by torch's "
                "own differentiable steps."
            )
        zeros = [probe.zeros[site] for site in probe.sites]
        found = torch.autograd.grad(figures.sum(), zeros, allow_unused=True)
    kept = {
        site: torch.zeros_like(zero) if gradient is None else gradient
        for site, zero, gradient in zip(probe.sites, zeros, found, strict=True)
    }
    return figures.detach(), kept


class _Probe:
    """Adds zeros to the states, in which a gradient can be taken."""

    name = "gradient"

    def __init__(self, sites: Sequence[str]) -> None:
        self.sites = tuple(dict.fromkeys(sites))
        self.zeros: dict[str, Tensor] = {}

    def __call__(self, activation: Tensor, site: str, positions: Tensor | None) -> Tensor:
        zero = torch.zeros_like(activation, requires_grad=True)
        self.zeros[site] = zero
        return activation + zero
