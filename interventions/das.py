"""Distributed alignment search: the subspace of a site that carries a variable, learned by what
putting it in from another run does.

A learned subspace can be made to work by directions that the model never uses (Makelov, Lange &
Nanda 2024), and with enough freedom a rotation finds something in a model that learned nothing. So
a result holds its controls: the same search with shuffled answers, and in a model of the same
shape with random weights; a subspace that needs no search; random ones; and the whole state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupShuffleSplit
from torch import Tensor

from evidence import Estimate, cluster_mean
from geometry import Subspace, random_subspace
from interventions.errors import EditError
from interventions.interchanging import Interchanges, orthonormal

if TYPE_CHECKING:
    from activations import Model

_ANNEALED = (5.0, 0.1)  # temperature of the boundary, in dimensions, at the start and at the end


@dataclass(frozen=True, eq=False)
class Alignment:
    """What a search found.

    Attributes:
        subspace: of the site; `mean` is the mean of the base states.
        accuracy: share of held-out pairs after which the model gives the source's answer; n counts
            groups.
        controls: one row for each control: `control`, `draw`, `value`, `low`, `high`, `n`.
        curve: `step`, `loss` (cross-entropy of the counterfactual answer, nats), `k`.
        in_data: share of the subspace within the directions that hold 99% of the variance of the
            training states, from 0 to 1. Where it is small, the search used directions that the
            model hardly does.
        plain: share of held-out pairs whose source's answer the unpatched base run gives.
    """

    subspace: Subspace
    accuracy: Estimate
    controls: pd.DataFrame
    curve: pd.DataFrame
    in_data: float
    plain: float
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """In one line, beside the strongest control that should fail."""
        best = self.controls[self.controls["control"].isin(_SHOULD_FAIL)]["value"].max()
        told = f"k = {self.subspace.k} at {self.subspace.site}: {self.accuracy}"
        return (
            told
            if math.isnan(best)
            else f"{told}; best of the controls that should fail {best:.2f}"
        )


_SHOULD_FAIL = ("shuffled_answers", "random_model", "random_subspace")


def distributed_alignment_search(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    answers: Sequence[str | int],
    site: str,
    *,
    k: int | Literal["learned"] = 1,
    positions: Sequence[int] = (0,),
    groups: Sequence[Any] | None = None,
    held_out: float = 0.4,
    steps: int = 200,
    batch: int = 64,
    learning_rate: float = 0.1,
    size_penalty: float = 0.02,
    random_draws: int = 3,
    trained_controls: bool = True,
    seed: int = 0,
) -> Alignment:
    """Learn the `k` directions that make a base run answer as the source would (DAS).

    h' = h_b + RRᵀ(h_s - h_b) with R `[d, k]` orthonormal (QR of free weights, Adam with a rate
    that falls to a twentieth), to least
    cross-entropy of the counterfactual answer (Geiger et al. 2024). `k="learned"` also learns how
    many directions take part: a mask over the columns of a full rotation that falls off at a
    learned boundary, softly at first and sharply at the end, and pays for its size (boundless
    DAS; Wu et al. 2023; our mask has no edge on the left, where theirs is half open).

    Only what lies above the site and from the position on is run, again and again; the model's
    weights never change.

    Args:
        pairs: (base text, source text).
        answers: for each pair the token (or a word, whose first token counts) that the model
            should give once the variable has the source's value.
        positions: from the end of each text, 0 for the last token.
        groups: pairs that share a base, a source or a template are not independent; no group is
            on both sides.
        held_out: share of the groups that is kept for `accuracy` and the controls.
        size_penalty: nats for each direction, where `k` is learned.
        trained_controls: search also with shuffled answers and in a random model.

    Raises:
        EditError: counts that do not fit, a site without one vector for a token, a position
            outside a text, or too few groups.
    """
    texts = [(str(b), str(s)) for b, s in pairs]
    data = Interchanges.of(model, texts, answers, site, positions)
    if k != "learned" and not 1 <= k <= data.d:
        raise EditError(f"k is {k} and states have {data.d} dimensions: give 1 to {data.d}.")
    if steps < 1 or batch < 1:
        raise EditError("steps and batch count things: give at least 1.")
    names = np.arange(len(texts)) if groups is None else np.asarray(list(groups)).astype(str)
    train, test = _split(names, len(texts), held_out, seed)
    settings = _Search(k, steps, batch, learning_rate, size_penalty)
    basis, curve = _search(data, train, settings, seed)
    size = basis.shape[1]
    found = _accuracy(data, basis, test, names)
    rows = list(_controls(data, size, train, test, names, random_draws, seed))
    if trained_controls:
        told = replace(settings, k=size)
        rows += _trained_controls(data, model, told, train, test, names, seed, positions)
    space = Subspace(
        basis.double().numpy(),
        data.base.double().mean((0, 1)).cpu().numpy(),
        np.ones(size),
        site=data.site,
        provenance={"method": "das", "k": size, "steps": steps, "seed": seed},
    )
    return Alignment(
        space,
        found,
        pd.DataFrame(rows),
        curve,
        _in_data(data, basis, train),
        float(data.right(None, test).mean()),
        seed,
        {"positions": list(positions), "k": k, "held_out": held_out, "batch": batch},
    )


@dataclass(frozen=True)
class _Search:
    k: int | Literal["learned"]
    steps: int
    batch: int
    learning_rate: float
    size_penalty: float


def _split(names: np.ndarray, n: int, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    count = len(np.unique(names))
    if len(names) != n or count < 4:
        raise EditError(
            f"There are {n} pairs, {len(names)} group names and {count} groups: give the group of "
            "each pair, and at least 4 groups."
        )
    splitter = GroupShuffleSplit(1, test_size=held_out, random_state=seed)
    train, test = next(splitter.split(names, groups=names))
    return train, test


def _search(
    data: Interchanges, train: np.ndarray, settings: _Search, seed: int
) -> tuple[Tensor, pd.DataFrame]:
    """The learned basis `[d, k]`, and the course of the loss."""
    drawn = torch.Generator().manual_seed(seed)
    learned = settings.k == "learned"
    width = data.d if learned else int(settings.k)
    free = torch.randn(data.d, width, generator=drawn).to(data.device).requires_grad_()
    boundary = torch.tensor(0.5, device=data.device, requires_grad=learned)
    parameters = [free, boundary] if learned else [free]
    optimiser = torch.optim.Adam(parameters, lr=settings.learning_rate)
    slowing = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, settings.steps)
    rows = []
    for step in range(settings.steps):
        some = train[torch.randint(len(train), (settings.batch,), generator=drawn).numpy()]
        basis, mask = orthonormal(free), None
        if learned:
            mask = _mask(boundary, width, step / max(1, settings.steps - 1))
        loss = data.loss(basis, some, mask=mask)
        size = width if mask is None else float(mask.detach().sum())
        rows.append({"step": step, "loss": float(loss.detach()), "k": size})
        if mask is not None:
            loss = loss + settings.size_penalty * mask.sum()
        # Of these alone, so that the model's weights get no gradients.
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
            parameter.grad = gradient
        optimiser.step()
        slowing.step()
        if learned:
            boundary.data.clamp_(1 / width, 1.0)
    basis = orthonormal(free).detach()
    if learned:
        basis = basis[:, : max(1, round(float(boundary.detach()) * width))]
    return basis.cpu(), pd.DataFrame(rows)


def _mask(boundary: Tensor, width: int, done: float) -> Tensor:
    """How much of each column takes part, `[width]`: 1 before the boundary, 0 after."""
    first, last = _ANNEALED
    temperature = first * (last / first) ** done
    places = torch.arange(width, device=boundary.device) + 0.5
    return torch.sigmoid((boundary * width - places) / temperature)


def _accuracy(
    data: Interchanges, basis: Tensor | None, rows: np.ndarray, names: np.ndarray
) -> Estimate:
    right = data.right(basis, rows).astype(float)
    return cluster_mean(right, names[rows], bounds=(0, 1), unit="share of pairs")


def _row(control: str, draw: int, estimate: Estimate) -> dict[str, Any]:
    kept = {name: getattr(estimate, name) for name in ("value", "low", "high", "n")}
    return {"control": control, "draw": draw, **kept}


def _controls(
    data: Interchanges,
    k: int,
    train: np.ndarray,
    test: np.ndarray,
    names: np.ndarray,
    random_draws: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """What needs no search: the whole state, the classes' means, random subspaces."""
    whole = torch.eye(data.d)
    yield _row("whole_state", 0, _accuracy(data, whole, test, names))
    means = data.class_means(train, k)
    if means is not None:
        yield _row("class_means", 0, _accuracy(data, means, test, names))
    rng = np.random.default_rng([seed, 1])
    for draw in range(random_draws):
        chance = random_subspace(data.d, k, seed=int(rng.integers(2**31))).basis
        basis = torch.tensor(np.asarray(chance), dtype=torch.float32)
        yield _row("random_subspace", draw, _accuracy(data, basis, test, names))


def _trained_controls(
    data: Interchanges,
    model: Model,
    settings: _Search,
    train: np.ndarray,
    test: np.ndarray,
    names: np.ndarray,
    seed: int,
    positions: Sequence[int],
) -> list[dict[str, Any]]:
    """The same search where there is nothing to find."""
    from activations import ModelError, random_like

    order = np.random.default_rng([seed, 2]).permutation(len(train))
    mixed = data.answered(train, data.answers[train][torch.tensor(order)])
    basis, _ = _search(mixed, train, settings, seed)
    rows = [_row("shuffled_answers", 0, _accuracy(data, basis, test, names))]
    try:
        chance = random_like(model, seed=seed)
    except ModelError:
        return rows  # a model that cannot be built anew, such as a quantised one
    other = Interchanges.of(chance, data.texts, data.answers.tolist(), data.site, positions)
    basis, _ = _search(other, train, settings, seed)
    return [*rows, _row("random_model", 0, _accuracy(other, basis, test, names))]


def _in_data(data: Interchanges, basis: Tensor, train: np.ndarray) -> float:
    """The share of the basis in the directions that hold 99% of the states' variance."""
    states = torch.cat([data.base[train], data.source[train]]).flatten(0, 1).double().cpu()
    _, sizes, axes = torch.linalg.svd(states - states.mean(0), full_matrices=False)
    held = torch.cumsum(sizes**2, 0) / (sizes**2).sum()
    kept = int((held < 0.99).sum()) + 1
    return float((axes[:kept] @ basis.double()).pow(2).sum() / basis.shape[1])
