"""The open model, the captured states and the sites that the stages of `compare` share."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from activations import (
    ActivationStore,
    Model,
    ModelError,
    SiteError,
    capture,
    layer_of,
    open_model,
    random_like,
)
from experiments.inputs import Inputs, Rows
from experiments.settings import CompareSettings, ConfigError, Settings


@dataclass
class Bench:
    """One model on one corpus. `states` are float64 `[rows, d]`, kept for the site read last."""

    settings: CompareSettings
    inputs: Inputs
    model: Model
    sites: list[str]
    store: ActivationStore
    answers: dict[int, bool] = field(default_factory=dict)
    _cached: tuple[str, np.ndarray] | None = None

    def states(self, site: str) -> Float[np.ndarray, "rows d"]:
        if self._cached is None or self._cached[0] != site:
            self._cached = (site, flat(self.store, site))
        return self._cached[1]

    @property
    def block_sites(self) -> list[str]:
        """The sites inside blocks: all but the embedding."""
        return [s for s in self.sites if s != self.model.embedding_site]


def flat(store: ActivationStore, site: str) -> Float[np.ndarray, "rows d"]:
    """All states at a site as float64, heads side by side."""
    kept = np.asarray(store[site], dtype=np.float64)
    return kept.reshape(len(kept), -1)


def choose_sites(model: Model, settings: Settings) -> list[str]:
    """The sites asked for; for the residual stream the embedding comes first."""
    sites = model.resolve_sites(settings.sites, layers=settings.layers or None)
    if any(s.endswith("hook_resid_post") for s in sites) and model.embedding_site not in sites:
        sites = [model.embedding_site, *sites]
    return sorted(sites, key=lambda s: (layer_of(s), s.endswith("post"), s))


def open_checked(settings: Settings) -> Model:
    """Open the model and check that it and the sites asked for can be compared at all."""
    model = open_model(
        settings.model,
        engine=settings.engine,
        device=settings.device,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
    )
    if not model.is_causal or not model.engine.has_head:
        raise ConfigError(
            f"{settings.model} gives no next-token predictions, which the comparison measures; "
            "give a decoder. isogloss capture keeps the states of any model."
        )
    for site in choose_sites(model, settings):
        if model.site(site).axis != 1:
            raise ConfigError(
                f"Site {site} has no single vector a token; choose one like resid_post."
            )
    return model


def averaged(bench: Bench, *, progress: bool) -> Bench:
    """The same bench with states averaged over each text's tokens."""
    if bench.settings.tokens == "mean":
        return bench
    beside = f"{bench.settings.store}-mean" if bench.settings.store else ""
    settings = bench.settings.model_copy(update={"tokens": "mean", "store": beside})
    return set_up(settings, bench.inputs, bench.model, progress=progress)


def untrained(bench: Bench, *, progress: bool) -> ActivationStore | None:
    """The same texts at the same sites in a model of the same shape with random weights.

    That model is gone again when this returns. None where there can be none, such as for want of
    memory; standard error says why.
    """
    import torch

    seed = bench.settings.seed
    beside = f"{bench.settings.store}-random-{seed}" if bench.settings.store else ""
    settings = bench.settings.model_copy(update={"store": beside})
    try:
        drawn = random_like(bench.model, seed=seed)
        return set_up(settings, bench.inputs, drawn, progress=progress).store
    except (ModelError, SiteError, torch.OutOfMemoryError) as error:
        logging.getLogger("isogloss").warning(
            "no model with random weights is probed beside this one: %s",
            str(error).splitlines()[0],
        )
        return None


def set_up(settings: CompareSettings, inputs: Inputs, model: Model, *, progress: bool) -> Bench:
    """Capture the states, or reuse the store that holds them already."""
    sites = choose_sites(model, settings)
    store = capture(
        model,
        inputs.corpus,
        sites=sites,
        tokens=settings.tokens,
        store=store_path(settings, inputs, model, sites),
        progress=progress,
    )
    return Bench(settings, inputs, model, sites, store)


def store_path(settings: Settings, inputs: Inputs, model: Model, sites: list[str]) -> Path:
    """Where this capture lives, so that any run of the same model, texts and sites reuses it."""
    if settings.store:
        return Path(settings.store)
    import hashlib

    key = "\n".join([model.digest, inputs.corpus.digest, settings.tokens, str(model.dtype), *sites])
    name = settings.model.rstrip("/").split("/")[-1]
    return Path("runs") / "stores" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"


def rows_of(bench: Bench, variety: str) -> Rows:
    """Rows of one variety among those for variety questions."""
    rows = bench.inputs.variety_rows
    return rows[bench.inputs.corpus.frame["variety"].to_numpy()[rows] == variety]
