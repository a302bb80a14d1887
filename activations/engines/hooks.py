"""An ordinary PyTorch hook that sees a place's states, whatever tensor they lie in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from activations.places import (
    Place,
    first_argument,
    first_tensor,
    with_first,
    with_first_argument,
)


@contextmanager
def attached(
    module: torch.nn.Module,
    place: Place,
    function: Callable[[Tensor], Tensor | None],
    shape: Callable[[], tuple[int, int]],
) -> Iterator[None]:
    """`function` on the states at a place, whose result (unless None) replaces them.

    `shape` is (texts, positions) of the pass that goes through the module.
    """

    def after(_module: Any, _args: Any, output: Any) -> Any:
        raw = first_tensor(output)
        new = function(place.view(raw, shape()))
        return None if new is None else with_first(output, place.put(raw, new, shape()))

    def before(_module: Any, args: Any, named: Any) -> Any:
        raw = first_argument(args, named)
        if raw is None:
            return None
        new = function(place.view(raw, shape()))
        if new is None:
            return None
        return with_first_argument(args, named, place.put(raw, new, shape()))

    if place.side == "out":
        handle = module.register_forward_hook(after)
    else:
        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
