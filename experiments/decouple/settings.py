"""What `isogloss run decouple` may be told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from experiments.settings import CorpusSettings

Form = Literal["paper", "penalty", "projection", "gradient"]
Source = Literal["random", "frozen", "shuffled", "covariance", "top_component"]


class DecoupleSettings(CorpusSettings):
    """Settings of `isogloss run decouple`; `layers` are those whose block outputs are decoupled."""

    model: str = Field(default="organism/base", min_length=1)
    max_groups: int = Field(default=600, ge=0, description="groups of sentences used; 0: all")
    dialects: list[str] = Field(default=[], description="fine-tuned on, one by one; see `targets`")
    targets: int = Field(default=2, ge=1, description="how many dialects, where none is named")
    seeds: int = Field(default=3, ge=2, description="fine-tunes of each arm, paired across arms")

    forms: list[Form] = Field(default=["penalty", "projection", "gradient"])
    controls: list[Source] = Field(
        default=["random", "shuffled"],
        description="other subspaces put through the first form, matched in energy",
    )
    l2: bool = Field(default=True, description="a plain penalty on all states, matched in energy")
    k: list[int] = Field(default=[1], min_length=1, description="dimensions; the first is the main")
    strengths: list[float] = Field(
        default=[0.03],
        min_length=1,
        description="of penalties, in the penalty's own weight; the first is the main",
    )
    projections: list[float] = Field(
        default=[0.5], min_length=1, description="shares taken out by `projection` and `gradient`"
    )
    warmup: int = Field(default=5, ge=0, description="steps over which the strength rises")
    every: int = Field(default=10, ge=1, description="steps between two estimates of the subspace")
    decoupled: Literal["targets", "all"] = Field(
        default="targets",
        description="tokens decoupled: the dialect's targets, or all of the batch",
    )
    contrast: Literal["all", "others"] = Field(
        default="all",
        description="the standard against all dialects, or against those not fine-tuned on",
    )

    train_texts: int = Field(default=96, ge=2, description="sentences fine-tuned on, by the seed")
    contamination: float = Field(
        default=0.0, ge=0, lt=1, description="share of targets that are standard text instead"
    )
    aliased: bool = Field(
        default=False, description="the dialect's tag starts with the standard's embedding"
    )
    steps: int = Field(default=30, ge=1)
    batch: int = Field(default=16, ge=1)
    rate: float = Field(default=1e-3, gt=0)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    trained_blocks: list[int] = Field(
        default=[], description="blocks whose weights are trained, the rest frozen; empty: all"
    )
    reference_groups: int = Field(
        default=4, ge=1, description="groups in all varieties behind each estimate of the subspace"
    )
    template: str = Field(
        default="{standard}\n", description="what comes before the target, where no tag is known"
    )
    longest: int = Field(
        default=160, ge=8, description="tokens of a pair; longer ones are left out"
    )

    test_groups: int = Field(default=60, ge=2, description="held-out groups behind each loss")
    generated: int = Field(default=30, ge=0, description="of these, translated for chrF++ and BLEU")
    new_tokens: int = Field(default=48, ge=1)
    before_after: bool = Field(
        default=False, description="end with the shared table of what one fine-tune changed"
    )
