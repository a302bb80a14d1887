"""What `isogloss run token-shift` may be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from experiments.settings import CorpusSettings


class TokenShiftSettings(CorpusSettings):
    """Settings of `isogloss run token-shift`; `model` is the aligned one, which answers."""

    base: str = Field(
        default="", description="the model before tuning; organism/base for organisms"
    )
    new_tokens: int = Field(default=64, ge=1, description="tokens of an answer, at most")
    positions: int = Field(default=32, ge=1, description="first tokens told apart one by one")
    template: Literal["same", "own", "plain"] = Field(
        default="same",
        description="what base sees: the aligned model's tokens, its own chat template, or marks",
    )
    classes: Literal["auto", "grammar", "words"] = Field(
        default="auto", description="of tokens: the organisms' grammar, or English function words"
    )
    shots: list[Annotated[int, Field(ge=0)]] = Field(
        default=[0, 1, 2, 3], description="examples shown to base; 0 is always among them"
    )
    examples: str = Field(
        default="",
        description="JSONL of kind (careful, plain), request and answer; bundled if empty",
    )
    shots_template: Literal["auto", "chat", "plain"] = Field(
        default="auto", description="auto: chat where base has a chat template, else marks"
    )
    patched: int = Field(default=96, ge=0, description="moved tokens that are patched; 0: none")
    random_draws: int = Field(default=2, ge=1, description="random steps beside each patched state")
    shown: int = Field(default=12, ge=0, description="answers shown in context, of each behaviour")
