"""What is penalised of states, as plain formulas."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from interventions.decoupling.tap import Plane

Energy = Callable[[Float[Tensor, "n d"], Plane], Float[Tensor, " n"]]


def squared_coordinates(states: Float[Tensor, "n d"], plane: Plane) -> Float[Tensor, " n"]:
    """‖Pᵀ(h - μ)‖²."""
    return plane.coordinates(states).square().sum(dim=-1)


def coordinate_lengths(states: Float[Tensor, "n d"], plane: Plane) -> Float[Tensor, " n"]:
    """‖Pᵀh‖, as published: no square and no μ. Its gradient is zero where the length is."""
    return torch.linalg.vector_norm(states @ plane.basis, dim=-1)


def squared_lengths(states: Float[Tensor, "n d"], plane: Plane) -> Float[Tensor, " n"]:
    """‖h‖², whatever the subspace."""
    return states.square().sum(dim=-1)


#: Of each form; shares are measured by what they take from a state.
ENERGIES: dict[str, Energy] = {
    "penalty": squared_coordinates,
    "projection": squared_coordinates,
    "gradient": squared_coordinates,
    "paper": coordinate_lengths,
    "l2": squared_lengths,
}
