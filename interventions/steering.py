"""Directions to steer along, and the edits that do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace as with_fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from geometry import Subspace, mean_difference, paired_differences
from interventions.edits import ablate, add, clamp, compose
from interventions.edits.given import PerSite, Sites, directions, label, require_finite
from interventions.edits.where import Positions
from interventions.errors import EditError

if TYPE_CHECKING:
    from activations.edit import Edit

Estimator = Literal["means", "probe", "contrastive"]
Kind = Literal["add", "affine"]


def steering_direction(
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    estimator: Estimator = "means",
    C: float = 1.0,
    site: str = "",
) -> Subspace:
    """A direction along which strength 1 carries the mean of `negative` to that of `positive`.

    - "means": from the one mean to the other (Marks & Tegmark 2023).
    - "contrastive": the mean of the differences of pairs, row by row (Rimsky et al. 2024). On the
      same rows it is the difference in means; pairs take out what both texts of a pair share, such
      as their subject, wherever some rows have no partner.
    - "probe": the weights of a logistic regression (`probes.LinearProbe`, penalty `C`), which lean
      away from what merely varies; strength 1 carries the means to the same coordinate along them.

    Args:
        positive, negative: states `[n, d]` and `[m, d]`; n = m rows of pairs for "contrastive".

    Returns:
        k = 1, the negative mean as its mean, and as singular value the distance of the two means
        along it.

    Raises:
        EditError: an unknown estimator, or a probe that finds nothing that differs.
        GeometryError: other shapes, numbers that are not finite, means that coincide.
    """
    if estimator == "means":
        return mean_difference(positive, negative, site=site)
    if estimator == "contrastive":
        # Checked as pairs; their mean difference is that of the means.
        paired_differences(positive, negative, k=1)
        found = mean_difference(positive, negative, site=site)
        return with_fields(found, provenance={**found.provenance, "method": "contrastive"})
    if estimator != "probe":
        raise EditError(f"`estimator` is {estimator!r}: give 'means', 'probe' or 'contrastive'.")
    from probes import LinearProbe

    between = mean_difference(positive, negative, site=site)
    high, low = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    labels = np.repeat([1, 0], [len(high), len(low)])
    read = LinearProbe(C).fit(np.concatenate([high, low]), labels).subspace(site=site)
    gap = float((between.basis[:, 0] * between.singular_values[0]) @ read.basis[:, 0])
    if gap <= 0:
        raise EditError("The probe's weights do not point from one mean to the other: lower `C`.")
    return with_fields(read, mean=low.mean(axis=0), singular_values=np.array([gap]))


def steer(
    direction: PerSite,
    strength: float,
    sites: Sites | None = None,
    *,
    kind: Kind = "add",
    within: Mapping[str, Subspace] | None = None,
    positions: Positions | None = None,
    name: str | None = None,
) -> Edit:
    """Steer along a direction: by a push, or to a target whatever the state was.

    With r the direction (unit vector times singular value) and μ its mean: "add" is h + c r, and
    "affine" h − P(h − μ) + c r, P the projection on the direction or on `within`, so that every
    state ends at the same coordinate (affine concept editing: Marshall, Scherlis & Belrose 2024).

    Args:
        strength: c, in lengths of the direction: with a mean difference 0 is the negative mean and
            1 the positive one for "affine".
        within: by site, a subspace that holds the direction and is cleared first ("affine").
        positions: as for `ablate`.

    Raises:
        EditError: as for `add`, an unknown kind, or `within` for "add".
    """
    amount = require_finite(strength, "strength")
    if kind not in ("add", "affine"):
        raise EditError(f"`kind` is {kind!r}: give 'add' or 'affine'.")
    if kind == "add" and within is not None:
        raise EditError("`within` is cleared by affine steering: leave it out, or give 'affine'.")
    lines = directions(direction, sites, "steer along")
    told = name or f"{kind}({label(lines)}, {amount:g})"
    if kind == "add":
        return add(lines, scale=amount, positions=positions, name=told)
    if within is None:
        return clamp(lines, amount, unit="difference", positions=positions, name=told)
    missing = [site for site in lines if site not in within]
    if missing:
        raise EditError(f"`within` has no subspace for {missing[0]}: give one for each site.")
    spaces: dict[str, Any] = {
        site: with_fields(within[site], mean=line.mean) for site, line in lines.items()
    }
    return compose(
        ablate(spaces, positions=positions),
        add(lines, scale=amount, positions=positions),
        name=told,
    )
