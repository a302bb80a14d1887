"""What `isogloss run restore` may be told."""

from __future__ import annotations

from pydantic import Field

from experiments.settings import CorpusSettings


class RestoreSettings(CorpusSettings):
    """Settings of `isogloss run restore`; shares and steps are those of the published method."""

    model: str = Field(
        default="organism/drifted", min_length=1, description="the model that lost refusals"
    )
    aligned: str = Field(
        default="organism/aligned", min_length=1, description="the model that has them"
    )
    max_requests: int = Field(
        default=256, ge=4, description="harmful requests that gradients are taken of"
    )
    held_out: int = Field(
        default=600, ge=4, description="held-out requests of each kind to judge by, at most"
    )
    layer: int = Field(default=0, ge=0, description="E; 0: the first third of the layers")
    share: float = Field(
        default=0.002, gt=0, le=1, description="of all weights, restored in each step"
    )
    steps: int = Field(default=20, ge=1, description="steps at most")
    at: list[int] = Field(
        default=[1, 2, 3, 5, 10, 20], min_length=1, description="steps at which curves are read"
    )
    batch: int = Field(default=16, ge=1, description="prompts whose mean state is compared")
    embeddings: bool = Field(default=True, description="whether tables of embeddings may move")
    tolerance: float = Field(
        default=0.05, ge=0, lt=1, description="harmful rate above the aligned model's that will do"
    )
    task_fall: float = Field(
        default=0.05, gt=0, le=1, description="relative fall of the task metric, at most"
    )
    warm_up: int = Field(default=5, ge=1, description="steps before the task metric is judged")
    rollback_share: float = Field(default=0.2, gt=0, le=1, description="of a step's, that go back")
    draws: int = Field(default=3, ge=1, description="draws of prompts, each restored by itself")
    task: str = Field(
        default="", description="JSON lines with `prompt` and `reply`; else the model's own replies"
    )
    new_tokens: int = Field(default=12, ge=1)
    save: bool = Field(default=True, description="write the first draw's model into the run")
    diff: bool = Field(default=True, description="end with the table of before and after")
