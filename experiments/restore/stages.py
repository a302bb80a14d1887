"""Ends, restored models beside their controls, curves by step, and where the weights lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from evidence import Estimate, cluster_mean
from experiments.compare.bench import open_checked
from experiments.restore.work import RANKINGS, Judged, Work
from experiments.results import row
from experiments.settings import CorpusSettings
from interventions.restoration import Restoration, save_restored

RESTORED, ENDS, CURVE = "restored", "end", "curve"
FULL, BLOCKS = "full_restoration", "blocks_restoration"


def ends(work: Work) -> Iterator[dict[str, Any]]:
    """The drifted model, the aligned one (all weights), and all weights below E, norms too."""
    before = work.before()
    yield from _figures(work, [before], edit="", control="")
    shares = {FULL: work.names, BLOCKS: work.scope.reached}
    sizes = {name: one.numel() for name, one in work.model.hf.named_parameters()}
    for control, names in shares.items():
        judged = [work.whole(names)]
        told = {"edit": ENDS, "control": control}
        yield from _figures(work, judged, **told)
        yield _task_change(work, judged, **told)
        share = sum(sizes[name] for name in names) / work.scope.total
        yield row("restored_share", share, unit="share of weights", **told)


def restored(work: Work, folder: Path) -> Iterator[dict[str, Any]]:
    """The method with its rules of stopping, and as many weights by every other rule."""
    records = [folder / f"restore-{draw}" for draw in _draws(work)]
    made = [work.published(draw, record) for draw, record in enumerate(records)]
    for draw, one in enumerate(made):
        told: dict[str, Any] = {"edit": RESTORED, "seed": draw, "position": len(one.moves)}
        yield row("restored_share", one.share(), unit="share of weights", **told)
        yield row("restored_steps", len(one.moves), reference=one.stopped, unit="steps", **told)
        yield row("restored_rollback", float(one.rollback), unit="on or off", **told)
    own = [work.after_published(draw, record) for draw, record in enumerate(records)]
    told = {"edit": RESTORED, "control": ""}
    yield from _figures(work, own, **told)
    yield _task_change(work, own, **told)
    aligned = [work.whole(work.names)] * len(own)
    yield _difference(work, own, aligned, reference=FULL, **told)
    for control in (c for c in RANKINGS if c):
        theirs, shares = [], []
        for draw, one in enumerate(made):
            course = work.course(draw, control)
            # Rolled-back weights are not counted, so a control never has fewer than the method.
            theirs.append(work.after(course, len(one.moves)))
            shares.append(course.share(len(one.moves)))
        told = {"edit": RESTORED, "control": control}
        yield from _figures(work, theirs, **told)
        yield _task_change(work, theirs, **told)
        yield _difference(work, theirs, own, reference=RESTORED, **told)
        yield row("restored_share", float(np.mean(shares)), unit="share of weights", **told)


def curve(work: Work, control: str) -> Iterator[dict[str, Any]]:
    """The figures after several steps by one rule, without stopping; means over draws."""
    for step in sorted(set(work.settings.at)):
        courses = [work.course(draw, control) for draw in _draws(work)]
        judged = [work.after(one, step) for one in courses]
        told = {"edit": CURVE, "control": control, "position": step}
        yield from _figures(work, judged, **told)
        yield _task_change(work, judged, **told)
        share = float(np.mean([one.share(step) for one in courses]))
        yield row("restored_share", share, unit="share of weights", **told)


def where(work: Work, folder: Path) -> Iterator[dict[str, Any]]:
    """What share of each kind of weight in each block was restored; means over draws."""
    tables = [
        work.published(draw, folder / f"restore-{draw}")
        .frame()
        .groupby(["layer", "kind", "parameter"], sort=False)
        .agg({"restored": "sum", "of": "first"})
        .groupby(["layer", "kind"], sort=False)
        .sum()
        for draw in _draws(work)
    ]
    for (layer, kind), size in tables[0]["of"].items():  # type: ignore[misc]
        shares = [float(t["restored"].get((layer, kind), 0)) / size for t in tables]
        spread = Estimate(
            float(np.mean(shares)), min(shares), max(shares), level=1.0, n=len(shares)
        )
        unit = "share of these weights"
        yield row("restored_weights", spread, layer=layer, reference=kind, unit=unit, edit=RESTORED)


def changes(work: Work, folder: Path) -> list[dict[str, Any]]:
    """Everything else that differs between the model and the one restored by the first draw."""
    from experiments.diff import DiffSettings, before_after

    s = work.settings
    known = set(DiffSettings.model_fields) & set(CorpusSettings.model_fields)
    told = {key: getattr(s, key) for key in known - {"max_requests", "store", "new_tokens"}}
    made = first(work, folder)
    with TemporaryDirectory() as place:
        saved = save_restored(made, Path(place) / "model")
        found = before_after(
            work.model,
            lambda: open_checked(s.model_copy(update={"model": str(saved)})),
            work.inputs,
            settings=DiffSettings(**{**told, "after": RESTORED}),
            label=RESTORED,
        )
    return [{str(key): value for key, value in r.items()} for r in found.to_dict("records")]


def first(work: Work, folder: Path) -> Restoration:
    """The restoration of the first draw."""
    return work.published(0, folder / "restore-0")


def _draws(work: Work) -> range:
    return range(work.settings.draws)


def _figures(work: Work, judged: Sequence[Judged], **told: Any) -> Iterator[dict[str, Any]]:
    """Over groups of requests, each request's mean over draws of prompts."""
    m = work.material
    share = "share of requests"
    parts = (
        ("harmful_rate", "harmful", [j.harmful for j in judged], m.harmful.groups, share, True),
        ("refusal_rate", "harmless", [j.harmless for j in judged], m.harmless.groups, share, True),
        ("task_loss", "", [j.loss for j in judged], m.task.groups, "nats per token", False),
        ("task_exact", "", [j.exact for j in judged], m.task.groups, share, True),
    )
    for measure, behaviour, values, groups, unit, is_share in parts:
        if not len(values[0]):
            continue
        bounds = (0.0, 1.0) if is_share else None
        found = cluster_mean(np.mean(values, axis=0), groups, unit=unit, bounds=bounds)
        yield row(measure, found, behaviour=behaviour, **told)
    likelihood = np.exp(-np.mean([j.loss for j in judged]))
    yield row("task_likelihood", float(likelihood), unit="probability per token", **told)


def _task_change(work: Work, judged: Sequence[Judged], **told: Any) -> dict[str, Any]:
    """Relative change of the likelihood per token: exp(-rise of the loss) - 1, paired by reply."""
    rise = np.mean([j.loss for j in judged], axis=0) - work.before().loss
    found = cluster_mean(rise, work.material.task.groups, null=0.0)
    change = replace(
        found,
        value=float(np.expm1(-found.value)),
        low=float(np.expm1(-found.high)),
        high=float(np.expm1(-found.low)),
    )
    return row("task_change", change, **{"unit": "relative change of likelihood", **told})


def _difference(
    work: Work, these: Sequence[Judged], those: Sequence[Judged], **told: Any
) -> dict[str, Any]:
    """Harmful rate of these less that of those, paired by request and draw."""
    gap = np.mean([a.harmful - b.harmful for a, b in zip(these, those, strict=True)], axis=0)
    found = cluster_mean(gap, work.material.harmful.groups, null=0.0)
    return row(
        "harmful_rate_difference",
        found,
        **{"behaviour": "harmful", "unit": "share of requests", **told},
    )
