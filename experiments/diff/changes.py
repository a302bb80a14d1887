"""Before and after: one table of what differs between two models, or a model and its edit.

from experiments.diff import DiffSettings, before_after, wide

frame = before_after(model, None, inputs, edit=ablate(direction), settings=DiffSettings())
wide(frame)                      # one line a figure: before, after, change, with intervals
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd

from experiments.diff.settings import DiffSettings
from experiments.inputs import Inputs
from experiments.job import say
from experiments.results import as_frame
from experiments.settings import ConfigError

if TYPE_CHECKING:
    from activations import Edit, Model
    from experiments.diff.observing import Observed, Texts

Stages = dict[str, Callable[[], Iterable[dict[str, Any]]]]


def before_after(
    before: Model | Callable[[], Model],
    after: Model | Callable[[], Model] | None,
    inputs: Inputs,
    *,
    edit: Edit | Sequence[Edit] = (),
    settings: DiffSettings | None = None,
    label: str = "",
    progress: bool = False,
) -> pd.DataFrame:
    """Everything that the corpus allows to be said of what differs, as rows of results.

    A figure of one model is three rows: `measure` with no `edit` (before), `measure` with `edit`
    (after), and `measure_change` with `edit`, whose interval is paired over the same groups. What
    compares the two models as such (`next_token_kl`, `model_cka`, ...) is one row with `edit`.

    A model is run and gone before the other is run. If the two are too large to be held together,
    give functions that open them. Held at once are the larger model and the states of both,
    4 bytes x texts x width for each site (on disk where `settings.store` names a folder); on disk
    also log-probabilities, 4 bytes x vocabulary for each token of the texts behind the losses.

    Args:
        before: a model, or a function that opens it.
        after: the same, or None for the model before under `edit`.
        edit: what the model after is run under.
        settings: sizes and seed; its `model` and `after` are not opened.
        label: what `edit` says in the rows; by default `model(NAME)` or the names of the edits.

    Raises:
        ConfigError: neither a second model nor an edit.
        CaptureError, SiteError: as `capture`.
    """
    from experiments.diff.observing import Texts, observe

    edits = list(edit) if isinstance(edit, Sequence) else [edit]
    if after is None and not edits:
        raise ConfigError("There is nothing after to compare with: give `after`, or an `edit`.")
    chosen = settings or DiffSettings()
    texts = Texts.of(inputs, chosen)
    store = chosen.store
    with TemporaryDirectory() as folder:
        one = observe(
            _opened(before),
            inputs,
            texts,
            chosen,
            folder=folder,
            store=store or None,
            progress=progress,
        )
        second = _opened(before if after is None else after)
        with second.edited(*edits) if edits else nullcontext():
            two = observe(
                second,
                inputs,
                texts,
                chosen,
                folder=folder,
                against=one,
                # A store is told apart by weights and texts, not by edits.
                store=f"{store}-after" if store and not edits else None,
                progress=progress,
            )
    told = label or " + ".join(e.name for e in edits) or f"model({second.name})"
    del second
    frames = []
    for name, measure in stages(one, two, inputs, texts, chosen, told).items():
        say(progress, f"Measuring: {name}")
        frames.append(as_frame(measure()))
    return pd.concat([f for f in frames if len(f)], ignore_index=True)


def stages(
    before: Observed,
    after: Observed,
    inputs: Inputs,
    texts: Texts,
    settings: DiffSettings,
    label: str,
) -> Stages:
    """What is measured from both models' observations, by name."""
    from experiments.diff import behaviour

    return {
        "losses": lambda: behaviour.losses(before, after, inputs, texts, label),
        "refusals": lambda: behaviour.refusal_rates(before, after, inputs, texts, label),
        "divergence": lambda: behaviour.divergence(after, inputs, texts, label),
    }


def _opened(model: Model | Callable[[], Model]) -> Model:
    return model() if callable(model) else model


def wide(results: pd.DataFrame) -> pd.DataFrame:
    """One line a figure: before, after and change, each with its interval.

    What compares the models as such stands under change. Controls have lines of their own.

    Returns:
        Columns measure, site, layer, position, variety, reference, behaviour, control, before,
        before_low, before_high, after, after_low, after_high, change, change_low, change_high, n,
        p, unit.
    """
    keys = ["measure", "site", "layer", "position", "variety", "reference", "behaviour", "control"]
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    own = set(results.loc[results["edit"] == "", "measure"])
    for record in results.to_dict("records"):
        part = _part(record, own)
        measure = record["measure"].removesuffix("_change") if part == "change" else None
        key = tuple((record | {"measure": measure or record["measure"]})[k] for k in keys)
        line = lines.setdefault(key, {"n": 0, "p": float("nan"), "unit": record["unit"]})
        line |= {
            part: record["value"],
            f"{part}_low": record["low"],
            f"{part}_high": record["high"],
        }
        line["n"] = max(line["n"], record["n"])
        if part == "change":
            line["p"] = record["p"]
    figures = [f"{part}{end}" for part in ("before", "after", "change") for end in _ENDS]
    rows = [dict(zip(keys, key, strict=True)) | line for key, line in lines.items()]
    return pd.DataFrame(rows, columns=[*keys, *figures, "n", "p", "unit"])


_ENDS = ("", "_low", "_high")


def _part(record: dict[str, Any], own: set[str]) -> str:
    if record["edit"] == "":
        return "before"
    return "after" if record["measure"] in own else "change"
