"""Open a language model: an organism, a folder, a GGUF file, a hub id, a module already in memory,
or a model that NDIF runs.
"""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
import weakref
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from activations import sources
from activations.engines.engine import Engine
from activations.engines.local import LocalEngine
from activations.errors import ModelError
from activations.model import Model
from activations.random_weights import builder_of, fresh_model, random_name

_ENGINES = ("auto", "transformer_lens", "nnsight")
_TRY = "; try engine nnsight."


def open_model(
    model: Any,
    *,
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
    remote: bool = False,
    api_key: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    random_seed: int | None = None,
) -> Model:
    """A model ready for capture and intervention, with the weights as they were published.

    It is looked at once before it is handed over, in a few passes over three short texts: its
    logits must be those of the plain model, and each of its sites must hold what the plain model
    has there (docs/models.md). Of a remote model there are no weights to look at: its sites are
    found on a small twin with random weights, and its shapes come from its configuration, so
    nothing is known of its numbers.

    Args:
        model: `organism/NAME`, a Hugging Face folder, a GGUF file or a folder with one, a hub id,
            or a `PreTrainedModel` (give its `tokenizer` too), which is left as it is.
        engine: `transformer_lens` (its `TransformerBridge` and plain hooks), `nnsight`, or
            `auto`: the first where it knows the architecture and gives the same logits, else the
            second, with a line on standard error that says why.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        dtype: `auto` (float32 on a CPU, as saved on a GPU), `float32`, `bfloat16` or `float16`.
        remote: leave the weights to NDIF, and run every pass there.
        api_key: for NDIF; else what NDIF_API_KEY says or `nnsight.login()` kept.
        device_map: spread the weights over devices, memory and disk, by accelerate: `auto` or a
            map from modules to places.
        random_seed: leave the published weights alone and draw others, as the architecture's own
            code initialises them (see `random_like`). Only the configuration and the tokenizer are
            read. Not with `remote` or `device_map`.

    Raises:
        ModelError: nothing there, a broken folder, code that must be trusted, an unknown device,
            dtype or engine, an architecture that no engine reads, NDIF out of reach.
    """
    if engine not in _ENGINES:
        raise ModelError(f"Unknown engine {engine!r}; use one of {', '.join(_ENGINES)}.")
    if random_seed is not None and (remote or device_map is not None):
        raise ModelError(
            "Random weights are drawn on this machine and lie on one device; leave out remote and "
            "device_map."
        )
    if remote:
        _require_remote(model, engine, device, device_map)
        return _open_remote(str(model), revision, tokenizer, trust_remote_code, api_key)
    if isinstance(model, torch.nn.Module):
        return _open_module(model, tokenizer, engine, device, dtype, device_map, random_seed)
    where = _device(device)
    kind = _dtype(dtype, where)
    source = sources.find(str(model))
    options = sources.options_for(source, revision, trust_remote_code)
    config = sources.read_config(source, options)
    name = source.name
    if random_seed is not None:
        loaded = _fresh(source, config, kind, random_seed, trust_remote_code).to(where)
        name = random_name(name, random_seed)
    elif device_map is None:
        loaded = sources.read_model(source, config, options, kind, {})
        if getattr(loaded, "hf_quantizer", None) is None:
            loaded = loaded.to(where)
    else:
        loaded = _spread(source, config, options, kind, device_map, device)
    reader = tokenizer if tokenizer is not None else sources.read_tokenizer(source, options)
    opened = _with_engine(name, loaded.eval(), reader, engine, revision)
    path = Path(source.name).expanduser()
    opened.origin = {
        "model": str(path.absolute()) if path.exists() else source.name,
        "engine": engine,
        "device": device,
        "dtype": dtype,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "device_map": device_map,
        "random_seed": random_seed,
    }
    return opened


def random_like(model: Model, *, seed: int) -> Model:
    """A model of the same shape that has learned nothing, beside the one that is open.

    The same configuration, tokenizer, chat template, engine, device and dtype, so the same sites;
    weights as the architecture's own code initialises them, the same bits for the same seed. Its
    digest is that of its weights, so stores of the two are never taken for each other. It takes as
    much memory as the model itself.

    Raises:
        ModelError: a model that is quantised, run by NDIF, or spread over devices.
    """
    if (model.origin or {}).get("remote"):
        raise ModelError(
            f"NDIF runs {model.name}, and no random weights; open_model(name, random_seed=…) "
            "draws them here, where memory allows."
        )
    if getattr(model.hf, "hf_device_map", None) or _has_accelerate_hooks(model.hf):
        raise ModelError(
            f"{model.name} is spread over devices, and random weights lie on one; "
            "open_model(name, random_seed=…) draws them where memory allows."
        )
    build = builder_of(model.hf, model.name)
    loaded = fresh_model(build, model.hf.config, model.dtype, seed, model.name)
    loaded = loaded.to(model.device).eval()
    name = random_name(model.name, seed)
    opened = _with_engine(name, loaded, model.tokenizer, model.engine.name, model.revision)
    if model.origin is not None:
        opened.origin = {**model.origin, "random_seed": seed}
    return opened


def _fresh(source: sources.Source, config: Any, dtype: Any, seed: int, trust: bool) -> Any:
    if source.gguf:
        raise ModelError(
            f"{source.name} is a GGUF file, and random weights have no such form; give the folder "
            "of the model that it was made from."
        )
    build = partial(sources.auto_class(config).from_config, trust_remote_code=trust)
    with sources.quietly(source):
        return fresh_model(build, config, dtype, seed, source.name)


def _open_module(
    model: Any,
    tokenizer: Any,
    engine: str,
    device: str,
    dtype: str,
    device_map: Any,
    random_seed: int | None,
) -> Model:
    _dtype(dtype, torch.device("cpu"))
    if tokenizer is None:
        raise ModelError("A model in memory needs its tokenizer: open_model(model, tokenizer=…).")
    if device_map is not None:
        raise ModelError(
            "device_map spreads weights while they are read: give the model's folder, or a module "
            "that accelerate has spread already."
        )
    name = getattr(model, "name_or_path", "") or "in memory"
    sources.require_one_stream(model.config, name)
    if random_seed is not None:
        build = builder_of(model, name)
        model = fresh_model(build, model.config, model.dtype, random_seed, name)
        name = random_name(name, random_seed)
    spread = getattr(model, "hf_device_map", None) or _has_accelerate_hooks(model)
    if not spread:
        model = model.to(_device(device))
    elif device != "auto":
        raise ModelError(f"{name} is spread over devices already; leave device on auto.")
    return _with_engine(name, model.eval(), tokenizer, engine, None)


def _with_engine(name: str, loaded: Any, reader: Any, engine: str, revision: str | None) -> Model:
    return Model(name, _engine(engine, loaded, reader, name), loaded, reader, revision=revision)


def _engine(engine: str, loaded: Any, reader: Any, name: str) -> Engine:
    from activations.engines.nnsight_engine import NnsightEngine
    from activations.engines.structure import structure

    try:
        local = LocalEngine(loaded, reader, name)
    except ModelError as error:
        if engine == "transformer_lens" or not str(error).endswith(_TRY):
            raise
        why = str(error).removesuffix(_TRY)
        try:
            opened = NnsightEngine(loaded, structure(loaded, name), name)
        except ModelError as other:
            raise ModelError(f"{why}. {other}") from other
        if engine == "auto":
            logging.getLogger("isogloss").warning(
                "%s; it is read through engine nnsight, at %d sites.", why, len(opened.sites)
            )
        return opened
    return NnsightEngine(loaded, local.table, name) if engine == "nnsight" else local


def _require_remote(model: Any, engine: str, device: str, device_map: Any) -> None:
    if engine == "transformer_lens":
        raise ModelError("Models on NDIF are run through engine nnsight; leave engine on auto.")
    if isinstance(model, torch.nn.Module):
        raise ModelError("NDIF runs models that it has itself; give the model's id, not a module.")
    if device != "auto" or device_map is not None:
        raise ModelError("NDIF decides where its models lie; leave out device and device_map.")


def _open_remote(
    name: str, revision: str | None, tokenizer: Any, trust: bool, api_key: str | None
) -> Model:
    from activations.engines.remote import Ndif, RemoteEngine, without_weights
    from activations.engines.structure import structure
    from activations.engines.twin import twin_table

    source = sources.find(name)
    if source.gguf or name.startswith("organism/"):
        raise ModelError(f"NDIF does not run {name}; give a model's id on the Hugging Face hub.")
    options = sources.options_for(source, revision, trust)
    config = sources.read_config(source, options)
    reader = tokenizer if tokenizer is not None else sources.read_tokenizer(source, options)
    loader = sources.auto_class(config)

    def look(small: Any) -> Any:
        try:
            return LocalEngine(small, reader, name).table
        except ModelError:
            return structure(small, name)

    with sources.explained(source), sources.quietly(source):
        root = without_weights(source.place, loader, copy.deepcopy(reader), revision, trust)
        ndif = Ndif.find(root, name, api_key)
        build = partial(loader.from_config, trust_remote_code=trust)
        table, order = twin_table(build, config, root._module, look, name)
    engine = RemoteEngine(root, ndif, table, order, name)
    opened = Model(name, engine, root._module, reader, revision=revision)
    opened.origin = {
        "model": name, "engine": "nnsight", "device": "auto", "dtype": "auto",
        "revision": revision, "trust_remote_code": trust, "remote": True,
    }  # fmt: skip
    return opened


def _spread(
    source: sources.Source, config: Any, options: Any, kind: Any, device_map: Any, device: str
) -> Any:
    """The model with its weights where `device_map` says, those for the disk in a folder that
    lasts as long as the model.
    """
    if device != "auto":
        raise ModelError("Give device or device_map, not both.")
    if find_spec("accelerate") is None:
        raise ModelError("device_map needs the package accelerate: pip install accelerate.")
    folder = tempfile.mkdtemp(prefix="isogloss-offload-")
    try:
        placed = {"device_map": device_map, "offload_folder": folder}
        loaded = sources.read_model(source, config, options, kind, placed)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(loaded, shutil.rmtree, folder, ignore_errors=True)
    return loaded


def _has_accelerate_hooks(model: torch.nn.Module) -> bool:
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError):
        raise ModelError(f"Device {device!r} is not available here; use cpu or auto.") from None
    return chosen


def _dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ModelError(f"Unknown dtype {dtype!r}; use auto, {', '.join(known)}.")
    return known[dtype]
