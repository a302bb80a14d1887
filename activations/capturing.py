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
from activations.errors import CaptureError
from activations.manifest import begin, finish, missing
from activations.model import Model
from activations.shards import write_shard
from activations.store import ActivationStore
from corpora import Corpus


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
    rows = _rows(model, corpus, ids, tokens)
    manifest = _manifest(model, corpus, names, tokens, dtype, shard_examples, rows)
    folder = None if store is None else Path(store)
    if folder is not None:
        manifest = begin(folder, manifest, rows)
    return _run(model, corpus, ids, manifest, folder, token_budget, progress, rows)


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
    model: Model,
    corpus: Corpus,
    names: list[str],
    tokens: str,
    dtype: str,
    shard_examples: int,
    rows: pd.DataFrame,
) -> dict[str, Any]:
    shard_of = rows["example"] // shard_examples
    plan = rows.groupby(shard_of)["example"].agg(["size", "nunique"])
    return {
        "model": model.name,
        "revision": model.revision,
        "model_digest": model.digest,
        "model_dtype": str(model.dtype),
        "corpus": corpus.name,
        "corpus_digest": corpus.digest,
        "tokens": tokens,
        "sites": {name: list(model.site(name).row) for name in names},
        "dtype": dtype,
        "rendered": model.has_chat_template,
        "shards": [{"rows": int(n), "examples": int(m)} for n, m in plan.to_numpy()],
        "versions": {n: version(n) for n in ("torch", "transformers", "transformer-lens")},
    }


def _run(
    model: Model,
    corpus: Corpus,
    ids: list[list[int]],
    manifest: dict[str, Any],
    folder: Path | None,
    token_budget: int,
    progress: bool,
    rows: pd.DataFrame,
) -> ActivationStore:
    kept: list[dict[str, np.ndarray]] = []
    ends = np.cumsum([0, *(shard["examples"] for shard in manifest["shards"])])
    todo = range(len(ends) - 1) if folder is None else missing(folder, manifest)
    with tqdm(total=sum(map(len, ids)), unit="tok", desc="capture", disable=not progress) as bar:
        for number in todo:
            part = range(ends[number], ends[number + 1])
            states = _shard(model, corpus, ids, part, manifest, token_budget)
            if folder is None:
                kept.append(states)
            else:
                write_shard(folder, number, states, capture=manifest["capture"])
            bar.update(sum(len(ids[i]) for i in part))
    if folder is None:
        arrays = {site: np.concatenate([s[site] for s in kept]) for site in manifest["sites"]}
        return ActivationStore.in_memory(manifest, rows, arrays)
    finish(folder, manifest)
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
    names, rule = list(manifest["sites"]), _RULES[manifest["tokens"]]
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
