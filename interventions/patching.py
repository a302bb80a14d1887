"""Which states carry the difference between two texts: a sweep over sites and positions."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from activations import layer_of
from evidence import EvidenceError, cluster_bootstrap
from geometry import Subspace
from interventions.alignment import align_tokens
from interventions.cells import Align, Case, Cell, States, make_cases
from interventions.errors import EditError
from interventions.readings import Metric, PlainMetric, as_metric
from interventions.sweep_plan import SweepPlan, meeting_place, share_pieces
from interventions.sweep_runs import Task, Work, runs_of
from interventions.sweep_runs import token_budget as budget_of
from interventions.sweep_store import SweepStore, array_digest

if TYPE_CHECKING:
    from activations import Model, Workers

Way = Literal["denoise", "noise", "both"]
Passes = Literal["auto", "forked", "whole"]

PASSES = ("auto", "forked", "whole")
_WAYS = {"denoise": ("denoise",), "noise": ("noise",), "both": ("denoise", "noise")}
CELL = ["way", "site", "layer", "head", "position"]
#: Memory for the states, keys and values of the pairs that are worked on together.
_PIECE_BYTES = 2**28
#: Full passes for one piece: enough that they are full, few enough to share and to lose.
_PIECE_PASSES = 8


@dataclass(frozen=True, eq=False)
class PatchSweep:
    """What a sweep found.

    `frame` has one row for each pair × way × site × head × segment: `pair`, `way`, `site`,
    `layer`, `head` (-1 for all of a site), `position` (tokens from the end of the base text to the
    segment's last token, 0 = the last), `width` (tokens in it), `patched` (those of them with a
    counterpart), `value` (the metric of the patched run), `base` and `source` (of the plain runs)
    and `recovered` = (value - base) / (source - base).

    `summary` has one row for each way × site × head × position: `value` (the ratio of sums over
    pairs, which no single pair with a small gap can blow up), its interval `low`, `high` over `n`
    groups of pairs, and `patched`, the share of tokens that had a counterpart.

    `work` says what was computed; `metric` and `unit` what `value` of the frame is.
    """

    frame: pd.DataFrame
    summary: pd.DataFrame
    work: Work = field(default_factory=Work)
    metric: str = ""
    unit: str = ""

    def __repr__(self) -> str:
        pairs, sites = self.frame["pair"].nunique(), self.frame["site"].nunique()
        return f"PatchSweep({pairs} pairs, {sites} sites, {len(self.frame)} cells)"

    def _repr_html_(self) -> str:
        """The share of the gap closed by site and position, one table for each way."""
        parts = [f"<p>{html.escape(repr(self))}</p>"]
        for way in self.summary["way"].unique():
            table = self.array(way=way)
            if len(table):
                parts.append(f"<p>{html.escape(way)}</p>")
                parts.append(table.to_html(border=0, float_format="%.2f", max_cols=16, max_rows=40))
        return "".join(parts)

    def array(self, *, way: str = "denoise", head: int = -1) -> pd.DataFrame:
        """The recovered fraction, sites in rows and positions from the end in columns."""
        own = self.summary[(self.summary["way"] == way) & (self.summary["head"] == head)]
        table = own.pivot_table(index="site", columns="position", values="value", sort=False)
        return table[sorted(table.columns, reverse=True)]


def patch_sweep(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    *,
    sites: str | Sequence[str] = "resid_post",
    layers: Sequence[int] | None = None,
    heads: bool = False,
    max_positions: int = 24,
    way: Way = "denoise",
    metric: Literal["kl"] | Metric | PlainMetric = "kl",
    align: Align = align_tokens,
    within: Subspace | Mapping[str, Subspace] | None = None,
    groups: Sequence[Any] | None = None,
    passes: Passes = "auto",
    token_budget: int | None = None,
    store: str | Path | None = None,
    workers: Workers | None = None,
    seed: int = 0,
    level: float = 0.95,
    progress: bool = False,
) -> PatchSweep:
    """Put states of a source run into a base run, one site and position at a time. Exact.

    For pairs of texts that mean the same (a dialect's and the standard's), how much of the gap
    between the two next-token distributions at the last token does each state carry? With the
    default metric, recovered = 1 - KL(source ‖ patched) / KL(source ‖ base): 1 where the patched
    run predicts as the source run does, 0 where nothing changed, negative where it went farther
    off. This way tests sufficiency; the other way, "noise", puts the base text's states into the
    source text's run and tests necessity, and the two need not agree (Heimersheim & Nanda 2024).

    Positions count from the end, so that texts of different lengths meet at their last token; they
    are taken in segments of ceil(longest base text / `max_positions`) tokens, patched together.
    Tokens correspond as `align` says; those without a counterpart are left as they are, and
    counted. A cell whose states are the same in both runs needs no run: nothing changes.

    Nothing is computed twice: blocks below the patch and positions before it are the base run's,
    and many cells of many pairs share a pass (see `activations.forking`). Models and sites that
    this does not fit are run by whole passes, batched, with the same results up to rounding.

    Models with learned positions keep the absolute position in the residual stream, and a state
    that comes from another position brings it along.

    Args:
        pairs: (base text, source text).
        sites: as in `model.resolve_sites`, only at blocks `layers` where given.
        heads: each head apart, at sites that have heads (z, q, k, v).
        metric: "kl"; `LogitDifference`, `AnswerLogProb` or `ContinuationLoss`; or a function of
            logits `[B, V]` at the last token, the source's and the base's `[V]`.
        align: from base and source ids to the source position for each base position, or -1.
        within: a subspace, for all sites or by site: only the coordinates in it are put in, and
            the rest of the state stays (interchange intervention; Geiger et al. 2024).
        groups: pairs that are not independent share one; each its own where None.
        passes: "forked" or "whole" to have one of the two ways, or an error.
        token_budget: tokens in one pass; 2,048 on a CPU and 16,384 on a GPU, halved where memory
            runs out.
        store: folder that keeps what is done, so that a sweep that was cut off goes on there.
        workers: other processes, here or on a cluster, that share the pieces; on a cluster they
            meet in the `store`. The figures are one process's.
        seed: of the bootstrap.

    Raises:
        EditError: no pairs, fewer groups than pairs, a count below 1, a metric that does not fit
            the pairs, a store of another sweep, or a metric or an alignment that workers cannot be
            sent.
        CaptureError: workers that cannot open the model, or under edits.
    """
    texts = [(str(base), str(source)) for base, source in pairs]
    names = names_of(texts, groups)
    require_counts(max_positions=max_positions, token_budget=token_budget)
    require_known("passes", passes, PASSES)
    measure = as_metric(metric)
    measure.check(len(texts))
    where = model.resolve_sites(sites, layers)
    cases = make_cases(model, texts, ways_of(way), measure, align)
    width = math.ceil(max(case.length for case in cases) / max_positions)
    spaces = _spaces(model, where, within, heads)
    parted = {site: array_digest(np.asarray(space.basis)) for site, space in spaces.items()}
    about = (measure.name, heads, width, parted)
    plan = SweepPlan(
        tuple(texts), ways_of(way), measure, align, tuple(where), spaces, width, heads,
        token_budget, passes,
    )  # fmt: skip
    most = _PIECE_PASSES * budget_of(model, token_budget)
    cut = pieces_of(model, cases, len(where), lambda case: plan.tokens(model, case), most)
    bounds = np.cumsum([0, *map(len, cut)]).tolist()
    work, parts = Work(), []
    with (
        meeting_place(store, workers) as place,
        tqdm(total=len(cases), desc="patch", unit="case", disable=not progress) as shown,
    ):
        kept = SweepStore.at(place, model, cases, where, about, bounds)
        shared: list[int] = []
        if workers is not None:
            shared = share_pieces(plan, model, kept, workers, work, shown.update)
        for number, (start, end) in enumerate(pairwise(kept.bounds)):
            frame = kept.read(number)
            if frame is None:
                frame = plan.frame(model, cases[start:end], work)
                kept.write(number, frame)
            parts.append(frame)
            shown.update(0 if number in shared else end - start)
    frame = pd.concat(parts, ignore_index=True)
    summary = summarise(frame, names, seed=seed, level=level)
    return PatchSweep(frame, summary, work, measure.name, measure.unit)


def _spaces(
    model: Model,
    sites: Sequence[str],
    within: Subspace | Mapping[str, Subspace] | None,
    heads: bool,
) -> dict[str, Subspace]:
    """The subspace of each site, where only a part is put in."""
    if within is None:
        return {}
    spaces = within if isinstance(within, Mapping) else dict.fromkeys(sites, within)
    for site in sites:
        row = model.site(site).row
        width = row[-1] if heads and len(row) == 2 else math.prod(row)
        if site not in spaces:
            raise EditError(f"No subspace was given for {site}: give one for each of the sites.")
        if spaces[site].d != width:
            raise EditError(
                f"The subspace for {site} has {spaces[site].d} dimensions and the states there "
                f"{width}: fit it on states of this model and site."
            )
    return {site: spaces[site] for site in sites}


def names_of(pairs: Sequence[Any], groups: Sequence[Any] | None) -> list[Any]:
    """The group of each pair; each its own where None.

    Raises:
        EditError: no pairs, or another number of groups.
    """
    names = list(range(len(pairs))) if groups is None else list(groups)
    if not pairs or len(names) != len(pairs):
        raise EditError(
            f"There are {len(pairs)} pairs and {len(names)} groups: give at least one pair, and "
            "the group of each."
        )
    return names


def ways_of(way: str) -> tuple[str, ...]:
    """The ways that a name stands for; raises EditError where it is none."""
    require_known("way", way, _WAYS)
    return _WAYS[way]


def require_known(name: str, given: str, known: Iterable[str]) -> None:
    """Raises EditError where an option is none of those known."""
    if given not in known:
        raise EditError(f"{name} is {given!r}: give one of {', '.join(map(repr, known))}.")


def require_counts(**counts: int | None) -> None:
    """Raises EditError where one of these is given and below 1."""
    if any(count is not None and count < 1 for count in counts.values()):
        raise EditError(f"{' and '.join(counts)} count things: give at least 1.")


def pieces_of(
    model: Model,
    cases: Sequence[Case],
    n_sites: int,
    tokens_of: Callable[[Case], int] = lambda case: 0,
    most_tokens: int = 1,
) -> Iterator[list[Case]]:
    """Runs of cases whose states fit in memory together, and whose `tokens_of` are not too many.

    A piece holds at least one case, however large.
    """
    a_token = model.d_model * model.dtype.itemsize * (4 * model.n_layers + 2 * n_sites)
    most = max(1, _PIECE_BYTES // a_token)
    piece: list[Case] = []
    held, run = 0, 0
    for case in cases:
        size, more = len(case.base) + len(case.source), tokens_of(case)
        if piece and (held + size > most or run + more > most_tokens):
            yield piece
            piece, held, run = [], 0, 0
        piece.append(case)
        held, run = held + size, run + more
    yield piece


def patched_rows(
    model: Model,
    cases: Sequence[Case],
    cells: Sequence[Cell],
    within: Mapping[str, Subspace],
    budget: int | None,
    passes: Passes,
    work: Work,
) -> list[dict[str, Any]]:
    """The rows of some cases' cells, each of them run; `work` is added to."""
    with model.lock:
        sites = list(dict.fromkeys(cell.site for cell in cells))
        runs = runs_of(model, cases, sites, budget, passes)
        base, source = runs.plain()
        states = States(model, cases, sites, within)
        ends = {}
        for case, b, s in zip(cases, base, source, strict=True):
            ends[id(case)] = case.reading.measure(torch.stack([b, s]), s, b).double().tolist()
        tasks = [
            Task(cell.case, (put,), cell) for cell in cells if (put := states.put(cell)) is not None
        ]
        values: dict[int, float] = {}
        number = {id(case): i for i, case in enumerate(cases)}
        for part, logits in runs.patched(tasks):
            case = part[0].case
            i = number[id(case)]
            found = case.reading.measure(logits, source[i], base[i]).double().tolist()
            values.update((id(task.of), value) for task, value in zip(part, found, strict=True))
    work.cells += len(cells)
    work.runs += len(tasks)
    work.block_tokens += sum(runs.cost(task.of) for task in tasks)
    work.whole += sum(model.n_layers * len(cell.case.base) for cell in cells)
    return [row_of(cell, values.get(id(cell)), *ends[id(cell.case)]) for cell in cells]


def row_of(cell: Cell, value: float | None, base: float, source: float) -> dict[str, Any]:
    """A row of `PatchSweep.frame`; None for a value that is the base run's."""
    value = base if value is None else value  # nothing changes in the run
    gap = source - base
    return {
        "pair": cell.case.pair,
        "way": cell.case.way,
        "site": cell.site,
        "layer": layer_of(cell.site),
        "head": -1 if cell.head is None else cell.head,
        "position": cell.case.length - cell.end,
        "width": cell.end - cell.first,
        "patched": len(cell.positions),
        "value": value,
        "base": base,
        "source": source,
        "recovered": (value - base) / gap if gap else math.nan,
    }


def summarise(
    frame: pd.DataFrame, groups: Sequence[Any], *, seed: int = 0, level: float = 0.95
) -> pd.DataFrame:
    """Ratios of sums over pairs by cell, with a bootstrap over groups of pairs.

    `groups` is the group of each pair number of `frame`. Where the gap is zero in all pairs, or in
    most resamples, the value or the interval is NaN.
    """
    rows = []
    own = np.asarray(groups, dtype=object).astype(str)
    for where, cell in frame.groupby(CELL, sort=False):
        rows.append(
            {
                **dict(zip(CELL, where, strict=True)),  # type: ignore[call-overload]
                **recovered_share(cell, own, seed=seed, level=level),
                "patched": float(cell["patched"].sum() / cell["width"].sum()),
            }
        )
    return pd.DataFrame(rows)


def recovered_share(
    cell: pd.DataFrame, groups: np.ndarray, *, seed: int = 0, level: float = 0.95
) -> dict[str, Any]:
    """Σ(value - base) / Σ(source - base) over pairs: value, low, high over n groups of them."""
    _, member = np.unique(groups[cell["pair"].to_numpy()], return_inverse=True)
    moved = (cell["value"] - cell["base"]).to_numpy()
    gap = (cell["source"] - cell["base"]).to_numpy()
    sums = np.column_stack([np.bincount(member, weights=w) for w in (moved, gap)])
    value = low = high = math.nan
    if sums[:, 1].sum():
        value = float(sums[:, 0].sum() / sums[:, 1].sum())
        try:
            found = cluster_bootstrap(sums, _ratio, seed=seed, level=level)
            low, high = found.low, found.high
        except EvidenceError:
            pass  # too few groups with a gap for an interval; the value stands without one
    return {"value": value, "low": low, "high": high, "n": len(sums)}


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]
