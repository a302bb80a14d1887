"""Runs into which a part of another run's states is put, by gradients in that part or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from interventions.errors import EditError
from interventions.readings import first_token

if TYPE_CHECKING:
    from activations import Model
    from activations.engines.fork_plan import Record
    from activations.forking import Forks

_ROWS = 256  # runs in one pass where no gradient is kept


@dataclass(frozen=True, eq=False)
class Interchanges:
    """Pairs of runs at one site, ready to be forked.

    Attributes:
        base, source: states `[pairs, positions, d]` of the two runs at the site.
        places: `[pairs, positions]`, where in the base text the states lie.
        answers: `[pairs]`, tokens that the source's value calls for.
    """

    texts: list[tuple[str, str]]
    site: str
    base: Tensor
    source: Tensor
    places: Tensor
    answers: Tensor
    forks: Forks
    record: Record

    @classmethod
    def of(
        cls,
        model: Model,
        texts: Sequence[tuple[str, str]],
        answers: Sequence[str | int],
        site: str,
        positions: Sequence[int],
    ) -> Interchanges:
        """Read both runs of every pair.

        Raises:
            EditError: see `distributed_alignment_search`.
            CannotFork: a model or a site that forks do not fit.
        """
        from activations.forking import Forks

        if not texts or len(answers) != len(texts):
            raise EditError(
                f"There are {len(texts)} pairs and {len(answers)} answers: give one for each."
            )
        named = model.resolve_sites(site)
        if len(named) != 1:
            raise EditError(f"{site!r} is {len(named)} sites: give one, such as {named[0]!r}.")
        if len(model.site(named[0]).row) != 1:
            raise EditError(f"{named[0]} has no single vector a token: choose one like resid_post.")
        ids = [[model.encode(text) for text in pair] for pair in texts]
        shortest = min(len(one) for pair in ids for one in pair)
        if not len(positions) or min(positions) < 0 or max(positions) >= shortest:
            raise EditError(
                f"The positions are {list(positions)} from the end and the shortest text has "
                f"{shortest} tokens: give whole numbers from 0 to {shortest - 1}."
            )
        back = torch.tensor(sorted(set(positions), reverse=True))
        sides = []
        for side in (0, 1):
            lengths = torch.tensor([len(pair[side]) for pair in ids])
            at = lengths[:, None] - 1 - back
            states = _states(model, [pair[side] for pair in ids], named[0])
            own = [x[rows.to(x.device)] for x, rows in zip(states, at, strict=True)]
            sides.append((torch.stack(own), at))
        forks = Forks.of(model, named)
        wanted = [first_token(model, answer) for answer in answers]
        return cls(
            list(texts),
            named[0],
            sides[0][0],
            sides[1][0],
            sides[0][1],
            torch.tensor(wanted),
            forks,
            forks.record([pair[0] for pair in ids]),
        )

    @property
    def d(self) -> int:
        """Width of the states."""
        return self.base.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where the states are."""
        return self.base.device

    def answered(self, rows: np.ndarray, answers: Tensor) -> Interchanges:
        """The same pairs, with other answers for some."""
        changed = self.answers.clone()
        changed[rows] = answers
        return replace(self, answers=changed)

    def loss(self, basis: Tensor, rows: np.ndarray, *, mask: Tensor | None = None) -> Tensor:
        """Cross-entropy of the answers in nats, once the basis' part is the source's."""
        logits = self._logits(basis, rows, mask, grad=True)
        wanted = self.answers[rows].to(logits.device)
        return torch.nn.functional.cross_entropy(logits.float(), wanted)

    def right(self, basis: Tensor | None, rows: np.ndarray) -> np.ndarray:
        """Whether the answer is likeliest, of all answers that occur; without `basis`, in the
        unpatched run.
        """
        among = self.answers.unique()
        found = []
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            logits = self._logits(basis, some, None, words=among)
            likeliest = among[logits.argmax(-1).cpu()]
            found.append((likeliest == self.answers[some]).numpy())
        return np.concatenate(found)

    def class_means(self, rows: np.ndarray, k: int) -> Tensor | None:
        """The top `k` directions of the sources' class means by answer; None for one answer."""
        means = []
        for answer in self.answers[rows].unique():
            own = rows[(self.answers[rows] == answer).numpy()]
            means.append(self.source[own].double().mean((0, 1)))
        if len(means) < 2:
            return None
        centred = torch.stack(means) - torch.stack(means).mean(0)
        axes = torch.linalg.svd(centred, full_matrices=False)[2]
        return axes[: min(k, len(means) - 1)].T.float().cpu()

    def _logits(
        self,
        basis: Tensor | None,
        rows: np.ndarray,
        mask: Tensor | None,
        *,
        words: Tensor | None = None,
        grad: bool = False,
    ) -> Tensor:
        from activations.engines.fork_plan import Fork, Put

        at = torch.tensor(rows, device=self.device)
        forks = [Fork(int(row)) for row in rows]
        if basis is not None:
            with torch.set_grad_enabled(grad):
                axes = basis.to(self.device, torch.float32)
                base = self.base[at].float()
                parts = (self.source[at].float() - base) @ axes
                parts = parts if mask is None else parts * mask
                values = (base + parts @ axes.T).to(self.base.dtype)
            forks = [
                Fork(int(row), (Put(self.site, self.places[row].tolist(), values[i]),))
                for i, row in enumerate(rows)
            ]
        return self.forks.run(self.record, forks, vocabulary=words, grad=grad)[:, 0]


def orthonormal(free: Tensor) -> Tensor:
    """The Q of free weights `[d, k]`, in f32: an orthonormal basis of what they span."""
    q, r = torch.linalg.qr(free.float())
    # One sign for each column, so that a small step of the weights is a small step of Q.
    return q * torch.sign(torch.diagonal(r))


def _states(model: Model, ids: Sequence[list[int]], site: str) -> list[Tensor]:
    """Of each text `[tokens, d]`."""
    found: list[Tensor] = []
    for start in range(0, len(ids), _ROWS):
        some = ids[start : start + _ROWS]
        states = model.activations(*model.pad(some), [site])[site]
        found += [x[: len(one)] for x, one in zip(states, some, strict=True)]
    return found
