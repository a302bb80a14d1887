"""What a state or a direction promotes in the vocabulary.

The logit lens (nostalgebraist 2020) gives a state from within the model to the model's end: last
norm, unembedding, and whatever scaling or capping follows, as `interventions.readout` runs them. At
the last block's output it is the model's own prediction. Earlier it reads the state in a basis that
later blocks need not share, so that what it does not show may still be there (Belrose et al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from activations import layer_of
from activations.batching import length_batches, limits
from activations.engines.offload import weight
from evidence import EvidenceError, cluster_mean
from geometry import Subspace
from interventions.edits.where import Positions, as_positions, at_positions
from interventions.errors import EditError
from interventions.readout import Readout

if TYPE_CHECKING:
    from activations import Model

#: How far out along a direction a state lies that is looked at, in multiples of √d: so far that
#: the norm's epsilon is lost in rounding.
_FAR = 64.0


def lens_logits(
    model: Model, states: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows vocabulary"]:
    """What the model would say if its last block gave these states.

    Raises:
        EditError: states of another width, or a model without a head, on NDIF, or under an edit
            after its last block.
    """
    if states.ndim == 0 or states.shape[-1] != model.d_model:
        raise EditError(
            f"The states have shape {tuple(states.shape)} and the stream of {model.name} is "
            f"{model.d_model} wide: give states [..., {model.d_model}]."
        )
    logits = Readout(model)(states.reshape(-1, model.d_model))
    return logits.reshape(*states.shape[:-1], -1)


def logit_lens(
    model: Model,
    texts: Sequence[str],
    sites: str | Sequence[str] = "resid_post",
    *,
    layers: Sequence[int] | None = None,
    positions: Positions | None = None,
    top: int = 5,
) -> pd.DataFrame:
    """The tokens that the logit lens ranks first at each site and position of some texts.

    Edits that are open are made before the states are read.

    Args:
        sites: as in `model.resolve_sites`, of the width of the stream, not after the last block.
        positions: token positions from 0, a slice or a rule, as in `ablate`; all where None.
        top: how many tokens, at most the vocabulary.

    Returns:
        One row for each text × site × position × rank. Columns text (its number), site, layer,
        position, input (the token that stands there), rank (from 1), token, token_id, logit,
        probability.

    Raises:
        EditError: no texts, no position chosen, `top` below 1, a site of another width, or a model
            as in `lens_logits`.
    """
    count = _count(top, "top")
    readout = Readout(model)

    def best(logits: Tensor) -> Tensor:
        top_logits, ids = logits.topk(min(count, logits.shape[-1]), dim=-1)
        chances = (top_logits - logits.logsumexp(-1, keepdim=True)).exp()
        return torch.stack([ids.double(), top_logits.double(), chances.double()], dim=-1)

    where = _sites(model, sites, layers)
    frames = []
    for rows, states in _read(model, texts, where, positions):
        for site, x in states.items():
            found = readout.each(x, best).cpu().numpy()
            frames.append(_ranked(rows.assign(site=site), found))
    frame = pd.concat(frames, ignore_index=True)
    frame["layer"] = frame["site"].map(layer_of)
    words = _words(model, [*frame["token_id"], *frame["input_id"]])
    frame["token"], frame["input"] = frame["token_id"].map(words), frame["input_id"].map(words)
    order = {site: at for at, site in enumerate(where)}
    frame["at"] = frame["site"].map(order)
    frame = frame.sort_values(["text", "at", "position", "rank"], ignore_index=True)
    columns = ["text", "site", "layer", "position", "input", "rank", "token", "token_id"]
    return frame[[*columns, "logit", "probability"]]


def lens_divergence(
    model: Model,
    texts: Sequence[str],
    sites: str | Sequence[str] = "resid_post",
    *,
    layers: Sequence[int] | None = None,
    positions: Positions | None = "all_but_first",
    groups: Sequence[Any] | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """How far what the lens says at each site is from the model's own prediction.

    KL(final ‖ lens) in nats at each token, as Belrose et al. (2023) measure lenses; the mean over
    groups of the mean over a group's tokens. Zero at the last block's output.

    Args:
        positions: left out by default is each text's first token, where attention rests. A text
            of one token keeps it.
        groups: texts that are not independent share one; each its own where None.

    Returns:
        Columns site, layer, value, low, high, level, n (groups), tokens, unit.

    Raises:
        EditError: as `logit_lens`, or not one group for each text.
    """
    names = list(range(len(texts))) if groups is None else list(groups)
    if len(names) != len(texts):
        raise EditError(
            f"There are {len(texts)} texts and {len(names)} groups: give the group of each text."
        )
    readout = Readout(model)
    where = _sites(model, sites, layers)
    parts: dict[str, list[np.ndarray]] = {site: [] for site in where}
    owners: list[np.ndarray] = []
    for rows, states in _read(model, texts, [*where, readout.last], positions):
        owners.append(rows["text"].to_numpy())
        for at in torch.arange(len(rows)).split(readout.rows):
            final = readout(states[readout.last][at]).double().log_softmax(-1)
            for site in where:
                lens = readout(states[site][at]).double().log_softmax(-1).to(final)
                kl = (final.exp() * (final - lens)).sum(-1).clamp(min=0)
                parts[site].append(kl.cpu().numpy())
    text = np.concatenate(owners)
    member = np.asarray([str(name) for name in names], dtype=object)[text]
    found_rows = []
    for site in where:
        values = np.concatenate(parts[site])
        try:
            found = cluster_mean(values, member, level=level)
        except EvidenceError as error:
            raise EditError(f"The divergence at {site} cannot be told: {error}") from error
        found_rows.append(
            {
                "site": site,
                "layer": layer_of(site),
                "value": found.value,
                "low": max(found.low, 0.0) if found.n > 1 else found.low,  # no KL is below zero
                "high": found.high,
                "level": level,
                "n": found.n,
                "tokens": len(values),
                "unit": "nats",
            }
        )
    return pd.DataFrame(found_rows)


def promoted_tokens(
    model: Model,
    direction: Subspace | Mapping[str, Subspace],
    *,
    top: int = 10,
    gain: bool = True,
) -> pd.DataFrame:
    """The tokens that each axis of a subspace promotes and suppresses, one way and the other.

    u is an axis (a column of the basis, of length 1), ± its two ways, W_U the unembedding, g the
    gain of the last norm.

    - `gain=True`: a state far out along ±u goes through the model's last norm and unembedding,
      less what a state of zeros gives. With RMSNorm that is ±√d W_U (g ⊙ u); LayerNorm takes the
      mean of u away first and divides by what is left. It is what a growing dose of the direction
      tends to, whatever the state that it is added to. `probability` is its softmax.
    - `gain=False`: ±W_U u, the change of logits by a step of length 1 if the norm did nothing.
      No length is natural there, so `probability` is NaN.

    The suppressed tokens of one way are the promoted ones of the other. Biases of norm and
    unembedding are left out, being the same for all states, and so is any capping.

    The axes of a subspace with k > 1 are those of its basis: any rotation of them spans the same.

    Args:
        direction: a subspace, or several by name.
        top: how many tokens for each way, at most the vocabulary.

    Returns:
        One row for each direction × axis × sign × rank. Columns direction, site, layer (-1 where
        the subspace has no site), axis (from 0), sign (1 or -1), rank (from 1), token, token_id,
        logit, probability, gain.

    Raises:
        EditError: `top` below 1, a subspace of another width, or a model as in `lens_logits`.
    """
    count = _count(top, "top")
    if isinstance(direction, Subspace):
        name = str(direction.provenance.get("name", "")) or direction.site or "direction"
        direction = {name: direction}
    if not isinstance(direction, Mapping) or not direction:
        raise EditError("No direction was given: give a geometry.Subspace, or several by name.")
    readout = Readout(model)
    frames = []
    for name, space in direction.items():
        if not isinstance(space, Subspace) or space.d != model.d_model:
            what = repr(space) if isinstance(space, Subspace) else f"a {type(space).__name__}"
            raise EditError(
                f"{name!r} is {what} and the stream of {model.name} is {model.d_model} wide: give "
                "a geometry.Subspace of states of the stream."
            )
        axes = torch.tensor(np.concatenate([space.basis.T, -space.basis.T]))
        logits = _far_out(readout, axes) if gain else _unnormed(model, axes)
        top_logits, ids = logits.topk(min(count, logits.shape[-1]), dim=-1)
        chances = (top_logits - logits.logsumexp(-1, keepdim=True)).exp()
        chances = chances if gain else torch.full_like(chances, torch.nan)
        rows = pd.DataFrame(
            {
                "direction": name,
                "site": space.site,
                "layer": layer_of(space.site),
                "axis": [*range(space.k), *range(space.k)],
                "sign": [1] * space.k + [-1] * space.k,
                "gain": gain,
            }
        )
        found = torch.stack([ids.double(), top_logits, chances], dim=-1).cpu().numpy()
        frames.append(_ranked(rows, found))
    frame = pd.concat(frames, ignore_index=True)
    frame["token"] = frame["token_id"].map(_words(model, list(frame["token_id"])))
    columns = ["direction", "site", "layer", "axis", "sign", "rank", "token", "token_id"]
    frame = frame[[*columns, "logit", "probability", "gain"]]
    by = ["direction", "axis", "sign", "rank"]
    return frame.sort_values(by, ascending=[True, True, False, True], ignore_index=True)


def _far_out(readout: Readout, axes: Tensor) -> Tensor:
    """Logits `[axes, vocabulary]`, in f64, of states far out along the axes, less those of zero."""
    far = axes * (_FAR * axes.shape[1] ** 0.5)
    logits = readout.head(torch.cat([far, torch.zeros_like(far[:1])])).double()
    return logits[:-1] - logits[-1]


def _unnormed(model: Model, axes: Tensor) -> Tensor:
    """W_U u `[axes, vocabulary]`, in f64."""
    head = model.hf.get_output_embeddings()
    matrix = weight(head).detach()
    if not isinstance(head, torch.nn.Linear) or matrix.shape[1] != model.d_model:
        raise EditError(
            f"The unembedding of {model.name} is no linear layer on the stream, so a direction has "
            "no logits before the norm: use gain=True."
        )
    return (axes.to(matrix.device, torch.float32) @ matrix.float().T).double()


def _read(
    model: Model, texts: Sequence[str], sites: Sequence[str], positions: Positions | None
) -> Iterator[tuple[pd.DataFrame, dict[str, Tensor]]]:
    """Batch by batch, which tokens are looked at and their states `[rows, d_model]` by site."""
    if isinstance(texts, str) or not len(texts):
        raise EditError("No texts were given: give a list of at least one.")
    chosen = as_positions(positions)
    ids = model.encode_many(list(texts))
    budget, overhead = limits(model.device.type)
    counted = 0
    for batch in length_batches([len(i) for i in ids], budget=budget, overhead=overhead):
        tokens, mask = model.pad([ids[i] for i in batch])
        here = mask.cumsum(-1) - 1
        kept = at_positions(chosen, here, mask.sum(-1))
        kept = mask.bool() if kept is None else kept & mask.bool()
        if chosen == "all_but_first":
            kept |= (mask.sum(-1, keepdim=True) == 1) & mask.bool()
        counted += int(kept.sum())
        if not kept.any():
            continue
        states = model.activations(
            tokens, mask, list(dict.fromkeys(sites)), select=partial(_at, kept=kept)
        )
        row, position = (at.cpu().numpy() for at in kept.nonzero(as_tuple=True))
        rows = pd.DataFrame(
            {
                "text": np.asarray(batch)[row],
                "position": position,
                "input_id": tokens[kept].cpu().numpy(),
            }
        )
        yield rows, states
    if not counted:
        raise EditError(
            f"No token lies at positions {positions!r}: choose some that the texts have."
        )


def _at(states: Tensor, _site: Any, kept: Tensor) -> Tensor:
    return states[kept.to(states.device)]


def _sites(model: Model, sites: str | Sequence[str], layers: Sequence[int] | None) -> list[str]:
    """Sites that a lens can look at.

    Raises:
        EditError: one of another width than the stream's, or after the last block.
    """
    names = model.resolve_sites(sites, layers)
    order = {name: at for at, name in enumerate(model.sites)}
    last = order[f"blocks.{model.n_layers - 1}.hook_resid_post"]
    for name in names:
        row = model.site(name).row
        if row != (model.d_model,) or model.site(name).axis != 1:
            raise EditError(
                f"{name} holds {row} for each token and a lens reads ({model.d_model},), as the "
                "stream has: give a site of the stream, or what attention or MLP writes."
            )
        if order[name] > last:
            raise EditError(
                f"{name} lies after the last block, where the model itself reads the stream: give "
                "a site of a block."
            )
    return names


def _ranked(rows: pd.DataFrame, found: np.ndarray) -> pd.DataFrame:
    """`rows` `[n]` repeated for each rank of `found` `[n, ranks, (id, logit, probability)]`."""
    ranks = found.shape[1]
    frame = rows.loc[rows.index.repeat(ranks)].reset_index(drop=True)
    frame["rank"] = np.tile(np.arange(1, ranks + 1), len(rows))
    flat = found.reshape(-1, 3)
    frame["token_id"] = flat[:, 0].astype(np.int64)
    frame["logit"], frame["probability"] = flat[:, 1], flat[:, 2]
    return frame


def _words(model: Model, ids: Sequence[int]) -> dict[int, str]:
    """The tokenizer's name of each token; `[id]` where the vocabulary is padded beyond it."""
    known = sorted({int(i) for i in ids})
    names = model.tokenizer.convert_ids_to_tokens(known)
    return {
        i: f"[{i}]" if name is None else str(name) for i, name in zip(known, names, strict=True)
    }


def _count(number: Any, name: str) -> int:
    if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
        raise EditError(f"`{name}` is {number!r}: give how many tokens, at least 1.")
    return int(number)
