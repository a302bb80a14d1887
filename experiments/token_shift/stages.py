"""What is measured of answers: shares, controls, and base shown examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from evidence import cluster_mean
from experiments.results import row
from experiments.token_shift.prompts import CAREFUL, KINDS
from experiments.token_shift.shares import all_rows, by_behaviour, position_rows, share_rows
from experiments.token_shift.work import Answered, Work
from interventions import is_refusal


def main_tokens(work: Work) -> pd.DataFrame:
    """The aligned model's answers, each token as base takes it."""
    return work.compare(work.aligned, work.base, work.own, work.shown(work.own))


def shift(work: Work, tokens: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Shares by behaviour, position, class and variety."""
    yield from all_rows(tokens, work.settings.positions)


def controls(work: Work) -> Iterator[dict[str, Any]]:
    """The same where the answer is known, and where it should be another.

    `same_model`: the aligned model's answers in itself. `base_answers`: base's in itself.
    `reversed`: base's answers in the aligned model. `shuffled_prompts`: the aligned model's answers
    in base, which sees another request.
    """
    both = [("same_model", work.aligned, work.own), ("base_answers", work.base, work.bases)]
    for control, speaker, answered in both:
        if len(answered.rows):
            yield from _told(work.compare(speaker, speaker, answered), control)
    if len(work.bases.rows):
        frame = work.compare(work.base, work.aligned, work.bases)
        yield from _told(frame, "reversed")
    order = others(work, work.own)
    if order is not None:
        shown = work.shown(work.own)
        frame = work.compare(work.aligned, work.base, work.own, [shown[i] for i in order])
        yield from _told(frame, "shuffled_prompts")
        for behaviour, own in by_behaviour(frame):
            told = {"behaviour": behaviour, "control": "shuffled_prompts"}
            yield from position_rows(own, work.settings.positions, **told)


def _told(frame: pd.DataFrame, control: str) -> Iterator[dict[str, Any]]:
    for behaviour, own in by_behaviour(frame):
        yield from share_rows(own, behaviour=behaviour, control=control)


def others(work: Work, answered: Answered) -> np.ndarray | None:
    """For each request another of its behaviour and of another group; None where there is none."""
    groups = work.column("group", answered.rows)
    behaviours = work.column("behaviour", answered.rows)
    rng = np.random.default_rng([work.settings.seed, 31])
    order = np.full(len(groups), -1)
    for at in rng.permutation(len(groups)):
        free = np.flatnonzero((groups != groups[at]) & (behaviours == behaviours[at]))
        if not len(free):
            return None
        order[at] = rng.choice(free)
    return order


def in_context(work: Work) -> Iterator[dict[str, Any]]:
    """How near base comes to the aligned model when it is shown examples, of either kind."""
    yield from _refusals(work, work.own.answers)
    texts = [str(text) for text in work.column("text", work.own.rows)]
    counts = sorted({0, *work.settings.shots})
    none: pd.DataFrame | None = None
    for kind in KINDS:
        for count in counts:
            if count == 0 and kind != CAREFUL:
                continue  # without examples the two are one
            told = {
                "edit": f"examples({kind}, {count})",
                "control": "" if kind == CAREFUL else "plain_examples",
            }
            shown = [work.prompter.shown(text, kind, count) for text in texts]
            frame = work.compare(work.aligned, work.base, work.own, shown)
            for behaviour, own in by_behaviour(frame):
                yield from share_rows(own, behaviour=behaviour, **told)
                yield from position_rows(own, 1, behaviour=behaviour, **told)
            said = work.base.model.generate_ids(shown, max_new_tokens=work.settings.new_tokens)
            yield from _refusals(work, said, **told)
            none = frame if none is None else none
            if count:
                yield from _nearer(none, frame, **told)


def _nearer(before: pd.DataFrame, after: pd.DataFrame, **told: Any) -> Iterator[dict[str, Any]]:
    """Change of the divergence against no examples, answer by answer."""
    change = after.assign(change=after["kl"] - before["kl"])
    for behaviour, own in by_behaviour(change):
        means = own.groupby(["text", "group"])["change"].mean()
        owners = means.index.get_level_values("group").to_numpy()
        found = cluster_mean(means.to_numpy(), owners, null=0.0, unit="nats")
        yield row("shift_kl_change", found, behaviour=behaviour, **told)


def _refusals(
    work: Work, answers: Sequence[Sequence[int]], **told: Any
) -> Iterator[dict[str, Any]]:
    tokenizer = work.aligned.model.tokenizer
    flags = [is_refusal(tokenizer.decode(a, skip_special_tokens=True)) for a in answers]
    frame = pd.DataFrame(
        {
            "behaviour": work.column("behaviour", work.own.rows),
            "group": work.column("group", work.own.rows),
            "refused": np.asarray(flags, dtype=float),
        }
    )
    for behaviour, own in by_behaviour(frame):
        found = cluster_mean(own["refused"], own["group"], bounds=(0, 1), unit="share of requests")
        yield row("refusal_rate", found, behaviour=behaviour, **told)
