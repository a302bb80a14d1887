"""Run a model over a corpus and keep its states: in shards, restartable, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from activations.batching import length_batches
from activations.errors import CaptureError, StoreError
from activations.model import Model
from activations.store import (
    FORMAT,
    ActivationStore,
    file_digest,
    read_manifest,
    shard_path,
    write_manifest,
    write_shard,
)
from corpora import Corpus

#: Facts that must agree before a store is continued or reused, and how to call them.
_IDENTITY = {
    "model_digest": "weights",
    "corpus_digest": "texts",
    "tokens": "token rule",
    "sites_asked": "sites",
    "dtype": "dtype",
    "rendered": "chat template",
    "shard_examples": "shard size",
}


def capture(
    model: Model,
    corpus: Corpus,
    *,
    sites: str | Sequence[str] = "resid_post",
    layers: Sequence[int] | None = None,
    tokens: str = "last",
    store: str | Path | None = None,
    token_budget: int = 8192,
    shard_examples: int = 512,
    dtype: str = "float32",
    progress: bool = True,
) -> ActivationStore:
    """States of every text at the sites, `[n_rows, d]` each.

    Requests (rows with a behaviour) are put into the model's chat template first. With `store`
    a killed capture goes on at the next missing shard, and a finished one is reused.

    Args:
        tokens: `last` or `mean` (one row a text), or `all` (one row a token).
        token_budget: most tokens, padding included, in one forward pass; memory only.

    Raises:
        SiteError, CaptureError: before anything is computed where possible.
        StoreError: `store` holds something else, named.
    """
    if tokens not in _RULES:
        raise CaptureError(f"Unknown token rule {tokens!r}; use one of {', '.join(_RULES)}.")
    if dtype not in ("float32", "float16"):
        raise CaptureError(f"Stores hold float32 or float16, not {dtype!r}.")
    names = model.resolve_sites(sites, layers)
    ids = _encode(model, corpus)
    manifest = _manifest(model, corpus, names, tokens, dtype, shard_examples)
    folder = None if store is None else Path(store)
    if folder is not None:
        manifest = _continue(folder, manifest)
        if manifest["complete"]:
            return ActivationStore.open(folder)
    return _run(model, corpus, ids, manifest, folder, token_budget, progress)


def _encode(model: Model, corpus: Corpus) -> list[list[int]]:
    requests = corpus.frame["behaviour"].to_numpy() != ""
    texts = corpus.frame["text"].tolist()
    return [
        model.encode(
            model.render(text) if asked else text, rendered=bool(asked and model.has_chat_template)
        )
        for text, asked in zip(texts, requests, strict=True)
    ]


def _manifest(
    model: Model, corpus: Corpus, names: list[str], tokens: str, dtype: str, shard_examples: int
) -> dict[str, Any]:
    n_shards = -(-len(corpus) // shard_examples)
    return {
        "format": FORMAT,
        "complete": False,
        "model": model.name,
        "revision": model.revision,
        "model_digest": model.digest,
        "model_dtype": str(model.dtype),
        "corpus": corpus.name,
        "corpus_digest": corpus.digest,
        "tokens": tokens,
        "sites_asked": names,
        "sites": {},
        "dtype": dtype,
        "rendered": model.has_chat_template,
        "shard_examples": shard_examples,
        "shards": [None] * n_shards,
        "versions": {n: version(n) for n in ("torch", "transformers", "transformer-lens")},
    }


def _continue(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest of what is there already, after checking that it is of the same capture."""
    if folder.is_file():
        raise StoreError(f"{folder} is a file; name a folder for the store.")
    if not folder.exists() or not any(folder.iterdir()):
        return manifest
    if not (folder / "manifest.json").exists():
        raise StoreError(f"{folder} is not empty and not a store; name another folder.")
    earlier = read_manifest(folder)
    differing = [word for key, word in _IDENTITY.items() if earlier.get(key) != manifest[key]]
    if differing:
        raise StoreError(
            f"The store {folder} was made with other {' and other '.join(differing)}; "
            "name another folder for this capture."
        )
    for number, shard in enumerate(earlier["shards"]):
        file = shard_path(folder, number)
        if shard and not (file.exists() and file_digest(file) == shard["sha256"]):
            earlier["shards"][number], earlier["complete"] = None, False
    rows = folder / "rows.parquet"
    if earlier["complete"] and not (rows.exists() and file_digest(rows) == earlier["rows_sha256"]):
        earlier["complete"] = False
    return earlier


def _run(
    model: Model,
    corpus: Corpus,
    ids: list[list[int]],
    manifest: dict[str, Any],
    folder: Path | None,
    token_budget: int,
    progress: bool,
) -> ActivationStore:
    size = manifest["shard_examples"]
    kept: list[dict[str, np.ndarray]] = []
    if folder is not None:
        write_manifest(folder, manifest)
    with tqdm(total=sum(map(len, ids)), unit="tok", desc="capture", disable=not progress) as bar:
        for number in range(len(manifest["shards"])):
            part = range(number * size, min((number + 1) * size, len(ids)))
            if manifest["shards"][number] is None:
                states = _shard(model, corpus, ids, part, manifest, token_budget)
                manifest["sites"] = {site: list(x.shape[1:]) for site, x in states.items()}
                entry: dict[str, Any] = {"rows": len(next(iter(states.values())))}
                if folder is None:
                    kept.append(states)
                else:
                    entry["sha256"] = write_shard(folder, number, states)
                manifest["shards"][number] = entry
                if folder is not None:
                    write_manifest(folder, manifest)
            bar.update(sum(len(ids[i]) for i in part))
    rows = _rows(model, corpus, ids, manifest["tokens"])
    manifest["complete"] = True
    if folder is None:
        return ActivationStore(manifest, rows, shards=kept)
    partial = folder / "rows.parquet.partial"
    rows.to_parquet(partial, index=False)
    manifest["rows_sha256"] = file_digest(partial)
    partial.replace(folder / "rows.parquet")
    write_manifest(folder, manifest)
    return ActivationStore.open(folder)


def _shard(
    model: Model,
    corpus: Corpus,
    ids: list[list[int]],
    part: range,
    manifest: dict[str, Any],
    token_budget: int,
) -> dict[str, np.ndarray]:
    """States of consecutive examples in their order, computed in batches of like length."""
    found: dict[int, dict[str, np.ndarray]] = {}
    names, rule = manifest["sites_asked"], _RULES[manifest["tokens"]]
    for batch in length_batches([len(ids[i]) for i in part], budget=token_budget):
        examples = [part[i] for i in batch]
        for example, states in _passes(model, ids, examples, names, rule, manifest["dtype"]):
            for site, x in states.items():
                if not np.isfinite(x).all():
                    text = corpus.frame["text"].iloc[example]
                    raise CaptureError(
                        f"The states at {site} are NaN or infinite for the text {text[:60]!r}; "
                        "try dtype float32, or check the model's weights."
                    )
            found[example] = states
    return {site: np.concatenate([found[i][site] for i in part]) for site in names}


def _passes(
    model: Model,
    ids: list[list[int]],
    examples: list[int],
    names: list[str],
    rule: Callable[[Tensor, Tensor], Tensor],
    dtype: str,
) -> list[tuple[int, dict[str, np.ndarray]]]:
    """One forward pass, or two halves where memory does not hold one."""
    try:
        tokens, mask = model.pad([ids[i] for i in examples])
        got = model.activations(tokens, mask, names, select=lambda x, site: rule(x, mask))
        parts = np.cumsum([0] + [len(ids[i]) if rule is _all else 1 for i in examples])
        arrays = {site: x.cpu().numpy().astype(dtype) for site, x in got.items()}
        return [
            (example, {site: x[parts[row] : parts[row + 1]] for site, x in arrays.items()})
            for row, example in enumerate(examples)
        ]
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        if len(examples) == 1:
            raise CaptureError(
                f"Memory does not hold one text of {len(ids[examples[0]])} tokens; shorten it."
            ) from None
        middle = len(examples) // 2
        halves = (examples[:middle], examples[middle:])
        return [r for half in halves for r in _passes(model, ids, half, names, rule, dtype)]


def _out_of_memory(error: BaseException) -> bool:
    # A CPU's allocator raises a plain RuntimeError, known only by what it says.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(
        error
    )


def _last(x: Tensor, mask: Tensor) -> Tensor:
    """States `[batch, pos, ...]` to those of each text's last token, `[batch, ...]`."""
    return x[torch.arange(len(x), device=x.device), mask.to(x.device).sum(-1) - 1].float()


def _mean(x: Tensor, mask: Tensor) -> Tensor:
    """States `[batch, pos, ...]` to means over each text's tokens but the first, `[batch, ...]`.

    The first token is where attention rests, with a norm tens of times the others', so it would
    be most of any mean (Xiao et al. 2023). A text of one token keeps it.
    """
    counted = mask.to(x.device) > 0
    counted[:, 0] &= counted.sum(1) == 1
    kept = counted.reshape(*mask.shape, *[1] * (x.ndim - 2))
    total = x.double().masked_fill(~kept, 0.0).sum(1)
    return (total / kept.sum(1)).float()


def _all(x: Tensor, mask: Tensor) -> Tensor:
    """States `[batch, pos, ...]` to those of real tokens, text after text, `[tokens, ...]`."""
    return x[mask.to(x.device) > 0].float()


_RULES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"last": _last, "mean": _mean, "all": _all}


def _rows(model: Model, corpus: Corpus, ids: list[list[int]], tokens: str) -> pd.DataFrame:
    frame = corpus.frame
    records = []
    for example, one in enumerate(ids):
        places = range(len(one)) if tokens == "all" else [len(one) - 1 if tokens == "last" else -1]
        for place in places:
            token = one[place] if place >= 0 else -1
            records.append((example, place, token))
    rows = pd.DataFrame(records, columns=["example", "position", "token_id"])
    rows["token"] = [
        "" if t < 0 else model.tokenizer.convert_ids_to_tokens(t) for t in rows["token_id"]
    ]
    for column in ("group", "variety", "behaviour"):
        rows[column] = frame[column].to_numpy()[rows["example"]]
    return rows
