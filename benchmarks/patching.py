"""Activation patching, layer × position in the residual stream, against the peers.

All ways get the same model (random weights), the same 8 pairs of token ids and the same metric (a
logit difference at the last token, of which each pair has its own), and their figures are compared.
The hook loop is the honest floor: forward passes of the plain Hugging Face model, all pairs in one
batch, one hook, the state put in; as a user would write it. TransformerLens is its own patching
helper, nnsight a trace a cell. The peers run a sample of the cells, evenly spread over layers and
positions, and their time is taken times what is left out; `--all` runs every cell.

    python -m benchmarks.patching [--quick] [--all] [--json FILE] [--device cuda --dtype bfloat16]
"""

from __future__ import annotations

from benchmarks.machine import arguments, machine, timed, write_record  # isort: skip

import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from io import StringIO
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from activations import Model, open_model
from benchmarks.models import SHAPES, WORDS, number_tokenizer, random_model
from interventions import LogitDifference, patch_sweep

PAIRS = 8
#: GPT-2 small is the main one; a Llama of 7 billion is for a GPU.
CHOICES = ("gpt2-small", "gpt2-tiny", "llama-7b")


class Work:
    """One model and 8 pairs, and every way of patching them.

    They differ at token `first` alone, or everywhere where that is 0.
    """

    def __init__(self, shape: str, length: int, first: int, device: str, dtype: str) -> None:
        self.shape, self.device, self.first, self.length = shape, device, first, length
        hf = random_model(shape).to(device=device, dtype=getattr(torch, dtype)).eval()
        self.model: Model = open_model(hf, tokenizer=number_tokenizer(), device=device)
        self.layers = self.model.n_layers
        rng = np.random.default_rng(0)
        size = int(hf.config.vocab_size)
        self.base = torch.tensor(rng.integers(3, WORDS, (PAIRS, length)), device=device)
        self.source = self.base.clone()
        # One token differs, as in a swap of names, and the rest is the same; or all of them do.
        new = slice(first, first + 1 if first else length)
        self.source[:, new] = (self.base[:, new] - 2) % (WORDS - 3) + 3
        self.words = torch.tensor(rng.integers(3, size, (PAIRS, 2)), device=device)
        self.words[:, 1] = (self.words[:, 0] + 1 + self.words[:, 1] % (size - 5)) % size
        self._traced: Any = None

    def metric(self, logits: Tensor) -> Tensor:
        """Of logits `[pairs, pos, vocabulary]`, one figure for each pair."""
        last = logits[:, -1]
        right, wrong = (last.gather(1, self.words[:, i : i + 1])[:, 0] for i in (0, 1))
        return right.float() - wrong.float()

    def cells(self, every: int) -> list[tuple[int, int]]:
        """(layer, position), every so many of them."""
        return list(product(range(self.layers), range(self.length)))[::every]

    def ours(self) -> Any:
        """`patch_sweep`, from token ids to the table and its intervals."""
        words = self.words.tolist()
        metric = LogitDifference([w[0] for w in words], [w[1] for w in words])
        texts = [
            tuple(" ".join(map(str, ids)) for ids in pair)
            for pair in zip(self.base.tolist(), self.source.tolist(), strict=True)
        ]
        return patch_sweep(
            self.model,
            texts,  # type: ignore[arg-type]
            sites="resid_pre",
            max_positions=self.length,
            metric=metric,
            align=lambda base, source: np.arange(len(base)),
        )

    @torch.no_grad()
    def hook_loop(self, cells: Sequence[tuple[int, int]]) -> np.ndarray:
        """Passes of the plain model with one hook, all pairs in one batch, `[cells, pairs]`."""
        hf = self.model.hf
        blocks = _blocks(hf)
        states = hf(self.source, output_hidden_states=True, use_cache=False).hidden_states
        found = []
        for layer, position in cells:

            def put(_module: Any, args: Any, layer: int = layer, position: int = position) -> Any:
                args[0][:, position] = states[layer][:, position]

            handle = blocks[layer].register_forward_pre_hook(put)
            found.append(self.metric(hf(self.base, use_cache=False).logits).cpu().numpy())
            handle.remove()
        return np.array(found)

    @torch.no_grad()
    def transformer_lens(self, cells: Sequence[tuple[int, int]]) -> np.ndarray:
        """TransformerLens's own helper, with its rows of cells."""
        from transformer_lens import patching

        bridge = self.model.bridge
        names = [f"blocks.{i}.hook_resid_pre" for i in range(self.layers)]
        _, cache = bridge.run_with_cache(self.source, names_filter=names)
        frame = pd.DataFrame(list(cells), columns=["layer", "pos"])
        with redirect_stderr(StringIO()):  # its progress bar
            result = patching.generic_activation_patch(
                bridge,
                self.base,
                cache,
                self.metric,
                patching.layer_pos_patch_setter,
                "resid_pre",
                index_df=frame,
                reduce="none",
            )
        return result.values.cpu().numpy()  # type: ignore[union-attr]

    @torch.no_grad()
    def nnsight(self, cells: Sequence[tuple[int, int]]) -> np.ndarray:
        """A trace a cell."""
        if self._traced is None:
            from nnsight import TransformersModel

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._traced = TransformersModel(self.model.hf, tokenizer=self.model.tokenizer)
        traced, base = self._traced, {"input_ids": self.base}
        sites = self.model.resolve_sites("resid_pre")
        states = self.model.activations(self.source, None, sites)
        found = []
        for layer, position in cells:
            new = states[f"blocks.{layer}.hook_resid_pre"][:, position]
            with traced.trace(base):
                _blocks(traced)[layer].input[:, position] = new
                logits = traced.output.logits.save()
            found.append(self.metric(logits).cpu().numpy())
        return np.array(found)

    def table(self, sweep: Any) -> np.ndarray:
        """Values of a sweep, `[layers, positions, pairs]`."""
        frame = sweep.frame
        found = np.empty((self.layers, self.length, PAIRS))
        at = (frame["layer"], self.length - 1 - frame["position"], frame["pair"])
        found[tuple(x.to_numpy() for x in at)] = frame["value"]
        return found


def _blocks(model: Any) -> Any:
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def operations(work: Work) -> dict[str, float]:
    """Multiplications in units of one pass over all pairs: of all cells, and the fewest needed.

    Fewest: blocks above the patch, positions from the patch on, of the last block keys and values
    alone but for the last token, no cell whose states are the same, and two logits a cell.
    """
    shape = SHAPES[work.shape]
    hidden, layers = shape.hidden, shape.layers
    block = 4 * hidden**2 + (3 if shape.groups else 2) * hidden * shape.mlp
    length, first = work.length, work.first
    whole = layers * length * block + length * hidden * shape.vocabulary
    fewest = 0.0
    for layer in range(layers):
        for position in range(first, length):
            if first and layer == 0 and position > first:
                continue  # the embedding of the same token
            suffix = length - position
            fewest += (layers - layer - 1) * suffix * block + suffix * 2 * hidden**2 + block
            fewest += 2 * hidden
    return {"all_cells": layers * length, "fewest": fewest / whole}


def compare(
    work: Work, title: str, every: int, runs: int, peers: Sequence[str]
) -> tuple[dict[str, float], dict[str, float], float]:
    """(seconds, ratios, largest difference) of one setting."""
    cells = work.cells(every)
    share = len(cells) / (work.layers * work.length)
    sweep = work.ours()
    table = work.table(sweep)
    expected = {name: getattr(work, name)(cells) for name in peers}
    own = np.array([table[layer, position] for layer, position in cells])
    difference = max(float(np.abs(own - found).max()) for found in expected.values())
    ways: dict[str, Callable[[], object]] = {"isogloss": work.ours}
    ways |= {name: (lambda name=name: getattr(work, name)(cells)) for name in peers}
    seconds, _ = timed(ways, runs=runs, device=work.device)
    whole = {name: took / (1 if name == "isogloss" else share) for name, took in seconds.items()}
    ratios = {f"vs_{name}": whole[name] / whole["isogloss"] for name in peers}
    needed = operations(work)
    done = sweep.work.block_tokens / sweep.work.whole * needed["all_cells"]
    print(f"\n{title}: {sweep.work.cells} cells, of which {sweep.work.runs} were run")
    print(f"{'':18}{'seconds':>9}{'ratio':>8}")
    for name, took in whole.items():
        ratio = "" if name == "isogloss" else f"{took / whole['isogloss']:8.1f}"
        print(f"{name:18}{took:9.2f}{ratio}")
    print(
        f"blocks × tokens done: {done:.1f} whole passes' worth for {needed['all_cells']} cells; "
        f"multiplications at best {needed['fewest']:.1f}, that is "
        f"{needed['all_cells'] / needed['fewest']:.1f} times fewer"
    )
    print(f"largest difference of a figure {difference:.1e}")
    return whole, ratios, difference


def main() -> None:
    """Run and print; see the module."""
    parser = arguments(__doc__)
    parser.add_argument("--all", action="store_true", help="every cell for the peers, too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--shape", choices=CHOICES)
    options = parser.parse_args()
    shape = options.shape or ("gpt2-tiny" if options.quick else "gpt2-small")
    runs = 1 if options.quick else 3
    every = 1 if options.all else (7 if options.quick else 31)
    print(machine())
    print(f"{shape}, {PAIRS} pairs of 32 tokens, {options.dtype} on {options.device}")
    peers = ("hook_loop", "transformer_lens", "nnsight")
    seconds: dict[str, float] = {}
    ratios: dict[str, float] = {}
    worst = 0.0
    for title, first, suffix in (
        ("first different at token 10", 9, ""),
        ("different everywhere", 0, "_no_shared_prefix"),
    ):
        work = Work(shape, 32, first, options.device, options.dtype)
        took, found, difference = compare(work, title, every, runs, peers)
        seconds |= {f"{name}{suffix}": s for name, s in took.items()}
        ratios |= {f"{name}{suffix}": r for name, r in found.items()}
        worst = max(worst, difference)
    write_record(
        options.json,
        {
            "machine": machine(),
            "sizes": {"shape": shape, "pairs": PAIRS, "tokens": 32, "dtype": options.dtype},
            "seconds": seconds,
            "ratios": ratios,
            "max_difference": worst,
        },
    )


if __name__ == "__main__":
    main()
