"""Directions as a control vector of llama.cpp, which adds them to the stream as it runs a model.

What llama.cpp expects was read in its source (the loader in common.cpp, llama-adapter.cpp and the
graphs of its models), not tried: it is not among what this package is tested with. A file holds
tensors `direction.N`, one-dimensional f32, N from 1. `direction.N` is added to what block N gives,
`l_out-N` with blocks counted from 0, so to `blocks.N.hook_resid_post`, at every token of prompt and
reply. Nothing can be added after block 0: `direction.0` is an error there. Architecture, hint and
count of layers are written as its own generator writes them; the loader does not read them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from geometry import Subspace
from interventions.errors import EditError

_SITE = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


def control_vector(
    directions: Subspace | Mapping[str, Subspace] | Mapping[int, Any],
    path: str | Path,
    *,
    architecture: str,
    scale: float = 1.0,
) -> Path:
    """Write directions as a GGUF file for `llama-cli --control-vector FILE`.

    llama.cpp at strength 1 then adds what `add(directions, scale=scale)` adds.

    Args:
        directions: a direction that knows its site, or one for each site or block. Of a
            `Subspace` with k = 1 its unit vector times its singular value is written, as `add`
            adds; an array `[d]` is written as it is. Block N is the output of block N from 0,
            `blocks.N.hook_resid_post`, which is also `blocks.N+1.hook_resid_pre`.
        path: a file, replaced where it is there.
        architecture: llama.cpp's name for the model's, such as "llama", "qwen2" or "gemma".

    Raises:
        EditError: the package gguf is not installed, no direction, one after block 0 or at another
            place than the stream between blocks, one of more than one dimension, widths that
            differ, values that are not finite.
    """
    if find_spec("gguf") is None:
        raise EditError('Writing GGUF needs the package gguf: pip install "isogloss[gguf]".')
    import gguf

    vectors = _vectors(directions, float(scale))
    if not isinstance(architecture, str) or not architecture:
        raise EditError("`architecture` is empty: give llama.cpp's name, such as 'llama'.")
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    writer = gguf.GGUFWriter(partial, "controlvector")
    try:
        writer.add_string("controlvector.model_hint", architecture)
        writer.add_uint32("controlvector.layer_count", len(vectors))
        for block, vector in vectors.items():
            writer.add_tensor(f"direction.{block}", vector)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(target)
    except BaseException:
        writer.close()
        partial.unlink(missing_ok=True)
        raise
    return target


def _vectors(directions: Any, scale: float) -> dict[int, np.ndarray]:
    """By block, in order, what is added after it: `[d]` in f32."""
    if isinstance(directions, Subspace):
        directions = {directions.site: directions}
    if not isinstance(directions, Mapping) or not directions:
        raise EditError("No direction was given: give one for each site, as in {site: direction}.")
    found: dict[int, np.ndarray] = {}
    for where, what in directions.items():
        block = _block(where)
        if block in found:
            raise EditError(f"Two directions were given for the output of block {block}.")
        with np.errstate(over="ignore"):
            found[block] = (scale * _vector(where, what)).astype(np.float32)
        if not np.isfinite(found[block]).all():
            raise EditError(f"The direction for {where!r} holds values that f32 does not.")
    widths = sorted({len(vector) for vector in found.values()})
    if len(widths) > 1:
        raise EditError(
            f"The directions are {widths[0]} and {widths[-1]} wide: give those of one model."
        )
    return dict(sorted(found.items()))


def _vector(where: Any, what: Any) -> np.ndarray:
    if isinstance(what, Subspace):
        if what.k != 1:
            raise EditError(
                f"The subspace for {where!r} has {what.k} dimensions and a control vector is one "
                "direction: give a direction (k = 1)."
            )
        return what.basis[:, 0] * float(np.asarray(what.singular_values)[0])
    vector = np.asarray(what, dtype=np.float64)
    if vector.ndim != 1 or not len(vector):
        raise EditError(f"The direction for {where!r} has shape {vector.shape}: give a vector [d].")
    return vector


def _block(where: Any) -> int:
    """The block after whose output a direction at a site or block is added."""
    if isinstance(where, (int, np.integer)) and not isinstance(where, bool):
        block = int(where)
    else:
        found = _SITE.fullmatch(str(where))
        if found is None:
            raise EditError(
                f"{where!r} is no place where llama.cpp adds a direction: give a block's number, "
                "or a site such as 'blocks.3.hook_resid_post'."
            )
        block = int(found[1]) - (found[2] == "pre")
    if block < 1:
        raise EditError(
            f"{where!r} lies before the output of block 1, the first that llama.cpp adds a "
            "direction to: leave it out."
        )
    return block
