"""What `isogloss run directions` may be told."""

from __future__ import annotations

from pydantic import Field

from experiments.settings import CorpusSettings


class DirectionsSettings(CorpusSettings):
    """Settings of `isogloss run directions`; thresholds are those of the published method."""

    max_requests: int = Field(
        default=160, ge=4, description="requests of each behaviour and split (128 and 32 published)"
    )
    validation: int = Field(
        default=32, ge=4, description="of the train side's, those that choose; a third at most"
    )
    token_positions: int = Field(
        default=0, ge=0, description="last tokens to take directions from; 0: the chat template's"
    )
    refusal_tokens: list[str] = Field(
        default=[], description="what refusals begin with; the model's own replies tell if empty"
    )
    kl_threshold: float = Field(default=0.1, gt=0, description="nats on harmless requests, at most")
    induce_threshold: float = Field(default=0.0, description="refusal score when added, at least")
    depth: float = Field(default=0.8, gt=0, le=1, description="share of layers that may be chosen")
    new_tokens: int = Field(default=12, ge=1)
    random_draws: int = Field(default=20, ge=2, description="random directions of each kind")
    reply_draws: int = Field(default=3, ge=1, description="those of them whose replies are counted")
    cone: int = Field(default=3, ge=1, description="independent directions that span the cone")
    cone_draws: int = Field(default=16, ge=1, description="directions of the cone that are tried")
    permutations: int = Field(
        default=200, ge=20, description="swaps behind the count of directions"
    )
    bootstrap_draws: int = Field(default=100, ge=20, description="behind cosines of two models")
    other: str = Field(default="", description="a second model, whose directions are compared")
