"""Which weights go first: by gradient, as published, and the rules that it must beat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: From gradient (None where none is asked for), own and aligned values, and a generator, to scores:
#: f32 of the same shape, 0 where a weight must stay.
Score = Callable[[Tensor | None, Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Ranking:
    """A rule by which weights are restored: those with the largest scores go first."""

    name: str
    score: Score
    needs_gradient: bool


def lowers(gradient: Tensor, own: Tensor, aligned: Tensor) -> Tensor:
    """Where moving to A's value lowers the loss: sign(F - A) = sign(gradient), neither 0."""
    return ((own > aligned) & (gradient > 0)) | ((own < aligned) & (gradient < 0))


def _by_gradient(
    gradient: Tensor | None, own: Tensor, aligned: Tensor, _: torch.Generator
) -> Tensor:
    assert gradient is not None
    # In place: for billions of weights a second copy would be the largest thing in memory.
    return gradient.masked_fill_(~lowers(gradient, own, aligned), 0.0).abs_()


def _sign_matched(
    gradient: Tensor | None, own: Tensor, aligned: Tensor, draw: torch.Generator
) -> Tensor:
    assert gradient is not None
    return _uniform(own, draw).masked_fill_(~lowers(gradient, own, aligned), 0.0)


def _at_random(_: Tensor | None, own: Tensor, aligned: Tensor, draw: torch.Generator) -> Tensor:
    return _uniform(own, draw).masked_fill_(own == aligned, 0.0)


def _by_difference(_: Tensor | None, own: Tensor, aligned: Tensor, __: torch.Generator) -> Tensor:
    return (own.float() - aligned.float()).abs_()


def _uniform(like: Tensor, draw: torch.Generator) -> Tensor:
    """In (0, 1], the same on every device."""
    return (1 - torch.rand(like.shape, generator=draw)).to(like.device)


#: As published: of the weights whose return lowers the loss, those with the largest gradient.
BY_GRADIENT = Ranking("gradient", _by_gradient, needs_gradient=True)
#: Control: any weights whose return lowers the loss.
SIGN_MATCHED = Ranking("sign_matched", _sign_matched, needs_gradient=True)
#: Control: any weights that differ.
AT_RANDOM = Ranking("random", _at_random, needs_gradient=False)
#: Control: the weights that differ most.
BY_DIFFERENCE = Ranking("difference", _by_difference, needs_gradient=False)
