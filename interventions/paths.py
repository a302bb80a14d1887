"""What one part of a model does to another directly, everything else held as it was.

Path patching (Goldowsky-Dill et al. 2023; Wang et al. 2023). Three runs for a sender and a
receiver, on a base text:

1. the base run, whose head outputs (and MLP outputs) are kept;
2. the base run with the sender's states from the source run, every other head (and MLP) held at
   what it was: what changes at the receiver is what the sender gives it directly;
3. the base run with the receiver's states from run 2, and everything after computed again.

With MLPs not held ("run"), paths from sender to receiver may pass through them, as in Wang et al.
Norms are not held: the receiver's norm is that of the changed stream.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from activations.batching import out_of_memory
from interventions.alignment import align_tokens
from interventions.cells import Align, Case, States, make_cases
from interventions.edits import Replacement, replace
from interventions.errors import EditError
from interventions.nodes import OUTPUT, Node, Nodes, counted, names, puts_of, resolved, some
from interventions.patching import (
    PASSES,
    Passes,
    Way,
    names_of,
    pieces_of,
    recovered_share,
    require_counts,
    require_known,
    ways_of,
)
from interventions.readings import Metric, PlainMetric, as_metric
from interventions.sweep_runs import Runs, Task, runs_of, token_budget

if TYPE_CHECKING:
    from activations import Model
    from activations.engines.fork_plan import Put

Part: TypeAlias = tuple[str, tuple[Node, ...]]
"""What a sender or receiver is called, and its nodes."""

_SENDS = ("attn.hook_z", "hook_attn_out", "hook_mlp_out")
_RECEIVES = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "mlp.hook_pre", "mlp.hook_post",
             "hook_resid_pre", "hook_resid_mid", "hook_resid_post")  # fmt: skip
_MLPS = ("frozen", "run")
_PATH = ["way", "sender", "receiver"]


@dataclass(frozen=True, eq=False)
class PathSweep:
    """What path patching found.

    `frame` has one row for each pair × way × sender × receiver: `value` (the metric with the
    receiver as the sender alone would make it), `total` (with the sender itself patched, by
    whatever path), `base` and `source` (of the plain runs), `recovered` = (value - base) / (source
    - base). With `OUTPUT` as receiver, value - base is the sender's direct effect and total -
    value its indirect one.

    `summary` has one row for each way × sender × receiver: `value` (recovered, a ratio of sums over
    pairs) with `low`, `high` over `n` groups, and `total` likewise without an interval.
    """

    frame: pd.DataFrame
    summary: pd.DataFrame
    metric: str = ""
    unit: str = ""

    def __repr__(self) -> str:
        senders, receivers = (self.frame[name].nunique() for name in ("sender", "receiver"))
        pairs = self.frame["pair"].nunique()
        return f"PathSweep({pairs} pairs, {senders} senders, {receivers} receivers)"

    def _repr_html_(self) -> str:
        """The share of the gap closed by sender and receiver, one table for each way."""
        parts = [f"<p>{html.escape(repr(self))}</p>"]
        for way in self.summary["way"].unique():
            table = self.array(way=way)
            parts.append(f"<p>{html.escape(way)}</p>")
            parts.append(table.to_html(border=0, float_format="%.2f", max_cols=16, max_rows=40))
        return "".join(parts)

    def array(self, *, way: str = "denoise") -> pd.DataFrame:
        """The recovered fraction, senders in rows and receivers in columns."""
        own = self.summary[self.summary["way"] == way]
        return own.pivot_table(
            index="sender", columns="receiver", values="value", sort=False, dropna=False
        )


def path_sweep(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    senders: Sequence[Nodes],
    receivers: Sequence[Nodes] = (OUTPUT,),
    *,
    mlps: Literal["frozen", "run"] = "frozen",
    way: Way = "denoise",
    metric: Literal["kl"] | Metric | PlainMetric = "kl",
    align: Align = align_tokens,
    groups: Sequence[Any] | None = None,
    passes: Passes = "auto",
    token_budget: int | None = None,
    seed: int = 0,
    level: float = 0.95,
    progress: bool = False,
) -> PathSweep:
    """The effect of each sender on the metric through each receiver alone. Exact.

    One run for each sender and pair tells what all receivers get from it; the runs with changed
    receivers are forks of the base run where the model allows it, as in `patch_sweep`. A receiver
    that a pass reaches before the sender gets nothing from it, and needs no run.

    Args:
        senders: what writes: heads (`attn.hook_z`), `hook_attn_out`, `hook_mlp_out`, or `embed`.
        receivers: what is read: queries, keys or values of a head (`attn.hook_q`, `hook_k`,
            `hook_v`, each a receiver of its own), an MLP (`mlp.hook_post`; `mlp.hook_pre` is the
            gate alone where there is one), the stream (`hook_resid_pre` and its like), or
            `OUTPUT`, the model's end. An entry of several nodes is patched together, each with
            what it is given directly.
        mlps: "frozen" holds them as the heads are held; "run" lets them pass on what they get.
        way, metric, align, groups, passes, token_budget: as for `patch_sweep`.

    Raises:
        EditError: as for `patch_sweep`; no senders or receivers, or nodes that are none or neither
            send nor receive.
    """
    texts = [(str(base), str(source)) for base, source in pairs]
    own = names_of(texts, groups)
    require_counts(token_budget=token_budget)
    require_known("passes", passes, PASSES)
    require_known("mlps", mlps, _MLPS)
    measure = as_metric(metric)
    measure.check(len(texts))
    sending = [_sender(model, one) for one in some(senders, "senders")]
    receiving = [_receiver(model, one) for one in some(receivers, "receivers")]
    cases = make_cases(model, texts, ways_of(way), measure, align)
    held = model.resolve_sites(["z", "mlp_out"] if mlps == "frozen" else "z")
    paths = _Paths(model, held, sending, receiving, token_budget, passes)
    rows = []
    with tqdm(total=len(cases), desc="paths", unit="run", disable=not progress) as shown:
        for piece in pieces_of(model, cases, len(paths.kept)):
            with model.lock:
                rows += paths.rows(piece)
            shown.update(len(piece))
    frame = pd.DataFrame(rows)
    groups_of = np.asarray(own, dtype=object).astype(str)
    found = []
    for where, cell in frame.groupby(_PATH, sort=False):
        total = recovered_share(cell.assign(value=cell["total"]), groups_of, seed=seed)
        found.append(
            {
                **dict(zip(_PATH, where, strict=True)),  # type: ignore[call-overload]
                **recovered_share(cell, groups_of, seed=seed, level=level),
                "total": total["value"],
            }
        )
    return PathSweep(frame, pd.DataFrame(found), measure.name, measure.unit)


class _Paths:
    """The runs of a path sweep.

    `kept` are the sites whose states are needed: those that are held, and the senders'.
    """

    def __init__(
        self,
        model: Model,
        held: Sequence[str],
        senders: Sequence[Part],
        receivers: Sequence[Part],
        budget: int | None,
        passes: Passes,
    ) -> None:
        self.model, self.held = model, held
        self.senders, self.receivers = senders, receivers
        self.budget, self.passes = budget, passes
        self.order = {site: number for number, site in enumerate(model.sites)}
        self.sent = _sites(senders)
        self.read = _sites(receivers)
        self.kept = list(dict.fromkeys([*held, *self.sent]))

    def rows(self, cases: Sequence[Case]) -> list[dict[str, Any]]:
        """Rows of the frame, of all senders and receivers in some cases."""
        sites = list(dict.fromkeys([*self.sent, *self.read]))
        runs = runs_of(self.model, cases, sites, self.budget, self.passes)
        base, source = runs.plain()
        states = States(self.model, cases, self.kept)
        tasks = []
        for case in cases:
            for number, (_, nodes) in enumerate(self.senders):
                if puts := puts_of(states, case, nodes):
                    tasks.append(Task(case, puts, (id(case), number)))
        for task, got in self._received(list(tasks), states):
            for number, (_, nodes) in enumerate(self.receivers):
                if puts := self._given(task, nodes, got):
                    tasks.append(Task(task.case, puts, (*task.of, number)))
        goals = {id(case): both for case, *both in zip(cases, source, base, strict=True)}
        figures = figures_of(runs, tasks, goals)
        return [row for case in cases for row in self._rows_of(case, figures, *goals[id(case)])]

    def _rows_of(
        self, case: Case, figures: dict[Any, float], source: Tensor, base: Tensor
    ) -> list[dict[str, Any]]:
        both = torch.stack([base, source])
        start, end = case.reading.measure(both, source, base).double().tolist()
        rows = []
        for i, (sender, _) in enumerate(self.senders):
            for j, (receiver, _) in enumerate(self.receivers):
                value = figures.get((id(case), i, j), start)
                rows.append(
                    {
                        "pair": case.pair,
                        "way": case.way,
                        "sender": sender,
                        "receiver": receiver,
                        "value": value,
                        "total": figures.get((id(case), i), start),
                        "base": start,
                        "source": end,
                        "recovered": (value - start) / (end - start) if end != start else np.nan,
                    }
                )
        return rows

    def _received(
        self, tasks: Sequence[Task], states: States
    ) -> Iterator[tuple[Task, dict[str, Tensor]]]:
        """Of each sender what it makes of the receivers' states, `[pos, *row]`, in the second run.

        `tasks` put in what the senders send.
        """
        start, size = 0, len(tasks)
        budget = token_budget(self.model, self.budget)
        while start < len(tasks):
            longest = max(len(task.case.base) for task in tasks[start : start + size])
            part = tasks[start : start + max(1, min(size, budget // longest))]
            ids = self.model.pad([task.case.base for task in part])
            try:
                with self.model.edited(*self._edits(part, states)):
                    got = self.model.activations(*ids, self.read)
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or len(part) == 1:
                    raise
                size = max(1, len(part) // 2)
                continue
            for i, task in enumerate(part):
                yield task, {site: x[i] for site, x in got.items()}
            start += len(part)

    def _edits(self, tasks: Sequence[Task], states: States) -> list[Replacement]:
        """Holds what is held at the base run's states, but for those that senders send."""
        earliest = min(self.order[put.site] for task in tasks for put in task.puts)
        held = [site for site in self.held if self.order[site] >= earliest]
        return [
            _held(site, tasks, states, whole=site in held)
            for site in dict.fromkeys([*held, *(put.site for task in tasks for put in task.puts)])
        ]

    def _given(
        self, task: Task, nodes: Sequence[Node], got: Mapping[str, Tensor]
    ) -> tuple[Put, ...]:
        """What receivers get: only where the sender writes, since all else is held."""
        from activations.engines.fork_plan import Put

        sent = sorted({p for put in task.puts for p in put.positions})
        first = min(self.order[put.site] for put in task.puts)
        puts = []
        for node in nodes:
            at = [p for p in sent if p in set(counted(node, task.case).tolist())]
            if at and self.order[node.site] > first:
                values = got[node.site] if node.head is None else got[node.site][:, node.head]
                puts.append(Put(node.site, at, values[at], node.head))
        return tuple(puts)


def _held(site: str, tasks: Sequence[Task], states: States, *, whole: bool) -> Replacement:
    """One site in a batch of runs: the base run's states where `whole`, and what is put in."""
    longest = max(len(task.case.base) for task in tasks)
    values, at = [], torch.full((len(tasks), longest), -1, dtype=torch.long)
    for i, task in enumerate(tasks):
        n = len(task.case.base)
        own = states.both(task.case, site)[0][:n].clone()
        if whole:
            at[i, :n] = torch.arange(n)
        for put in task.puts:
            if put.site == site:
                rows = torch.as_tensor(put.positions)
                view = own if put.head is None else own[:, put.head]
                view[rows] = put.values
                at[i, rows] = rows
        values.append(torch.nn.functional.pad(own.flatten(1), (0, 0, 0, longest - n)))
    return replace(site, torch.stack(values), at)


def figures_of(
    runs: Runs, tasks: Sequence[Task], goals: Mapping[int, Sequence[Tensor]]
) -> dict[Any, float]:
    """The metric of each task's run, by what it is run for.

    `goals` are the logits of the source and the base run that each case is measured against.
    """
    figures: dict[Any, float] = {}
    for part, logits in runs.patched(tasks):
        case = part[0].case
        found = case.reading.measure(logits, *goals[id(case)]).double().tolist()
        figures.update((task.of, value) for task, value in zip(part, found, strict=True))
    return figures


def _sites(parts: Sequence[Part]) -> list[str]:
    return list(dict.fromkeys(node.site for _, nodes in parts for node in nodes))


def _sender(model: Model, given: Nodes) -> Part:
    nodes = resolved(model, given)
    for node in nodes:
        if not (node.site.endswith(_SENDS) or node.site == model.embedding_site):
            raise EditError(
                f"{node.name} sends nothing that the rest could be held apart from: give heads "
                "(attn.hook_z), hook_attn_out, hook_mlp_out or embed."
            )
    return names(nodes), nodes


def _receiver(model: Model, given: Nodes) -> Part:
    end = model.resolve_sites("resid_post", [model.n_layers - 1])[0]
    nodes = resolved(model, given)
    for node in nodes:
        if node != OUTPUT and not node.site.endswith(_RECEIVES):
            raise EditError(
                f"{node.name} is no place that only takes in what others send: give attn.hook_q, "
                "hook_k or hook_v, mlp.hook_post, the stream, or OUTPUT."
            )
    whole = tuple(Node(end) if node == OUTPUT else node for node in nodes)
    sites = {node.site for node in whole}
    if len(sites) > 1 and any(".hook_resid_" in site for site in sites):
        raise EditError(
            f"In {names(nodes)} the stream takes the place of all that the others pass on: give "
            "it as a receiver of its own."
        )
    return names(nodes), whole
