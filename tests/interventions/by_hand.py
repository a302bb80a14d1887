"""The same changes as edits make, written out in NumPy and made by hooks on the plain model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

D, HEADS, D_HEAD = 16, 2, 8
RESID = "blocks.1.hook_resid_post"
Z = "blocks.1.attn.hook_z"
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}

#: From states `[B, T, d]` in f64 to new ones.
Formula = Callable[[np.ndarray], np.ndarray]


@contextmanager
def hooked(plain: Any, site: str, formula: Formula) -> Iterator[None]:
    """`formula` at a block's output, or at what its attention's output projection takes (z)."""
    gpt2 = hasattr(plain, "transformer")
    block = (plain.transformer.h if gpt2 else plain.model.layers)[int(site.split(".")[1])]

    def new(x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(formula(x.detach().double().numpy())).to(x)

    if site.endswith("hook_z"):
        module = block.attn.c_proj if gpt2 else block.self_attn.o_proj
        handle = module.register_forward_pre_hook(lambda _m, args: (new(args[0]), *args[1:]))
    else:

        def after(_module: Any, _args: Any, out: Any) -> Any:
            return (new(out[0]), *out[1:]) if isinstance(out, tuple) else new(out)

        handle = block.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def logits(plain: Any, ids: list[int] | torch.Tensor) -> torch.Tensor:
    """Of one text, without padding."""
    return plain(torch.as_tensor(ids).reshape(1, -1)).logits[0]


def greedy(plain: Any, ids: list[int], steps: int, site: str, formula: Formula) -> list[int]:
    """Greedy decoding in which every step runs the whole text again, with no cache."""
    new: list[int] = []
    with hooked(plain, site, formula):
        while len(new) < steps:
            new.append(int(logits(plain, ids + new)[-1].argmax()))
            if new[-1] == 1:
                return new[:-1]
    return new


def hook_count(model: Any) -> list[int]:
    """Hooks of every kind on every module that either engine has, bridge included."""
    engine = model.engine
    roots = [model.hf, getattr(engine, "wrapped", None), getattr(engine, "bridge", None)]
    roots.append(engine.root._module if hasattr(engine, "root") else None)
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found = [
        sum(len(getattr(module, kind)) for kind in kinds)
        for root in roots
        if root is not None
        for module in root.modules()
    ]
    if hasattr(engine, "bridge"):
        found += [len(point.fwd_hooks) for point in engine.bridge.hook_dict.values()]
    if hasattr(engine, "root"):
        found.append(len(engine.root.interleaver.mediators))
    return found
