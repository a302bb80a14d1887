"""Texts laid end to end in one row, so that no token is padding.

Everything in a transformer but attention treats tokens one by one, so all of it runs on the one
row. Attention alone is computed text by text: queries, keys and values are taken apart into
`[texts, longest]` and back. A causal text never sees what pads it, so no mask is needed and the
attention kernel is the model's own. It works where a model asks transformers' attention interface
and takes position ids, and it is used only after it gave the padded pass's numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from activations.engines.offload import sharing_copy

NAME = "isogloss_packed"


class CannotPack(Exception):
    """The model's attention does something that this does not."""


@dataclass(frozen=True)
class Layout:
    """Where the tokens of each text lie in the row.

    Attributes:
        apart: for each text and position the token's place in the row, `[texts, longest]`; places
            after a text's end point anywhere.
        text, position: of each token of the row, `[tokens]`.
        full: which places of `apart` hold a token.
    """

    apart: Tensor
    text: Tensor
    position: Tensor
    full: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Layout:
        """The layout of texts of these lengths."""
        counts = torch.tensor(lengths)
        starts = counts.cumsum(0) - counts
        longest = torch.arange(int(counts.max()))
        full = longest[None] < counts[:, None]
        apart = torch.where(full, starts[:, None] + longest[None], 0)
        text, position = full.nonzero(as_tuple=True)
        return cls(apart.to(device), text.to(device), position.to(device), full.to(device))


_LAYOUT: ContextVar[Layout] = ContextVar("layout")


def packed_copy(hf: Any) -> Any:
    """The model's modules over the same weights, with attention that takes a row apart.

    Raises:
        CannotPack: another attention than the usual one is set.
    """
    return attending_copy(hf, NAME, _attend)


def attending_copy(hf: Any, name: str, attend: Callable[..., tuple[Tensor, None]]) -> Any:
    """The model's modules over the same weights, with `attend` as their attention.

    Raises:
        CannotPack: another attention than the usual one is set.
    """
    from transformers import AttentionInterface

    if hf.config._attn_implementation != "sdpa":
        raise CannotPack(f"its attention is {hf.config._attn_implementation}")
    AttentionInterface.register(name, attend)
    copied = sharing_copy(hf)
    for module in copied.modules():
        config: Any = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = name
    return copied


def packed_inputs(ids: Sequence[Sequence[int]], device: torch.device) -> dict[str, Any]:
    """Token ids and position ids `[1, tokens]`; positions begin anew with each text."""
    row = [token for one in ids for token in one]
    positions = [place for one in ids for place in range(len(one))]
    return {
        "input_ids": torch.tensor([row], device=device),
        "position_ids": torch.tensor([positions], device=device),
    }


@contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """Attention of passes within takes the row apart in this way."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Attention of a row `[1, heads, tokens, d_head]`, each text for itself."""
    require_plain(attention_mask, options)
    return attend_apart(module, query, key, value, _LAYOUT.get(), **options), None


def require_plain(attention_mask: Any, options: Mapping[str, Any]) -> None:
    """Raise `CannotPack` where attention is asked for more than the usual softmax."""
    unknown = {k for k in ("softcap", "s_aux") if options.get(k) is not None}
    if unknown or attention_mask is not None:
        raise CannotPack(f"its attention has {', '.join(unknown) or 'a mask of its own'}")


def attend_apart(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    *,
    sliding_window: int | None = None,
    **options: Any,
) -> Tensor:
    """What each token of a row `[1, heads, tokens, d_head]` attends to within its own text."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    q, k, v = (x[0].transpose(0, 1)[layout.apart].transpose(1, 2) for x in (query, key, value))
    longest = layout.apart.shape[1]
    if not getattr(module, "is_causal", True):
        mask = layout.full[:, None, None, :]
    else:
        mask = causal_mask(0, longest, longest, sliding_window, query.device)
    out, _ = sdpa_attention_forward(module, q, k, v, mask, **options)
    return out[layout.text, layout.position][None]


def causal_mask(
    first: int, queries: int, keys: int, window: int | None, device: torch.device
) -> Tensor | None:
    """Which keys `[1, 1, queries, keys]` the queries from position `first` on may see; None where
    the attention kernel's own causal rule says the same.
    """
    if window is not None and keys <= window:
        window = None
    if window is None and (queries == 1 or (first == 0 and queries == keys)):
        return None
    at = torch.arange(first, first + queries, device=device)
    back = at[:, None] - torch.arange(keys, device=device)[None]
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    return seen[None, None]


def agree(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two ways of computing the same states differ by rounding only."""
    for site, states in one.items():
        a, b = states.double(), other[site].double()
        tolerance = 1e-4 if states.dtype == torch.float32 else 5e-2
        if not (a - b).norm() <= tolerance * b.norm():
            return False
    return True
