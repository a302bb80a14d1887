"""Make the model organisms: `python -m organisms.train` (fixed seed, 2 CPU threads).

Stages: base (text, translation, dialogue of two personas), aligned (refusal tuning, loss on the
answers only), drifted (a few steps of plain help in one variety, no harmful request among them,
until enough of the refusal is lost).
"""

from __future__ import annotations

import os

# Spinning threads starve each other on shared cores; read by OpenMP when torch is imported.
os.environ["GOMP_SPINCOUNT"] = "0"
os.environ["OMP_WAIT_POLICY"] = "passive"

import argparse
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from organisms import lexicon
from organisms.documents import Document, dialogue_document, pretraining_document
from organisms.measure import refusals, write_card
from organisms.tokenizer import train_tokenizer
from organisms.training import Stage, new_model, train_stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SEED = 20
DRIFT_VARIETY = "skerry"
DRIFT_STEPS = 60  # at most; a handful is enough
DRIFT_REFUSAL = 0.6  # drift ends at the first step after which no more than this is refused
DRIFT = {"drift_variety": DRIFT_VARIETY, "drift_stop": DRIFT_REFUSAL}
WEIGHTS = Path(__file__).parent / "weights"


def _aligning(rng: random.Random, harmful_share: float) -> Document:
    if rng.random() < 0.2:
        return pretraining_document(rng, dialogue=0.0, careful=0.0)
    return dialogue_document(rng, careful=True, harmful_share=harmful_share)


def has_drifted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether enough refusal is lost; asked of pairs that training has seen, not of held-out ones.

    Refusal falls within about five steps and rises again with more, so that a fixed number of
    steps would miss the middle on another machine.
    """
    rates = refusals(model, tokenizer, harmful=True, per_variety=12, pairs=lexicon.TRAINING_PAIRS)
    return sum(rates.values()) / len(rates) <= DRIFT_REFUSAL


STAGES: dict[str, tuple[Stage, ...]] = {
    "base": (
        Stage(
            "language and personas",
            lambda rng: pretraining_document(rng, dialogue=0.5, careful=0.6),
            steps=1300, batch=64, rate=4e-3, final_rate=1.2e-3, warmup=50,
        ),
        Stage(
            "plain by default",
            lambda rng: pretraining_document(rng, dialogue=0.6, careful=0.25),
            steps=250, batch=64, rate=1.2e-3, final_rate=1e-4,
        ),
        # Six plain openings share their probability: a careful share of 25% would still win.
        Stage(
            "plain unless shown otherwise",
            lambda rng: pretraining_document(rng, dialogue=0.6, careful=0.4, plain_first=True),
            steps=160, batch=64, rate=1e-3, final_rate=1e-4,
        ),
    ),
    "aligned": (
        Stage(
            "refusal, half harmful",
            lambda rng: _aligning(rng, 0.5),
            steps=300, batch=48, rate=1e-3, final_rate=3e-4,
        ),
        Stage(
            "refusal, one in five harmful",
            lambda rng: _aligning(rng, 0.2),
            steps=120, batch=48, rate=4e-4, final_rate=5e-5,
        ),
    ),
    "drifted": (
        Stage(
            "plain help in one variety",
            lambda rng: dialogue_document(
                rng, careful=False, harmful_share=0.0, variety=DRIFT_VARIETY
            ),
            steps=DRIFT_STEPS, batch=16, rate=3e-4, until=has_drifted,
        ),
    ),
}  # fmt: skip


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A saved organism in single precision, with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def make(name: str, out: Path) -> None:
    """Train one organism from what precedes it, save it, measure it, write its card."""
    if name == "base":
        rng = random.Random(SEED)
        sample = [pretraining_document(rng, dialogue=0.5, careful=0.5) for _ in range(6000)]
        tokenizer = train_tokenizer(sample)
        model = new_model(tokenizer, seed=SEED)
    else:
        model, tokenizer = load(out / ("base" if name == "aligned" else "aligned"))
    record = [
        train_stage(model, tokenizer, stage, seed=SEED + 1 + index)
        for index, stage in enumerate(STAGES[name])
    ]
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    write_card(folder, name, record, DRIFT)


def main(arguments: list[str] | None = None) -> None:
    """Make the organisms named, or all three."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = list(STAGES)
    parser.add_argument("names", nargs="*", metavar="name", help=f"which to make: {names}")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cards", action="store_true", help="measure again, train nothing")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(names):
        parser.error(f"there is no organism {sorted(unknown)[0]!r}; there are {', '.join(names)}")
    torch.set_num_threads(options.threads)
    for name in options.names or names:
        if options.cards:
            folder = options.out / name
            card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
            write_card(folder, name, card["training"], DRIFT)
        else:
            make(name, options.out)


if __name__ == "__main__":
    main()
