"""One name for a model's weights: SHA-256 over what they are, wherever they lie."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from activations.engines.offload import tensors


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 over the names, shapes, dtypes and bytes of all parameters and persistent buffers.

    Each tensor is hashed by a thread of its own, and the digests are hashed in the order of the
    names, so neither threads nor devices nor offloading change it.

    Raises:
        ModelError: a weight has no values on this machine.
    """
    fetchers = tensors(model)
    first: dict[object, str] = {}  # tied weights are hashed once
    for name, tensor in model.state_dict().items():
        first.setdefault(_identity(name, tensor), name)
    chosen = sorted(first.values())
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        hashed = dict(zip(chosen, threads.map(_content, (fetchers[n] for n in chosen))))
    whole = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        facts, content = hashed[first[_identity(name, tensor)]]
        whole.update(f"{name} {facts} {content}\n".encode())
    return whole.hexdigest()


def _identity(name: str, tensor: Tensor) -> object:
    if tensor.device.type == "meta":
        return name
    return (
        tensor.data_ptr(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        tensor.device,
        tensor.numel() or name,
    )


def _content(fetch: Callable[[], Tensor]) -> tuple[str, str]:
    tensor = fetch().detach()
    facts = f"{tuple(tensor.shape)} {tensor.dtype}"
    raw: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return facts, hashlib.sha256(memoryview(raw)).hexdigest()
