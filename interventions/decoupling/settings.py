"""What a decoupling may be told, and how its strength rises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from interventions.errors import EditError

Form = Literal["paper", "penalty", "projection", "gradient", "l2"]
Source = Literal["estimated", "frozen", "random", "covariance", "top_component", "shuffled"]
Origin = Literal["others", "standard", "all", "zero"]

#: Weights of penalties; shares, at most 1, of the other two.
_STRENGTHS: dict[str, float] = {
    "paper": 0.01,
    "penalty": 0.01,
    "l2": 0.001,
    "projection": 0.5,
    "gradient": 1.0,
}
SHARES = ("projection", "gradient")
#: Forms that are put on the standard's own rows too.
BOTH = ("paper", "l2")


@dataclass(frozen=True)
class DecouplingSettings:
    """How the standard's subspace is followed, and how a dialect's states are kept out of it.

    Attributes:
        form: what is done; see `Decoupling`.
        source: where the subspace comes from. `estimated` is followed by a streamed probe;
            `frozen` is the same at step 0, never moved; the others are controls: `random` uniform
            over all subspaces, `covariance` drawn in the spread of the reference states,
            `top_component` their leading principal components, `shuffled` as `estimated`, with
            varieties dealt to reference texts at random once (within their group where groups are
            known).
        strength: λ of a penalty, or the share α in [0, 1] that `projection` and `gradient` take
            out. Each form has its own where None.
        warmup: optimiser steps over which the strength rises evenly from 0.
        layers: blocks at whose output the states are decoupled; all where None.
        k: dimensions of the subspace. Where None, as many as hold `explained` of the squared
            signal-to-noise of the standard's contrasts at step 0, and no more than the varieties
            allow. With k = 1 the probe tells the standard from the rest; with more, or None, it
            tells all varieties apart and the contrasts are of the standard with each other one.
        explained: see `k`.
        space: `patterns` takes the directions along which the states vary with what the probe
            reads, `Σ w` (Haufe et al. 2014), `weights` the probe's weights themselves. To change
            states, patterns are the sounder: a weight also holds what cancels noise of no interest,
            and taking it out leaves a difference of the means where it was. `paper` always takes
            the weights, as published.
        origin: μ, whose coordinates the states are pulled to: the mean of the reference states of
            the other varieties, of the standard, of all, or zero. `paper` and `l2` know none.
        tokens: which states of a training batch count: those of tokens with a label (`targets`), or
            all that are not padding. Where None, all for `paper` and `l2` and targets for the rest.
            A mask given to `rows` is in place of either.
        every: optimiser steps between two updates of the probe; 10 where None, and 500 for
            `paper`, whose probe is fitted anew each time.
        reference_rows: reference texts behind an update, rounded up to whole groups.
        start_rows: reference texts behind the estimate at step 0.
        states: at most so many of a batch's reference states are shown to the streamed probe, drawn
            evenly; the moments take all.
        precision, forget, smooth: of `probes.OnlineVariationalProbe`; `forget` and `smooth` act
            once an update.
        seed: of every draw.

    Raises:
        EditError: a value out of its range.
    """

    form: Form = "penalty"
    source: Source = "estimated"
    strength: float | None = None
    warmup: int = 0
    layers: tuple[int, ...] | None = None
    k: int | None = 1
    explained: float = 0.9
    space: Literal["patterns", "weights"] = "patterns"
    origin: Origin = "others"
    tokens: Literal["targets", "all"] | None = None
    every: int | None = None
    reference_rows: int = 16
    start_rows: int = 256
    precision: float = 1.0
    forget: float = 0.95
    smooth: float = 0.7
    states: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("form", Form), ("source", Source), ("origin", Origin)):
            one_of(name, getattr(self, name), get_args(kind))
        one_of("space", self.space, ("patterns", "weights"))
        if self.tokens is None:
            object.__setattr__(self, "tokens", "all" if self.form in BOTH else "targets")
        one_of("tokens", str(self.tokens), ("targets", "all"))
        if self.strength is None:
            object.__setattr__(self, "strength", _STRENGTHS[self.form])
        if self.every is None:
            object.__setattr__(self, "every", 500 if self.form == "paper" else 10)
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(int(layer) for layer in self.layers))
        most = 1.0 if self.form in SHARES else math.inf
        for name, value, fine in (
            ("strength", self.strength, 0 <= self.strength <= most),  # type: ignore[operator]
            ("warmup", self.warmup, self.warmup >= 0),
            ("k", self.k, self.k is None or self.k >= 1),
            ("explained", self.explained, 0 < self.explained <= 1),
            ("every", self.every, self.every >= 1),  # type: ignore[operator]
            ("reference_rows", self.reference_rows, self.reference_rows >= 2),
            ("start_rows", self.start_rows, self.start_rows >= 2),
            ("precision", self.precision, 0 < self.precision < math.inf),
            ("forget", self.forget, 0 < self.forget <= 1),
            ("smooth", self.smooth, 0 <= self.smooth < 1),
            ("states", self.states, self.states >= 2),
        ):
            if not fine:
                hint = ": a share is from 0 to 1" if name == "strength" and most == 1 else ""
                raise EditError(f"{name} is {value}, which is out of its range{hint}.")
        if self.layers is not None and not self.layers:
            raise EditError("layers is empty: name at least one block, or leave it out for all.")

    def strength_at(self, step: int) -> float:
        """The strength at an optimiser step, counted from 0: full from step `warmup` on."""
        assert self.strength is not None
        return self.strength * min(1.0, step / self.warmup if self.warmup else 1.0)


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises:
    EditError: a value that is none of the allowed.
    """
    if value not in allowed:
        raise EditError(f"{name} is {value!r}; use one of {', '.join(allowed)}.")
