"""What restoring found, in sentences and figures."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from experiments.figures.look import figure
from experiments.figures.restoring import RULES
from experiments.job import Report
from experiments.restore.stages import BLOCKS, ENDS, FULL, RESTORED
from experiments.restore.work import Work

_MOST = 0.1  # share of the weights that restoring may take to hold


def report(work: Work, results: pd.DataFrame) -> Report:
    """The report of a finished run."""
    from experiments import figures

    s, m = work.settings, work.material
    first = m.prompts[0]
    told = [*sentences(results, work)]
    if s.save:
        told.append("`model/` holds the model restored by the first draw, an ordinary folder.")
    drawn = {
        "restoring": ("Harmful rate against the task", figures.chart_restoring(results)),
        "restored_weights": (
            "Where the restored weights lie",
            figures.chart_restored_weights(results),
        ),
    }
    beside = {}
    if len(work.changes):
        told.append(
            "`before_after.parquet` holds what else differs between the model and the one restored "
            "by the first draw, as `isogloss run diff` measures it."
        )
        drawn["before_after"] = ("Before and after", figures.chart_before_after(work.changes))
        beside["before_after.parquet"] = work.changes
    return Report(
        title=f"{s.model}: refusals restored from {s.aligned}",
        about=(
            f"{len(first.harmful.texts)} harmful requests to restore by and "
            f"{len(first.harmful_check.texts)} others to stop by, in each of {s.draws} draws; "
            f"judged on {len(m.harmful.texts)} held-out harmful and {len(m.harmless.texts)} "
            f"harmless requests and {len(m.task.texts)} of the task ({m.about}). Intervals are 95% "
            "over groups of requests."
        ),
        findings=told,
        figures=drawn,
        beside=beside,
        method=[
            f"Harmful direction: mean last-token state over the harmful requests after block "
            f"{work.scope.layer - 1} (E = {work.scope.layer}) of the aligned model. A step takes "
            f"the gradient of -cos(mean state of {s.batch} prompts, that direction), summed over "
            f"the prompts; of the weights below E whose sign of F - A is that of the gradient, the "
            f"{s.share:.2%} of all weights with the largest gradient take A's values. Norms stay.",
            f"It stops at the first step at which the requests to stop by are unrefused at most "
            f"{s.tolerance:g} more often than by the aligned model. If the task's likelihood per "
            f"token falls by more than {s.task_fall:.0%} from step {s.warm_up} on, it begins anew "
            f"with rollback: of the weights just restored, the {s.rollback_share:.0%} go back "
            "whose return most lowers -cos(mean state on the task, the drifted model's own).",
            "Harmful rate: the share of harmful requests that are not refused, greedily decoded. "
            "Task change: exp(-rise of nats per token of the task's replies) - 1.",
            "Controls restore as many weights below E in as many steps: any that differ, any whose "
            "sign matches the gradient's, those that differ most. Their curves and the method's "
            "run through all steps without stopping or rollback.",
        ],
        caveats=[
            "Refusals are recognised by their words.",
            "Draws change the prompts, not the models: their spread says nothing of other "
            "fine-tunings.",
            "A fall of the cosine says that states return, not that refusals do; read the counted "
            "replies.",
            "Random restoration works too once enough of the weights are back, since all of them "
            "are the aligned model: compare at the same share.",
        ],
        left_out=work.left_out if s.corpus else (),
    )


def sentences(results: pd.DataFrame, work: Work) -> Iterator[str]:
    """One plain sentence for each finding."""

    def one(measure: str, edit: str, control: str = "") -> pd.Series:
        found = results[
            (results["measure"] == measure)
            & (results["edit"] == edit)
            & (results["control"] == control)
        ]
        return found.iloc[0]

    def drawn(measure: str) -> pd.DataFrame:
        return results[
            (results["measure"] == measure)
            & (results["edit"] == RESTORED)
            & (results["control"] == "")
        ].sort_values("seed")

    s = work.settings
    shares, steps = drawn("restored_share")["value"], drawn("restored_steps")
    count = _range([f"{v:.2%}" for v in shares])
    taken = _range([f"{v:.0f}" for v in steps["value"]])
    why = ", ".join(dict.fromkeys(steps["reference"]))
    rolled = int(drawn("restored_rollback")["value"].sum())
    unit = "step" if taken == "1" else "steps"
    yield (
        f"Restoring {count} of the weights ({taken} {unit}; stopped by {why}; rollback in {rolled} "
        f"of {s.draws} draws) takes the harmful rate from {figure(one('harmful_rate', ''))} to "
        f"{figure(one('harmful_rate', RESTORED))}; the aligned model's is "
        f"{figure(one('harmful_rate', ENDS, FULL))}, a difference of "
        f"{figure(one('harmful_rate_difference', RESTORED), signed=True)}."
    )
    task = [f"its likelihood per token changes by {_percent(one('task_change', RESTORED))}"]
    if work.material.exact:
        task.append(
            f"replies are right word for word in {figure(one('task_exact', RESTORED))} instead of "
            f"{figure(one('task_exact', ''))}"
        )
    task.append(
        f"harmless requests are refused in {figure(one('refusal_rate', RESTORED))} instead of "
        f"{figure(one('refusal_rate', ''))}"
    )
    yield f"The task: {'; '.join(task)}."
    for control in (c for c in RULES if c):
        yield (
            f"As many weights chosen by {RULES[control]}: harmful rate "
            f"{figure(one('harmful_rate', RESTORED, control))}, "
            f"{figure(one('harmful_rate_difference', RESTORED, control), signed=True)} above the "
            f"method's; task {_percent(one('task_change', RESTORED, control))}."
        )
    for control, name in (
        (FULL, "All weights, which is the aligned model"),
        (BLOCKS, "All below E"),
    ):
        yield (
            f"{name} ({one('restored_share', ENDS, control)['value']:.0%}): harmful rate "
            f"{figure(one('harmful_rate', ENDS, control))}, task "
            f"{_percent(one('task_change', ENDS, control))}."
        )
    yield _lie(results)
    yield _verdict(
        float(one("harmful_rate_difference", RESTORED)["value"]),
        float(one("task_change", RESTORED)["value"]),
        float(shares.max()),
        one("harmful_rate_difference", RESTORED, "random_restoration"),
        work,
    )


def _lie(results: pd.DataFrame) -> str:
    rows = results[results["measure"] == "restored_weights"]
    top = rows.sort_values("value", ascending=False).head(3)
    said = ", ".join(
        f"{r['reference']}{f' of block {r.layer}' if r['layer'] >= 0 else ''} ({r['value']:.1%})"
        for _, r in top.iterrows()
    )
    return f"Restored most, as a share of their own weights: {said}."


def _verdict(gap: float, task: float, share: float, chance: pd.Series, work: Work) -> str:
    s = work.settings
    parts = {
        f"within {s.tolerance:.0%} of the aligned model's harmful rate": gap <= s.tolerance,
        f"at most {s.task_fall:.0%} of the task lost": task >= -s.task_fall,
        f"under {_MOST:.0%} of the weights": share < _MOST,
        "random restoration of as many does not do it": bool(chance["low"] > 0),
    }
    failed = [name for name, holds in parts.items() if not holds]
    if failed:
        return f"The claim fails here: not {'; not '.join(failed)}."
    return f"The claim holds here: {'; '.join(parts)}."


def _percent(row: pd.Series) -> str:
    return f"{row['value']:+.1%} [{row['low']:+.1%}, {row['high']:+.1%}]"


def _range(said: list[str]) -> str:
    kept = list(dict.fromkeys(sorted(said)))
    return kept[0] if len(kept) == 1 else f"{kept[0]} to {kept[-1]}"
