"""The engine for architectures that TransformerLens lacks: nnsight, at every site that is a
module's input or output.

nnsight is given a copy of the modules that shares every tensor with the model as it was loaded,
since it puts a wrapper of its own into each module that it serves.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from activations.digest import weights_digest
from activations.engines.engine import Change, End, Read, Table
from activations.engines.offload import home, sharing_copy
from activations.engines.passes import Key, plain_pass, same, scores, some_inputs, text_shape
from activations.engines.visits import follow, in_order
from activations.errors import ModelError, SiteError
from activations.places import Site, output_matrix

#: Why sites that TransformerLens has are not here.
INSIDE = (
    "it lies inside a module, where engine nnsight does not look; open the model with engine "
    "transformer_lens"
)


class NnsightEngine:
    """See `Engine`. Reads every site of the table that has a place in the plain model.

    A last look compares what nnsight serves with ordinary hooks, site by site.

    Raises:
        ModelError: through nnsight the model gives other numbers than by itself.
    """

    name = "nnsight"

    def __init__(self, hf: Any, table: Table, label: str) -> None:
        self.hf = hf
        self.label = label
        self.device = home(hf)
        self.n_layers, self.d_model = table.n_layers, table.d_model
        self.is_causal, self.has_head = table.is_causal, table.has_head
        self.root = wrap(sharing_copy(hf))
        self.served = envoys(self.root)
        self.sites: Mapping[str, Site]
        self.faults: Mapping[str, str]
        self.sites, self.faults = native(table)
        self.order: dict[Key, int] = {}
        self._check()

    def _check(self) -> None:
        wanted = [key for site in self.sites.values() for key in keys(site)]
        inputs = some_inputs(self.hf)
        seen = plain_pass(self.hf, wanted, inputs, self.label)
        raw = seen.raw
        self.order = {key: rank for rank, key in enumerate(raw)}
        with torch.no_grad():
            output, got = self.run(inputs, reads=dict.fromkeys(self.sites, torch.clone))
        if not same(scores(output), scores(seen.output)):
            raise ModelError(
                f"nnsight's pass through {self.label} gives other logits than the plain model, so "
                "its sites cannot be trusted."
            )
        shape = text_shape(inputs)
        faults = dict(self.faults)
        for name, site in self.sites.items():
            assert site.place is not None
            states = site.place.view(raw[site.place.module, site.place.side], shape)
            if not same(got[name], site.finish(states, self.hf)):
                faults[name] = "nnsight serves other states there than the plain model has"
        self.sites = {name: site for name, site in self.sites.items() if name not in faults}
        self.faults = faults

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
        from nnsight.intervention.interleaver import OutOfOrderError

        changes = [(self.sites[name], change) for name, change in edits]
        wanted = [(self.sites[name], read) for name, read in (reads or {}).items()]
        visits = in_order(changes, wanted, self.order)
        shape = text_shape(dict(inputs))
        served, got = self.served, {}
        output: Any = None
        try:
            if stop and wanted:
                with self.root.trace(**inputs) as tracer:
                    follow(served, visits, shape, output_matrix, got)
                    tracer.stop()
            elif visits:
                with self.root.trace(**inputs) as tracer:
                    follow(served, visits, shape, output_matrix, got)
                    output = tracer.result.save()
            else:
                output = self.root.trace(**inputs, trace=False)
        except OutOfOrderError:
            missed = next(name for name in self.sites if name in _names(visits) - set(got))
            raise SiteError(f"The forward pass of {self.label} never reaches {missed}.") from None
        return output if end is None or output is None else end(output), got

    def digest(self) -> str:
        """See `Engine.digest`."""
        return weights_digest(self.hf)


def _names(visits: Sequence[Any]) -> set[str]:
    return {site.name for visit in visits for site, _ in (*visit.changes, *visit.reads)}


def keys(site: Site) -> list[Key]:
    """The module inputs and outputs that a site needs, an edit of it included."""
    assert site.place is not None
    own = [(site.place.module, site.place.side)]
    return [*own, (site.project, "out")] if site.project else own


def native(table: Table) -> tuple[dict[str, Site], dict[str, str]]:
    """(the sites that are a module's input or output, faults with a reason for the others)."""
    sites = {name: site for name, site in table.sites.items() if site.place is not None}
    inside = {name: INSIDE for name, site in table.sites.items() if site.place is None}
    return sites, {**inside, **table.faults}


def wrap(model: torch.nn.Module) -> Any:
    """nnsight's tree over the modules; inputs are left on the device that they are on."""
    from nnsight import NNsight

    class Root(NNsight):
        """Accelerate moves inputs where weights are spread; a parameter's device tells little."""

        device = None  # type: ignore[assignment]

    with quiet():
        return Root(model)


def envoys(root: Any) -> dict[str, Any]:
    """nnsight's envoys by the path of their module in the plain model."""
    prefix = f"{root.path}."
    return {path.removeprefix(prefix): envoy for path, envoy in root.named_modules()}


@contextmanager
def quiet() -> Iterator[None]:
    """nnsight warns where a module has a child called `output`, as every BERT does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*nnsight already serves.*")
        yield
