"""Names of places in a model: TransformerLens hook names, and short forms for all layers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence

from activations.errors import SiteError

#: Short form -> the part of the hook name after the block number.
SHORT = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "result": "attn.hook_result",
    "pattern": "attn.hook_pattern",
    "mlp_pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
}
EMBEDDING = "blocks.0.hook_resid_pre"
#: Short forms of the places outside the blocks.
SINGLE = {"embed": EMBEDDING, "final_norm": "ln_final.hook_out", "logits": "unembed.hook_out"}
_BLOCK = re.compile(r"^blocks\.(\d+)\.")


def layer_of(site: str) -> int:
    """Block number in a site's name, -1 where it has none.

    >>> layer_of("blocks.3.hook_resid_post")
    3
    """
    found = _BLOCK.match(site)
    return int(found.group(1)) if found else -1


def resolve_sites(
    spec: str | Sequence[str],
    layers: Sequence[int] | None,
    known: Collection[str],
    n_layers: int,
    *,
    faults: Mapping[str, str] | None = None,
) -> list[str]:
    """Full names for short forms and full names, in the order asked for.

    Raises:
        SiteError: an unknown name (the nearest are given), a layer that does not exist, or a site
            that is in `faults`, with what is wrong with it.
    """
    layers = None if layers is None else [int(layer) for layer in layers]
    for layer in layers or ():
        if not 0 <= layer < n_layers:
            raise SiteError(f"There is no layer {layer}: the model has layers 0 to {n_layers - 1}.")
    wanted = layers if layers else range(n_layers)
    names: list[str] = []
    for part in [spec] if isinstance(spec, str) else spec:
        if part in SINGLE:
            names.append(SINGLE[part])
        elif part in SHORT:
            names += [f"blocks.{layer}.{SHORT[part]}" for layer in wanted]
        else:
            names.append(part)
    missing = [name for name in names if name not in known]
    if missing:
        if faults and missing[0] in faults:
            raise SiteError(f"The site {missing[0]!r} cannot be read: {faults[missing[0]]}.")
        near = difflib.get_close_matches(missing[0], [*SHORT, *SINGLE, *known], n=3)
        hint = (
            f"did you mean {', '.join(near)}?"
            if near
            else f"short forms: {', '.join([*SHORT, *SINGLE])}."
        )
        raise SiteError(f"The model has no site {missing[0]!r}; {hint}")
    return list(dict.fromkeys(names))
