"""Stores of random states, made without a model; and what they hold, worked out plainly."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from activations.manifest import begin, finish
from activations.shards import write_shard

RESID, Z = "blocks.1.hook_resid_post", "blocks.0.attn.hook_z"
SITES = {RESID: (5,), Z: (2, 3)}
VARIETIES = ("tarn", "arden", "weald")


@dataclass
class Made:
    """Rows and states `[rows, ...]` in the order in which they are stored, and the plan."""

    rows: pd.DataFrame
    states: dict[str, torch.Tensor]
    manifest: dict[str, Any]

    def shard(self, number: int) -> dict[str, torch.Tensor]:
        ends = np.cumsum([0, *(s["rows"] for s in self.manifest["shards"])])
        return {site: x[ends[number] : ends[number + 1]] for site, x in self.states.items()}

    def begin(self, folder: Path) -> dict[str, Any]:
        return begin(folder, self.manifest, self.rows)

    def write(self, folder: Path, *numbers: int) -> dict[str, Any]:
        """Begin or continue, and write the shards named; all of them, and finish, if none is."""
        manifest = self.begin(folder)
        for number in numbers or range(len(manifest["shards"])):
            write_shard(folder, number, self.shard(number), capture=manifest["capture"])
        return manifest if numbers else finish(folder, manifest)

    @property
    def in_order(self) -> np.ndarray:
        """Stored rows by example, then position: what readers are to see."""
        return self.rows.sort_values(["example", "position"]).index.to_numpy()

    def frame(self) -> pd.DataFrame:
        return self.rows.iloc[self.in_order].reset_index(drop=True)

    def array(self, site: str) -> np.ndarray:
        x = self.states[site]
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()[self.in_order]


def made(
    *,
    seed: int = 0,
    texts: int = 11,
    shards: int = 4,
    dtype: str = "float32",
    sites: dict[str, tuple[int, ...]] | None = None,
    **facts: Any,
) -> Made:
    """Texts of one to five tokens in random order, cut into shards at random."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 6, texts)
    records = [
        (example, position, int(rng.integers(50)), f"token {position}", str(example // 3))
        for example in rng.permutation(texts).tolist()
        for position in range(lengths[example])
    ]
    rows = pd.DataFrame(records, columns=["example", "position", "token_id", "token", "group"])
    rows["variety"] = [VARIETIES[example % 3] for example in rows["example"]]
    rows["behaviour"] = ["harmful" if e % 4 == 0 else "" for e in rows["example"]]
    order = rows["example"].drop_duplicates().to_list()
    cuts = [0, *sorted(rng.choice(np.arange(1, texts), shards - 1, replace=False)), texts]
    parts = [order[a:b] for a, b in pairwise(cuts)]
    plan = [{"rows": int(sum(lengths[e] for e in part)), "examples": len(part)} for part in parts]
    shapes = sites or SITES
    states = {
        site: torch.from_numpy(rng.standard_normal((len(rows), *row))).to(getattr(torch, dtype))
        for site, row in shapes.items()
    }
    manifest = {
        "model": "made",
        "revision": None,
        "model_digest": "weights",
        "model_dtype": "torch.float32",
        "corpus": f"corpus {seed}",
        "corpus_digest": f"texts {seed}",
        "tokens": "all",
        "sites": {site: list(row) for site, row in shapes.items()},
        "dtype": dtype,
        "rendered": False,
        "shards": plan,
        "versions": {"torch": "2"},
    }
    return Made(rows, states, {**manifest, **facts})


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
