"""A LoRA adapter on its base, merged tensor by tensor: W + s B A (Hu et al. 2021)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from activations.atomic import file_sha256
from interventions.errors import EditError

if TYPE_CHECKING:
    from interventions.restoration.reference import Weights

_PREFIX = "base_model.model."
#: Settings of PEFT's under which a layer is more than W + s B A.
_MORE = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "layer_replication")


class _Merged:
    def __init__(
        self, base: Weights, pairs: Mapping[str, tuple[Tensor, Tensor]], scale: float, file: Path
    ) -> None:
        self.shapes = base.shapes
        self._base, self._pairs, self._scale, self._file = base, pairs, scale, file

    def read(self, name: str) -> Tensor:
        plain = self._base.read(name)
        if name not in self._pairs:
            return plain
        down, up = self._pairs[name]
        added = self._scale * (up.float() @ down.float()).to(plain.device)
        return (plain.float() + added).to(plain.dtype)

    def digest(self) -> str:
        said = f"{self._base.digest()} {file_sha256(self._file)} {self._scale}"
        return hashlib.sha256(said.encode()).hexdigest()


def merged_files(base: Weights, adapter: Path) -> Weights:
    """The base's weights with a LoRA adapter of PEFT merged in, as each is read.

    Raises:
        EditError: an adapter of another kind, or one of another base.
    """
    from safetensors.torch import load_file

    told: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    more = [key for key in _MORE if told.get(key)]
    more += ["bias"] if told.get("bias", "none") != "none" else []
    more += ["fan_in_fan_out"] if told.get("fan_in_fan_out") else []
    if str(told.get("peft_type")).upper() != "LORA" or more:
        why = f"with {more[0]}" if more else f"of type {told.get('peft_type')}"
        raise EditError(
            f"The adapter {adapter} is one {why}, which is not merged here: merge it by peft's "
            "merge_and_unload, and give the folder that it is saved to."
        )
    file = adapter / "adapter_model.safetensors"
    if not file.is_file():
        raise EditError(f"The adapter {adapter} has no {file.name}: save it as safetensors.")
    held = load_file(file)
    pairs = {}
    for key, down in held.items():
        if not key.endswith(".lora_A.weight"):
            continue
        path = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
        up = held.get(key.replace(".lora_A.", ".lora_B."))
        name = f"{path}.weight"
        if up is None or name not in base.shapes:
            raise EditError(f"The adapter {adapter} changes {path}, which its base does not have.")
        if (up.shape[0], down.shape[1]) != base.shapes[name]:
            raise EditError(
                f"The adapter {adapter} changes {name} by a matrix {up.shape[0]} x "
                f"{down.shape[1]}, and its base has {list(base.shapes[name])}."
            )
        pairs[name] = (down, up)
    if 2 * len(pairs) != len(held):
        raise EditError(f"The adapter {adapter} holds more than pairs of LoRA: merge it by peft.")
    rank, alpha = float(told["r"]), float(told["lora_alpha"])
    return _Merged(base, pairs, alpha / (math.sqrt(rank) if told.get("use_rslora") else rank), file)
