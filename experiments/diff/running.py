"""Run one model, let it go, run the other; and say what the two do not allow to be compared."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.diff.likeness import promoted
from experiments.diff.observing import Observed, Texts, observe
from experiments.diff.pairs import LEAST_GROUPS
from experiments.diff.settings import DiffSettings
from experiments.inputs import Inputs

if TYPE_CHECKING:
    from activations import Edit, Model


def run_both(
    before: Model | Callable[[], Model],
    after: Model | Callable[[], Model],
    inputs: Inputs,
    texts: Texts,
    settings: DiffSettings,
    *,
    folder: str | Path,
    edits: Sequence[Edit] = (),
    label: str = "",
    keep: bool = False,
    progress: bool = False,
) -> tuple[Observed, Observed, str]:
    """What is kept of the model before, of the model after under `edits`, and what rows call it.

    Args:
        before, after: models, or functions that open them: the one is gone before the other opens.
        folder: for predictions, until this returns.
        keep: states go to stores that later runs find, even if the settings name none.
    """
    named = keep or bool(settings.store)
    one = observe(
        _opened(before), inputs, texts, settings, folder=folder, keep=named, progress=progress
    )
    gc.collect()  # a model refers to itself, and so stays until it is looked for
    model = _opened(after)
    store = f"{settings.store}-after" if settings.store else ""
    theirs = settings.model_copy(update={"model": settings.after, "store": store})
    with model.edited(*edits) if edits else nullcontext():
        two = observe(
            model,
            inputs,
            texts,
            theirs,
            folder=folder,
            against=one,
            keep=named and not edits,  # a store is told apart by weights and texts, not by edits
            progress=progress,
        )
        told = label or " + ".join(e.name for e in edits) or f"model({model.name})"
        two.promoted = list(promoted(one, two, model, inputs, settings, told))
    return one, two, told


def _opened(model: Model | Callable[[], Model]) -> Model:
    return model() if callable(model) else model


def left_out(before: Observed, after: Observed, inputs: Inputs) -> list[str]:
    """What was not compared, and why, in sentences."""
    said = list(inputs.left_out)
    if before.n_layers != after.n_layers:
        said.append(
            f"The models have {before.n_layers} and {after.n_layers} layers, so that no depth of "
            "the one is the other's: probes are told for each, and nothing is compared by layer."
        )
    elif before.d_model != after.d_model:
        said.append(
            f"The models are {before.d_model} and {after.d_model} wide: states of the one cannot "
            "be laid beside the other's (probe transfer, subspaces and directions between the "
            "models, shift of states, promoted tokens)."
        )
    if inputs.corpus.has_varieties and len(inputs.parallel().groups) < LEAST_GROUPS:
        said.append(
            f"Fewer than {LEAST_GROUPS} groups hold every variety: subspaces were not compared."
        )
    if after.kl is None:
        said.append(
            "The models have other tokens: there is no KL of the next token, and losses are told "
            "per character."
        )
    elif others := sum(before.ids[row] != after.ids[row] for row in before.ids):
        said.append(
            f"{others} of {len(before.ids)} texts are other tokens to the second model, as where "
            "its chat template differs; they have no KL, and their last tokens' states differ by "
            "that alone."
        )
    if inputs.corpus.has_behaviours and not len(before.refused):
        said.append("No replies were written (`new_tokens` is 0), so no refusals were counted.")
    return said
