"""What the fine-tunes say together: differences to plain, paired by seed, with their intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from evidence import Estimate, EvidenceError, benjamini_hochberg
from experiments.decouple.arms import PLAIN, RIVALS
from experiments.results import as_frame, row

#: What a fine-tune is judged by, and the unit of its change.
JUDGED = {
    "dialect_loss": "nats/token",
    "standard_loss": "nats/token",
    "chrf": "points",
    "bleu": "points",
}


def paired_over_seeds(
    one: Float[np.ndarray, " seeds"], other: Float[np.ndarray, " seeds"], *, unit: str = ""
) -> Estimate:
    """Mean of `one - other` over seeds, with Student's t on the differences; n counts seeds.

    The held-out groups are the same for every seed, so the interval is about other fine-tunes
    judged on these groups, not about other groups.

    Raises:
        EvidenceError: not as many of the one as of the other, or fewer than two.
    """
    difference = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    n = len(difference)
    if n < 2:
        raise EvidenceError(f"There is {n} seed: an interval over seeds needs at least 2.")
    value = float(difference.mean())
    error = float(difference.std(ddof=1)) / np.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    if error > 0:
        p = float(2 * stats.t.sf(abs(value) / error, n - 1))
    else:
        p = 1.0 if value == 0 else float("nan")
    return Estimate(
        value,
        value - half,
        value + half,
        n=n,
        null=0.0,
        p=p,
        unit=unit,
        method="t on differences paired by seed",
    )


def compared(cells: pd.DataFrame) -> pd.DataFrame:
    """Rows of change against plain, and of each arm against its controls, from the seeds' rows.

    `MEASURE_change` is an arm less plain fine-tuning; `MEASURE_specific` the measurement less the
    control that its row names. The p-values of one measure, over all arms and dialects, are
    adjusted together (Benjamini and Hochberg 1995), those of controls apart from the others.
    """
    frame = as_frame(_differences(cells))
    kind = frame["measure"] + np.where(frame["control"] == "", "", "|control")
    for _, at in frame.groupby(kind).groups.items():
        frame.loc[at, "p"] = benjamini_hochberg(frame.loc[at, "p"])
    return frame


def by_seed(cells: pd.DataFrame, measure: str) -> pd.DataFrame:
    """One line for each dialect, edit and control; one column for each seed."""
    own = cells[(cells["measure"] == measure) & (cells["seed"] >= 0) & (cells["edit"] != "")]
    return own.pivot_table(
        index=["variety", "edit", "control"], columns="seed", values="value", aggfunc="first"
    )


def _differences(cells: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for measure, unit in JUDGED.items():
        table = by_seed(cells, measure)
        for (variety, edit, control), values in table.iterrows():
            if edit == PLAIN:
                continue
            plain = table.loc[(variety, PLAIN, "")]
            told = {"variety": variety, "edit": edit, "control": control}
            found = paired_over_seeds(values.to_numpy(), plain.to_numpy(), unit=unit)
            yield row(f"{measure}_change", found, reference=PLAIN, **told)
            if control and (variety, edit, "") in table.index:
                own = table.loc[(variety, edit, "")]
                found = paired_over_seeds(own.to_numpy(), values.to_numpy(), unit=unit)
                yield row(f"{measure}_specific", found, reference=control, **told)


def verdict(results: pd.DataFrame, variety: str, edit: str) -> str:
    """`gain`, `unspecific gain`, `loss` or `none`, of an arm's effect on the dialect's loss.

    A gain is a change whose interval lies below zero with a corrected p under 0.05. It is specific
    where the arm also beats each control that was run beside it by an interval below zero.
    """
    own = results[(results["variety"] == variety) & (results["edit"] == edit)]
    change = own[(own["measure"] == "dialect_loss_change") & (own["control"] == "")].iloc[0]
    if not change["p"] < 0.05:
        return "none"
    if change["low"] > 0:
        return "loss"
    rivals = own[(own["measure"] == "dialect_loss_specific") & own["control"].isin(RIVALS)]
    if rivals.empty:
        return "uncontrolled gain"
    return "gain" if (rivals["high"] < 0).all() else "unspecific gain"
