"""Where a model's files are, what kind of model they hold, and how each is read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from activations.engines.passes import first_line
from activations.errors import ModelError

#: The ends of class names of models that give next-token logits.
_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "LMHead")
_MASKED = ("ForMaskedLM", "ForPreTraining")


@dataclass(frozen=True)
class Source:
    """A folder, or an id on the Hugging Face hub; `gguf` names the one file in it that counts."""

    name: str
    place: str
    gguf: str = ""

    @property
    def is_local(self) -> bool:
        return Path(self.place).is_dir()


def find(name: str) -> Source:
    """What a name stands for: an organism, a folder, a GGUF file, else an id on the hub.

    Raises:
        ModelError: nothing there, or nothing that is a model.
    """
    if name.startswith("organism/"):
        return Source(name, _organism(name))
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(name, path)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{name} is a file, and no GGUF file; give the model's folder.")
        return Source(name, str(path.parent), path.name)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        kind = "file" if name.lower().endswith(".gguf") else "folder"
        raise ModelError(f"There is no {kind} {name}.")
    return Source(name, name)


def _organism(name: str) -> str:
    import organisms

    short = name.removeprefix("organism/")
    if short not in organisms.NAMES:
        known = ", ".join(f"organism/{n}" for n in organisms.NAMES)
        raise ModelError(f"There is no {name}; embedded are {known}.")
    try:
        return str(organisms.path(short))
    except ValueError as error:
        raise ModelError(str(error)) from None


def _folder(name: str, path: Path) -> Source:
    if (path / "config.json").is_file():
        return Source(name, str(path))
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return Source(name, str(path), files[0].name)
    if files:
        raise ModelError(
            f"{name} holds {len(files)} GGUF files; give one of them, such as {files[0]}."
        )
    raise ModelError(
        f"{name} holds no config.json and no GGUF file, so it is no Hugging Face model folder."
    )


def options_for(source: Source, revision: str | None, trust: bool) -> dict[str, Any]:
    """Options that every loader of the libraries takes.

    Raises:
        ModelError: a GGUF file, and not the packages that read it.
    """
    options: dict[str, Any] = {"trust_remote_code": trust}
    if revision:
        options["revision"] = revision
    if source.gguf:
        for package in ("gguf", "accelerate"):
            if find_spec(package) is None:
                raise ModelError(
                    f"Reading {source.name} needs the package {package}: "
                    'pip install "isogloss[gguf]" accelerate.'
                )
        options["gguf_file"] = source.gguf
    elif not source.is_local and not _hub_answers(source.place):
        options["local_files_only"] = True
    return options


def read_config(source: Source, options: dict[str, Any]) -> Any:
    """The model's configuration.

    Raises:
        ModelError: nothing there, broken, or of a kind that is not read.
    """
    from transformers import AutoConfig

    with explained(source), quietly(source):
        config = AutoConfig.from_pretrained(source.place, **options)
    require_one_stream(config, source.name)
    return config


def require_one_stream(config: Any, name: str) -> None:
    """Refuse models of two halves, whose sites would need two names.

    Raises:
        ModelError: an encoder-decoder.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name} is an encoder-decoder ({config.model_type}); decoders and encoders are read."
        )


def read_tokenizer(source: Source, options: dict[str, Any]) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: as for the model.
    """
    from transformers import AutoTokenizer

    with explained(source), quietly(source):
        return AutoTokenizer.from_pretrained(source.place, **options)


def read_model(
    source: Source,
    config: Any,
    options: dict[str, Any],
    dtype: torch.dtype | str,
    placed: dict[str, Any],
) -> Any:
    """The model with the weights that were published, none of them made up.

    Args:
        placed: options of `device_map`, empty for none.

    Raises:
        ModelError: nothing there, broken, or weights that the files lack.
    """
    loader = auto_class(config, gguf=bool(source.gguf))
    options = {**options, "dtype": dtype, "output_loading_info": True, **placed}
    if not source.gguf:
        options["use_safetensors"] = True
    with explained(source, spread=bool(placed)), quietly(source), _bar_only_if_long():
        loaded, info = loader.from_pretrained(source.place, **options)
        missing = sorted(info["missing_keys"])
        if missing and all(name.startswith("pooler.") for name in missing):
            loaded, info = loader.from_pretrained(source.place, **options, add_pooling_layer=False)
            missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{source.name} lacks weights that {type(loaded).__name__} needs, such as "
            f"{missing[0]}; random ones would take their place, so it is not opened."
        )
    return loaded


def auto_class(config: Any, *, gguf: bool = False) -> Any:
    """The loader that fits what was saved: with a head for next tokens, with one for masked
    tokens, or without a head.
    """
    import transformers
    from transformers.models.auto import modeling_auto as known

    first = next(iter(getattr(config, "architectures", None) or ()), "")
    own = getattr(config, "auto_map", None) or {}
    causal = getattr(known, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")  # noqa: B009 - made at run time
    masked = getattr(known, "MODEL_FOR_MASKED_LM_MAPPING_NAMES")  # noqa: B009
    name = "AutoModel"
    if gguf:
        name = "AutoModelForCausalLM"
    elif first.endswith(_MASKED) or (own and not first.endswith(_CAUSAL)):
        order = ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel")
        order = order if first.endswith(_MASKED) else (order[1], order[0], order[2])
        name = next((one for one in order if one in own), order[0])
    elif first.endswith(_CAUSAL) or first in causal.values():
        name = "AutoModelForCausalLM"
    elif not first and config.model_type in masked and not getattr(config, "is_decoder", False):
        name = "AutoModelForMaskedLM"
    elif not first and config.model_type in causal:
        name = "AutoModelForCausalLM"
    return getattr(transformers, name)


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


@contextmanager
def quietly(source: Source) -> Iterator[None]:
    """Without the libraries' remarks, and without a bar where nothing is downloaded."""
    from transformers.utils import logging as theirs

    bars, said = theirs.is_progress_bar_enabled(), theirs.get_verbosity()
    placing = logging.getLogger("accelerate.big_modeling")
    level = placing.level
    if source.is_local:
        theirs.disable_progress_bar()
    theirs.set_verbosity_error()
    placing.setLevel(logging.ERROR)
    try:
        yield
    finally:
        placing.setLevel(level)
        theirs.set_verbosity(said)
        if bars:
            theirs.enable_progress_bar()


@contextmanager
def _bar_only_if_long() -> Iterator[None]:
    """Unpacking a GGUF file shows a bar, which is of use for large ones."""
    unpacking: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    shown = unpacking.tqdm
    unpacking.tqdm = partial(shown, delay=5)
    try:
        yield
    finally:
        unpacking.tqdm = shown


@contextmanager
def explained(source: Source, *, spread: bool = False) -> Iterator[None]:
    """Whatever the libraries raise, as one sentence."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # the libraries raise many kinds; the user needs one sentence
        why = _why(source, error)
        if spread:
            why = (
                f"{source.name} cannot be opened with this device_map: {first_line(error)}; check "
                "the map, and whether it opens without one."
            )
        raise ModelError(why) from error


def _why(source: Source, error: Exception) -> str:
    name, said = source.name, first_line(error)
    if "trust_remote_code" in str(error):
        return (
            f"{name} brings its own code, which is not run unless you ask for it with "
            "--trust-remote-code (trust_remote_code=True)."
        )
    if source.gguf:
        return (
            f"The GGUF file {Path(source.place) / source.gguf} is broken, cut off, or of a kind "
            f"that transformers does not read: {said}."
        )
    if source.is_local:
        return f"The model folder {name} is broken or incomplete: {said}."
    if "local_files_only" in str(error) or "cached files" in str(error):
        return (
            f"The model {name} is not on this machine and the Hugging Face hub cannot be reached: "
            "give a local folder or an organism, or connect and try again."
        )
    return f"The model {name} was not found here nor on the Hugging Face hub: {said}."
