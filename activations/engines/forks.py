"""Runs that part from a base run at some block and position, computed from there on only.

In a causal model a change at block l and position t touches nothing below l and nothing before t.
So a fork takes the base run's states at the input of its first block, from its first position on,
and the base run's keys and values for the positions before. Forks of many texts, blocks and
positions are laid end to end in one row; each joins the row at its own block, so that every block
runs once for all of them. Of the last block only the queries that are read are computed (its keys
and values are needed at every position), and of the logits only those rows and, if wanted, only
some of the vocabulary.

It works where `packing` does, and is used only after it gave the numbers of ordinary hooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from activations.engines.fork_plan import (
    Change,
    Fork,
    Group,
    Plan,
    Record,
    block_paths,
    first_block,
)
from activations.engines.hooks import attached
from activations.engines.packing import (
    CannotPack,
    Layout,
    attend_apart,
    attending_copy,
    causal_mask,
    packed_inputs,
    require_plain,
)
from activations.places import Site, first_tensor

NAME = "isogloss_forked"


class ForkedRuns:
    """Base runs and forks of one Hugging Face model; every pass holds `lock`.

    Raises:
        CannotPack: the model's blocks or its attention do not allow it.
    """

    def __init__(
        self, hf: Any, sites: Mapping[str, Site], n_layers: int, lock: AbstractContextManager[Any]
    ) -> None:
        self._sites, self._lock = sites, lock
        self._blocks = block_paths(sites, n_layers)
        if len({p.device for p in hf.parameters()}) != 1 or any(p.is_meta for p in hf.parameters()):
            raise CannotPack("its weights lie in several places")
        self._model = attending_copy(hf, NAME, _attend)
        self._last = n_layers - 1
        for number, path in enumerate(self._blocks):
            block: Any = self._model.get_submodule(path)
            block.forward = partial(_gate, number, block.forward)
        self._head = _Head(self._model)

    def first_block(self, site: str) -> int:
        """The first block that a change at `site` makes another; `n_layers` for none."""
        return first_block(site, self._sites, self._blocks)

    @torch.no_grad()
    def record(self, ids: Sequence[Sequence[int]]) -> Record:
        """The base runs of these texts, to part from."""
        device = next(self._model.parameters()).device
        run = _Recording(Layout.of([len(one) for one in ids], device))
        with self._lock, _running(run), self._head.only(0):
            self._model(**packed_inputs(ids, device), use_cache=False)
        lengths = [len(one) for one in ids]
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        return Record(
            tuple(tuple(one) for one in ids),
            tuple(starts),
            tuple(lengths),
            tuple(run.states),
            tuple(run.keys),
            tuple(run.values),
            run.in_tuples,
        )

    def run(
        self,
        record: Record,
        forks: Sequence[Fork],
        *,
        reads: int = 1,
        vocabulary: Tensor | None = None,
        grad: bool = False,
    ) -> Tensor:
        """Logits `[forks, reads, vocabulary]` at the last `reads` positions of each base text.

        Args:
            vocabulary: token ids, if only their logits are wanted.
            grad: keep what gradients in the values that are put in need.

        Raises:
            CannotPack: a site that is not a place in a block of the plain model.
        """
        plan = Plan.of(record, forks, self._sites, self._blocks, reads)
        run = _Forking(record, plan, self._last)
        device = record.states[0].device
        rows = [t for text, first in plan.spans for t in record.ids[text][first:]]
        places = [p for text, first in plan.spans for p in range(first, record.lengths[text])]
        row = torch.tensor([rows], device=device)
        with ExitStack() as held:
            held.enter_context(self._lock)
            held.enter_context(torch.set_grad_enabled(grad))
            held.enter_context(_running(run))
            held.enter_context(self._head.only(len(plan.read), vocabulary))
            for change in plan.inside:
                module = self._model.get_submodule(change.place.module)
                put = partial(run.put, change)
                held.enter_context(attached(module, change.place, put, run.shape))
            position_ids = torch.tensor([places], device=device)
            logits = self._model(input_ids=row, position_ids=position_ids, use_cache=False).logits
        return logits[0][plan.arranged.to(logits.device)]


class _KeysOnly(Exception):
    """Raised in the last block once its keys and values are known."""


@dataclass
class _Recording:
    """A pass over the base texts, laid end to end."""

    layout: Layout
    states: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    in_tuples: bool = False

    def through(self, number: int, block: Any, hidden: Tensor, args: Any, named: Any) -> Any:
        """Block `number` of the pass."""
        if number == 0:
            self.states.append(hidden[0])
        output = block(hidden, *args, **named)
        self.in_tuples = isinstance(output, tuple)
        self.states.append(first_tensor(output)[0])
        return output

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, options: Any) -> Tensor:
        """Attention of each text for itself; its keys and values are kept."""
        self.keys.append(k[0])
        self.values.append(v[0])
        return attend_apart(module, q, k, v, self.layout, **options)


class _Forking:
    """A pass over forks, which grows by those that join at each block."""

    def __init__(self, record: Record, plan: Plan, last: int) -> None:
        self.record, self.plan, self.last = record, plan, last
        self.block = self.count = 0
        #: Which tokens are in the row; the first `count` where None.
        self.here: Tensor | None = None
        #: The last block's keys and values, once they are known and its queries are cut down.
        self.late: tuple[Tensor, Tensor] | None = None

    def shape(self) -> tuple[int, int]:
        """(texts, positions) of the row as it is now."""
        return 1, self.count

    def through(self, number: int, block: Any, hidden: Tensor, args: Any, named: Any) -> Any:
        """Block `number`: those that join it come in, and go through with those in flight."""
        plan, before = self.plan, self.plan.joined[number - 1] if number else 0
        self.block, self.here, self.count = number, None, plan.joined[number]
        joining = self.record.states[number][plan.base[before : self.count]]
        states = torch.cat([hidden[:, :before], joining[None]], dim=1)
        for change in plan.at_input[number]:
            states = self.put(change, states)
        if number == self.last:
            return self._end(block, states, args, named)
        if not self.count:  # nothing to do yet; the row keeps its length for what comes
            return (hidden, None) if self.record.in_tuples else hidden
        return self._call(block, states, args, named, slice(self.count))

    def _end(self, block: Any, states: Tensor, args: Any, named: Any) -> Any:
        """The last block, for the tokens that are read, and then those that join after it."""
        plan, inside = self.plan, self.plan.read[self.plan.read < self.count]
        final = states[:, :0]
        if len(inside) < self.count:
            with suppress(_KeysOnly):
                self._call(block, states, args, named, slice(self.count))
            self.here, self.count = inside, len(inside)
            states = states[:, inside]
        if self.count:
            rows = slice(self.count) if self.here is None else self.here
            final = first_tensor(self._call(block, states, args, named, rows))
        after = plan.base[plan.read[len(inside) :]]
        final = torch.cat([final, self.record.states[-1][after][None]], dim=1)
        self.here, self.count = plan.read, len(plan.read)
        for change in plan.at_input[self.last + 1]:
            final = self.put(change, final)
        # Some models shape what comes out by what went in, so the row keeps its length.
        rest = final.new_zeros(1, plan.joined[-1] - final.shape[1], final.shape[2])
        final = torch.cat([final, rest], dim=1)
        return (final, None) if self.record.in_tuples else final

    def _call(self, block: Any, states: Tensor, args: Any, named: Any, rows: Any) -> Any:
        whole = self.plan.joined[-1]
        return block(states, *_rows(args, whole, rows), **_rows(named, whole, rows))

    def put(self, change: Change, states: Tensor) -> Tensor:
        """The states with what is put in at this place."""
        rows, values = change.rows, change.values
        if self.here is not None:  # where each token stands among those that are left, if it is
            at = torch.searchsorted(self.here, rows).clamp(max=len(self.here) - 1)
            left = self.here[at] == rows
            rows, values = at[left], values[left]
        new = states if change.in_place else states.clone()
        view = new[0] if change.head is None else new[0, :, change.head]
        view[rows] = values.to(new).reshape(len(rows), *view.shape[1:])
        return new

    def attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, options: Any) -> Tensor:
        """Attention of each fork over its base's keys and its own."""
        if self.block == self.last and self.here is None:
            self.late = (k, v)
            if int((self.plan.read < self.count).sum()) < self.count:
                raise _KeysOnly
        own = (k, v) if self.late is None else self.late
        out = q.new_empty(1, q.shape[2], q.shape[1], v.shape[-1])
        for group in self.plan.groups:
            if joined := group.joined[self.block]:
                self._attend_group(module, q, own, group, joined, out, **options)
        return out

    def _attend_group(
        self,
        module: Any,
        q: Tensor,
        own: tuple[Tensor, Tensor],
        group: Group,
        joined: int,
        out: Tensor,
        *,
        sliding_window: int | None = None,
        **options: Any,
    ) -> None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        rows, past = group.rows[:joined], group.past[:joined]
        keys, values = (
            torch.cat([kept[self.block][:, past], new[0][:, rows]], dim=2).transpose(0, 1)
            for kept, new in ((self.record.keys, own[0]), (self.record.values, own[1]))
        )
        first, length = past.shape[1], keys.shape[2]
        if self.here is not None:  # what is read are the last positions of every fork
            reads = self.plan.arranged.shape[1]
            first, rows = (
                length - reads,
                torch.searchsorted(self.here, rows[:, -reads:].contiguous()),
            )
        queries = q[0][:, rows].transpose(0, 1)
        mask = causal_mask(first, rows.shape[1], length, sliding_window, q.device)
        out[0, rows] = sdpa_attention_forward(module, queries, keys, values, mask, **options)[0]


_RUN: ContextVar[_Recording | _Forking] = ContextVar("run")


@contextmanager
def _running(run: _Recording | _Forking) -> Iterator[None]:
    token = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(token)


def _gate(number: int, block: Any, hidden_states: Tensor, *args: Any, **named: Any) -> Any:
    return _RUN.get().through(number, block, hidden_states, args, named)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    require_plain(attention_mask, options)
    return _RUN.get().attend(module, query, key, value, options), None


def _rows(value: Any, whole: int, rows: Any) -> Any:
    """The same rows of every tensor among a block's arguments that has one for each token."""
    if isinstance(value, Tensor):
        if value.ndim > 1 and value.shape[:2] == (1, whole):
            return value[:, rows]
        return value[rows] if value.shape == (whole,) else value
    if isinstance(value, dict):
        return {name: _rows(one, whole, rows) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_rows(one, whole, rows) for one in value)
    return value


class _Head:
    """The output embedding of a copied model, cut down to the tokens that are wanted."""

    def __init__(self, model: Any) -> None:
        module = model.get_output_embeddings()
        if not isinstance(module, torch.nn.Linear):
            raise CannotPack(f"its output embedding is a {type(module).__name__}")
        self._module, self._whole = module, module.forward
        self._tokens: Tensor | None = None
        self._rows = 0
        module.forward = self._forward  # type: ignore[method-assign]

    def _forward(self, states: Tensor) -> Tensor:
        states = states[:, : self._rows]
        if self._tokens is None:
            return self._whole(states)
        bias = self._module.bias
        bias = None if bias is None else bias[self._tokens]
        return torch.nn.functional.linear(states, self._module.weight[self._tokens], bias)

    @contextmanager
    def only(self, rows: int, tokens: Tensor | None = None) -> Iterator[None]:
        """Logits of the first `rows` alone, and of `tokens` alone; of all tokens if None."""
        self._rows = rows
        self._tokens = None if tokens is None else tokens.to(self._module.weight.device)
        try:
            yield
        finally:
            self._tokens = None
