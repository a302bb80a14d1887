"""A capture as it is planned: which rows, in which shards, before any state is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from activations.batching import limits
from activations.errors import CaptureError
from activations.places import Site
from activations.reading import Reading, TokenRule, encode_corpus, read_tokens, row_table

if TYPE_CHECKING:
    from activations.model import Model
    from corpora import Corpus

DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}
#: Full passes for one shard: what a kill can lose has a limit too.
_MOST_PASSES = 8


@dataclass(frozen=True, eq=False)
class Job:
    """Everything that computing a shard needs but the model; it can be sent to another process.

    Texts are taken by length, so that those of a batch are alike; a shard is a run of them.

    Attributes:
        order: rows of the corpus by length, `[texts]`.
        bounds: shard k is `order[bounds[k] : bounds[k + 1]]`.
        longest: tokens in the longest text, the width of an attention pattern's row.
    """

    sites: tuple[Site, ...]
    ids: list[list[int]]
    reading: Reading
    order: np.ndarray
    bounds: np.ndarray
    dtype: str
    longest: int
    texts: list[str]

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self.bounds) - 1

    def cut_as(self, examples: Sequence[int]) -> Job:
        """The same job in shards of so many texts each: those of a store that was begun before."""
        return replace(self, bounds=np.cumsum([0, *examples]))

    def examples(self, shard: int) -> np.ndarray:
        """Rows of the corpus in a shard, shortest first."""
        return self.order[self.bounds[shard] : self.bounds[shard + 1]]

    def shard_rows(self, shard: int) -> int:
        """Rows of states in a shard."""
        return int(self.reading.rows[self.examples(shard)].sum())

    def shard_tokens(self, shard: int) -> int:
        """Tokens that pass through the model for a shard, padding not counted."""
        return sum(len(self.ids[i]) for i in self.examples(shard))

    def row_shape(self, site: Site) -> tuple[int, ...]:
        """Shape of one row in the store; a pattern is as wide as the longest text."""
        return (*site.row[:-1], self.longest) if site.over_keys else site.row

    @property
    def row_bytes(self) -> int:
        """Bytes of one row over all sites."""
        return DTYPES[self.dtype] * sum(int(np.prod(self.row_shape(s))) for s in self.sites)


def plan_job(
    model: Model,
    corpus: Corpus,
    *,
    sites: str | Sequence[str],
    layers: Sequence[int] | None,
    tokens: TokenRule,
    dtype: str,
    shard_bytes: int,
    shard_examples: int,
) -> Job:
    """Tokens, rows and shards of a capture.

    Raises:
        SiteError, CaptureError: whatever is wrong with what was asked.
    """
    if dtype not in DTYPES:
        raise CaptureError(f"Stores hold {', '.join(DTYPES)}, not {dtype!r}.")
    if min(shard_bytes, shard_examples) < 1:
        raise CaptureError("A shard holds at least one text; give sizes of at least 1.")
    names = model.resolve_sites(sites, layers)
    if not names:
        raise CaptureError("No site was asked for; name at least one, such as resid_post.")
    ids = encode_corpus(model, corpus)
    reading = read_tokens(model, corpus, tokens, ids)
    lengths = np.array([len(i) for i in ids])
    order = np.argsort(lengths, kind="stable")
    job = Job(
        sites=tuple(model.site(name) for name in names),
        ids=ids,
        reading=reading,
        order=order,
        bounds=np.array([0, len(order)]),
        dtype=dtype,
        longest=int(lengths.max()),
        texts=[text[:60] for text in corpus.frame["text"]],
    )
    most_rows = max(1, shard_bytes // job.row_bytes)
    most_tokens = _MOST_PASSES * limits(model.device.type)[0]
    bounds = _cut(reading.rows[order], lengths[order], (most_rows, most_tokens, shard_examples))
    return replace(job, bounds=bounds)


def _cut(rows: np.ndarray, lengths: np.ndarray, most: tuple[int, int, int]) -> np.ndarray:
    """Ends of runs that hold at most so many (rows, tokens, texts); one text may be more."""
    bounds, held = [0], np.zeros(3, dtype=int)
    for at, text in enumerate(np.column_stack([rows, lengths, np.ones_like(rows)])):
        if at > bounds[-1] and np.any(held + text > most):
            bounds.append(at)
            held = np.zeros(3, dtype=int)
        held = held + text
    return np.array([*bounds, len(rows)])


def manifest_of(job: Job, model: Model, corpus: Corpus) -> dict[str, Any]:
    """What the store will say of itself: whose states these are, and how they are cut."""
    return {
        "complete": False,
        "model": model.name,
        "revision": model.revision,
        "model_digest": model.digest,
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "engine": model.engine.name,
        "corpus": corpus.name,
        "corpus_digest": corpus.digest,
        "rendered": model.has_chat_template,
        "tokens": job.reading.name,
        "positions_digest": job.reading.digest,
        "sites": {site.name: list(job.row_shape(site)) for site in job.sites},
        "dtype": job.dtype,
        "n_rows": int(job.reading.rows.sum()),
        "shards": [
            {"rows": job.shard_rows(k), "examples": len(job.examples(k))} for k in range(job.shards)
        ],
        "versions": {
            n: version(n) for n in ("torch", "transformers", "transformer-lens", "nnsight")
        },
    }


def physical_rows(job: Job, model: Model, corpus: Corpus) -> pd.DataFrame:
    """The table of rows in the order of the shards."""
    return row_table(model, corpus, job.ids, job.reading, job.order.tolist())
