"""The pipeline of a capture: passes on the device, copies beside them, writing behind them.

Rows are picked on the device before anything is copied. On a GPU the copies go to pinned memory on
a stream of their own. A shard is computed into one of a few buffers; when it is full, a thread
waits for its copies, looks for values that are no numbers and hands it on (to disk, or to its place
in memory) while the next shard is computed. With all buffers full the device waits, so memory is
bounded by the buffers, not by the corpus.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from activations.batching import full_batches, length_batches, limits, out_of_memory
from activations.errors import CaptureError
from activations.job import Job
from activations.places import Site

if TYPE_CHECKING:
    from activations.model import Model

Deliver = Callable[[int, dict[str, Tensor]], object]
"""Takes a finished shard, its number and for each site `[rows, *row]`; called in another thread."""

_BUFFERS = 2


@dataclass(frozen=True)
class Tuning:
    """How passes are made, which changes memory and speed and nothing else beyond rounding.

    Attributes:
        token_budget: most tokens, padding included, in one pass; chosen by device where None.
        pack: lay texts end to end instead of padding them, where that gives the same states; on a
            GPU if None, since passes of many tokens are what keeps it busy.
    """

    token_budget: int | None = None
    pack: bool | None = None


def stream_shards(
    model: Model,
    job: Job,
    shards: Sequence[int],
    deliver: Deliver,
    *,
    tuning: Tuning,
    advance: Callable[[int], object] = lambda tokens: None,
) -> None:
    """Compute shards in order and deliver each once it is whole.

    `advance` is called with the number of tokens that have passed.

    Raises:
        CaptureError: a state that is no number, with its site and text; one text for which memory
            does not suffice. Shards delivered before that stand.
    """
    passes = _Passes(model, job, tuning)
    free: queue.Queue[dict[str, Tensor]] = queue.Queue()
    most = max((job.shard_rows(k) for k in shards), default=0)
    for _ in range(min(_BUFFERS, len(shards))):
        free.put(_buffer(job, most, pinned=model.device.type == "cuda"))

    def hand_on(
        number: int, whole: dict[str, Tensor], used: dict[str, Tensor], copies: Any
    ) -> None:
        try:
            for copy in copies:
                copy.synchronize()
            _require_numbers(job, number, whole)
            deliver(number, whole)
        finally:
            free.put(used)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="capture") as writer:
        pending: list[Future[None]] = []
        for number in shards:
            buffer = free.get()
            while pending and pending[0].done():
                pending.pop(0).result()  # what went wrong in the thread is raised here
            whole = {site: x[: job.shard_rows(number)] for site, x in buffer.items()}
            for tokens in passes.fill(number, whole):
                advance(tokens)
            pending.append(writer.submit(hand_on, number, whole, buffer, passes.copies()))
        for future in pending:
            future.result()


def _buffer(job: Job, rows: int, *, pinned: bool) -> dict[str, Tensor]:
    kind = getattr(torch, job.dtype)
    return {
        s.name: torch.empty((rows, *job.row_shape(s)), dtype=kind, pin_memory=pinned)
        for s in job.sites
    }


class _Passes:
    """Runs the batches of shards; remembers how many tokens memory was found to hold."""

    def __init__(self, model: Model, job: Job, tuning: Tuning) -> None:
        self.model, self.job = model, job
        self.budget, self.overhead = limits(model.device.type, tuning.token_budget)
        self.names = [site.name for site in job.sites]
        wanted = model.device.type == "cuda" if tuning.pack is None else tuning.pack
        few = [job.ids[i] for i in job.order[-4:]]
        self.packs = wanted and model.packs(few, self.names)
        self.streams: dict[torch.device, torch.cuda.Stream] = {}

    def fill(self, number: int, whole: dict[str, Tensor]) -> Iterator[int]:
        """Compute one shard into `whole`; yields the tokens of each pass."""
        examples = self.job.examples(number)
        ends = np.concatenate([[0], np.cumsum(self.job.reading.rows[examples])])
        todo = self._batches(examples, range(len(examples)))
        while todo:
            batch = todo.pop(0)  # a run of texts, so that its rows are a run too
            first, last = batch[0], batch[-1] + 1
            target = {site: x[ends[first] : ends[last]] for site, x in whole.items()}
            if self._run([int(i) for i in examples[first:last]], target):
                yield sum(len(self.job.ids[i]) for i in examples[first:last])
            else:
                rest = [i for later in todo for i in later]
                todo = self._batches(examples, [*batch, *rest])

    def _batches(self, examples: np.ndarray, places: Sequence[int]) -> list[list[int]]:
        lengths = [len(self.job.ids[examples[i]]) for i in places]
        if self.packs:
            found = full_batches(lengths, budget=self.budget)
        else:
            found = length_batches(lengths, budget=self.budget, overhead=self.overhead)
        return [[places[i] for i in batch] for batch in found]

    def _run(self, examples: list[int], target: dict[str, Tensor]) -> bool:
        """One pass; False (and a smaller budget from now on) where memory does not hold it."""
        ids = [self.job.ids[i] for i in examples]
        try:
            pick = _Pick(self.job, examples, self.model.device, packed=self.packs)
            if self.packs:
                got = self.model.packed_activations(ids, self.names, select=pick)
            else:
                got = self.model.activations(*self.model.pad(ids), self.names, select=pick)
            for site, x in got.items():
                self._copy(x, target[site])
            return True
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(ids) == 1:
            raise CaptureError(
                f"Memory does not hold one text of {len(ids[0])} tokens; shorten it, or ask for "
                "fewer sites."
            )
        self.budget = max(1, len(ids) * len(ids[-1]) // 2)
        return False

    def _copy(self, x: Tensor, target: Tensor) -> None:
        if x.device.type != "cuda":
            target.copy_(x)
            return
        stream = self.streams.setdefault(x.device, torch.cuda.Stream(x.device))
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            target.copy_(x.to(target.dtype), non_blocking=True)
        x.record_stream(stream)

    def copies(self) -> list[torch.cuda.Event]:
        """Events that tell when all copies that were begun so far have arrived."""
        events = []
        for stream in self.streams.values():
            events.append(torch.cuda.Event())
            events[-1].record(stream)
        return events


class _Pick:
    """Takes the rows of one batch out of a site's states, on the device where they lie."""

    def __init__(
        self, job: Job, examples: list[int], device: torch.device, *, packed: bool
    ) -> None:
        positions = [job.reading.positions[i] for i in examples]
        counts = [len(p) for p in positions]
        self.texts = torch.from_numpy(np.repeat(np.arange(len(examples)), counts))
        self.rows, at = self.texts, np.concatenate(positions).astype(np.int64)
        if packed:  # one row, in which each text begins where the one before it ends
            starts = np.cumsum([0, *(len(job.ids[i]) for i in examples[:-1])])
            at = at + np.repeat(starts, counts)
            self.rows = torch.zeros_like(self.texts)
        self.positions = torch.from_numpy(at)
        self.counts = torch.tensor(counts) if job.reading.pooled else None
        self.longest = job.longest
        self.device = torch.device("cpu")
        self._to(device)

    def _to(self, device: torch.device) -> None:
        if device != self.device:
            self.texts, self.rows = self.texts.to(device), self.rows.to(device)
            self.positions = self.positions.to(device)
            self.counts = None if self.counts is None else self.counts.to(device)
            self.device = device

    def __call__(self, states: Tensor, site: Site) -> Tensor:
        """States `[batch, pos, ...]` to `[rows, *row]`, text after text."""
        self._to(states.device)
        if site.axis == 1:
            taken = states[self.rows, self.positions]
        else:
            taken = states[self.rows, :, self.positions]
        if site.over_keys:
            taken = torch.nn.functional.pad(taken, (0, self.longest - taken.shape[-1]))
        if self.counts is None:
            return taken
        shape = (len(self.counts), *taken.shape[1:])
        total = torch.zeros(shape, dtype=torch.float64, device=taken.device)
        total.index_add_(0, self.texts, taken.double())
        counts = self.counts.reshape(-1, *[1] * (taken.ndim - 1))
        return (total / counts).to(states.dtype)


def _require_numbers(job: Job, number: int, whole: dict[str, Tensor]) -> None:
    for site, x in whole.items():
        # Scores of what attention must not see are minus infinity by right.
        bad = x.isnan() if site.endswith("hook_attn_scores") else ~x.isfinite()
        if bool(bad.any()):
            row = int(bad.flatten(1).any(1).nonzero()[0])
            examples = job.examples(number)
            ends = np.cumsum(job.reading.rows[examples])
            text = job.texts[examples[int(np.searchsorted(ends, row, side="right"))]]
            raise CaptureError(
                f"The states at {site} are NaN or infinite for the text {text!r}; "
                "try dtype float32, or check the model's weights."
            )
