"""What blocks of a plain model give in one pass, which ends once all of it is there."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import ExitStack, suppress
from typing import Any, TypeVar

import torch
from torch import Tensor

from activations.places import first_tensor

Key = TypeVar("Key", bound=Hashable)


class _Seen(Exception):
    """Ends the pass: what follows need not be computed."""


def block_outputs(
    hf: Any, blocks: Mapping[Key, torch.nn.Module], inputs: Mapping[str, Any]
) -> dict[Key, Tensor]:
    """States `[batch, pos, d]` after each block, with their graph where gradients are on.

    A block that the pass never reaches is not among them.
    """
    found: dict[Key, Tensor] = {}

    def keep(key: Key, output: Any) -> None:
        found[key] = first_tensor(output)
        if len(found) == len(blocks):
            raise _Seen

    with ExitStack() as hooked:
        for key, block in blocks.items():
            hook = lambda _m, _a, output, key=key: keep(key, output)  # noqa: E731
            hooked.callback(block.register_forward_hook(hook).remove)
        with suppress(_Seen):
            hf(**inputs)
    return found
