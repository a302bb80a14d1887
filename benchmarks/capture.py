"""Capture: the residual stream after every block, and everything, against the peers.

All ways get the same model (random weights), the same texts and the same sites, and their states
are compared. Ours includes tokenizing, the table of rows, digests and files; the others start from
token ids. The bare forward passes read nothing: the floor that a user would write (32 texts a
batch, as they come) and the limit (our batches). None of them computes logits.

    python -m benchmarks.capture [--quick] [--json FILE] [--device cuda --shape llama-1b]
"""

from __future__ import annotations

from benchmarks.machine import arguments, machine, timed, write_record  # isort: skip

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from activations import Model, capture, open_model
from activations.batching import length_batches, limits
from benchmarks.models import number_tokenizer, random_model
from corpora import Corpus

BATCH = 32
CHOICES = ("gpt2-small", "llama-135m", "llama-1b", "llama-8b")
EVERYTHING = (
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern",
    "mlp_pre", "mlp_post",
)  # fmt: skip


class Work:
    """One model and one set of texts, and every way of capturing from it."""

    def __init__(self, shape: str, lengths: np.ndarray, device: str, dtype: str) -> None:
        self.device = device
        hf = random_model(shape).to(device=device, dtype=getattr(torch, dtype)).eval()
        self.model: Model = open_model(hf, tokenizer=number_tokenizer(), device=device)
        rng = np.random.default_rng(0)
        self.ids = [rng.integers(3, 1000, n).tolist() for n in lengths]
        self.corpus = Corpus.from_texts([" ".join(map(str, i)) for i in self.ids])
        self.sites = self.model.resolve_sites("resid_post")
        self.arrival = [
            list(range(i, min(i + BATCH, len(self.ids)))) for i in range(0, len(self.ids), BATCH)
        ]
        budget, overhead = limits(self.model.device.type)
        self.ours = length_batches([len(i) for i in self.ids], budget=budget, overhead=overhead)
        self.folder = Path(tempfile.mkdtemp(prefix="isogloss-benchmark-"))
        self._traced: Any = None

    def close(self) -> None:
        """Remove what was written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def tokens(self) -> int:
        """Tokens in all texts."""
        return sum(map(len, self.ids))

    def padding(self, batches: list[list[int]]) -> float:
        """Share of the batches that is padding."""
        full = sum(len(b) * max(len(self.ids[i]) for i in b) for b in batches)
        return 1 - self.tokens / full

    def padded(self, batches: list[list[int]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """(texts, token ids, mask) of each batch."""
        for batch in batches:
            yield batch, *self.model.pad([self.ids[i] for i in batch])

    @torch.inference_mode()
    def bare(self, batches: list[list[int]]) -> None:
        """The model's own forward pass without its head; nothing is read."""
        for _, ids, mask in self.padded(batches):
            self.model.hf.base_model(input_ids=ids, attention_mask=mask, use_cache=False)

    @torch.inference_mode()
    def transformer_lens(self, batches: list[list[int]]) -> dict[str, np.ndarray]:
        """`run_with_cache` with a names filter, stopping after the last layer, no logits."""
        found = self._empty()
        for texts, ids, mask in self.padded(batches):
            _, cache = self.model.bridge.run_with_cache(
                ids, attention_mask=mask, names_filter=self.sites, return_type=None
            )
            last = mask.sum(-1) - 1
            for site in self.sites:
                states = cache[site][torch.arange(len(texts), device=last.device), last]
                found[site][texts] = states.float().cpu().numpy()
        return found

    @torch.inference_mode()
    def nnsight(self, batches: list[list[int]]) -> dict[str, np.ndarray]:
        """A trace a batch that saves each layer's last-token states and then stops."""
        if self._traced is None:
            from nnsight import TransformersModel

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._traced = TransformersModel(
                    self.model.hf, tokenizer=self.model.tokenizer, task="text-generation"
                )
        places = [self.model.site(site).place for site in self.sites]
        layers = [self._traced.get(f"{place.module}") for place in places if place]
        found = self._empty()
        for texts, ids, mask in self.padded(batches):
            rows, last = torch.arange(len(texts), device=ids.device), mask.sum(-1) - 1
            saved = {}
            with self._traced.trace({"input_ids": ids, "attention_mask": mask}) as tracer:
                for site, layer in zip(self.sites, layers, strict=True):
                    output = layer.output
                    states = output[0] if isinstance(output, tuple) else output
                    saved[site] = states[rows, last].save()
                tracer.stop()
            for site, states in saved.items():
                found[site][texts] = states.float().cpu().numpy()
        return found

    def memory(self, **options: Any) -> dict[str, np.ndarray]:
        """Ours, kept in memory."""
        store = capture(self.model, self.corpus, progress=False, **options)
        return {site: store[site][:] for site in self.sites}

    def disk(self, **options: Any) -> Path:
        """Ours, to disk."""
        store = self.folder / "ours"
        shutil.rmtree(store, ignore_errors=True)
        capture(self.model, self.corpus, progress=False, store=store, **options)
        return store

    @torch.inference_mode()
    def save_everything(self) -> None:
        """`run_with_cache` of all sites in arrival order, each batch's cache saved."""
        from safetensors.torch import save_file

        place = self.folder / "cache"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        wanted = self.model.resolve_sites(EVERYTHING)
        for number, (_, ids, mask) in enumerate(self.padded(self.arrival)):
            _, cache = self.model.bridge.run_with_cache(
                ids, attention_mask=mask, names_filter=wanted, return_type=None
            )
            tensors = {site: cache[site].contiguous().cpu().clone() for site in wanted}
            save_file(tensors, place / f"{number}.safetensors")

    def _empty(self) -> dict[str, np.ndarray]:
        return {s: np.zeros((len(self.ids), self.model.d_model), np.float32) for s in self.sites}


def lengths_of(kind: str, texts: int) -> np.ndarray | None:
    """Token counts of `texts` texts: log-normal, even, or those of a real corpus if it is there."""
    rng = np.random.default_rng(1)
    if kind == "lognormal":
        return np.clip(rng.lognormal(3.3, 0.7, texts).astype(int), 4, 256)
    if kind == "even":
        return np.full(texts, 32)
    file = Path(os.environ.get("ISOGLOSS_DATA", "")) / "redial_aave_sae" / "pairs.jsonl"
    if not file.is_file():
        return None
    words = []
    for line in file.read_text(encoding="utf-8").strip().split("\n"):
        record = json.loads(line)
        words += [len(v.split()) for v in record.values() if isinstance(v, str) and " " in v]
    real = np.clip((1.3 * np.array(words)).astype(int), 4, 512)
    return rng.choice(real, texts)


def difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """Largest difference relative to the largest state of its site."""
    return max(float(np.abs(one[s] - other[s]).max() / np.abs(one[s]).max()) for s in one)


def residual_stream(work: Work, runs: int) -> dict[str, Any]:
    """The last token after every block: all ways, in arrival order and in our batches."""
    ways: dict[str, Callable[[], object]] = {
        "bare forward, arrival": lambda: work.bare(work.arrival),
        "bare forward, our batches": lambda: work.bare(work.ours),
        "run_with_cache, arrival": lambda: work.transformer_lens(work.arrival),
        "run_with_cache, our batches": lambda: work.transformer_lens(work.ours),
        "nnsight, arrival": lambda: work.nnsight(work.arrival),
        "nnsight, our batches": lambda: work.nnsight(work.ours),
        "isogloss, memory": lambda: work.memory(pack=False),
        "isogloss, disk": lambda: work.disk(pack=False),
        "isogloss, disk, packed": lambda: work.disk(pack=True),
    }
    if work.device == "cpu":
        del ways["isogloss, disk, packed"]
    ours = work.memory()
    worst = max(
        difference(ours, work.transformer_lens(work.arrival)),
        difference(ours, work.nnsight(work.arrival)),
    )
    seconds, peaks = timed(ways, runs=runs, device=work.device)
    best = min(v for k, v in seconds.items() if k.startswith("isogloss, disk"))
    ratios = {
        "vs_bare_forward_arrival": seconds["bare forward, arrival"] / best,
        "vs_bare_forward_bucketed": seconds["bare forward, our batches"] / best,
        "vs_transformer_lens": seconds["run_with_cache, arrival"] / best,
        "vs_transformer_lens_bucketed": seconds["run_with_cache, our batches"] / best,
        "vs_nnsight": seconds["nnsight, arrival"] / best,
        "vs_nnsight_bucketed": seconds["nnsight, our batches"] / best,
    }
    _print(seconds, peaks, ratios, work.tokens, worst)
    return {"seconds": seconds, "ratios": ratios, "max_difference": worst, "peak_bytes": peaks}


def everything(work: Work, runs: int) -> dict[str, Any]:
    """All sites, all tokens, to disk."""
    ways: dict[str, Callable[[], object]] = {
        "run_with_cache and save": work.save_everything,
        "isogloss, everything": lambda: work.disk(sites=EVERYTHING, tokens="all"),
    }
    seconds, peaks = timed(ways, runs=runs, device=work.device)
    ratios = {
        "vs_transformer_lens_everything": seconds["run_with_cache and save"]
        / seconds["isogloss, everything"]
    }
    written = {
        name: sum(f.stat().st_size for f in (work.folder / name).rglob("*") if f.is_file())
        for name in ("cache", "ours")
    }
    print(f"  bytes written: {written['cache']:,} by them, {written['ours']:,} by us")
    _print(seconds, peaks, ratios, work.tokens, None)
    return {"seconds": seconds, "ratios": ratios, "peak_bytes": peaks, "bytes": written}


def _print(
    seconds: dict[str, float],
    peaks: dict[str, int],
    ratios: dict[str, float],
    tokens: int,
    worst: float | None,
) -> None:
    for name, took in seconds.items():
        print(
            f"  {name:30s} {took:8.2f} s {tokens / took:10,.0f} tok/s {peaks[name] / 1e6:8,.0f} MB"
        )
    for name, value in ratios.items():
        print(f"  {name:32s} {value:6.2f}")
    if worst is not None:
        print(f"  largest difference of states      {worst:.1e} of the largest state")


def main() -> None:
    """Run, print, and write what was asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="")
    parser.add_argument("--shape", action="append", choices=CHOICES)
    parser.add_argument("--texts", type=int, default=0)
    parser.add_argument("--lengths", action="append", choices=["lognormal", "even", "real"])
    options = parser.parse_args()
    cuda = options.device.startswith("cuda")
    dtype = options.dtype or ("bfloat16" if cuda else "float32")
    shapes = options.shape or (["llama-1b"] if cuda else ["gpt2-small", "llama-135m"])
    kinds = options.lengths or (["lognormal"] if options.quick else ["lognormal", "real", "even"])
    texts = options.texts or (64 if options.quick else 4096 if cuda else 256)
    runs = 1 if options.quick else 3
    record: dict[str, Any] = {"machine": machine(), "runs": {}}
    print(record["machine"])
    for shape in shapes[: 1 if options.quick else None]:
        for kind in kinds:
            lengths = lengths_of(kind, texts)
            if lengths is None:
                print(f"\n{shape}, {kind} lengths: skipped, ISOGLOSS_DATA names no corpus")
                continue
            work = Work(shape, lengths, options.device, dtype)
            print(
                f"\n{shape} in {dtype}, {texts} texts of {kind} lengths, {work.tokens:,} tokens; "
                f"padding {work.padding(work.arrival):.0%} in arrival order, "
                f"{work.padding(work.ours):.0%} in our batches"
            )
            try:
                found = residual_stream(work, runs)
            finally:
                work.close()
            found["sizes"] = {"texts": texts, "tokens": work.tokens, "shape": shape, "dtype": dtype}
            record["runs"][f"{shape}, {kind}"] = found
    few = lengths_of("lognormal", 32 if options.quick else 64)
    assert few is not None
    work = Work(shapes[0], few, options.device, dtype)
    print(f"\n{shapes[0]}, {len(EVERYTHING)} sites a layer, {work.tokens:,} tokens, to disk")
    try:
        record["runs"]["everything"] = everything(work, runs)
    finally:
        work.close()
    first = next(iter(record["runs"].values()))
    record |= {key: first[key] for key in ("sizes", "seconds", "max_difference")}
    record["ratios"] = first["ratios"] | record["runs"]["everything"]["ratios"]
    write_record(options.json, record)


if __name__ == "__main__":
    main()
