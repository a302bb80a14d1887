"""Changes made by ordinary hooks on the plain model, and the same as edits of an opened one."""

from __future__ import annotations

import torch

IDS = torch.tensor([[3, 5, 7, 9, 12, 20, 4, 8], [6, 6, 10, 22, 4, 3, 15, 11]])
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


class Edit:
    name = "edit"

    def __init__(self, site, change):
        self.sites, self.change = [site], change

    def __call__(self, x, site, positions):
        return self.change(x)


def hooked(plain, path, change, *, before=False):
    """A change made by an ordinary hook on the plain model."""
    module = plain.get_submodule(path)
    if before:
        return module.register_forward_pre_hook(lambda _m, args: (change(args[0]), *args[1:]))

    def after(_module, _args, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    return module.register_forward_hook(after)


def logits(plain, ids=IDS):
    with torch.no_grad():
        return plain(ids, attention_mask=torch.ones_like(ids)).logits
