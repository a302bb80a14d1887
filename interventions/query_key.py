"""What queries or keys of another run do to attention, exactly, and from there on by a gradient.

A softmax that is saturated has no slope, so attribution patching sees no effect of queries and
keys where attention rests firmly on one token. AtP* (Kramár et al. 2024, section 3.1.1) computes
the attention that the patched query or key would make, A', and takes (A' - A) · ∂m/∂A.

The scores of patched queries come from one pass in which the model itself is given them at every
block, and the base run's keys; those of patched keys from one the other way round. So rotary
embeddings, norms, caps, biases and masks are the model's own. The paper's single key is, here, all
keys of a segment: with C its columns, w_s = A_s exp(S'_s - S_s) in C and Z = Σ_{s∉C} A_s + Σ_C w_s,
A'_s = w_s / Z in C and A_s / Z elsewhere, for each query's row; O(T²) for all segments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from interventions.cells import Case
from interventions.edits import Replacement, replace
from interventions.errors import EditError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interventions.gradient_runs import Piece

_QUERY, _KEY = "attn.hook_q", "attn.hook_k"


def is_query_or_key(site: str) -> bool:
    """Whether a site holds queries or keys."""
    return site.endswith((_QUERY, _KEY))


class QueryKey:
    """Changes of attention in one case's base run.

    Raises:
        EditError: attention that is no softmax of scores that can be read.
    """

    def __init__(self, piece: Piece, case: Case, sites: Sequence[str]) -> None:
        self._piece, self._case = piece, case
        blocks = list(dict.fromkeys(site.rsplit("attn.", 1)[0] for site in sites))
        scores = [f"{block}attn.hook_attn_scores" for block in blocks]
        patterns = [f"{block}attn.hook_pattern" for block in blocks]
        model = piece.model
        ids = model.pad([case.base])
        missing = [site for site in (*scores, *patterns) if site not in model.sites]
        base = {} if missing else model.activations(*ids, [*scores, *patterns])
        for score, pattern in zip(scores, patterns):
            if missing or not _is_softmax(base[score], base[pattern]):
                raise EditError(
                    f"Attention of {model.name} cannot be made of its scores at {pattern}, so "
                    "queries and keys cannot be corrected: use method='atp' there."
                )
        self._base = {site: x[0].double() for site, x in base.items()}
        self._patterns: dict[str, Tensor] = {}
        self._scores: dict[str, Tensor] = {}
        if any(site.endswith(_QUERY) for site in sites):
            with model.edited(*self._given(blocks, _QUERY)):
                got = model.activations(*ids, patterns)
            self._patterns = {site: x[0].double() for site, x in got.items()}
        if any(site.endswith(_KEY) for site in sites):
            with model.edited(*self._given(blocks, _KEY)):
                got = model.activations(*ids, scores)
            self._scores = {site: x[0].double() for site, x in got.items()}

    @staticmethod
    def pattern(site: str) -> str:
        """The attention that queries or keys make."""
        return site.rsplit("attn.", 1)[0] + "attn.hook_pattern"

    def effect(self, site: str, slope: Tensor) -> np.ndarray:
        """(A' - A) · slope of each cell, `[segments, heads or 1]`; slope `[heads, pos, keys]`."""
        pattern = self.pattern(site)
        attention, length = self._base[pattern], len(self._case.base)
        slope = slope[:, :length, :length].double()
        if site.endswith(_QUERY):
            rows = ((self._patterns[pattern] - attention) * slope).sum(-1)
            spans = self._piece.spans(self._case)
            found = torch.stack([rows[:, a:b].sum(-1) for a, b in spans])
        else:
            score = pattern.replace("hook_pattern", "hook_attn_scores")
            found = self._of_keys(self._base[score], self._scores[score], slope)
            count = self._piece.model.site(site).row[0]  # queries of a group share a key
            found = found.unflatten(1, (count, -1)).sum(-1)
        found = found if self._piece.apart(site) else found.sum(1, keepdim=True)
        return found.cpu().numpy()

    def _of_keys(self, scores: Tensor, changed: Tensor, slope: Tensor) -> Tensor:
        """`[segments, heads]`, the columns of each segment changed and no others."""
        spans = self._piece.spans(self._case)
        length = scores.shape[-1]
        member = scores.new_zeros(length, len(spans))
        for number, (a, b) in enumerate(spans):
            member[a:b, number] = 1
        others = 1 - torch.eye(len(spans)).to(member)
        attention = scores.softmax(-1)
        shift = torch.where(torch.isfinite(scores), changed - scores, 0.0)
        logs = scores.log_softmax(-1) + shift
        # Every segment has its own scale, so that nothing overflows.
        top = torch.stack([logs[..., a:b].amax(-1) for a, b in spans], -1).clamp(min=0)
        weights = (logs - top @ member.T).exp() * member.sum(-1)
        after = scores.new_ones(length) - member.sum(-1)  # tokens of an answer, which no cell has
        rest = (attention @ member) @ others + (attention @ after)[..., None]
        total = rest * (-top).exp() + weights @ member
        kept, slopes = (-top).exp() / total, attention * slope
        outside = (slopes @ member) @ others + (slopes @ after)[..., None]
        inside = ((weights * slope) @ member) / total - slopes @ member
        return ((kept - 1) * outside + inside).sum(1).T

    def _given(self, blocks: Sequence[str], moved: str) -> list[Replacement]:
        """Edits that hold queries and keys at the base run's, but for those that are `moved`."""
        case, edits = self._case, list[Replacement]()
        for block in blocks:
            for kind in (_QUERY, _KEY):
                site = block + kind
                values = self._piece.states.both(case, site)[0][: len(case.base)].clone()
                if kind == moved:
                    change = self._piece.change(case, site)
                    values[: case.length] = (values[: case.length].double() + change).to(values)
                edits.append(replace(site, values.flatten(1), range(len(values))))
        return edits


def _is_softmax(scores: Tensor, pattern: Tensor) -> bool:
    if scores.shape != pattern.shape:
        return False
    made = scores.double().softmax(-1)
    return bool((made - pattern.double()).abs().max() < 1e-2)
