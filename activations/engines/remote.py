"""The engine for models that no machine here holds: nnsight's traces, run on NDIF.

What is read, and the selection of rows, travels with the trace and runs over there, so that only
what was asked for comes back. Nothing keeps keys and values between two passes on NDIF, so each
step of decoding sends the whole text again.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from activations.engines.engine import Change, End, Read, Table
from activations.engines.nnsight_engine import envoys, native, quiet
from activations.engines.passes import Key, first_line, text_shape
from activations.engines.visits import follow, in_order
from activations.errors import ModelError
from activations.places import Site, output_matrix

_PUBLIC = "api.ndif.us"
#: The pipeline that NDIF loads a model under.
_TASKS = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModel": "feature-extraction",
}
#: Packages of this repository, which NDIF does not have: what of them a trace uses is sent along.
_OURS = (
    "activations", "corpora", "evidence", "experiments", "geometry", "interventions", "organisms",
    "probes",
)  # fmt: skip


@dataclass(frozen=True)
class Ndif:
    """Where a model is run: NDIF's address, the user's key, the name that NDIF goes by."""

    host: str
    api_key: str | None = field(repr=False)
    model_key: str

    @staticmethod
    def find(root: Any, label: str, api_key: str | None) -> Ndif:
        """Ask whether the model can be run before anything is prepared.

        Raises:
            ModelError: no key, NDIF out of reach, or the model is not among those that it runs.
        """
        from nnsight.schema.config import CONFIG

        host, key = CONFIG.API.HOST, api_key or CONFIG.API.APIKEY
        if not key and _PUBLIC in host:
            raise ModelError(
                "NDIF asks for a key, which https://ndif.us gives out: give api_key=…, or set "
                "NDIF_API_KEY."
            )
        try:
            model_key = root.to_model_key()
        except Exception as error:  # asks the hub how the model is spelt
            raise ModelError(
                f"The Hugging Face hub does not say what {label} is called, which NDIF goes by: "
                f"{first_line(error)}."
            ) from error
        _require_hosted(model_key, label, host)
        return Ndif(host, key, model_key)


class RemoteEngine:
    """See `Engine`. Its sites are those of a small twin, found without the weights.

    Args:
        root: nnsight's `TransformersModel`, without weights.
        table, order: see `twin_table`.
    """

    name = "nnsight"

    def __init__(
        self, root: Any, ndif: Ndif, table: Table, order: Mapping[Key, int], label: str
    ) -> None:
        self.root = root
        self.hf = root._module
        self.ndif = ndif
        self.label = label
        self.device = torch.device("cpu")
        self.n_layers, self.d_model = table.n_layers, table.d_model
        self.is_causal, self.has_head = table.is_causal, table.has_head
        self.sites: Mapping[str, Site]
        self.faults: Mapping[str, str]
        self.sites, self.faults = native(table)
        self.order = order
        self.served = envoys(root)

    def digest(self) -> str:
        """SHA-256 of what names the weights, since they are not here to be hashed."""
        return hashlib.sha256(f"ndif {self.ndif.model_key}".encode()).hexdigest()

    def run(
        self,
        inputs: Mapping[str, Any],
        *,
        edits: Sequence[tuple[str, Change]] = (),
        reads: Mapping[str, Read] | None = None,
        stop: bool = False,
        end: End | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """See `Engine.run`. The output holds logits, and for decoding what was said so far.

        Raises:
            ModelError: the pass could not be sent, or failed over there.
        """
        import nnsight

        plain = {"use_cache": False} if "use_cache" in inputs else {}
        said = _Said.after(inputs, edits) if inputs.get("use_cache") else None
        if said is not None:
            inputs, edits = said.inputs, said.edits()
        changes = [(self.sites[name], _portable(change)) for name, change in edits]
        wanted = [(self.sites[name], read) for name, read in (reads or {}).items()]
        visits = in_order(changes, wanted, self.order)
        served = {visit.module: self.served[visit.module] for visit in visits}
        shape = text_shape(dict(inputs))
        sent = {
            k: v for k, v in inputs.items() if k not in ("use_cache", "past_key_values")
        } | plain
        halts = bool(stop and wanted)
        ends: Any = end or (_newest if said is not None else _logits)
        kept: Any = {}
        ended: Any = None
        # What the block names is sent along with it, so it names no more than it needs.
        with (
            self._sending(),
            self.root.trace(**sent, backend=self._backend()) as tracer,
        ):
            kept = follow(served, visits, shape, output_matrix, {})
            kept = nnsight.save({name: value.detach().cpu() for name, value in kept.items()})
            if halts:
                tracer.stop()
            ended = nnsight.save(ends(tracer.result).detach().cpu())
        if ended is not None and end is None:
            ended = SimpleNamespace(logits=ended, past_key_values=said)
        return ended, dict(kept)

    def _backend(self) -> Any:
        from nnsight.intervention.backends.remote import RemoteBackend

        class Sender(RemoteBackend):
            def _serialize(self, tracer: Any) -> bytes:
                try:
                    return super()._serialize(tracer)
                except Exception as error:  # pickle raises many kinds
                    raise ModelError(
                        f"What this pass is to do cannot be sent to NDIF ({first_line(error)}): "
                        "edits and selections must hold tensors and plain values, and call torch."
                    ) from error

        env = self.root._remoteable_get_env()
        ndif = self.ndif
        backend = Sender(ndif.model_key, host=ndif.host, api_key=ndif.api_key, env=env)
        backend.display.enabled = False
        return backend

    @contextmanager
    def _sending(self) -> Iterator[None]:
        import httpx
        from nnsight.intervention.backends.remote import RemoteError
        from websocket import WebSocketException

        try:
            with by_value():
                yield
        except RemoteError as error:
            raise ModelError(self._refused(error)) from error
        except (httpx.HTTPError, WebSocketException, OSError) as error:
            raise ModelError(
                f"NDIF at {self.ndif.host} cannot be reached: {first_line(error)}; check the "
                "network and https://nnsight.net/status, and try again."
            ) from error

    def _refused(self, error: BaseException) -> str:
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or ["no reason"]
        said = lines[-1].strip().rstrip(".")
        if said.startswith("Failed to send request"):
            said = said.removeprefix("Failed to send request:").strip()
            return f"NDIF did not take the request for {self.label}: {said}."
        return f"The pass through {self.label} failed on NDIF: {said}."


def _portable(value: Any) -> Any:
    """An edit with the data that it holds as bare values, so that no class of data is sent along,
    nor what such a class imports.
    """
    if isinstance(value, partial):
        named = {name: _portable(one) for name, one in value.keywords.items()}
        return partial(_portable(value.func), *map(_portable, value.args), **named)
    if isinstance(value, Mapping):
        return {key: _portable(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_portable, value))
    ours = type(value).__module__.split(".")[0] in _OURS
    if not ours or not is_dataclass(value) or isinstance(value, (type, Site)):
        return value
    held = {one.name: _portable(getattr(value, one.name)) for one in fields(value)}
    if not callable(value):
        return SimpleNamespace(**held, **_computed(value))
    bare = copy.copy(value)
    for name, one in held.items():
        object.__setattr__(bare, name, one)  # also where the class is frozen
    return bare


def _computed(value: Any) -> dict[str, Any]:
    """The properties of a data class that have a value."""
    found: dict[str, Any] = {}
    for name, kind in vars(type(value)).items():
        if isinstance(kind, property):
            with suppress(Exception):  # a property may refuse
                found[name] = getattr(value, name)
    return found


def _logits(output: Any) -> Tensor:
    return output.logits


def _newest(output: Any) -> Tensor:
    return output.logits[:, -1:]


@dataclass(frozen=True)
class _Said:
    """What stands for keys and values between two steps of decoding: all of the text so far, and
    which edits each part of it went through.
    """

    inputs: dict[str, Any]
    parts: tuple[tuple[int, int, tuple[tuple[str, Change], ...]], ...]

    @staticmethod
    def after(inputs: Mapping[str, Any], edits: Sequence[tuple[str, Change]]) -> _Said:
        earlier = inputs.get("past_key_values")
        new = {k: v for k, v in inputs.items() if k in ("input_ids", "position_ids")}
        start = 0 if earlier is None else earlier.inputs["input_ids"].shape[1]
        if earlier is not None:
            new = {k: torch.cat([earlier.inputs[k], v], dim=1) for k, v in new.items()}
        if "attention_mask" in inputs:
            new["attention_mask"] = inputs["attention_mask"]
        part = (start, int(new["input_ids"].shape[1]), tuple(edits))
        return _Said(new, ((() if earlier is None else earlier.parts) + (part,)))

    def edits(self) -> list[tuple[str, Change]]:
        """The same edits, each on the tokens that it was meant for."""
        return [
            (site, partial(_on_part, start=start, end=end, change=change))
            for start, end, edits in self.parts
            for site, change in edits
        ]


def _on_part(states: Tensor, start: int, end: int, change: Change) -> Tensor:
    changed = change(states[:, start:end])
    return torch.cat([states[:, :start], changed, states[:, end:]], dim=1)


@contextmanager
def by_value() -> Iterator[None]:
    """Send functions and classes of this repository by their source, for the while."""
    from cloudpickle.cloudpickle import _PICKLE_BY_VALUE_MODULES as registered

    added = {name for name in _OURS if name not in registered}
    registered.update(added)
    try:
        yield
    finally:
        registered.difference_update(added)


def _require_hosted(key: str, label: str, host: str) -> None:
    """Ask NDIF whether it runs a model.

    Raises:
        ModelError: it does not, or gives no answer.
    """
    import nnsight

    with redirect_stderr(io.StringIO()):  # where nnsight says that there is no answer
        answer = nnsight.status(raw=True)
    if not isinstance(answer, dict) or "deployments" not in answer:
        raise ModelError(
            f"NDIF at {host} cannot be reached; check the network and https://nnsight.net/status, "
            "and try again."
        )
    asked = json.loads(key.split(":", 1)[1])
    running = [
        (str(one.get("repo_id")), one.get("revision") or "main")
        for one in answer["deployments"].values()
        if one.get("deployment_level") in ("HOT", "WARM")
    ]
    if (asked["repo_id"], asked["revision"] or "main") not in running:
        names = sorted({name for name, _ in running})
        some = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        raise ModelError(
            f"NDIF does not run {label} at the moment; "
            + (f"it runs {some}." if names else "it runs none.")
        )


def without_weights(
    place: str, loader: Any, tokenizer: Any, revision: str | None, trust: bool
) -> Any:
    """nnsight's `TransformersModel` as NDIF has it, with shapes and no weights."""
    from nnsight import TransformersModel

    options: dict[str, Any] = {"trust_remote_code": True} if trust else {}
    task = _TASKS[loader.__name__]
    with quiet():
        return TransformersModel(
            place, task=task, tokenizer=tokenizer, revision=revision, **options
        )
