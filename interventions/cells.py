"""The cells of a sweep: which states of which run are put into which other run, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from geometry import Subspace
from interventions.alignment import align_tokens
from interventions.errors import EditError
from interventions.readings import Metric, Reading

if TYPE_CHECKING:
    from activations import Model
    from activations.engines.fork_plan import Put

Align = Callable[[Sequence[int], Sequence[int]], Any]
"""From base and source ids to each base position's source position, or -1; as `align_tokens`."""


@dataclass(frozen=True, eq=False)
class Case:
    """One run to be patched, and the run that its states come from.

    Attributes:
        pair: number of the pair.
        way: "denoise" where the source's states go into the base text's run, "noise" where the
            base text's go into the source's; `base` and `source` are already exchanged then.
        base, source: token ids, with those that the reading gives after the text.
        length: of the base text itself.
        aligned: `[length]`, the source position that stands for each position, or -1.
    """

    pair: int
    way: str
    base: list[int]
    source: list[int]
    length: int
    aligned: np.ndarray
    reading: Reading


@dataclass(frozen=True, eq=False)
class Cell:
    """One patched run: positions `[first, end)` of one site, or of one head there."""

    case: Case
    site: str
    head: int | None
    first: int
    end: int

    @property
    def positions(self) -> np.ndarray:
        """Those of its positions that have a counterpart."""
        span = np.arange(self.first, self.end)
        return span[self.case.aligned[self.first : self.end] >= 0]


def make_cases(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    ways: Sequence[str],
    metric: Metric,
    align: Align = align_tokens,
    numbers: Sequence[int] | None = None,
) -> list[Case]:
    """The cases of all pairs, or of those of some `numbers`, each way.

    Raises:
        EditError: an alignment that does not fit its texts, or a text with its answer that is
            longer than the model's context.
    """
    cases = []
    for number in range(len(pairs)) if numbers is None else numbers:
        one, other = (model.encode(text) for text in pairs[number])
        reading = metric.reading(model, number)
        longest = max(len(one), len(other)) + len(reading.given)
        if longest > model.max_length:
            raise EditError(
                f"Pair {number} with its answer has {longest} tokens and the model's context "
                f"holds {model.max_length}: shorten or drop it."
            )
        for way in ways:
            base, source = (one, other) if way == "denoise" else (other, one)
            aligned = _checked(align(base, source), len(base), len(source), number)
            more = reading.given
            cases.append(Case(number, way, base + more, source + more, len(base), aligned, reading))
    return cases


def cells_of(model: Model, case: Case, sites: Sequence[str], width: int, heads: bool) -> list[Cell]:
    """All cells of one case: segments of `width` positions from the end of the base text."""
    return [
        Cell(case, site, head, first, end)
        for site in sites
        for head in _heads(model, site, heads)
        for first, end in segments(case.length, width)
    ]


class States:
    """Source and base states of some cases at all sites, from one batch of both.

    `within` are subspaces by site: what is put in then differs from the base's state only there.
    """

    def __init__(
        self,
        model: Model,
        cases: Sequence[Case],
        sites: Sequence[str],
        within: Mapping[str, Subspace] | None = None,
    ) -> None:
        for site in sites:
            if model.site(site).axis != 1 or model.site(site).over_keys:
                raise EditError(
                    f"{site} holds attention between positions, not states of one: patch queries, "
                    "keys or z, or use edits."
                )
        # One batch, so that states that must be equal (a shared opening) are equal bit by bit.
        ids = [ids for case in cases for ids in (case.base, case.source)]
        self._states = model.activations(*model.pad(ids), list(dict.fromkeys(sites)))
        self._row = {id(case): 2 * i for i, case in enumerate(cases)}
        self._bases = {
            site: torch.tensor(np.asarray(space.basis)).to(self._states[site])
            for site, space in (within or {}).items()
        }

    def both(self, case: Case, site: str) -> tuple[Tensor, Tensor]:
        """The base run's and the source run's states, `[pos, *row]` with the batch's padding."""
        row = self._row[id(case)]
        return self._states[site][row], self._states[site][row + 1]

    def put(self, cell: Cell) -> Put | None:
        """What the cell puts in; None where it changes nothing, so that no run is needed."""
        from activations.engines.fork_plan import Put

        positions = cell.positions
        if not len(positions):
            return None
        base, source = self.both(cell.case, cell.site)
        if cell.head is not None:
            base, source = base[:, cell.head], source[:, cell.head]
        values, own = source[cell.case.aligned[positions]], base[positions]
        if bool((values == own).all()):
            return None
        if cell.site in self._bases:
            values = own + within(values - own, self._bases[cell.site])
        return Put(cell.site, positions.tolist(), values, cell.head)


def within(difference: Tensor, basis: Tensor) -> Tensor:
    """The part of `difference` `[..., *row]` in the span of an orthonormal `basis` `[d, k]`."""
    flat = difference.flatten(1)
    return ((flat @ basis) @ basis.T).reshape(difference.shape)


def segments(length: int, width: int) -> Iterator[tuple[int, int]]:
    """Spans [first, end) that cover all positions, from the end of the text."""
    for end in range(length, 0, -width):
        yield max(0, end - width), end


def _heads(model: Model, site: str, heads: bool) -> Sequence[int | None]:
    row = model.site(site).row
    return range(row[0]) if heads and len(row) == 2 else [None]


def _checked(aligned: Any, base: int, source: int, pair: int) -> np.ndarray:
    found = np.asarray(aligned)
    whole = np.issubdtype(found.dtype, np.integer)
    if found.shape != (base,) or not whole or found.min() < -1 or found.max() >= source:
        raise EditError(
            f"The alignment of pair {pair} has shape {found.shape}: give for each of the base "
            f"text's {base} positions one of the source's {source}, or -1 for none."
        )
    return found
