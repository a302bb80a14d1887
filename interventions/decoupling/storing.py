"""A decoupling's state on disk: arrays as safetensors, the rest as JSON, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from activations.atomic import write_whole
from interventions.errors import EditError

ARRAYS, REST = "decoupling.safetensors", "decoupling.json"


def write_state(state: Mapping[str, Any], folder: str | Path) -> Path:
    """Both files; JSON last, with the digest of the arrays that it belongs to."""
    from safetensors.numpy import save

    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(x) for name, x in state["arrays"].items()}
    _, digest = write_whole(path / ARRAYS, [save(arrays)])
    told = {**{name: value for name, value in state.items() if name != "arrays"}, "sha256": digest}
    write_whole(path / REST, [(json.dumps(told, indent=1) + "\n").encode()])
    return path


def read_state(folder: str | Path) -> dict[str, Any]:
    """What `write_state` wrote.

    Raises:
        EditError: no such files, broken ones, or two that do not belong together.
    """
    import hashlib

    from safetensors.numpy import load

    path = Path(folder).expanduser()
    try:
        told = json.loads((path / REST).read_text(encoding="utf-8"))
        data = (path / ARRAYS).read_bytes()
        arrays = load(data)
    except (OSError, ValueError) as error:
        raise EditError(
            f"{folder} holds no state of a decoupling that can be read ({error}): give the folder "
            "that `save` wrote."
        ) from error
    except Exception as error:  # safetensors has its own, without a common base
        raise EditError(f"{path / ARRAYS} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != told.pop("sha256", None):
        raise EditError(f"{ARRAYS} and {REST} in {folder} are not of one moment: save them again.")
    return {**told, "arrays": arrays}
