"""A look at a newly opened model: which sites it has, where they lie in the plain model, and
whether both ways of reading them agree. Two tiny passes, so that a wrong site is found at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from activations.engines.engine import Table
from activations.engines.offload import weight
from activations.engines.passes import (
    Key,
    first_line,
    has_head,
    plain_pass,
    same,
    scores,
    sees_only_the_past,
    some_inputs,
    text_shape,
)
from activations.errors import ModelError
from activations.places import Place, Site

_THIRDS = {"q": 0, "k": 1, "v": 2}


def survey(hf: Any, wrapped: Any, bridge: Any, paths: Mapping[int, str], label: str) -> Table:
    """The sites that TransformerLens names, in the order of its pass.

    Args:
        hf, wrapped: the plain model, and the copy of its modules that the bridge wraps.
        paths: of the wrapped modules, by id, as they were before.

    Raises:
        ModelError: the bridge cannot run, or its logits are not the plain model's.
    """
    inputs = some_inputs(hf)
    shape = text_shape(inputs)
    candidates = _candidates(bridge, paths)
    wanted = [(place.module, place.side) for places in candidates.values() for place in places]
    seen = plain_pass(hf, wanted, inputs, label)
    raw, final = seen.raw, scores(seen.output)
    try:
        through, bridged = _bridge_pass(wrapped, bridge, inputs)
    except Exception as error:  # an adapter that does not fit raises many kinds
        raise ModelError(
            f"TransformerLens cannot run {label}: {first_line(error)}; try engine nnsight."
        ) from error
    if not same(bridged, final):
        raise ModelError(
            f"TransformerLens's pass through {label} gives other logits than the plain model, so "
            "its sites cannot be trusted; try engine nnsight."
        )
    hooks = _meant(through)
    sites: dict[str, Site] = {}
    faults: dict[str, str] = {}
    for name, hook in hooks.items():
        value = through[hook]
        axes = _axes(value, shape)
        if axes is None:
            continue
        axis, over_keys = axes
        if name.endswith("hook_pattern") and not _sums_to_one(value):
            faults[name] = "its attention rows do not sum to one"
            continue
        row = tuple(n for at, n in enumerate(value.shape) if at not in (0, axis))
        found = (_located(c, raw, value, shape) for c in candidates.get(hook, ()))
        place = next((p for p in found if p is not None), None)
        if place is not None and seen.calls[place.module, place.side] > 1:
            faults[name] = "its module runs more than once in a pass, so it holds no one state"
            continue
        sites[name] = Site(name, row, axis, over_keys, place, hook)
    d_model = int(bridge.cfg.d_model)
    sites = _with_head_results(sites, faults, hf, d_model, raw, shape)
    return Table(
        sites,
        faults,
        int(bridge.cfg.n_layers),
        d_model,
        sees_only_the_past(hf, final),
        has_head(seen.output),
    )


def _candidates(bridge: Any, paths: Mapping[int, str]) -> dict[str, list[Place]]:
    """For each of the bridge's hooks the places that may be it, likeliest first."""
    owners: dict[int, tuple[str, Any, str]] = {}
    for path, component in bridge.named_modules():
        for attribute, child in component._modules.items():
            if isinstance(child, HookPoint):
                owners[id(child)] = (path, component, attribute)
    found: dict[str, list[Place]] = {}
    for name, point in bridge.hook_dict.items():
        path, component, attribute = owners.get(id(point), ("", None, ""))
        if attribute not in ("hook_in", "hook_out"):
            continue
        side = "in" if attribute == "hook_in" else "out"
        module = paths.get(id(component._modules.get("_original_component")))
        if module:
            found[name] = [Place(module, side)]
        elif path.rsplit(".", 1)[-1] in _THIRDS and side == "out":
            joint = bridge.get_submodule(path.rsplit(".", 1)[0])._modules.get("qkv")
            whole = joint and paths.get(id(joint._modules.get("_original_component")))
            number = _THIRDS[path.rsplit(".", 1)[-1]]
            if whole:
                found[name] = [
                    Place(whole, "out", part=(number, "thirds")),
                    Place(whole, "out", part=(number, "within heads")),
                ]
    return found


@torch.no_grad()
def _bridge_pass(
    wrapped: Any, bridge: Any, inputs: dict[str, Any]
) -> tuple[dict[str, Tensor], Tensor]:
    got: dict[str, Tensor] = {}
    handles = []

    def keep(states: Any, name: str) -> None:
        if isinstance(states, Tensor) and states.is_floating_point():
            got.setdefault(name, states.detach().clone())

    try:
        for name, point in bridge.hook_dict.items():
            handles.append((point, point.add_hook(lambda x, hook, name=name: keep(x, name))))
        output = wrapped(**inputs)
    finally:
        for point, handle in handles:
            handle.hook.remove()
            point.fwd_hooks.remove(handle)
    return got, scores(output)


def _axes(value: Tensor, shape: tuple[int, int]) -> tuple[int, bool] | None:
    """(axis of positions, whether the last axis is one too); None for no states of tokens."""
    if value.ndim < 3 or value.shape[0] != shape[0]:
        return None
    if value.shape[1] == shape[1]:
        return 1, False
    if value.ndim == 4 and value.shape[2] == shape[1]:
        return 2, value.shape[3] == shape[1]
    return None


def _located(
    place: Place, raw: Mapping[Key, Tensor], value: Tensor, shape: tuple[int, int]
) -> Place | None:
    """The place, with its heads filled in, if it holds what the bridge reads there."""
    tensor = raw.get((place.module, place.side))
    if tensor is None or value.shape[1] != shape[1]:
        return None
    heads = value.shape[2] if value.ndim == 4 else 0
    located = Place(place.module, place.side, heads, place.part)
    try:
        states = located.view(tensor, shape)
    except (RuntimeError, IndexError):
        return None
    return located if same(states, value) else None


def _sums_to_one(pattern: Tensor) -> bool:
    sums = pattern.detach().double().sum(-1)
    return bool(torch.all(sums.isnan() | ((sums - 1).abs() < 1e-2)))


def _meant(through: Mapping[str, Tensor]) -> dict[str, str]:
    """For each site the hook that holds what its name says.

    What attention and MLP write is what they add to the stream. Where a block's modules add the
    stream within (Bloom), or normalise after adding (BERT), the bridge's names miss that, and the
    sum tells which hook does not: before + written = after.
    """
    meant = {name: name for name in through}
    for pre in [name for name in through if name.endswith(".hook_resid_pre")]:
        at = pre.removesuffix("hook_resid_pre")
        written, middle = f"{at}hook_attn_out", f"{at}hook_resid_mid"
        for a, m in product((written, f"{at}attn.o.hook_out"), (middle, f"{at}ln1.hook_in")):
            if _adds_up(through, pre, a, m):
                meant[written], meant[middle] = a, m
                break
        written, after = f"{at}hook_mlp_out", f"{at}hook_resid_post"
        for w in (written, f"{at}mlp.out.hook_out"):
            if _adds_up(through, middle, w, after):
                meant[written] = w
                break
    return {name: hook for name, hook in meant.items() if name in through}


def _adds_up(through: Mapping[str, Tensor], before: str, written: str, after: str) -> bool:
    if not {before, written, after} <= through.keys():
        return False
    stream, part = through[before], through[written]
    return stream.shape == part.shape and same(stream + part, through[after])


def _with_head_results(
    sites: dict[str, Site],
    faults: dict[str, str],
    hf: Any,
    d_model: int,
    raw: Mapping[Key, Tensor],
    shape: tuple[int, int],
) -> dict[str, Site]:
    """`hook_result` after each z that lies at the input of attention's output projection, where
    the heads' writings add up to what the projection gives.
    """
    full: dict[str, Site] = {}
    for name, z in sites.items():
        full[name] = z
        place = z.place if name.endswith("attn.hook_z") else None
        if place is None or not place.heads:
            continue
        result = name.replace("hook_z", "hook_result")
        site = replace(z, name=result, row=(z.row[0], d_model), project=place.module)
        if _heads_add_up(site, place, hf, raw, shape):
            full[result] = site
        else:
            faults[result] = "its heads do not add up to what attention writes; read attn.hook_z"
    return full


@torch.no_grad()
def _heads_add_up(
    site: Site, place: Place, hf: Any, raw: Mapping[Key, Tensor], shape: tuple[int, int]
) -> bool:
    written = raw.get((place.module, "out"))
    if written is None:
        return False
    try:
        heads = site.finish(place.view(raw[place.module, "in"], shape), hf)
        module = hf.get_submodule(place.module)
        bias = weight(module, "bias") if getattr(module, "bias", None) is not None else None
        total = heads.sum(-2) + (0 if bias is None else bias.to(heads))
    except (RuntimeError, AttributeError, IndexError):  # packed weights, or no weight at all
        return False
    return same(total, Place(place.module, "out").view(written, shape))
