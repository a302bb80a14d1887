"""What `isogloss run steer` may be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from experiments.settings import CorpusSettings


class SteerSettings(CorpusSettings):
    """Settings of `isogloss run steer`."""

    max_requests: int = Field(default=32, ge=4, description="requests of each behaviour and split")
    target: Literal["all", "refusal", "variety"] = "all"
    towards: list[str] = Field(default=[], description="dialects to steer towards; see `targets`")
    targets: int = Field(default=2, ge=1, description="how many dialects, where none is named")
    estimator: Literal["means", "probe", "contrastive"] = "means"
    kind: Literal["auto", "add", "affine"] = Field(
        default="auto", description="auto: add for refusal, affine for varieties"
    )
    strengths: list[float] = Field(
        default=[-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0],
        min_length=3,
        description="in differences of means",
    )
    searched: int = Field(default=4, ge=1, description="single sites tried, evenly spaced in depth")
    loss_budget: float = Field(
        default=0.5, gt=0, description="nats per token that steering may cost when it is chosen"
    )
    random_draws: int = Field(default=3, ge=2, description="random directions of each kind")
    text_groups: int = Field(default=12, ge=4, description="groups of sentences observed")
    new_tokens: int = Field(default=20, ge=1)
    permutations: int = Field(default=499, ge=20, description="draws behind each trend")
