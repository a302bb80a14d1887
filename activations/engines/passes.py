"""Tiny passes through the plain model under ordinary hooks: what lies where, and in which order."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from activations.engines.offload import embedding, home
from activations.errors import ModelError
from activations.places import first_argument, first_tensor

#: Largest relative difference that rounding explains, between attention kernels too.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 0.1
#: The same between two rows of one batch, which one kernel computes.
_ROW_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
_HALF_ROW_TOLERANCE = 0.01

Key = tuple[str, str]
"""A module's dotted path, and `in` or `out`."""


@dataclass(frozen=True)
class Seen:
    """What one pass showed: each tensor at its first call, in the order of the pass; how often
    each place was reached; what the model returned.
    """

    raw: dict[Key, Tensor]
    calls: dict[Key, int]
    output: Any


def some_inputs(hf: Any) -> dict[str, Any]:
    """Three texts of a length that no other axis has, so that axes can be told apart.

    The second differs from the first in its last token only, which shows whether tokens see those
    after them.
    """
    config = hf.config.get_text_config()
    used = {int(v) for v in vars(config).values() if isinstance(v, int)}
    length = next(n for n in (7, 11, 13, 17, 19, 23, 29, 31) if n not in used)
    table: Any = embedding(hf)
    vocabulary = int(getattr(config, "vocab_size", 0) or table.weight.shape[0])
    ids = ((torch.arange(3 * length) * 37 + 5) % vocabulary).reshape(3, length)
    ids[1] = ids[0]
    ids[1, -1] = (ids[0, -1] + 1) % vocabulary
    ids = ids.to(home(hf))
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    taken = inspect.signature(type(hf).forward).parameters
    if "use_cache" in taken:
        inputs["use_cache"] = False
    return inputs


def text_shape(inputs: dict[str, Any]) -> tuple[int, int]:
    """(texts, positions)."""
    rows, length = inputs["input_ids"].shape
    return int(rows), int(length)


def skipped_positions(hf: Any) -> int:
    """How many positions a model leaves out: RoBERTa and its kin begin after the padding's."""
    for path, module in hf.named_modules():
        if path.endswith("position_embeddings"):
            padding = getattr(module, "padding_idx", None)
            return 0 if padding is None else int(padding) + 1
    return 0


def scores(output: Any) -> Tensor:
    """What a pass ends in: logits `[batch, pos, vocabulary]`, or, without a head, last states."""
    for name in ("logits", "last_hidden_state"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    return first_tensor(output)


def has_head(output: Any) -> bool:
    """Whether what a model returned holds logits."""
    return isinstance(getattr(output, "logits", None), Tensor)


def sees_only_the_past(hf: Any, final: Tensor) -> bool:
    """Whether the last token changed nothing before it; `final` is the end of a pass over
    `some_inputs`.
    """
    if type(hf).__name__.endswith("ForMaskedLM"):  # some attend too roughly to show it in few words
        return False
    tolerance = _ROW_TOLERANCE.get(final.dtype, _HALF_ROW_TOLERANCE)
    one, other = (final[row, :-1].detach().cpu().double() for row in (0, 1))
    return bool((one - other).norm() <= tolerance * other.norm())


@torch.no_grad()
def plain_pass(hf: Any, wanted: Iterable[Key], inputs: dict[str, Any], label: str) -> Seen:
    """One pass with a look at the first tensor that each wanted module takes or gives.

    Raises:
        ModelError: the model cannot run three short texts.
    """
    raw: dict[Key, Tensor] = {}
    calls: dict[Key, int] = {}
    handles = []

    def keep(key: Key, value: Any) -> None:
        if isinstance(value, Tensor):
            calls[key] = calls.get(key, 0) + 1
            if key not in raw:
                raw[key] = value.detach().clone()

    try:
        for path, side in dict.fromkeys(wanted):
            module = hf.get_submodule(path)
            if side == "out":
                handles.append(
                    module.register_forward_hook(
                        lambda _m, _a, out, key=(path, side): keep(key, first_or_none(out))
                    )
                )
            else:
                handles.append(
                    module.register_forward_pre_hook(
                        lambda _m, args, named, key=(path, side): keep(
                            key, first_argument(args, named)
                        ),
                        with_kwargs=True,
                    )
                )
        output = hf(**inputs)
    except Exception as error:  # models raise many kinds
        raise ModelError(f"{label} cannot run three short texts: {first_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    return Seen(raw, calls, output)


def first_or_none(output: Any) -> Any:
    """The states in what a module returned, None where there are none."""
    try:
        return first_tensor(output)
    except (KeyError, IndexError, TypeError):
        return None


def first_line(error: BaseException) -> str:
    """What an error says, in one line that can stand within a sentence."""
    said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return (said[:300] + "…" if len(said) > 300 else said).rstrip(".:; ")


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ by no more than rounding does."""
    if a.shape != b.shape:
        return False
    tolerance = _TOLERANCE.get(a.dtype, _HALF_TOLERANCE)
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
    return bool((a - b).norm() <= tolerance * b.norm())
