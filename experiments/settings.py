"""What a run may be told: typed settings, read from TOML and the command line, checked at once."""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class ConfigError(ValueError):
    """A setting that does not exist or cannot have the value given."""


class Settings(BaseModel):
    """Settings that every experiment takes. An empty string or list means: the default choice."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(default="organism/aligned", min_length=1)
    corpus: str = ""
    standard: str = ""
    sites: list[str] = Field(default=["resid_post"], min_length=1)
    layers: list[int] = []
    tokens: Literal["last", "mean"] = "last"
    engine: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    seed: int = Field(default=0, ge=0)
    store: str = ""
    trust_remote_code: bool = False
    text_column: str = "text"
    variety_column: str = "variety"
    group_column: str = "group"
    behaviour_column: str = "behaviour"

    @classmethod
    def read(
        cls,
        path: str | Path | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        assignments: Sequence[str] = (),
    ) -> Self:
        """Settings from a TOML file, then options, then `key=value` strings; the later wins.

        Raises:
            ConfigError: a missing or broken file, an unknown key, a value of the wrong kind.
        """
        values: dict[str, Any] = {}
        if path is not None:
            values |= _read_toml(Path(path))
        values |= {k: v for k, v in (options or {}).items() if v is not None}
        for text in assignments:
            key, equals, value = text.partition("=")
            if not equals or not key.strip():
                raise ConfigError(f"--set takes key=value, not {text!r}.")
            values[key.strip()] = _parse_value(value.strip())
        for key in values:
            if key not in cls.model_fields:
                raise ConfigError(f"There is no setting {key!r}{_nearest(key, cls.model_fields)}.")
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"Setting {where!r}: {first['msg']} (got {first['input']!r})."
            ) from None

    def write(self, path: Path) -> None:
        """Every setting, defaults included, so that the file alone repeats the run."""
        path.write_bytes(tomli_w.dumps(self.model_dump()).encode())

    def digest(self) -> str:
        """Short name of this combination of settings; where a store lies does not count."""
        text = tomli_w.dumps(self.model_dump(exclude={"store"}))
        return hashlib.sha256(text.encode()).hexdigest()[:8]


class CorpusSettings(Settings):
    """How much of the corpus an experiment uses."""

    max_groups: int = Field(default=200, ge=0, description="groups of sentences used; 0: all")
    max_requests: int = Field(default=64, ge=4, description="requests of each behaviour and split")


class CompareSettings(CorpusSettings):
    """Settings of `isogloss run compare`."""

    removal_k: int = Field(default=1, ge=1, description="dimensions taken out of the model")
    k: int = Field(default=4, ge=1, description="dimensions of each variety's subspace")
    folds: int = Field(default=5, ge=2)
    regularisation: float = Field(default=1.0, gt=0, description="C of the logistic probes")
    control_draws: int = Field(default=5, ge=1)
    permutations: int = Field(default=200, ge=20)
    random_model: bool = Field(
        default=True,
        description="probe a model of the same shape with random weights too: one more capture, "
        "and the memory of a second model while it lasts",
    )
    null_draws: int = Field(default=500, ge=50)
    split_draws: int = Field(default=20, ge=2, description="random halves behind each overlap")
    bootstrap_draws: int = Field(default=100, ge=20)
    cloud_rows: int = Field(default=600, ge=50, description="texts behind shape and CKA, at most")
    ablation_controls: int = Field(default=5, ge=1, description="random subspaces beside each edit")
    loss_groups: int = Field(default=32, ge=2)
    new_tokens: int = Field(default=12, ge=1)
    add_scales: list[float] = Field(default=[0.4, 0.6, 0.8, 1.0], min_length=1)
    patch_pairs: int = Field(default=6, ge=0, description="sentence pairs of each variety")
    patch_positions: int = Field(default=24, ge=1)
    patch_layers: int = Field(default=8, ge=1)


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"There is no settings file {path}.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _nearest(name: str, names: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(names), n=3)
    return f"; did you mean {', '.join(near)}" if near else f"; known: {', '.join(sorted(names))}"
