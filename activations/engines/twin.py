"""The sites of a model whose weights are elsewhere, found on a small twin: the same class of module
from the same configuration with narrower layers and random weights, checked by numbers as any
model is, and then widened to the shapes of the real one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from activations.engines.engine import Table
from activations.engines.nnsight_engine import NnsightEngine
from activations.engines.passes import Key, first_line
from activations.errors import ModelError
from activations.places import Site

_VOCABULARY = 211
_HEAD = 16
_WIDE = 56  # of the MLP
#: Fields that are made small wherever a configuration has them.
_SMALL = {
    "intermediate_size": _WIDE,
    "moe_intermediate_size": _WIDE,
    "shared_expert_intermediate_size": _WIDE,
    "ffn_dim": _WIDE,
    "n_inner": _WIDE,
    "vocab_size": _VOCABULARY,
    "head_dim": _HEAD,
    "rotary_dim": _HEAD,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_FEWER = {
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 512,
}


def twin_table(
    build: Callable[[Any], Any], config: Any, real: Any, look: Callable[[Any], Table], label: str
) -> tuple[Table, Mapping[Key, int]]:
    """(the table of a model without weights, the order in which its pass reaches each place).

    Args:
        build: from a configuration to a module with random weights.
        real: the model itself, on the meta device.
        look: what finds the table of a model that has weights.

    Raises:
        ModelError: a twin cannot be built, or its sites cannot be found.
    """
    try:
        small = build(narrowed(config)).eval()
    except Exception as error:  # configurations check themselves in many ways
        raise ModelError(
            f"The sites of {label} cannot be found without its weights: a small twin of "
            f"{type(real).__name__} cannot be built ({first_line(error)})."
        ) from error
    table = look(small)
    served = NnsightEngine(small, table, label)
    table = replace(table, sites=served.sites, faults=served.faults)
    return _widened(table, small, real), served.order


def narrowed(config: Any) -> Any:
    """The configuration with the same layers, all of them narrow."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    heads = int(text.num_attention_heads)
    groups = getattr(text, "num_key_value_heads", None)
    if isinstance(groups, int) and 0 < groups < heads:
        keys = min(groups, 2)
        queries = keys * (heads // groups)
        text.num_key_value_heads = keys
    else:
        queries = min(heads, 4)
        if groups is not None:
            text.num_key_value_heads = queries
    text.num_attention_heads = queries
    width, text.hidden_size = int(text.hidden_size), queries * _HEAD
    for name in ("word_embed_proj_dim", "embedding_size"):
        if getattr(text, name, None) == width:
            setattr(text, name, text.hidden_size)
    for name, value in _SMALL.items():
        if name == "head_dim" and hasattr(text, "qk_rope_head_dim"):
            continue  # there it is the width of a part of each head
        if getattr(text, name, None) is not None:
            setattr(text, name, value)
    for name, most in _FEWER.items():
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, min(getattr(text, name), most))
    text.dtype = torch.float32
    return small


def _widened(table: Table, small: Any, real: Any) -> Table:
    """The table with the real shapes; a site whose shape is not known is left out."""
    config, narrow = real.config.get_text_config(), small.config.get_text_config()
    heads = {
        int(narrow.num_attention_heads): int(config.num_attention_heads),
        int(getattr(narrow, "num_key_value_heads", None) or narrow.num_attention_heads): int(
            getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        ),
    }
    d_model = int(config.hidden_size)
    sites: dict[str, Site] = {}
    faults = dict(table.faults)
    for name, site in table.sites.items():
        wide = _wide_site(site, heads, table.d_model, d_model, real)
        if wide is None:
            faults[name] = "its shape is not known without the weights"
        else:
            sites[name] = wide
    return replace(table, sites=sites, faults=faults, d_model=d_model)


def _wide_site(
    site: Site, heads: dict[int, int], narrow: int, d_model: int, real: Any
) -> Site | None:
    place = site.place
    assert place is not None  # nnsight served it
    try:
        width = _width(real.get_submodule(place.module), place.side)
    except AttributeError:  # the narrow one has a module that the real one can do without
        return None
    if not place.heads:
        if site.row == (narrow,):
            return replace(site, row=(d_model,))
        return None if width is None else replace(site, row=(width,))
    if place.heads not in heads:
        return None
    many = heads[place.heads]
    if width is None or width % (many * (3 if place.part else 1)):
        return None
    row = (many, d_model if site.project else width // many // (3 if place.part else 1))
    return replace(site, row=row, place=replace(place, heads=many))


def _width(module: Any, side: str) -> int | None:
    """How wide a module's input or output is, by its weights' shapes."""
    if isinstance(module, torch.nn.Linear):
        return module.in_features if side == "in" else module.out_features
    if isinstance(module, torch.nn.Embedding):
        return module.embedding_dim if side == "out" else None
    shape = getattr(getattr(module, "weight", None), "shape", ())
    if len(shape) == 2 and hasattr(module, "nf"):  # GPT-2's Conv1D keeps [in, out]
        return int(shape[0 if side == "in" else 1])
    return int(shape[0]) if len(shape) == 1 else None
