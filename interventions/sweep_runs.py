"""The runs of a sweep: forks of the base runs where the model allows it, else whole passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from activations.batching import out_of_memory
from interventions.cells import Case, Cell
from interventions.edits import Replacement, replace

if TYPE_CHECKING:
    from activations import Model
    from activations.engines.fork_plan import Fork, Put, Record
    from activations.forking import Forks

#: Logits of one batch hold at most this many numbers, whatever the vocabulary.
MOST_LOGITS = 2**26
#: Tokens in one pass, where products of matrices are near their best.
_BUDGET = {"cpu": 2048}
_BUDGET_GPU = 16384


def token_budget(model: Model, given: int | None) -> int:
    """Tokens in one pass: as given, else what suits the model's device."""
    return given or _BUDGET.get(model.device.type, _BUDGET_GPU)


@dataclass(frozen=True, eq=False)
class Task:
    """One patched run: what is put in, no state twice, and what it is run for."""

    case: Case
    puts: tuple[Put, ...]
    of: Any

    @property
    def start(self) -> int:
        """The first position at which anything is put in."""
        return min(min(put.positions) for put in self.puts)


@dataclass
class Work:
    """What a sweep computed, against whole passes for all of its cells.

    Attributes:
        cells: how many there are; runs: how many had to be run, since something changes in them.
        block_tokens: tokens × blocks computed for them; whole: those of a whole pass for each cell.
    """

    cells: int = 0
    runs: int = 0
    block_tokens: int = 0
    whole: int = 0

    def add(self, other: Work) -> None:
        """Count in what another process computed."""
        self.cells += other.cells
        self.runs += other.runs
        self.block_tokens += other.block_tokens
        self.whole += other.whole


class Runs:
    """Logits of the plain and the patched runs of some cases, `[runs, reads, vocabulary]`."""

    def __init__(self, model: Model, cases: Sequence[Case], budget: int | None) -> None:
        self.model, self.cases = model, cases
        self.budget = token_budget(model, budget)
        wanted = [case.reading.vocabulary for case in cases]
        self._words: list[int] | None = None
        if all(words is not None for words in wanted):
            self._words = sorted({word for words in wanted for word in words or ()})

    def plain(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of each case the base run's and the source run's, `[reads, vocabulary]`."""
        raise NotImplementedError

    def patched(self, tasks: Sequence[Task]) -> Iterator[tuple[list[Task], Tensor]]:
        """Of all tasks, in some order, by parts that belong to one case."""
        raise NotImplementedError

    def cost(self, cell: Cell) -> int:
        """Blocks × tokens of the cell's run."""
        raise NotImplementedError

    @property
    def _fit(self) -> int:
        """How many runs' logits memory holds."""
        reads = max(case.reading.reads for case in self.cases)
        size = int(self.model.hf.get_input_embeddings().weight.shape[0])
        return max(1, MOST_LOGITS // (reads * (len(self._words) if self._words else size)))

    def _cut(self, logits: Tensor, case: Case) -> Tensor:
        """The reads and the words of one case."""
        logits = logits[:, -case.reading.reads :]
        if case.reading.vocabulary is None:
            return logits
        words = list(case.reading.vocabulary)
        if self._words is not None and logits.shape[-1] == len(self._words):
            words = [self._words.index(word) for word in words]
        return logits[..., words]


class ForkedCases(Runs):
    """By forks: nothing below the patched block or before the patched position is run again."""

    def __init__(
        self, model: Model, cases: Sequence[Case], budget: int | None, forks: Forks
    ) -> None:
        super().__init__(model, cases, budget)
        self._forks = forks
        self._reads = max(case.reading.reads for case in cases)
        self._base = forks.record([case.base for case in cases])
        self._number = {id(case): i for i, case in enumerate(cases)}

    def plain(self) -> tuple[list[Tensor], list[Tensor]]:
        """See `Runs.plain`."""
        source = self._forks.record([case.source for case in self.cases])
        return self._unchanged(self._base), self._unchanged(source)

    def patched(self, tasks: Sequence[Task]) -> Iterator[tuple[list[Task], Tensor]]:
        """See `Runs.patched`."""
        # Those that start alike attend alike, so they lie together.
        order = sorted(tasks, key=lambda task: (task.start, self._owner(task)))
        for part, logits in self._waves(order):
            owners = [self._owner(task) for task in part]
            for number in dict.fromkeys(owners):
                own = [i for i, owner in enumerate(owners) if owner == number]
                yield [part[i] for i in own], self._cut(logits[own], self.cases[number])

    def cost(self, cell: Cell) -> int:
        """See `Runs.cost`."""
        blocks = self.model.n_layers - self._forks.first_block(cell.site)
        return blocks * (len(cell.case.base) - int(cell.positions[0]))

    def _unchanged(self, record: Record) -> list[Tensor]:
        from activations.engines.fork_plan import Fork

        found: list[Tensor] = []
        size = self._fit
        for start in range(0, len(self.cases), size):
            some = range(start, min(start + size, len(self.cases)))
            logits = self._run(record, [Fork(i) for i in some])
            found += [self._cut(x[None], self.cases[i])[0] for i, x in zip(some, logits)]
        return found

    def _owner(self, task: Task) -> int:
        return self._number[id(task.case)]

    def _waves(self, tasks: Sequence[Task]) -> Iterator[tuple[list[Task], Tensor]]:
        """Passes of as many tasks as the budget and the logits allow."""
        from activations.engines.fork_plan import Fork

        start, most = 0, self._fit
        while start < len(tasks):
            end, tokens = start, 0
            while end < len(tasks) and end - start < most:
                tokens += len(tasks[end].case.base) - tasks[end].start
                if end > start and tokens > self.budget:
                    break
                end += 1
            part = list(tasks[start:end])
            try:
                logits = self._run(self._base, [Fork(self._owner(t), t.puts) for t in part])
            except _SHORT as error:
                most = _halved(len(part), error)
                continue
            yield part, logits
            start = end

    def _run(self, record: Record, forks: Sequence[Fork]) -> Tensor:
        words = None if self._words is None else torch.tensor(self._words)
        return self._forks.run(record, forks, reads=self._reads, vocabulary=words)


class WholePasses(Runs):
    """By ordinary edits, for models and sites that forks do not fit; also what they are held to."""

    def plain(self) -> tuple[list[Tensor], list[Tensor]]:
        """See `Runs.plain`."""
        base = [self._logits([case.base], case)[0] for case in self.cases]
        return base, [self._logits([case.source], case)[0] for case in self.cases]

    def patched(self, tasks: Sequence[Task]) -> Iterator[tuple[list[Task], Tensor]]:
        """See `Runs.patched`."""
        together: dict[Any, list[Task]] = {}
        for task in tasks:
            places = tuple((put.site, put.head) for put in task.puts)
            together.setdefault((id(task.case), places), []).append(task)
        for ones in together.values():
            case = ones[0].case
            start, size = 0, max(1, min(self.budget // len(case.base), self._fit))
            while start < len(ones):
                part = ones[start : start + size]
                try:
                    logits = self._patched(case, part)
                except _SHORT as error:
                    size = _halved(len(part), error)
                    continue
                yield part, logits
                start += len(part)

    def cost(self, cell: Cell) -> int:
        """See `Runs.cost`."""
        return self.model.n_layers * len(cell.case.base)

    def _patched(self, case: Case, tasks: Sequence[Task]) -> Tensor:
        edits = [_together(puts) for puts in zip(*(task.puts for task in tasks), strict=True)]
        with self.model.edited(*edits):
            return self._logits([case.base] * len(tasks), case)

    def _logits(self, ids: list[list[int]], case: Case) -> Tensor:
        return self._cut(self.model.logits(*self.model.pad(ids)), case)


#: What a pass that is too large may raise.
_SHORT = (torch.OutOfMemoryError, MemoryError, RuntimeError)


def _halved(runs: int, error: BaseException) -> int:
    """Half as many runs; raises the error where memory is not what lacks, or one is too many."""
    if not out_of_memory(error) or runs == 1:
        raise error
    return runs // 2


def _together(puts: Sequence[Put]) -> Replacement:
    """What several runs put in at one place, as one edit of their batch."""
    width = max(len(put.positions) for put in puts)
    values = puts[0].values.new_zeros(len(puts), width, puts[0].values[0].numel())
    at = torch.full((len(puts), width), -1, dtype=torch.long)
    for i, put in enumerate(puts):
        n = len(put.positions)
        at[i, :n] = torch.as_tensor(put.positions)
        values[i, :n] = put.values.flatten(1)
    heads = None if puts[0].head is None else [puts[0].head]
    return replace(puts[0].site, values, at, heads=heads)


def runs_of(
    model: Model, cases: Sequence[Case], sites: Sequence[str], budget: int | None, passes: str
) -> Runs:
    """The quickest way that the model and the sites allow, or the one asked for.

    Raises:
        CannotFork: forks were asked for and do not fit.
    """
    from activations.forking import CannotFork, Forks

    if passes != "whole":
        try:
            return ForkedCases(model, cases, budget, Forks.of(model, sites))
        except CannotFork:
            if passes == "forked":
                raise
    return WholePasses(model, cases, budget)
