"""How far two models' predictions lie apart, token by token, without holding both at once.

kept = keep_predictions(before, ids, folder)     # on disk; `before` may go now
token_divergence(kept, after)                    # for each text, KL(before ‖ after) [tokens]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interventions.errors import EditError

if TYPE_CHECKING:
    from activations import Model

#: Logits held at once, all tokens of a batch together.
_CELLS = 2**25


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says next after each token of some texts, under the edits open at the time.

    Attributes:
        ids: token ids of each text.
        starts: `[texts + 1]`, where each text's tokens lie in the table.
        path: of the table, f32 log-probabilities `[tokens, vocabulary]`, row by row: four bytes
            for each token and each word of the vocabulary, on disk.
        vocabulary: how many tokens are told apart.
    """

    ids: tuple[tuple[int, ...], ...]
    starts: np.ndarray
    path: Path
    vocabulary: int

    @property
    def table(self) -> Float[np.ndarray, "tokens vocabulary"]:
        """The log-probabilities, read from disk where they are used."""
        shape = (int(self.starts[-1]), self.vocabulary)
        return np.memmap(self.path, dtype=np.float32, mode="r", shape=shape)


def keep_predictions(model: Model, ids: Sequence[Sequence[int]], folder: str | Path) -> Predictions:
    """Log-probabilities of the next token after every token of every text, written to `folder`.

    Memory is that of one batch's logits, about 128 MB.

    Raises:
        EditError: no texts, or one without tokens.
        ModelError: a model without a head.
    """
    if not len(ids) or not all(len(one) for one in ids):
        raise EditError("There are no texts, or one has no token: give at least one token each.")
    kept = tuple(tuple(map(int, one)) for one in ids)
    starts = np.concatenate([[0], np.cumsum([len(one) for one in kept])])
    path = Path(folder) / "predictions.f32"
    table = None
    for rows, said in _log_probabilities(model, kept, range(len(kept)), len(model.tokenizer)):
        if table is None:
            shape = (int(starts[-1]), said[0].shape[-1])
            table = np.memmap(path, dtype=np.float32, mode="w+", shape=shape)
        for row, one in zip(rows, said, strict=True):
            table[starts[row] : starts[row + 1]] = one.numpy()
    assert table is not None
    table.flush()
    return Predictions(kept, starts, path, table.shape[1])


def token_divergence(
    kept: Predictions, model: Model, which: Sequence[int] | None = None
) -> dict[int, Float[np.ndarray, " tokens"]]:
    """KL(kept ‖ model) in nats of the next token after each token of the texts `which`.

    Σ p (log p - log q) over the tokens that both tell apart, in f64; all texts unless said. Never
    below zero, and zero where the two say the same.

    Raises:
        EditError: a model whose tokenizer tells fewer tokens apart than the one before it.
        ModelError: a model without a head.
    """
    if len(model.tokenizer) < kept.vocabulary:
        raise EditError(
            f"{model.name} tells {len(model.tokenizer)} tokens apart and the model before it "
            f"{kept.vocabulary}: compare two models with one tokenizer."
        )
    chosen = range(len(kept.ids)) if which is None else which
    table, found = kept.table, {}
    for rows, said in _log_probabilities(model, kept.ids, chosen, kept.vocabulary):
        for row, one in zip(rows, said, strict=True):
            p = torch.from_numpy(np.array(table[kept.starts[row] : kept.starts[row + 1]])).double()
            kl = (p.exp() * (p - one.double())).sum(-1).clamp(min=0)
            found[row] = kl.numpy()
    return found


def _log_probabilities(
    model: Model, ids: Sequence[Sequence[int]], which: Sequence[int], vocabulary: int
) -> Iterator[tuple[list[int], list[Float[Tensor, "tokens vocabulary"]]]]:
    """Batch by batch the texts' numbers, and for each its f32 log-probabilities.

    A vocabulary that is padded beyond the tokenizer's is cut to it first.
    """
    from activations.batching import length_batches

    budget = max(1, min(4096, _CELLS // max(1, vocabulary)))
    lengths = [len(ids[i]) for i in which]
    for batch in length_batches(lengths, budget=budget):
        rows = [int(which[i]) for i in batch]
        tokens, mask = model.pad([ids[row] for row in rows])
        with torch.no_grad():
            said = model.logits(tokens, mask)[..., :vocabulary].float().log_softmax(-1).cpu()
        yield rows, [one[: len(ids[row])] for row, one in zip(rows, said, strict=True)]
