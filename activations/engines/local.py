"""The engine for models on this machine: plain PyTorch hooks where a site is a module's input or
output, TransformerLens's bridge for what lies inside a module (attention patterns, norm scales).

Both run the same weights. The bridge wraps a copy of the modules that shares every tensor with the
model as it was loaded, so the loaded model keeps its own code and its own attention kernel.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from activations.digest import weights_digest
from activations.engines.engine import Change, End, Read
from activations.engines.hooks import attached
from activations.engines.offload import home, sharing_copy
from activations.engines.packing import CannotPack, Layout, laid_out, packed_copy, packed_inputs
from activations.engines.passes import first_line
from activations.engines.survey import survey
from activations.errors import ModelError, SiteError
from activations.places import Site, all_native, written


class _Stop(Exception):
    """Raised inside the forward pass once the last site has been read."""


class LocalEngine:
    """See `Engine`. Raises ModelError where TransformerLens lacks the architecture."""

    name = "transformer_lens"

    def __init__(self, hf: Any, tokenizer: Any, label: str) -> None:
        self.hf = hf
        self.wrapped = sharing_copy(hf)
        paths = {id(module): path for path, module in self.wrapped.named_modules()}
        self.bridge = _bridge(self.wrapped, tokenizer, label)
        self.device = home(hf)
        self.table = survey(hf, self.wrapped, self.bridge, paths, label)
        self.sites: Mapping[str, Site] = self.table.sites
        self.faults: Mapping[str, str] = self.table.faults
        self.n_layers, self.d_model = self.table.n_layers, self.table.d_model
        self.is_causal, self.has_head = self.table.is_causal, self.table.has_head
        self._packed: Any = None

    def run(
        self,
        inputs: Mapping[str, Any],
        *,
        edits: Sequence[tuple[str, Change]] = (),
        reads: Mapping[str, Read] | None = None,
        stop: bool = False,
        end: End | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """See `Engine.run`."""
        changed = [
            (site, partial(written, change) if site.in_place else change)
            for site, change in ((self.sites[name], change) for name, change in edits)
        ]
        wanted = [(self.sites[name], read) for name, read in (reads or {}).items()]
        native = all_native((s for s, _ in wanted), (s for s, _ in changed))
        root = self.hf if native else self.wrapped
        attach = _attach_plain if native else self._attach_bridge
        output, got = self._pass(root, inputs, changed, wanted, attach, stop=stop)
        return output if end is None or output is None else end(output), got

    def _pass(
        self,
        root: Any,
        inputs: Mapping[str, Any],
        changed: Sequence[tuple[Site, Change]],
        wanted: Sequence[tuple[Site, Read]],
        attach: Any,
        *,
        stop: bool,
    ) -> tuple[Any, dict[str, Tensor]]:
        got: dict[str, Tensor] = {}
        owner = get_ident()
        attach_change = attach if attach is _attach_plain else self._attach_change
        shape = tuple(inputs["input_ids"].shape)

        made = {site.name for site, _ in changed if site.project}  # steps of this pass, if no other

        def mine(function: Any) -> Any:
            """Modules may be in use elsewhere too; a pass of another thread goes by unseen."""
            return lambda states: function(states) if get_ident() == owner else None

        def keep(site: Site, read: Read, states: Tensor) -> None:
            kept = read(states)
            got[site.name] = kept if site.name in made else site.finish(kept, self.hf)
            if stop and len(got) == len(wanted):
                raise _Stop

        output = None
        with ExitStack() as held:
            for site, change in changed:
                held.enter_context(attach_change(root, site, mine(change), shape))
            for site, read in wanted:
                function = lambda x, site=site, read=read: keep(site, read, x)  # noqa: E731
                attach_read = self._attach_change if site.name in made else attach
                held.enter_context(attach_read(root, site, mine(function), shape))
            with suppress(_Stop):
                output = root(**inputs)
        return output, got

    def run_packed(
        self, ids: Sequence[Sequence[int]], reads: Mapping[str, Read]
    ) -> dict[str, Tensor]:
        """What is read in one pass over texts laid end to end: states are `[1, tokens, ...]`.

        Raises:
            CannotPack: the model's attention or one of the sites does not allow it.
        """
        wanted = [(self.sites[name], read) for name, read in reads.items()]
        if any(site.place is None or site.axis != 1 for site, _ in wanted):
            raise CannotPack("a site is known to the bridge alone")
        if self._packed is None:
            self._packed = packed_copy(self.hf)
        layout = Layout.of([len(one) for one in ids], self.device)
        inputs = packed_inputs(ids, self.device)
        with laid_out(layout):
            return self._pass(self._packed, inputs, (), wanted, _attach_plain, stop=True)[1]

    def digest(self) -> str:
        """See `Engine.digest`."""
        return weights_digest(self.hf)

    def _attach_change(self, root: Any, site: Site, function: Any, shape: Any) -> Any:
        if not site.project:
            return self._attach_bridge(root, site, function, shape)
        return self._attach_result(site, function)

    @contextmanager
    def _attach_bridge(
        self, _root: Any, site: Site, function: Any, _shape: tuple[int, ...]
    ) -> Iterator[None]:
        with _hook(self.bridge.hook_dict[site.hook], function):
            yield

    @contextmanager
    def _attach_result(self, site: Site, function: Any) -> Iterator[None]:
        """What each head writes is no step of the usual pass; the bridge makes it one if told."""
        try:
            self.bridge.set_use_attn_result(True)
        except NotImplementedError:
            raise SiteError(
                f"{site.name} can be read in this model and not edited; edit attn.hook_z instead."
            ) from None
        try:
            with _hook(self.bridge.hook_dict[site.name], function):
                yield
        finally:
            self.bridge.set_use_attn_result(False)


@contextmanager
def _hook(point: Any, function: Any) -> Iterator[None]:
    handle = point.add_hook(lambda states, hook: function(states))
    try:
        yield
    finally:
        handle.hook.remove()
        point.fwd_hooks.remove(handle)


def _attach_plain(root: torch.nn.Module, site: Site, function: Any, shape: tuple[int, int]) -> Any:
    """`function` on the states at a site, whose result (unless None) replaces them."""
    assert site.place is not None
    return attached(root.get_submodule(site.place.module), site.place, function, lambda: shape)


def _bridge(wrapped: Any, tokenizer: Any, label: str) -> Any:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.model_bridge import TransformerBridge

    kinds = [kind.__name__ for kind in type(wrapped).__mro__]
    known = next((kind for kind in kinds if kind in SUPPORTED_ARCHITECTURES), None)
    if known is None:
        raise ModelError(
            f"TransformerLens does not know the architecture {kinds[0]} of {label}; "
            "try engine nnsight."
        )
    wrapped.config.architectures = [known]
    # The bridge changes its tokenizer's special tokens, and would load it again to add a first one.
    own = copy.deepcopy(tokenizer)
    own.init_kwargs = {"name_or_path": label, **own.init_kwargs, "add_bos_token": True}
    try:
        return TransformerBridge.boot_transformers(
            label, hf_model=wrapped, device=None, tokenizer=own, dtype=wrapped.dtype
        )
    except Exception as error:  # an adapter that does not fit raises many kinds
        raise ModelError(
            f"TransformerLens cannot open {label} ({kinds[0]}): {first_line(error)}; "
            "try engine nnsight."
        ) from error
