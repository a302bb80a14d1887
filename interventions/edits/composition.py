"""Several edits as one, made in the order given."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as with_fields
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interventions.errors import EditError

if TYPE_CHECKING:
    from activations.edit import Edit, Texts


@dataclass(frozen=True, eq=False)
class Composition:
    """Edits made one after another: at one site the second sees what the first made.

    Between sites the model's own order decides, since a state is edited when the pass reaches it.
    """

    edits: tuple[Edit, ...]
    name: str

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that any of the edits changes."""
        return tuple(dict.fromkeys(site for edit in self.edits for site in edit.sites))

    def for_texts(self, texts: Texts) -> Composition:
        """The edits of a pass over these texts."""
        from activations.edit import for_texts

        return with_fields(self, edits=tuple(for_texts(edit, texts) for edit in self.edits))

    def __call__(self, activation: Tensor, site: str, positions: Tensor | None = None) -> Tensor:
        """The activation after all the edits of this site."""
        for edit in self.edits:
            if site in edit.sites:
                activation = edit(activation, site, positions)
        return activation

    def __add__(self, other: Edit) -> Composition:
        """These edits, and then the other."""
        return compose(self, other)

    def describe(self) -> dict[str, Any]:
        """What the edits are, in their order, as JSON can hold it."""
        return {"kind": "compose", "name": self.name, "edits": [described(e) for e in self.edits]}


def compose(*edits: Edit, name: str | None = None) -> Composition:
    """One edit of several, made in the order given; `a + b` is `compose(a, b)`.

    (f + g)(h) = g(f(h)). Compositions within are taken apart, so that + is associative, in the name
    and the description too.

    Raises:
        EditError: no edits, or something that is none.
    """
    if not edits:
        raise EditError("There are no edits to compose: give at least one.")
    flat: list[Edit] = []
    for edit in edits:
        if not callable(edit) or not hasattr(edit, "sites"):
            raise EditError(
                f"{edit!r} is no edit: give what ablate, add and their like make, or an object "
                "with `name`, `sites` and a call."
            )
        flat += edit.edits if isinstance(edit, Composition) else [edit]
    return Composition(tuple(flat), name or " + ".join(edit.name for edit in flat))


def described(edit: Edit) -> dict[str, Any]:
    """An edit's own description; of one that has none, its name and sites."""
    own = getattr(edit, "describe", None)
    return {"name": edit.name, "sites": list(edit.sites)} if own is None else own()
