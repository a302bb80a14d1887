"""What a subspace carries: its coordinates taken from one run and put into another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from geometry import Subspace, random_subspace
from interventions.errors import EditError
from interventions.patching import patch_sweep
from interventions.readings import Metric, PlainMetric

if TYPE_CHECKING:
    from activations import Model


def interchange(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    subspace: Subspace | Mapping[str, Subspace],
    *,
    sites: str | Sequence[str] | None = None,
    random_draws: int = 5,
    metric: Literal["kl"] | Metric | PlainMetric = "kl",
    groups: Sequence[Any] | None = None,
    max_positions: int = 24,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Interchange interventions in a subspace, beside random ones and beside whole states.

    h' = h_b + QQᵀ(h_s - h_b) at each site and position apart (Geiger et al. 2024). A subspace
    that carries what tells the two runs apart recovers nearly what the whole state does, and far
    more than random subspaces of the same size; it can be less or more than the whole, since the
    rest of the state may work against it.

    Args:
        pairs: (base text, source text).
        subspace: one for all `sites` (its own site where none are given), or one for each site.
        random_draws: how many random subspaces, each drawn afresh for every site.
        options: as for `patch_sweep`.

    Returns:
        The summary of `patch_sweep` with columns `control` (empty for the subspace itself,
        "random_subspace", "whole_state") and `draw`, and `share`: value / value of the whole state.

    Raises:
        EditError: no site, or what `patch_sweep` refuses.
    """
    spaces = _by_site(model, subspace, sites)
    shared = {"metric": metric, "groups": groups, "max_positions": max_positions, "seed": seed}
    if "within" in options or "sites" in options:
        raise EditError("`interchange` takes the subspace itself: leave `within` out.")

    def swept(within: Mapping[str, Subspace] | None) -> pd.DataFrame:
        sweep = patch_sweep(
            model, pairs, sites=list(spaces), within=within, **{**options, **shared}
        )
        return sweep.summary

    whole = swept(None)
    parts = [swept(spaces).assign(control="", draw=0)]
    rng = np.random.default_rng(seed)
    for draw in range(random_draws):
        chance = {
            site: random_subspace(space.d, space.k, seed=int(rng.integers(2**31)))
            for site, space in spaces.items()
        }
        parts.append(swept(chance).assign(control="random_subspace", draw=draw))
    parts.append(whole.assign(control="whole_state", draw=0))
    for part in parts:
        part["share"] = (part["value"] / whole["value"]).where(whole["value"] != 0)
    return pd.concat(parts, ignore_index=True)


def _by_site(
    model: Model,
    subspace: Subspace | Mapping[str, Subspace],
    sites: str | Sequence[str] | None,
) -> dict[str, Subspace]:
    if isinstance(subspace, Mapping):
        named = list(subspace) if sites is None else model.resolve_sites(sites)
        missing = [site for site in named if site not in subspace]
        if missing:
            raise EditError(f"No subspace was given for {missing[0]}: give one for each site.")
        spaces = {site: subspace[site] for site in named}
    else:
        named = model.resolve_sites(sites) if sites is not None else [subspace.site]
        spaces = dict.fromkeys([site for site in named if site], subspace)
    if not spaces:
        raise EditError("The subspace knows no site of its own: name the sites.")
    return spaces
