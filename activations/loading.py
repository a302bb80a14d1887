"""Open a language model: an organism, a local folder, a hub id, or a module already in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from activations.engines.local import LocalEngine
from activations.errors import ModelError
from activations.model import Model

_ENGINES = ("auto", "transformer_lens")


def open_model(
    model: Any,
    *,
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
) -> Model:
    """A model ready for capture and intervention, with the weights as they were published.

    Args:
        model: `organism/NAME`, a Hugging Face folder, a hub id, or a `PreTrainedModel` (which
            the engine then wraps in place; give its `tokenizer` too).
        engine: `auto` or `transformer_lens` (its `TransformerBridge`).
        device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
        dtype: `auto` (float32 on a CPU, as saved on a GPU), `float32`, `bfloat16` or `float16`.

    Raises:
        ModelError: nothing there, a broken folder, code that must be trusted, an unknown device,
            dtype or engine, an architecture the engine lacks.
    """
    if engine not in _ENGINES:
        raise ModelError(f"Unknown engine {engine!r}; use one of {', '.join(_ENGINES)}.")
    where = _device(device)
    kind = _dtype(dtype, where)
    if isinstance(model, torch.nn.Module):
        if tokenizer is None:
            raise ModelError(
                "A model in memory needs its tokenizer: open_model(model, tokenizer=…)."
            )
        name, loaded, reader = getattr(model, "name_or_path", "") or "in memory", model, tokenizer
    else:
        name = str(model)
        loaded, reader = _load(name, kind, revision, trust_remote_code)
    loaded = loaded.to(where).eval()
    engine_ = LocalEngine(loaded, reader, name)
    opened = Model(name, engine_, loaded, reader, revision=revision)
    if not isinstance(model, torch.nn.Module):
        folder = Path(name).expanduser()
        opened.origin = {
            "model": str(folder.absolute()) if folder.exists() else name,
            "engine": engine,
            "device": device,
            "dtype": dtype,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
    return opened


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


def _load(
    name: str, dtype: torch.dtype | str, revision: str | None, trust: bool
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    place = _place(name)
    options: dict[str, Any] = {"revision": revision} if revision else {}
    local = Path(place).is_dir()
    if not local and not _hub_answers(place):
        options["local_files_only"] = True
    bars = logging.is_progress_bar_enabled()
    if local:
        logging.disable_progress_bar()
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, trust_remote_code=trust, use_safetensors=True, **options
        )
        reader = AutoTokenizer.from_pretrained(place, trust_remote_code=trust, **options)
    except Exception as error:  # the libraries raise many kinds; the user needs one sentence
        raise ModelError(_why(name, error)) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    return loaded, reader


def _hub_answers(name: str) -> bool:
    """Whether the hub can be reached; asked once, since the libraries retry for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(name, timeout=10)
    except HfHubHTTPError:  # it answered, if only to say no: the loader says why
        return True
    except Exception:  # no network, offline mode, a name that no hub takes
        return False
    return True


def _place(name: str) -> str:
    if name.startswith("organism/"):
        import organisms

        short = name.removeprefix("organism/")
        if short not in organisms.NAMES:
            known = ", ".join(f"organism/{n}" for n in organisms.NAMES)
            raise ModelError(f"There is no {name}; embedded are {known}.")
        try:
            return str(organisms.path(short))
        except ValueError as error:
            raise ModelError(str(error)) from None
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name} holds no config.json, so it is no Hugging Face model folder.")
        return str(path)
    if path.is_file():
        raise ModelError(f"{name} is a file; give the model's folder.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"There is no folder {name}.")
    return name


def _why(name: str, error: Exception) -> str:
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "trust_remote_code" in str(error):
        return (
            f"{name} brings its own code, which is not run unless you ask for it with "
            "--trust-remote-code (trust_remote_code=True)."
        )
    if Path(name).expanduser().is_dir() or name.startswith("organism/"):
        return f"The model folder {name} is broken or incomplete: {said}"
    if "local_files_only" in str(error) or "cached files" in str(error):
        return (
            f"The model {name} is not on this machine and the Hugging Face hub cannot be reached: "
            "give a local folder or an organism, or connect and try again."
        )
    return f"The model {name} was not found here nor on the Hugging Face hub: {said}"
