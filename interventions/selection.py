"""The direction that a behaviour hangs on, chosen among all places by what its edits do.

The procedure of Arditi et al. (2024, "Refusal in Language Models Is Mediated by a Single
Direction", section 2.3 and appendix C), with the numbers of their published code: a mean difference
at each token of the chat template after the instruction and at each block's input; each judged by
what follows when it is ablated everywhere and when it is added where it was found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as with_fields
from typing import TYPE_CHECKING, Any

import numpy as np

from geometry import GeometryError, Subspace, mean_difference
from interventions.edits import ablate, add
from interventions.errors import EditError
from interventions.next_token import last_logits, next_token_kl, refusal_score

if TYPE_CHECKING:
    from activations import Model

Place = tuple[int, int]
"""Layer whose input a direction is taken from, and token counted from the end (0 is the last)."""


@dataclass(frozen=True)
class Thresholds:
    """When a candidate is discarded; the published numbers.

    Attributes:
        kl: most that ablating it may change the next token after harmless requests, in nats.
        induce: least refusal score that adding it must give harmless requests.
        depth: share of the layers that candidates may come from; the rest are too late.
    """

    kl: float = 0.1
    induce: float = 0.0
    depth: float = 0.8


@dataclass(frozen=True, eq=False)
class Candidate:
    """One place's direction and its scores, one for each validation request.

    Attributes:
        direction: None where the two means coincide.
        bypass: `[harmful]`, refusal scores with the direction ablated everywhere; lower is better.
        induce: `[harmless]`, refusal scores with it added at its own layer.
        kl: `[harmless]`, KL of the next token from the plain model's when it is ablated.
        discarded: why it cannot be chosen; empty where it can.
    """

    place: Place
    site: str
    direction: Subspace | None
    bypass: np.ndarray = field(default_factory=lambda: np.zeros(0))
    induce: np.ndarray = field(default_factory=lambda: np.zeros(0))
    kl: np.ndarray = field(default_factory=lambda: np.zeros(0))
    discarded: str = ""


def template_tokens(model: Model) -> int:
    """How many tokens the chat template puts after the instruction; 1 where there is none."""
    text = "isogloss"
    after = model.render(text).rpartition(text)[2] if model.has_chat_template else ""
    return max(
        1, len(model.tokenizer(after, add_special_tokens=False)["input_ids"]) if after else 0
    )


def everywhere(model: Model) -> tuple[str, ...]:
    """Where a direction is ablated: each block's input, and what attention and MLP write."""
    return tuple(model.resolve_sites(["resid_pre", "attn_out", "mlp_out"]))


def ablate_everywhere(model: Model, direction: Subspace, *, name: str = "ablate") -> Any:
    """h ↦ h − r̂r̂ᵀh at every place that is read from or written to, at every token."""
    return ablate(dict.fromkeys(everywhere(model), direction), to="zero", name=name)


def score_candidates(
    model: Model,
    states: Mapping[Place, tuple[np.ndarray, np.ndarray]],
    harmful: Sequence[str],
    harmless: Sequence[str],
    tokens: Sequence[int],
    *,
    thresholds: Thresholds | None = None,
) -> Iterator[Candidate]:
    """Score the mean difference at every place; those on whom it is scored had no part in it.

    Args:
        states: by place, states of harmful `[n, d]` and of harmless `[m, d]` requests at the input
            of the layer; means are taken in f64.
        harmful, harmless: rendered validation requests.
        tokens: those that begin a refusal.

    Raises:
        EditError: no places, no requests, no tokens.
    """
    if not states:
        raise EditError("There are no places to take directions from: give states of at least one.")
    limits = thresholds or Thresholds()
    plain = last_logits(model, harmless)
    for place, (high, low) in states.items():
        site = f"blocks.{place[0]}.hook_resid_pre"
        try:
            direction = mean_difference(high, low, site=site)
        except GeometryError:
            yield Candidate(place, site, None, discarded="no difference")
            continue
        with model.edited(ablate_everywhere(model, direction)):
            bypass = refusal_score(last_logits(model, harmful), tokens)
            kl = next_token_kl(plain, last_logits(model, harmless))
        with model.edited(add(direction)):
            induce = refusal_score(last_logits(model, harmless), tokens)
        found = Candidate(place, site, direction, bypass, induce, kl)
        yield with_fields(found, discarded=_reason(found, model.n_layers, limits))


def _reason(found: Candidate, n_layers: int, limits: Thresholds) -> str:
    scores = [found.bypass.mean(), found.induce.mean(), found.kl.mean()]
    if not np.isfinite(scores).all():
        return "not finite"
    if found.place[0] >= int(limits.depth * n_layers):
        return "too late"
    if scores[2] > limits.kl:
        return "changes harmless replies"
    if scores[1] < limits.induce:
        return "induces no refusal"
    return ""


def choose_candidate(candidates: Sequence[Candidate]) -> tuple[Candidate, bool]:
    """The candidate with the lowest bypass score, and whether it passed all thresholds.

    Where none passed, the lowest of those that are scored and not too late is given with False.

    Raises:
        EditError: there is none to choose from.
    """
    passed = [c for c in candidates if not c.discarded]
    kinds = ("changes harmless replies", "induces no refusal")
    rest = [c for c in candidates if c.discarded in kinds]
    if not (passed or rest):
        raise EditError(
            "No place has a direction that could be chosen: harmful and harmless requests have the "
            "same means, or all places are too late; read other tokens or layers."
        )
    best = min(passed or rest, key=lambda c: float(c.bypass.mean()))
    return best, bool(passed)
