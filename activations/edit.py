"""What an edit of a running model is, and what it may ask about the texts that it acts on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Edit(Protocol):
    """A change to the states at some sites, made while the model runs.

    One that also has a method `for_texts(texts: Texts) -> Edit` is asked, before each pass, for the
    edit of that pass.
    """

    @property
    def name(self) -> str: ...

    @property
    def sites(self) -> Sequence[str]: ...

    def __call__(self, activation: Tensor, site: str, positions: Tensor | None) -> Tensor:
        """The new states `[batch, pos, ...]`, in a new tensor; `positions` are position ids."""
        ...


@dataclass(frozen=True)
class Texts:
    """The texts in one pass.

    Attributes:
        rows: `[batch]`, the number of each among the texts that were given together, in whatever
            batches those are run.
        given: `[batch]`, how many tokens of each were given; from that position on they are
            generated.
        count: how many texts were given together.
    """

    rows: Tensor
    given: Tensor
    count: int

    @classmethod
    def of(cls, mask: Tensor, rows: Sequence[int] | None = None, count: int = 0) -> Texts:
        """The texts under a mask `[batch, pos]`, all of their tokens given."""
        batch = len(mask)
        numbers = torch.arange(batch) if rows is None else torch.tensor(list(rows))
        return cls(numbers, mask.sum(-1), count or batch)


def for_texts(edit: Edit, texts: Texts) -> Edit:
    """The edit of a pass over these texts."""
    asks = getattr(edit, "for_texts", None)
    return edit if asks is None else asks(texts)
