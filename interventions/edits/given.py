"""What callers give, turned into one thing for each site, and refused where it cannot be used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from geometry import Subspace
from interventions.errors import EditError

Sites = str | Sequence[str]
PerSite = Subspace | Mapping[str, Subspace]
_T = TypeVar("_T")

_SITE = re.compile(r"(\w+\.)*hook_\w+")


def as_sites(sites: Sites) -> tuple[str, ...]:
    """Full names of sites.

    Raises:
        EditError: none, or a name that is no full name.
    """
    named = [sites] if isinstance(sites, str) else list(sites) if np.iterable(sites) else [sites]
    if not named:
        raise EditError("The edit has no site: name the sites, as in 'blocks.3.hook_resid_post'.")
    for site in named:
        require_site(site)
    return tuple(dict.fromkeys(named))


def require_site(site: str) -> None:
    """Raises EditError where `site` is a short form or no name of a site."""
    if not isinstance(site, str) or not _SITE.fullmatch(site):
        raise EditError(
            f"{site!r} is no full name of a site: give names such as 'blocks.3.hook_resid_post'; "
            "model.resolve_sites('resid_post') lists them."
        )


def for_each_site(
    what: _T | Mapping[str, _T], sites: Sites | None, *, thing: str = "subspace"
) -> dict[str, _T]:
    """One thing for each site, from one for all of `sites` (its own where None) or a mapping.

    Raises:
        EditError: no site, a name that is no site, or a site that the mapping lacks.
    """
    if isinstance(what, Mapping):
        found: dict[str, Any] = dict(what)
        if sites is not None:
            wanted = [sites] if isinstance(sites, str) else list(sites)
            missing = [site for site in wanted if site not in found]
            if missing:
                raise EditError(
                    f"No {thing} was given for {missing[0]}: give one for each of the sites."
                )
            found = {site: found[site] for site in wanted}
    else:
        named = [sites] if isinstance(sites, str) else list(sites or ())
        own = getattr(what, "site", "")
        found = dict.fromkeys([own] if sites is None and own else named, what)
    if not found:
        raise EditError(
            "The edit has no site: name the sites, as in sites='blocks.3.hook_resid_post', or "
            f"give a {thing} that knows its own."
        )
    for site in found:
        require_site(site)
    return found


def subspaces(subspace: PerSite, sites: Sites | None) -> dict[str, Subspace]:
    """One subspace for each site.

    Raises:
        EditError: as `for_each_site`, something else than a subspace, or one that is not finite.
    """
    spaces = for_each_site(subspace, sites)
    for site, space in spaces.items():
        if not isinstance(space, Subspace):
            raise EditError(
                f"A {type(space).__name__} was given for {site}: give a geometry.Subspace."
            )
        parts = (space.basis, space.mean, space.singular_values)
        if not all(np.isfinite(np.asarray(part)).all() for part in parts):
            raise EditError(
                f"The subspace for {site} holds values that are not finite: fit it on finite "
                "activations."
            )
    return spaces


def directions(direction: PerSite, sites: Sites | None, what_for: str) -> dict[str, Subspace]:
    """One subspace with k = 1 for each site.

    Raises:
        EditError: as `subspaces`, or one of more dimensions.
    """
    spaces = subspaces(direction, sites)
    for site, space in spaces.items():
        if space.k != 1:
            raise EditError(
                f"The subspace for {site} has {space.k} dimensions and has no one direction to "
                f"{what_for}: give a direction (k = 1), as geometry.mean_difference makes."
            )
    return spaces


def require_origin(value: Any, name: str) -> None:
    """Raises EditError where an origin of coordinates is neither "mean" nor "zero"."""
    if value not in ("mean", "zero"):
        raise EditError(f"`{name}` is {value!r}: give 'mean' or 'zero'.")


def require_finite(number: Any, name: str) -> float:
    """A number.

    Raises:
        EditError: it is none, or not finite.
    """
    try:
        found = float(number)
    except (TypeError, ValueError):
        found = float("nan")
    if not np.isfinite(found):
        raise EditError(f"The {name} is {number!r}: give a finite number.")
    return found


def require_store(source: Any, instead: str) -> None:
    """Raises EditError where a source of states is no store."""
    if not hasattr(source, "rows") or not hasattr(source, "sites"):
        raise EditError(
            f"A {type(source).__name__} holds no states: give a store, or a mapping from each site "
            f"to {instead}."
        )


def label(things: Mapping[str, Any]) -> str:
    """What an edit of these calls itself: the name in their provenance, else the sites."""
    named = str((getattr(next(iter(things.values())), "provenance", None) or {}).get("name", ""))
    sites = list(things)
    return named or (sites[0] if len(sites) == 1 else f"{len(sites)} sites")


def origin(space: Subspace, about: str) -> np.ndarray:
    """Coordinates `[k]` of the point that an edit measures from: the subspace's mean, or zero."""
    return space.mean @ space.basis if about == "mean" else np.zeros(space.k)
