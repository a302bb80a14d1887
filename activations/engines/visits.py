"""What is read and changed in one pass through nnsight, in the order in which the pass gets there.

The functions here run inside a trace, also on another machine that has torch and nnsight and not
this package, so they call nothing but each other, torch and `activations.places`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from activations.places import (
    Site,
    first_argument,
    first_tensor,
    per_head,
    with_first,
    with_first_argument,
    written,
)


@dataclass
class Visit:
    """One module's input or output, and what is done there: changes first, then reads."""

    module: str
    side: str
    changes: list[tuple[Site, Callable[[Tensor], Tensor]]] = field(default_factory=list)
    reads: list[tuple[Site, Callable[[Tensor], Tensor]]] = field(default_factory=list)
    adds_heads: bool = False
    """Whether what was changed in the heads' writings is added to this output."""


def in_order(
    changes: Sequence[tuple[Site, Callable[[Tensor], Tensor]]],
    reads: Sequence[tuple[Site, Callable[[Tensor], Tensor]]],
    order: Mapping[tuple[str, str], int],
) -> list[Visit]:
    """The visits of one pass; `order` ranks (module, side). Every site has a place."""
    visits: dict[tuple[str, str], Visit] = {}

    def at(module: str, side: str) -> Visit:
        return visits.setdefault((module, side), Visit(module, side))

    for site, change in changes:
        assert site.place is not None
        at(site.place.module, site.place.side).changes.append((site, change))
        if site.project:
            at(site.project, "out").adds_heads = True
    for site, read in reads:
        assert site.place is not None
        at(site.place.module, site.place.side).reads.append((site, read))
    return [visits[key] for key in sorted(visits, key=lambda key: order[key])]


def follow(
    served: Mapping[str, Any],
    visits: Sequence[Visit],
    shape: tuple[int, int],
    matrix: Callable[[Any], Tensor],
    got: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Make the visits while the model runs: what was read, by site, into `got`.

    Args:
        served: nnsight's envoy of each module that is visited, by the module's path.
        shape: (texts, positions) of the pass.
        matrix: from attention's output projection to W_O, `output_matrix` where weights may lie
            elsewhere.
    """
    added: dict[str, Tensor] = {}
    for visit in visits:
        envoy = served[visit.module]
        whole: Any = envoy.output if visit.side == "out" else envoy.inputs
        raw: Any = (
            first_tensor(whole) if visit.side == "out" else first_argument(whole[0], whole[1])
        )
        before = raw
        heads: dict[str, Tensor] = {}  # what each head writes, where that was changed
        for site, change in visit.changes:
            place: Any = site.place
            if site.in_place:
                written(change, place.view(raw, shape))
                continue
            if not site.project:
                raw = place.put(raw, change(place.view(raw, shape)), shape)
                continue
            old = heads.get(site.name)
            if old is None:
                old = per_head(place.view(raw, shape), matrix(envoy._module))
            heads[site.name] = change(old)
            difference = (heads[site.name] - old).sum(-2)
            added[visit.module] = added.get(visit.module, 0) + difference
        if visit.adds_heads:
            raw = raw + added.pop(visit.module).reshape(raw.shape)
        if raw is not before and visit.side == "out":
            envoy.output = with_first(whole, raw)
        elif raw is not before:
            envoy.inputs = with_first_argument(whole[0], whole[1], raw)
        for site, read in visit.reads:
            place = site.place
            if site.name in heads:
                got[site.name] = read(heads[site.name])
                continue
            states = read(place.view(raw, shape))
            got[site.name] = per_head(states, matrix(envoy._module)) if site.project else states
    return got
