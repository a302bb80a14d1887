"""Which tokens of which forks a pass computes, and where each lies in its row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from activations.engines.packing import CannotPack
from activations.places import Place, Site


@dataclass(frozen=True)
class Put:
    """States put in at one site of a fork.

    Attributes:
        positions: `[P]`, counted from the base text's first token.
        values: `[P, *row]`, or `[P, d_head]` for one `head`.
    """

    site: str
    positions: Sequence[int]
    values: Tensor
    head: int | None = None


@dataclass(frozen=True)
class Fork:
    """A run of base text number `base` with some states put in; none gives the base run.

    No state may be put in twice: which of the two would stay is not said.
    """

    base: int
    puts: tuple[Put, ...] = ()


@dataclass(frozen=True)
class Record:
    """What base runs leave for their forks.

    Attributes:
        starts, lengths: of each text in the row.
        states: the input of each block and the output of the last, `[tokens, d_model]`.
        keys, values: of each block, `[key heads, tokens, d_head]`.
        in_tuples: whether blocks return tuples.
    """

    ids: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    states: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    in_tuples: bool


def block_paths(sites: Mapping[str, Site], n_layers: int) -> list[str]:
    """Where the blocks lie in the plain model.

    Raises:
        CannotPack: their inputs and outputs are not all known.
    """
    paths = []
    for number in range(n_layers):
        ends = [sites.get(f"blocks.{number}.hook_resid_{end}") for end in ("pre", "post")]
        places = [site.place for site in ends if site is not None and site.place is not None]
        if len(places) != 2 or places[0].module != places[1].module:
            raise CannotPack(f"block {number} is no module of the plain model")
        paths.append(places[0].module)
    return paths


def first_block(site: str, sites: Mapping[str, Site], blocks: Sequence[str]) -> int:
    """The first block that a change at `site` makes another; `len(blocks)` for none.

    Raises:
        CannotPack: the site lies in no block of the plain model.
    """
    place = sites[site].place
    if place is not None and not sites[site].project and sites[site].axis == 1:
        for number, path in enumerate(blocks):
            if place.module == path:
                return number + (place.side == "out")
            if place.module.startswith(f"{path}."):
                return number
    raise CannotPack(f"{site} is no place inside a block")


@dataclass(frozen=True)
class Change:
    """All that a call puts in at one place: `rows` `[K]` of the row, their new states.

    `in_place` as in `Site`.
    """

    place: Place
    rows: Tensor
    values: Tensor
    head: int | None
    in_place: bool = False


@dataclass(frozen=True)
class Group:
    """Forks that start at one position of texts of one length, whose attention is one call.

    Attributes:
        rows: `[forks, suffix]`, the tokens' places in the row, in the order in which forks join.
        past: `[forks, start]`, the places of the tokens before in the record's row.
        joined: by block, how many of the forks are in the row.
    """

    rows: Tensor
    past: Tensor
    joined: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Where everything lies in the row of forks.

    Attributes:
        spans: (base text, first position) of each fork, in the row's order.
        base: place in the record of each token of the row, `[tokens]`.
        joined: by block, how many tokens are in the row; the last entry counts those after the
            last block, which are all of them.
        at_input: by block, what is put in at its input; the last entry, at the last block's output.
        inside: what is put in within blocks.
        read: the places of the tokens that are read, `[read tokens]`.
        arranged: which of the read tokens gives each logit, `[forks, reads]`.
    """

    spans: tuple[tuple[int, int], ...]
    base: Tensor
    joined: tuple[int, ...]
    at_input: tuple[tuple[Change, ...], ...]
    inside: tuple[Change, ...]
    groups: tuple[Group, ...]
    read: Tensor
    arranged: Tensor

    @classmethod
    def of(
        cls,
        record: Record,
        forks: Sequence[Fork],
        sites: Mapping[str, Site],
        blocks: Sequence[str],
        reads: int,
    ) -> Plan:
        """Lay the forks out in the order in which they join."""
        n, device = len(blocks), record.states[0].device
        firsts = []
        for fork in forks:
            block = min((first_block(p.site, sites, blocks) for p in fork.puts), default=n)
            start = min((min(p.positions) for p in fork.puts), default=record.lengths[fork.base])
            # What is read before the first change is the base run's; it joins after the last block.
            firsts.append((block, min(start, record.lengths[fork.base] - reads)))
        order = sorted(range(len(forks)), key=lambda i: (firsts[i][0], firsts[i][1]))
        offsets, spans, base, counts, total = {}, [], [], [0] * (n + 1), 0
        for i in order:
            (block, start), text = firsts[i], forks[i].base
            length = record.lengths[text] - start
            offsets[i] = total - start
            spans.append((text, start))
            base.append(torch.arange(length) + record.starts[text] + start)
            counts[block] += length
            total += length
        joined = torch.tensor(counts).cumsum(0).tolist()
        at_input, inside = _changes(forks, offsets, sites, blocks, device)
        ends = torch.tensor([offsets[i] + record.lengths[forks[i].base] for i in range(len(forks))])
        wanted = ends[:, None] - reads + torch.arange(reads)
        read, arranged = wanted.unique(return_inverse=True)
        return cls(
            tuple(spans),
            torch.cat(base).to(device),
            tuple(joined),
            at_input,
            inside,
            _groups(record, forks, order, firsts, offsets, n, device),
            read.to(device),
            arranged,
        )


def _changes(
    forks: Sequence[Fork],
    offsets: Mapping[int, int],
    sites: Mapping[str, Site],
    blocks: Sequence[str],
    device: torch.device,
) -> tuple[tuple[tuple[Change, ...], ...], tuple[Change, ...]]:
    """What is put in at blocks' inputs, and what within blocks, each place's together."""
    together: dict[tuple[int, Place | None, int | None, bool], tuple[list[int], list[Tensor]]] = {}
    for i, fork in enumerate(forks):
        for put in fork.puts:
            site, block = sites[put.site], first_block(put.site, sites, blocks)
            assert site.place is not None
            # The output of one block is the input of the next.
            whole = site.place.module in blocks
            key = (block, None if whole else site.place, put.head, site.in_place)
            rows, values = together.setdefault(key, ([], []))
            rows += [offsets[i] + int(p) for p in put.positions]
            values.append(put.values)
    at_input: list[list[Change]] = [[] for _ in range(len(blocks) + 1)]
    inside = []
    for (block, place, head, in_place), (rows, values) in together.items():
        states = torch.cat(values).to(device)
        where = place or Place("", "in")
        change = Change(where, torch.tensor(rows, device=device), states, head, in_place)
        (at_input[block] if place is None else inside).append(change)
    return tuple(tuple(one) for one in at_input), tuple(inside)


def _groups(
    record: Record,
    forks: Sequence[Fork],
    order: Sequence[int],
    firsts: Sequence[tuple[int, int]],
    offsets: Mapping[int, int],
    n_blocks: int,
    device: torch.device,
) -> tuple[Group, ...]:
    members: dict[tuple[int, int], list[int]] = {}
    for i in order:
        if firsts[i][0] < n_blocks:
            members.setdefault((firsts[i][1], record.lengths[forks[i].base]), []).append(i)
    groups = []
    for (start, length), ones in members.items():
        rows = torch.tensor([offsets[i] for i in ones])[:, None] + torch.arange(start, length)
        begins = torch.tensor([record.starts[forks[i].base] for i in ones])
        past = begins[:, None] + torch.arange(start)
        joined = [sum(firsts[i][0] <= block for i in ones) for block in range(n_blocks)]
        groups.append(Group(rows.to(device), past.to(device), tuple(joined)))
    return tuple(groups)
