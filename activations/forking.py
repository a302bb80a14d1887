"""Forks of a model's runs, relied on only after they gave what ordinary edits give."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from activations.engines.fork_plan import Fork, Put
from activations.engines.forks import ForkedRuns
from activations.engines.packing import CannotPack
from activations.errors import ModelError
from activations.model import Model

#: Largest difference in logits, against their spread, that rounding explains.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
_HALF_TOLERANCE = 5e-2


class CannotFork(ModelError):
    """Why a model's runs cannot be taken up in the middle; ordinary passes serve instead."""


class Forks(ForkedRuns):
    """Runs that part from base runs where states are put in, computed from there on only.

    Many of them, of many texts, blocks and positions, are one pass. `Forks.of` gives them.
    """

    @classmethod
    def of(cls, model: Model, sites: Sequence[str]) -> Forks:
        """Forks with states put in at `sites`, tried once against edits for each kind of site.

        Raises:
            CannotFork: with the reason, such as an engine, an attention or a site that they do
                not fit, or edits that are open.
        """
        with model.lock:
            if model._edits:
                raise CannotFork("edits are open, which forks would not make")
            known = _KNOWN.setdefault(model, {})
            for site in sites:
                kind = _kind(model.site(site).name)
                if kind not in known:
                    known[kind] = _tried(model, site)
                found = known[kind]
                if isinstance(found, str):
                    raise CannotFork(found)
            return _RUNS[model]


_RUNS: WeakKeyDictionary[Model, Forks] = WeakKeyDictionary()
_KNOWN: WeakKeyDictionary[Model, dict[str, str | bool]] = WeakKeyDictionary()


def _kind(site: str) -> str:
    """The site without its block's number."""
    return re.sub(r"\d+", "N", site)


def _tried(model: Model, site: str) -> str | bool:
    """True where forks at sites of this kind agree with edits, else what is wrong."""
    engine: Any = model.engine
    if engine.name != "transformer_lens":
        return f"{engine.name} runs the model"
    if not (model.is_causal and engine.has_head):
        return "the model predicts no next token"
    try:
        if model not in _RUNS:
            _RUNS[model] = Forks(model.hf, engine.sites, model.n_layers, model.lock)
        _RUNS[model].first_block(site)
        if not _agree(model, _RUNS[model], site):
            return f"forks at {site} give other numbers than edits"
    except CannotPack as error:
        return str(error)
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError) as error:
        # Whatever a model's own code finds strange in a row that it did not lay out.
        return f"{type(error).__name__}: {error}"
    return True


def _agree(model: Model, runs: Forks, site: str) -> bool:
    """Whether forks of three short texts read as edited passes do, and an unchanged one as it is.

    Tried at the first, a middle and the last block that has this kind of site.
    """
    alike = [s for s in model.sites if _kind(s) == _kind(site)]
    alike = list(dict.fromkeys([alike[0], alike[len(alike) // 2], alike[-1]]))
    size = int(model.hf.get_input_embeddings().weight.shape[0])
    drawn = torch.Generator().manual_seed(0)
    ids = [torch.randint(size, (n,), generator=drawn).tolist() for n in (9, 6, 9)]
    record = runs.record(ids)
    states = model.activations(*model.pad(ids), alike)
    forks, wanted = [], []
    for text, at in ((0, 0), (1, 3), (2, 8)):
        tokens, mask = model.pad([ids[text]])
        forks.append(Fork(text))
        wanted.append(model.logits(tokens, mask)[0, -2:])
        for name in alike:
            values = states[name][(text + 1) % 3, :1]
            forks.append(Fork(text, (Put(name, (at,), values),)))
            with model.edited(_Place(name, at, values)):
                wanted.append(model.logits(tokens, mask)[0, -2:])
    found, expected = runs.run(record, forks, reads=2).double(), torch.stack(wanted).double()
    tolerance = _TOLERANCE.get(model.dtype, _HALF_TOLERANCE)
    return bool((found - expected).abs().max() <= tolerance * expected.std().clamp(min=1e-3))


class _Place:
    """An edit that puts one state at one position."""

    name = "put"

    def __init__(self, site: str, at: int, values: Tensor) -> None:
        self.sites, self._at, self._values = (site,), at, values

    def __call__(self, activation: Tensor, site: str, positions: Tensor | None) -> Tensor:
        new = activation.clone()
        new[:, self._at] = self._values[0]
        return new
