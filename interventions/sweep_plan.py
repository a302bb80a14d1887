"""A sweep as it is planned: any process that opens the model can compute any piece of it."""

from __future__ import annotations

import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from activations.reopening import ModelTask, Reopening
from geometry import Subspace
from interventions.cells import Align, Case, cells_of, make_cases
from interventions.errors import EditError
from interventions.readings import Metric, OwnMetric
from interventions.sweep_runs import Work
from interventions.sweep_store import SweepStore

if TYPE_CHECKING:
    from activations import Model, Workers
    from interventions.patching import Passes


@dataclass(frozen=True, eq=False)
class SweepPlan:
    """Everything that a sweep is told but the model and how it is cut; arguments of `patch_sweep`.

    Its cases are those of all pairs in order, each pair's ways one after the other.
    """

    texts: tuple[tuple[str, str], ...]
    ways: tuple[str, ...]
    metric: Metric
    align: Align
    sites: tuple[str, ...]
    within: Mapping[str, Subspace]
    width: int
    heads: bool
    budget: int | None
    passes: Passes

    def cases(self, model: Model, start: int, end: int) -> list[Case]:
        """Some of the cases, made anew."""
        many = len(self.ways)
        first = start // many
        numbers = range(first, -(-end // many))
        made = make_cases(model, self.texts, self.ways, self.metric, self.align, numbers)
        return made[start - first * many : end - first * many]

    def tokens(self, model: Model, case: Case) -> int:
        """Tokens in all patched runs of a case, where none of them can be spared."""
        cells = cells_of(model, case, self.sites, self.width, self.heads)
        return sum(len(case.base) - cell.first for cell in cells)

    def frame(self, model: Model, cases: Sequence[Case], work: Work) -> pd.DataFrame:
        """The rows of some cases, each cell of them run; `work` is added to."""
        from interventions.patching import patched_rows

        cells = [
            cell
            for case in cases
            for cell in cells_of(model, case, self.sites, self.width, self.heads)
        ]
        rows = patched_rows(model, cases, cells, self.within, self.budget, self.passes, work)
        return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class SweepTask(ModelTask):
    """The pieces of a sweep that workers compute into its store."""

    plan: SweepPlan
    store: SweepStore

    def compute(self, piece: int, device: str) -> Work:
        """See `Task.compute`."""
        work, model = Work(), self.model.open(device)
        cases = self.plan.cases(model, *self.store.bounds[piece : piece + 2])
        self.store.write(piece, self.plan.frame(model, cases, work))
        return work

    def lost(self, piece: int, how: str) -> None:
        """See `Task.lost`."""
        raise EditError(
            f"Piece {piece} of the sweep {how}, most likely for want of memory; run fewer workers "
            "or a smaller token budget. Pieces that are done are kept in a store."
        )


@contextmanager
def meeting_place(store: str | Path | None, workers: Workers | None) -> Iterator[str | Path | None]:
    """Where pieces are kept: the store that was named, or for workers one that goes afterwards.

    Raises:
        EditError: workers of a cluster, which have no folder in common that is not named.
    """
    if store is not None or workers is None:
        yield store
    elif workers.address:
        raise EditError(
            "Workers of a cluster meet in a store on a disk that all of them see; name one with "
            "`store`."
        )
    else:
        with tempfile.TemporaryDirectory(prefix="isogloss-sweep-") as folder:
            yield folder


def share_pieces(
    plan: SweepPlan,
    model: Model,
    store: SweepStore,
    workers: Workers,
    work: Work,
    advance: Callable[[int], object],
) -> list[int]:
    """Have workers compute the pieces that are missing; `advance` is told the cases of each.

    Returns:
        The numbers of those pieces.

    Raises:
        EditError: a metric or an alignment that they cannot be sent.
        CaptureError: workers that cannot open the model.
    """
    assert store.folder is not None
    _require_portable("metric", plan.metric)
    _require_portable("align", plan.align)
    folder = SweepStore(store.folder.absolute(), store.bounds)
    task = SweepTask(Reopening.of(model, workers), plan, folder)
    sizes = [end - start for start, end in pairwise(store.bounds)]

    def done(piece: int, computed: Work) -> None:
        work.add(computed)
        advance(sizes[piece])

    todo = [k for k in range(len(sizes)) if not store.has(k)]
    if todo:
        workers.share(task, todo, done)
    return todo


def _require_portable(name: str, value: object) -> None:
    """Refuse what another process could not take up."""
    function = value.function if isinstance(value, OwnMetric) else value
    typed = getattr(function, "__module__", "") == "__main__"
    try:
        pickle.dumps(function)
    except Exception:  # as many kinds as there are objects
        typed = True
    else:
        # Other processes read the script again, but not what was typed into a session.
        typed = typed and not hasattr(sys.modules["__main__"], "__file__")
    if typed:
        told = getattr(function, "__name__", repr(function))
        raise EditError(
            f"Workers are other processes, which cannot be sent the {name} {told}: define it with "
            "def at the top of a module that they can import, or sweep without workers."
        )
