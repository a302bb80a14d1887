"""Reference texts: what the standard's subspace is estimated from, whatever the batches hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interventions.errors import EditError


@dataclass(frozen=True, eq=False)
class Reference:
    """Texts in the standard and in other varieties, as token ids padded on the right.

    Attributes:
        ids, mask: `[rows, pos]`; mask is 0 at padding.
        varieties: each row's variety.
        tokens: whose states the probe sees; all that are not padding where None. A sentence's first
            tokens (tags, instructions) can tell the variety by themselves: leave them out.
        groups: rows that say the same in several varieties share a name, and are drawn together,
            so that the probe cannot tell varieties by content; one group a row where None.

    Raises:
        EditError: shapes that do not fit, or a row of which no token counts.
    """

    ids: Int[Tensor, "rows pos"]
    mask: Int[Tensor, "rows pos"]
    varieties: tuple[str, ...]
    tokens: Bool[Tensor, "rows pos"] | None = None
    groups: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.ids.shape)
        if len(shape) != 2 or tuple(self.mask.shape) != shape:
            raise EditError(
                f"The reference's ids have shape {list(shape)} and its mask "
                f"{list(self.mask.shape)}; give [rows, pos] for both."
            )
        if self.tokens is not None and tuple(self.tokens.shape) != shape:
            raise EditError(
                f"The reference's tokens have shape {list(self.tokens.shape)} and its ids "
                f"{list(shape)}; give one truth value for each id."
            )
        for name in ("varieties", "groups"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(str(one) for one in value))
                if len(value) != shape[0]:
                    raise EditError(
                        f"The reference has {shape[0]} rows and {len(value)} {name}; give one for "
                        "each row."
                    )
        empty = torch.nonzero(~self.counted.any(dim=1)).flatten().tolist()
        if empty:
            raise EditError(f"Row {empty[0]} of the reference has no token that counts.")

    @classmethod
    def of(
        cls,
        texts: Iterable[Sequence[int]],
        varieties: Iterable[str],
        *,
        starts: Iterable[int] | None = None,
        groups: Iterable[str] | None = None,
    ) -> Reference:
        """From token ids of any length; tokens count from each row's `starts` on."""
        rows = [list(text) for text in texts]
        if not rows:
            raise EditError("The reference has no text.")
        ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
        mask = torch.zeros_like(ids)
        begin = [0] * len(rows) if starts is None else list(starts)
        if len(begin) != len(rows):
            raise EditError(f"The reference has {len(rows)} texts and {len(begin)} starts.")
        for row, text in enumerate(rows):
            ids[row, : len(text)] = torch.tensor(text, dtype=torch.long)
            mask[row, : len(text)] = 1
        tokens = torch.arange(ids.shape[1])[None] >= torch.tensor(begin)[:, None]
        named = None if groups is None else tuple(groups)
        return cls(ids, mask, tuple(varieties), tokens & mask.bool(), named)

    @property
    def counted(self) -> Bool[Tensor, "rows pos"]:
        """Tokens whose states the probe sees."""
        kept = self.mask.bool()
        return kept if self.tokens is None else kept & self.tokens.bool()

    def __len__(self) -> int:
        return len(self.ids)
