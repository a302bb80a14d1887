"""Runs whose figures are differentiated in the states that they pass through, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from activations.batching import out_of_memory
from activations.gradients import gradients
from interventions.cells import Case, States, segments
from interventions.errors import EditError
from interventions.sweep_runs import MOST_LOGITS, Work, token_budget

if TYPE_CHECKING:
    from activations import Model
    from activations.edit import Edit


@dataclass(frozen=True, eq=False)
class Row:
    """One run to be differentiated: a case's base run, under edits that these two tell of.

    Attributes:
        share: how far its states are moved towards the source's.
        dropped: the block whose writing lets no gradient through; -1 for none.
    """

    case: Case
    share: float = 0.0
    dropped: int = -1


Edits = Callable[[Sequence[Row]], "Sequence[Edit]"]


@dataclass(frozen=True, eq=False)
class Piece:
    """Cases that are worked on together.

    Attributes:
        width: tokens in a segment.
        heads: whether heads are apart.
        states: of the base and the source runs.
        goals: by case, the base run's and the source run's logits, `[reads, vocabulary]`.
    """

    model: Model
    cases: Sequence[Case]
    width: int
    heads: bool
    states: States
    goals: dict[int, tuple[Tensor, Tensor]]
    budget: int | None
    work: Work

    def spans(self, case: Case) -> list[tuple[int, int]]:
        """The segments of a case, in the order of its cells."""
        return list(segments(case.length, self.width))

    def apart(self, site: str) -> bool:
        """Whether the heads of a site are cells of their own."""
        return self.heads and len(self.model.site(site).row) == 2

    def change(self, case: Case, site: str) -> Tensor:
        """Source less base, `[length, *row]` in f64; zero where a token has no counterpart."""
        base, source = self.states.both(case, site)
        at = torch.as_tensor((case.aligned >= 0).nonzero()[0])
        change = base.new_zeros(case.length, *base.shape[1:], dtype=torch.float64)
        change[at] = source[torch.as_tensor(case.aligned)[at]].double() - base[at].double()
        return change

    def rows(
        self, rows: Sequence[Row], sites: Sequence[str], before: Edits | None, after: Edits | None
    ) -> Iterator[tuple[Row, float, dict[str, Tensor]]]:
        """Of each row its figure, and the figure's gradients `[pos, *row]` at the sites.

        Args:
            before, after: from some rows to edits of their batch, made before and after the
                states whose gradient is taken.
        """
        start, size = 0, len(rows)
        words = int(self.model.hf.get_input_embeddings().weight.shape[0])
        budget = min(token_budget(self.model, self.budget), MOST_LOGITS // words)
        while start < len(rows):
            longest = max(len(row.case.base) for row in rows[start : start + size])
            part = rows[start : start + max(1, min(size, budget // longest))]
            try:
                figures, found = self._differentiated(part, sites, before, after)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or len(part) == 1:
                    raise
                size = max(1, len(part) // 2)
                continue
            for i, row in enumerate(part):
                yield row, float(figures[i]), {site: found[site][i] for site in sites}
            self.work.runs += len(part)
            self.work.block_tokens += self.model.n_layers * sum(len(r.case.base) for r in part)
            start += len(part)

    def _differentiated(
        self, rows: Sequence[Row], sites: Sequence[str], before: Edits | None, after: Edits | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        def measure(logits: Tensor) -> Tensor:
            figures = torch.stack([self._figure(row.case, x) for row, x in zip(rows, logits)])
            if not figures.requires_grad:
                raise EditError(
                    "The metric has no gradient in the logits: make it of them by torch's own "
                    "differentiable steps, or use patch_sweep."
                )
            return figures

        ids = self.model.pad([row.case.base for row in rows])
        with self.model.edited(*(before(rows) if before else ())):
            figures, found = gradients(
                self.model, *ids, sites, measure, after=after(rows) if after else ()
            )
        for site, gradient in found.items():
            if not torch.isfinite(gradient).all():
                raise EditError(
                    f"Gradients at {site} are not finite in {self.model.dtype}: open the model "
                    "with dtype='float32'."
                )
        return figures, found

    def _figure(self, case: Case, logits: Tensor) -> Tensor:
        reading, end = case.reading, len(case.base)
        logits = logits[end - reading.reads : end]
        if reading.vocabulary is not None:
            logits = logits[:, list(reading.vocabulary)]
        base, source = self.goals[id(case)]
        return reading.measure(logits[None], source, base)[0].double()
