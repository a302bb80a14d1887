"""What `isogloss run diff` may be told."""

from __future__ import annotations

from pydantic import Field

from experiments.settings import CorpusSettings


class DiffSettings(CorpusSettings):
    """Settings of `isogloss run diff`; those of `before_after` too, which opens no model itself."""

    model: str = Field(default="organism/base", min_length=1, description="the model before")
    after: str = Field(default="organism/aligned", min_length=1, description="the model after")
    k: int = Field(default=4, ge=1, description="dimensions of each variety's subspace")
    folds: int = Field(default=5, ge=2)
    regularisation: float = Field(default=1.0, gt=0, description="C of the logistic probes")
    control_draws: int = Field(default=3, ge=1, description="labelings of the control task")
    null_draws: int = Field(default=500, ge=50)
    split_draws: int = Field(default=20, ge=2, description="random halves behind each overlap")
    bootstrap_draws: int = Field(default=100, ge=20)
    cloud_rows: int = Field(default=600, ge=50, description="texts behind CKA, at most")
    text_groups: int = Field(
        default=32, ge=2, description="texts of each variety behind losses and KL, at most"
    )
    new_tokens: int = Field(default=12, ge=0, description="length of replies; 0: none are written")
    promoted: int = Field(default=8, ge=1, description="tokens shown of what a shift promotes")
