"""All cells of a patching sweep from a few gradients, with the error beside them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from interventions.agreement import Agreement, agreement, drawn
from interventions.alignment import align_tokens
from interventions.approximations import Guesses, attributed, integrated, starred
from interventions.cells import Align, Case, Cell, States, cells_of, make_cases
from interventions.errors import EditError
from interventions.gradient_runs import Piece
from interventions.patching import (
    CELL,
    PASSES,
    Passes,
    PatchSweep,
    Way,
    names_of,
    patched_rows,
    pieces_of,
    require_counts,
    require_known,
    row_of,
    summarise,
    ways_of,
)
from interventions.query_key import is_query_or_key
from interventions.readings import Metric, PlainMetric, as_metric
from interventions.sweep_runs import Work, runs_of

if TYPE_CHECKING:
    from activations import Model

Method = Literal["atp", "ig", "atp*"]

_METHODS = ("atp", "ig", "atp*")
_PATHS = ("site", "inputs")
_FEWEST = 3


@dataclass(frozen=True, eq=False)
class AttributionSweep(PatchSweep):
    """Estimates in place of the runs of a `PatchSweep`, and how they compare with some of them.

    `frame` and `summary` have the columns of an exact sweep, `value` and `recovered` being
    estimates, and `score`: how much the cell matters, whatever the sign, in the metric's unit. It
    is the size of value - base (of "atp*" the GradDrop score), in `summary` its mean over pairs.

    `error` holds the cells that were drawn and also run. `leading` are those with the largest
    scores, run too, with `effect` (estimated) and `exact`: chosen for their size, they say nothing
    of the rest. `completeness` (of "ig") has a row for each
    pair × way × site: what the cells of the site were given together (`attributed`), and what
    putting in all of them does (`exact`). `work` counts runs with gradients, not the exact ones.
    """

    method: str = ""
    error: Agreement = field(kw_only=True)
    leading: pd.DataFrame = field(kw_only=True)
    completeness: pd.DataFrame | None = None

    def __repr__(self) -> str:
        pairs, sites = self.frame["pair"].nunique(), self.frame["site"].nunique()
        return (
            f"AttributionSweep({self.method}, {pairs} pairs, {sites} sites, {len(self.frame)} "
            f"cells; {self.error})"
        )


def attribution_sweep(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    *,
    method: Method = "atp",
    sites: str | Sequence[str] = "resid_post",
    layers: Sequence[int] | None = None,
    heads: bool = False,
    max_positions: int = 24,
    way: Way = "denoise",
    metric: Literal["kl"] | Metric | PlainMetric = "kl",
    align: Align = align_tokens,
    groups: Sequence[Any] | None = None,
    steps: int = 16,
    path: Literal["site", "inputs"] = "site",
    check: int = 64,
    top: int = 16,
    passes: Passes = "auto",
    token_budget: int | None = None,
    seed: int = 0,
    level: float = 0.95,
    progress: bool = False,
) -> AttributionSweep:
    """Estimate what `patch_sweep` computes, and run a sample of the cells to see how well.

    "atp", attribution patching (Nanda 2023): (source state - base state) · gradient at the base
    run; one run with gradients for each pair. "ig", integrated gradients (Sundararajan et al. 2017;
    on models Hanna et al. 2024): the mean of that gradient over a path; `steps` + 1 runs for each
    pair and site. "atp*" (Kramár et al. 2024): attention's own change exactly for queries and keys,
    and scores that leave out each block in turn; a run for each block and pair, and three without
    gradients. The formulas are in `interventions.approximations`.

    A first-order estimate misses what a softmax or a norm does beyond its slope, and the sum over
    cells is not what patching them all does. Norms are not frozen.

    Args:
        sites, layers, heads, max_positions, way, metric, align, groups: as for `patch_sweep`.
        steps: midpoints of the path, of "ig".
        path: of "ig": each site's own states are moved ("site"), or the embeddings, once for all
            sites ("inputs").
        check: how many cells are also run (at least 3; all, where there are fewer), drawn with
            `seed`, as many from each layer.
        top: how many of the cells with the largest scores are also run.
        passes, token_budget: of the cells that are run, and tokens in one pass.

    Raises:
        EditError: as for `patch_sweep`; another method or path, fewer than 3 cells to check, a
            metric without gradient, gradients that are not finite, or, for "atp*" at queries and
            keys, attention that is no softmax of scores that can be read.
        ModelError: an engine that gives no gradients.
    """
    texts = [(str(base), str(source)) for base, source in pairs]
    names = names_of(texts, groups)
    require_counts(max_positions=max_positions, token_budget=token_budget, steps=steps, top=top)
    for name, given, known in (
        ("passes", passes, PASSES), ("method", method, _METHODS), ("path", path, _PATHS)
    ):  # fmt: skip
        require_known(name, given, known)
    if check < _FEWEST:
        raise EditError(
            f"`check` is {check}: run at least {_FEWEST} cells, since an estimate without its "
            "error says little."
        )
    if model.dtype not in (torch.float32, torch.float64):
        warnings.warn(
            f"Gradients in {model.dtype} underflow: open the model with dtype='float32'.",
            stacklevel=2,
        )
    measure = as_metric(metric)
    measure.check(len(texts))
    where = model.resolve_sites(sites, layers)
    cases = make_cases(model, texts, ways_of(way), measure, align)
    width = math.ceil(max(case.length for case in cases) / max_positions)
    held = _states_wanted(model, where, method, path)
    work, rows, sums = Work(), [], []
    cells: list[Cell] = []
    changed: list[bool] = []
    with tqdm(total=len(texts), desc=method, unit="pair", disable=not progress) as shown:
        for part in pieces_of(model, cases, len(held)):
            with model.lock:
                base, source = runs_of(model, part, where, token_budget, passes).plain()
                goals = {id(c): (b, s) for c, b, s in zip(part, base, source, strict=True)}
                states = States(model, part, held)
                piece = Piece(model, part, width, heads, states, goals, token_budget, work)
                ends = {id(case): _ends(case, *goals[id(case)]) for case in part}
                guesses, more = _guesses(piece, where, method, steps, path, ends)
            sums += more
            for case in part:
                own = cells_of(model, case, where, width, heads)
                number = {first: i for i, (first, _) in enumerate(piece.spans(case))}
                for cell in own:
                    guess = guesses[id(case), cell.site]
                    at = (number[cell.first], cell.head or 0)
                    start, end = ends[id(case)]
                    row = row_of(cell, start + float(guess.effect[at]), start, end)
                    rows.append({**row, "score": float(guess.score[at])})
                    changed.append(bool(guess.changed[at]))
                cells += own
                work.cells += len(own)
                work.whole += model.n_layers * len(case.base) * len(own)
            shown.update(len({case.pair for case in part}))
    frame = pd.DataFrame(rows)
    could = [i for i, differs in enumerate(changed) if differs]
    sample = [could[i] for i in drawn(frame["layer"].to_numpy()[could], check, seed)]
    order = np.argsort(-frame["score"].to_numpy()[could], kind="stable")[:top]
    highest = [could[i] for i in order]
    wanted = list(dict.fromkeys([*sample, *highest]))
    exact = _run(model, [cells[i] for i in wanted], len(held), token_budget, passes)
    both = frame[["pair", *CELL, "score"]].assign(
        effect=frame["value"] - frame["base"], exact=[exact.get(id(cell), np.nan) for cell in cells]
    )
    drawn_cells = both.iloc[sample].reset_index(drop=True)
    error = agreement(drawn_cells, names, len(could), seed=seed, level=level)
    summary = summarise(frame, names, seed=seed, level=level)
    scores = frame.groupby(CELL, sort=False)["score"].mean().reset_index()
    return AttributionSweep(
        frame,
        summary.merge(scores, on=CELL, sort=False),
        work,
        measure.name,
        measure.unit,
        method,
        pd.DataFrame(sums) if sums else None,
        error=error,
        leading=both.iloc[highest].reset_index(drop=True),
    )


def _states_wanted(model: Model, sites: Sequence[str], method: str, path: str) -> list[str]:
    """All sites whose states the estimates are made of."""
    held = list(sites)
    if method == "ig" and path == "inputs":
        held.append(model.embedding_site)
    if method == "atp*":
        for site in filter(is_query_or_key, sites):
            stem = site[: -len("q")]
            held += [f"{stem}q", f"{stem}k"]
    return list(dict.fromkeys(held))


def _ends(case: Case, base: torch.Tensor, source: torch.Tensor) -> list[float]:
    """The figures of the base run and of the source run."""
    two = torch.stack([base, source])
    return case.reading.measure(two, source, base).double().tolist()


def _guesses(
    piece: Piece,
    sites: Sequence[str],
    method: str,
    steps: int,
    path: str,
    ends: Mapping[int, list[float]],
) -> tuple[Guesses, list[dict[str, Any]]]:
    if method == "ig":
        return integrated(piece, sites, steps, path, ends)
    return (attributed if method == "atp" else starred)(piece, sites), []


def _run(
    model: Model, cells: Sequence[Cell], n_sites: int, budget: int | None, passes: Passes
) -> dict[int, float]:
    """The exact effects of some cells, by their id."""
    found: dict[int, float] = {}
    cases = list({id(cell.case): cell.case for cell in cells}.values())
    for piece in pieces_of(model, cases, n_sites) if cases else ():
        members = {id(case) for case in piece}
        own = [cell for cell in cells if id(cell.case) in members]
        rows = patched_rows(model, piece, own, {}, budget, passes, Work())
        found.update((id(c), row["value"] - row["base"]) for c, row in zip(own, rows, strict=True))
    return found
