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

from activations.errors import ModelError
from activations.places import Place, Site, first_argument, first_tensor

#: Largest relative difference that rounding explains, between attention kernels too.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_HALF_TOLERANCE = 0.1
_THIRDS = {"q": 0, "k": 1, "v": 2}


def survey(
    hf: Any, wrapped: Any, bridge: Any, paths: Mapping[int, str], label: str
) -> tuple[dict[str, Site], dict[str, str]]:
    """(sites in the order of the pass, what is wrong with those that are left out).

    Args:
        hf, wrapped: the plain model, and the copy of its modules that the bridge wraps.
        paths: of the wrapped modules, by id, as they were before.

    Raises:
        ModelError: the bridge's logits are not the plain model's.
    """
    ids = _some_tokens(hf, bridge)
    shape = (int(ids.shape[0]), int(ids.shape[1]))
    candidates = _candidates(bridge, paths)
    through, logits = _bridge_pass(wrapped, bridge, ids)
    raw, plain_logits = _plain_pass(hf, candidates, ids)
    if not _same(logits, plain_logits):
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
        sites[name] = Site(name, row, axis, over_keys, place, hook)
    return _with_head_results(sites, hf, bridge), faults


def _some_tokens(hf: Any, bridge: Any) -> Tensor:
    """Three texts of a length that no other axis has, so that axes can be told apart."""
    config = hf.config.get_text_config()
    used = {int(v) for v in vars(config).values() if isinstance(v, int)}
    length = next(n for n in (7, 11, 13, 17, 19, 23) if n not in used)
    vocabulary = int(getattr(config, "vocab_size", 0) or bridge.cfg.d_vocab)
    ids = (torch.arange(3 * length) * 37 + 5) % vocabulary
    return ids.reshape(3, length).to(next(hf.parameters()).device)


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
def _bridge_pass(wrapped: Any, bridge: Any, ids: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    got: dict[str, Tensor] = {}
    handles = []

    def keep(states: Any, name: str) -> None:
        if isinstance(states, Tensor) and states.is_floating_point():
            got.setdefault(name, states.detach().clone())

    try:
        for name, point in bridge.hook_dict.items():
            handles.append((point, point.add_hook(lambda x, hook, name=name: keep(x, name))))
        logits = wrapped(input_ids=ids).logits
    finally:
        for point, handle in handles:
            handle.hook.remove()
            point.fwd_hooks.remove(handle)
    return got, logits


@torch.no_grad()
def _plain_pass(
    hf: Any, candidates: Mapping[str, list[Place]], ids: Tensor
) -> tuple[dict[tuple[str, str], Tensor], Tensor]:
    got: dict[tuple[str, str], Tensor] = {}
    handles = []

    def keep(key: tuple[str, str], value: Any) -> None:
        if isinstance(value, Tensor):
            got.setdefault(key, value.detach().clone())

    wanted = {(place.module, place.side) for places in candidates.values() for place in places}
    try:
        for path, side in wanted:
            module = hf.get_submodule(path)
            if side == "out":
                handles.append(
                    module.register_forward_hook(
                        lambda _m, _a, out, key=(path, side): keep(key, _first_or_none(out))
                    )
                )
            else:
                handles.append(
                    module.register_forward_pre_hook(
                        lambda _m, args, named, key=(path, side): keep(
                            key, first_argument(args, named)
                        ),
                        with_kwargs=True,
                    )
                )
        logits = hf(input_ids=ids).logits
    finally:
        for handle in handles:
            handle.remove()
    return got, logits


def _first_or_none(output: Any) -> Any:
    try:
        return first_tensor(output)
    except (KeyError, IndexError, TypeError):
        return None


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
    place: Place, raw: Mapping[tuple[str, str], Tensor], value: Tensor, shape: tuple[int, int]
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
    return located if _same(states, value) else None


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    tolerance = _TOLERANCE.get(a.dtype, _HALF_TOLERANCE)
    a, b = a.detach().double(), b.detach().double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
    return bool((a - b).norm() <= tolerance * b.norm())


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
    return stream.shape == part.shape and _same(stream + part, through[after])


def _with_head_results(sites: dict[str, Site], hf: Any, bridge: Any) -> dict[str, Site]:
    """`hook_result` after each z that lies at the input of attention's output projection."""
    full: dict[str, Site] = {}
    for name, z in sites.items():
        full[name] = z
        place = z.place if name.endswith("attn.hook_z") else None
        if place and place.heads and _projects(hf, place.module):
            result = name.replace("hook_z", "hook_result")
            row = (z.row[0], int(bridge.cfg.d_model))
            full[result] = replace(z, name=result, row=row, project=place.module)
    return full


def _projects(hf: Any, path: str) -> bool:
    weight = getattr(hf.get_submodule(path), "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2
