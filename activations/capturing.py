"""Run a model over a corpus and keep its states: streamed, restartable, whatever the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from activations.capture_task import CaptureTask
from activations.errors import CaptureError
from activations.job import Job, manifest_of, physical_rows, plan_job
from activations.manifest import begin, finish, missing
from activations.model import Model
from activations.planning import CapturePlan, plan_of
from activations.reading import TokenRule
from activations.reopening import Reopening
from activations.shards import write_shard
from activations.store import ActivationStore
from activations.streaming import Tuning, stream_shards
from activations.workers import Workers
from corpora import Corpus

_SHARD_BYTES = 128 * 2**20
_SHARD_EXAMPLES = 65536


@overload
def capture(
    model: Model,
    corpus: Corpus,
    *,
    sites: str | Sequence[str] = ...,
    layers: Sequence[int] | None = ...,
    tokens: TokenRule = ...,
    store: str | Path | None = ...,
    dtype: str = ...,
    token_budget: int | None = ...,
    pack: bool | None = ...,
    shard_bytes: int = ...,
    shard_examples: int = ...,
    workers: Workers | None = ...,
    plan: Literal[False] = ...,
    progress: bool = ...,
) -> ActivationStore: ...
@overload
def capture(
    model: Model,
    corpus: Corpus,
    *,
    sites: str | Sequence[str] = ...,
    layers: Sequence[int] | None = ...,
    tokens: TokenRule = ...,
    store: str | Path | None = ...,
    dtype: str = ...,
    token_budget: int | None = ...,
    pack: bool | None = ...,
    shard_bytes: int = ...,
    shard_examples: int = ...,
    workers: Workers | None = ...,
    plan: Literal[True],
    progress: bool = ...,
) -> CapturePlan: ...
def capture(
    model: Model,
    corpus: Corpus,
    *,
    sites: str | Sequence[str] = "resid_post",
    layers: Sequence[int] | None = None,
    tokens: TokenRule = "last",
    store: str | Path | None = None,
    dtype: str = "float32",
    token_budget: int | None = None,
    pack: bool | None = None,
    shard_bytes: int = _SHARD_BYTES,
    shard_examples: int = _SHARD_EXAMPLES,
    workers: Workers | None = None,
    plan: bool = False,
    progress: bool = True,
) -> ActivationStore | CapturePlan:
    """States of every text at the sites, `[n_rows, d]` each.

    Requests (rows with a behaviour) are put into the model's chat template first. With `store`
    a killed capture goes on at the next missing shard, and a finished one is reused. The states do
    not depend on how texts are batched, beyond rounding.

    Args:
        tokens: `last` or `mean` (one row a text), `all` (one row a token), of the whole text or of
            a span (`last:NAME`, see `TokenRule`), or a function that gives positions.
        dtype: of what is kept: float32, float16 or bfloat16 (which is read back as float32).
        token_budget: most tokens, padding included, in one forward pass; memory only.
        pack: lay texts end to end instead of padding them, wherever that gives the same states;
            if None, on a GPU.
        shard_bytes, shard_examples: most that one shard holds; memory is about two shards.
        workers: other processes, here or on a cluster, that share the shards (`store` needed).
        plan: compute nothing and return what the capture would cost.

    Raises:
        SiteError, CaptureError: before anything is computed where possible.
        StoreError: `store` holds something else, named.
    """
    if token_budget is not None and token_budget < 1:
        raise CaptureError(f"The token budget is {token_budget}; give at least 1.")
    job = plan_job(
        model,
        corpus,
        sites=sites,
        layers=layers,
        tokens=tokens,
        dtype=dtype,
        shard_bytes=shard_bytes,
        shard_examples=shard_examples,
    )
    tuning = Tuning(token_budget, pack)
    if plan:
        return plan_of(model, job, tuning)
    if store is None:
        if workers is not None:
            raise CaptureError("Workers meet in a store on disk; name one with `store`.")
        return _in_memory(model, corpus, job, tuning, progress)
    return _to_disk(model, corpus, job, Path(store), tuning, workers, progress)


def _in_memory(
    model: Model, corpus: Corpus, job: Job, tuning: Tuning, progress: bool
) -> ActivationStore:
    rows = physical_rows(job, model, corpus)
    order = np.argsort(rows["example"].to_numpy(), kind="stable")
    place = np.empty(len(order), dtype=int)  # of each physical row in the corpus's order
    place[order] = np.arange(len(order))
    ends = np.cumsum([0, *(job.shard_rows(k) for k in range(job.shards))])
    kind = np.float32 if job.dtype == "bfloat16" else np.dtype(job.dtype)
    arrays = {s.name: np.empty((len(rows), *job.row_shape(s)), kind) for s in job.sites}

    def deliver(number: int, states: dict[str, Tensor]) -> None:
        here = place[ends[number] : ends[number + 1]]
        for site, x in states.items():
            arrays[site][here] = (x.float() if job.dtype == "bfloat16" else x).numpy()

    with _bar(job, range(job.shards), progress) as bar:
        stream_shards(model, job, range(job.shards), deliver, tuning=tuning, advance=bar.update)
    manifest = {**manifest_of(job, model, corpus), "complete": True}
    return ActivationStore.in_memory(manifest, rows.iloc[order].reset_index(drop=True), arrays)


def _to_disk(
    model: Model,
    corpus: Corpus,
    job: Job,
    folder: Path,
    tuning: Tuning,
    workers: Workers | None,
    progress: bool,
) -> ActivationStore:
    manifest = begin(folder, manifest_of(job, model, corpus), physical_rows(job, model, corpus))
    job = job.cut_as([shard["examples"] for shard in manifest["shards"]])
    todo = missing(folder, manifest)
    with _bar(job, todo, progress) as bar:
        if workers is not None and todo:
            task = CaptureTask(
                Reopening.of(model, workers), job, folder.absolute(), manifest["capture"], tuning
            )
            workers.share(task, todo, lambda k, _: bar.update(job.shard_tokens(k)))
        else:
            stream_shards(
                model,
                job,
                todo,
                lambda k, states: write_shard(folder, k, states, capture=manifest["capture"]),
                tuning=tuning,
                advance=bar.update,
            )
    finish(folder, manifest)
    return ActivationStore.open(folder)


def _bar(job: Job, todo: Sequence[int], progress: bool) -> tqdm:
    """Exact progress in tokens, with rate and time left; what is there already counts as done."""
    total = sum(map(len, job.ids))
    left = sum(job.shard_tokens(k) for k in todo)
    return tqdm(
        total=total, initial=total - left, unit="tok", unit_scale=True, desc="capture",
        disable=not progress,
    )  # fmt: skip
