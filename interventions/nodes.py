"""Parts of a run that are named one by one: a site, a head of it, some positions of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from dataclasses import replace as with_fields
from typing import TYPE_CHECKING

import numpy as np

from interventions.cells import Case, States
from interventions.errors import EditError

if TYPE_CHECKING:
    from activations import Model
    from activations.engines.fork_plan import Put

_POST = re.compile(r"^blocks\.(\d+)\.hook_resid_post$")


@dataclass(frozen=True)
class Node:
    """States at one site.

    Attributes:
        site: a name that stands for one site, such as `blocks.3.attn.hook_z` or `embed`.
        head: one head of it; all if None.
        positions: counted from the end of the base text, 0 its last token; all if None.
    """

    site: str
    head: int | None = None
    positions: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """As in tables: `blocks.3.attn.hook_z[2]@0,1`, head in brackets and positions after @."""
        head = "" if self.head is None else f"[{self.head}]"
        at = "" if self.positions is None else "@" + ",".join(map(str, self.positions))
        return f"{self.site}{head}{at}"


OUTPUT = Node("output")
"""What the model's end reads: the stream after the last block, and so the logits."""

Nodes = Node | Sequence[Node]
"""A node, or several that are taken together."""


def nodes_of(
    model: Model,
    sites: str | Sequence[str] = "z",
    layers: Sequence[int] | None = None,
    *,
    heads: bool = True,
) -> list[Node]:
    """A node for each site, or for each head of each site that has heads."""
    found = []
    for site in model.resolve_sites(sites, layers):
        row = model.site(site).row
        each = range(row[0]) if heads and len(row) == 2 else [None]
        found += [Node(site, head) for head in each]
    return found


def resolved(model: Model, given: Nodes) -> tuple[Node, ...]:
    """Nodes with full names of sites; `OUTPUT` as it is.

    Raises:
        EditError: none, a name of several sites, a head or position that is none, or states that
            two of the nodes share.
    """
    nodes = (given,) if isinstance(given, Node) else tuple(given)
    if not nodes or not all(isinstance(node, Node) for node in nodes):
        raise EditError(f"{given!r} is no node: give a Node, or several to be taken together.")
    whole = tuple(node if node == OUTPUT else _resolved(model, node) for node in nodes)
    for i, one in enumerate(whole):
        if any(_share(one, other) for other in whole[:i]):
            raise EditError(f"{one.name} shares states with another node: give each state once.")
    return whole


def some(given: Sequence[Nodes], what: str) -> Sequence[Nodes]:
    """A list of nodes; raises EditError where it is none, or empty."""
    if isinstance(given, (Node, str)) or not len(given):
        raise EditError(f"`{what}` is {given!r}: give a list of nodes.")
    return given


def names(nodes: Iterable[Node]) -> str:
    """Several nodes in one cell of a table."""
    return " + ".join(node.name for node in nodes)


def counted(node: Node, case: Case) -> np.ndarray:
    """The node's positions in the case's base text, from its first token."""
    if node.positions is None:
        return np.arange(case.length)
    return np.array(sorted(case.length - 1 - p for p in node.positions if p < case.length), int)


def puts_of(states: States, case: Case, nodes: Sequence[Node]) -> tuple[Put, ...]:
    """The source's states at some nodes, to be put into the base run; none that are the same."""
    from activations.engines.fork_plan import Put

    puts = []
    for node in nodes:
        at = counted(node, case)
        at = at[case.aligned[at] >= 0]
        base, source = states.both(case, node.site)
        if node.head is not None:
            base, source = base[:, node.head], source[:, node.head]
        values = source[case.aligned[at]]
        if len(at) and not bool((values == base[at]).all()):
            puts.append(Put(node.site, at.tolist(), values, node.head))
    return tuple(puts)


def _resolved(model: Model, node: Node) -> Node:
    sites = model.resolve_sites(node.site)
    if len(sites) != 1:
        raise EditError(
            f"{node.site!r} stands for {len(sites)} sites: name one, such as {sites[0]!r}."
        )
    row = model.site(sites[0]).row
    if node.head is not None and not (len(row) == 2 and 0 <= node.head < row[0]):
        has = f"heads 0 to {row[0] - 1}" if len(row) == 2 else "no heads"
        raise EditError(f"{node.name} names head {node.head}, and {sites[0]} has {has}.")
    at = node.positions
    if at is not None and not (isinstance(at, tuple) and at and min(at) >= 0):
        raise EditError(
            f"The positions of {node.site} are {at!r}: give a tuple of numbers from 0, the last "
            "token, as in (0, 1)."
        )
    return with_fields(node, site=sites[0])


def _share(one: Node, other: Node) -> bool:
    if _place(one.site) != _place(other.site):
        return False
    if None not in (one.head, other.head) and one.head != other.head:
        return False
    if one.positions is None or other.positions is None:
        return True
    return bool(set(one.positions) & set(other.positions))


def _place(site: str) -> str:
    """One block's output is the next one's input."""
    found = _POST.match(site)
    return f"blocks.{int(found[1]) + 1}.hook_resid_pre" if found else site
