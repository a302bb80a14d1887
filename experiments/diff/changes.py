"""Before and after: one table of what differs between two models, or a model and its edit.

from experiments.diff import DiffSettings, before_after, wide

frame = before_after(model, None, inputs, edit=ablate(direction), settings=DiffSettings())
wide(frame)                      # one line a figure: before, after, change, with intervals
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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

    Returns:
        Rows as in `results.parquet`; `attrs["left_out"]` says what these models do not allow.

    Raises:
        ConfigError: neither a second model nor an edit.
        CaptureError, SiteError: as `capture`.
    """
    from experiments.diff.observing import Texts
    from experiments.diff.running import left_out, run_both

    edits = list(edit) if isinstance(edit, Sequence) else [edit]
    if after is None and not edits:
        raise ConfigError("There is nothing after to compare with: give `after`, or an `edit`.")
    chosen = settings or DiffSettings()
    texts = Texts.of(inputs, chosen)
    with TemporaryDirectory() as folder:
        one, two, told = run_both(
            before,
            before if after is None else after,
            inputs,
            texts,
            chosen,
            folder=folder,
            edits=edits,
            label=label,
            progress=progress,
        )
    frames = []
    for name, measure in stages(one, two, inputs, texts, chosen, told).items():
        say(progress, f"Measuring: {name}")
        frames.append(as_frame(measure()))
    found = pd.concat([f for f in frames if len(f)], ignore_index=True)
    found.attrs["left_out"] = left_out(one, two, inputs)
    return found


def stages(
    before: Observed,
    after: Observed,
    inputs: Inputs,
    texts: Texts,
    settings: DiffSettings,
    label: str,
) -> Stages:
    """What is measured from both models' observations, by name."""
    from experiments.diff import behaviour, directions, likeness, probing, subspaces

    args = before, after, inputs
    return {
        "probes": lambda: probing.probe(*args, settings, label),
        "subspaces": lambda: subspaces.subspaces(*args, settings, label),
        "directions": lambda: directions.directions(*args, texts, settings, label),
        "likeness": lambda: likeness.likeness(*args, settings, label),
        "losses": lambda: behaviour.losses(before, after, inputs, texts, label),
        "refusals": lambda: behaviour.refusal_rates(before, after, inputs, texts, label),
        "divergence": lambda: behaviour.divergence(after, inputs, texts, label),
        "promoted": lambda: after.promoted,
    }


def wide(results: pd.DataFrame) -> pd.DataFrame:
    """One line a figure: before, after and change, or what stands between the two models.

    Controls have lines of their own.

    Returns:
        Columns measure, site, layer, position, variety, reference, behaviour, control; before,
        after, change and between, each with `_low` and `_high`; n, p, unit.
    """
    keys = ["measure", "site", "layer", "position", "variety", "reference", "behaviour", "control"]
    plain = results["edit"] == ""
    of_one = set(zip(results["measure"][plain], results["control"][plain], strict=True))
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in results.to_dict("records"):
        measure = record["measure"].removesuffix("_change")
        part = "between"
        if (measure, record["control"]) in of_one:
            part = "before" if record["edit"] == "" else "after"
            part = "change" if measure != record["measure"] else part
        key = tuple((record | {"measure": measure})[k] for k in keys)
        line = lines.setdefault(key, {"n": 0, "p": float("nan"), "unit": record["unit"]})
        found = (record["value"], record["low"], record["high"])
        line |= {f"{part}{end}": figure for end, figure in zip(_ENDS, found, strict=True)}
        line["n"] = max(line["n"], record["n"])
        if part in ("change", "between"):
            line["p"] = record["p"]
    figures = [f"{part}{end}" for part in _PARTS for end in _ENDS]
    rows = [dict(zip(keys, key, strict=True)) | line for key, line in lines.items()]
    return pd.DataFrame(rows, columns=[*keys, *figures, "n", "p", "unit"])


_PARTS = ("before", "after", "change", "between")
_ENDS = ("", "_low", "_high")
