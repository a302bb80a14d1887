"""What became of an aligned model's answers in its base model, in sentences and figures."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from experiments.figures.look import control, depths, figure, place, plain
from experiments.job import Report
from experiments.token_shift.deciding import why_not
from experiments.token_shift.job import PAGE, TOKENS
from experiments.token_shift.shift import KINDS
from experiments.token_shift.work import Work

#: Unshifted, marginal, shifted, as Lin et al. (2023) report for 1,000 examples.
PUBLISHED = {
    "Llama-2-7b to its chat model": "0.777 / 0.145 / 0.078",
    "Llama-2-7b to Vicuna-7b-v1.5": "0.824 / 0.128 / 0.048",
    "Mistral-7b to its instruct model": "0.822 / 0.125 / 0.052",
}


def report(work: Work, results: pd.DataFrame) -> Report:
    """The report of a finished run."""
    from experiments import figures

    settings = work.settings
    drawn = {
        "positions": ("Shift by position", figures.chart_shift_positions(results)),
        "kl": ("Divergence by position", figures.chart_shift_kl(results)),
        "classes": ("Shift by class of token", figures.chart_shift_classes(results)),
        "examples": ("Base shown examples", figures.chart_shift_examples(results)),
    }
    if (results["measure"] == "patched_top_share").any():
        drawn["layers"] = ("Where it is decided", figures.chart_shift_layers(results))
    skipped = why_not(work)
    if skipped is None and "layers" not in drawn:
        skipped = "Where tokens are decided was not asked: too few requests have moved tokens."
    seen = {
        "same": "Base sees the aligned model's own tokens, chat template included, as published.",
        "own": "Base sees requests in its own chat template.",
        "plain": "Base sees requests between plain marks, without a chat template.",
    }[settings.template]
    return Report(
        title=f"{settings.model}: what {settings.base} would not have written",
        about=(
            f"Greedy answers to {len(work.own.rows)} requests of the corpus "
            f"`{work.inputs.corpus.name}`, at most {settings.new_tokens} tokens each. {seen} "
            f"[Answers in context]({PAGE}), each token coloured by its rank in base; all tokens "
            f"are in `{TOKENS}`. Intervals are 95% over groups of requests."
        ),
        findings=[*sentences(results, work)],
        figures=drawn,
        method=[
            "A token is unshifted where base ranks it first on the same context, marginal at rank "
            "2 or 3, shifted beyond (Lin et al. 2023). Ranks count the tokens with a larger logit. "
            "The token that ends an answer is not counted. Shares are over all tokens pooled.",
            "`same_model`: the aligned model's answers in itself; `base_answers`: base's in base; "
            "`reversed`: base's answers in the aligned model; `shuffled_prompts`: the aligned "
            "model's answers in base, which sees another request of the same behaviour.",
            "Examples: constant, the same before every request, shown as "
            f"{'turns of the chat template' if work.prompter.in_chat else 'text between marks'}; "
            "`plain_examples` have the plain style. KL there is from the aligned model without "
            "examples to base with them, on the aligned model's answers.",
            f"Patching: before at most {settings.patched} tokens that base does not rank first, "
            "base's state of the last token is set to the aligned model's at one block's output. "
            "`other_prompt` takes its state from another request before another token, "
            "`random_step` goes as far from base's own state in a random direction. A token is "
            "decided at the first block from which on base ranks it first at that and every later "
            "one.",
        ],
        caveats=[
            "After the first shifted token base reads an answer that it would not have begun; "
            "what it ranks first later is given that beginning.",
            "A rank says nothing of how near the race was: the divergence stands beside it.",
            "One state is patched; what base's later blocks still read from earlier tokens is "
            "its own.",
            "Refusals are recognised by their words.",
        ],
        left_out=(*work.left_out, *([skipped] if skipped else [])),
    )


def sentences(results: pd.DataFrame, work: Work) -> Iterator[str]:
    """One plain sentence for each finding."""
    own = results[(results["edit"] == "") & (results["site"] == "") & (results["variety"] == "")]
    pooled = own[(own["reference"] == "") & (own["position"] < 0)]

    def shares(rows: pd.DataFrame, beside: str = "", behaviour: str = "") -> str:
        found = rows[(rows["control"] == beside) & (rows["behaviour"] == behaviour)]
        return " / ".join(
            figure(found[found["measure"] == f"{kind}_share"].iloc[0]) for kind in KINDS
        )

    published = "; ".join(f"{pair} {said}" for pair, said in PUBLISHED.items())
    yield (
        f"Of the tokens of {work.settings.model}'s answers, unshifted / marginal / shifted in "
        f"{work.settings.base}: {shares(pooled)}. For scale, published of large models on other "
        f"requests (not measured here): {published}."
    )
    sides = [b for b in ("harmful", "harmless") if (pooled["behaviour"] == b).any()]
    for side in sides:
        yield f"After {side} requests: {shares(pooled, behaviour=side)}."
    yield from _positions(own, sides)
    yield from _classes(own)
    yield from _controls(pooled, shares)
    yield from _examples(results, sides, work)
    yield from _layers(results)


def _positions(own: pd.DataFrame, sides: list[str]) -> Iterator[str]:
    kl = plain(own, "shift_kl")
    kl = kl[(kl["behaviour"] == "") & (kl["reference"] == "") & (kl["position"] >= 0)]
    kl = kl.sort_values("position")
    moved = plain(own, "unshifted_share")
    moved = moved[(moved["behaviour"] == "") & (moved["reference"] == "")]
    moved = moved[moved["position"] >= 0].sort_values("position")
    if len(kl) < 2:
        return
    # Few answers reach the last positions, and the largest of many uncertain figures says little.
    later = moved.iloc[1:][moved.iloc[1:]["n"] >= moved.iloc[0]["n"] / 2]
    if later.empty:
        return
    after = kl[kl["position"].isin(later["position"])]
    least = later.loc[later["value"].idxmin()]
    yield (
        f"By position: at the first token {1 - moved.iloc[0]['value']:.2f} are not unshifted and "
        f"the KL from the aligned model to base is {figure(kl.iloc[0])} nats; later the largest "
        f"share is {1 - least['value']:.2f}, at position {int(least['position'])}, and the largest "
        f"KL {after['value'].max():.2g} (of positions that half of the answers reach)."
    )
    for side in sides or [""]:
        falls = plain(own, "shift_fall")
        found = falls[falls["behaviour"] == side]
        if len(found):
            one = found.iloc[0]
            name = f"After {side} requests the" if side else "The"
            yield (
                f"{name} share that is not unshifted differs by {figure(one, signed=True)} between "
                f"the first and the second half of an answer (p = {one['p']:.2g})."
            )


def _classes(own: pd.DataFrame) -> Iterator[str]:
    moved = plain(own, "unshifted_share")
    moved = moved[(moved["behaviour"] == "") & (moved["reference"] != "")]
    if moved.empty:
        return
    told = [
        f"{r['reference']} {1 - r['value']:.2f} [{1 - r['high']:.2f}, {1 - r['low']:.2f}]"
        for _, r in moved.sort_values("value").iterrows()
    ]
    yield f"Not unshifted by class of token: {', '.join(told)}."


def _controls(pooled: pd.DataFrame, shares: object) -> Iterator[str]:
    names = {
        "same_model": "its own answers in itself",
        "base_answers": "base's in base",
        "reversed": "base's answers in the aligned model",
        "shuffled_prompts": "its answers in base after another request",
    }
    present = [c for c in names if (pooled["control"] == c).any()]
    if callable(shares) and present:
        told = "; ".join(f"{names[c]} {shares(pooled, c)}" for c in present)
        yield f"Controls, the same three shares: {told}."


def _examples(results: pd.DataFrame, sides: list[str], work: Work) -> Iterator[str]:
    most = max([0, *work.settings.shots])
    few = min((k for k in work.settings.shots if k > 0), default=0)
    if not few:
        return

    def one(measure: str, kind: str, count: int, side: str) -> pd.Series:
        rows = results[results["edit"] == f"examples({kind}, {count})"]
        rows = rows[(rows["measure"] == measure) & (rows["position"] < 0)]
        return rows[rows["behaviour"] == side].iloc[0]

    counts = [few, most] if most > few else [few]
    for kind in ("careful", "plain"):
        kl = ", ".join(f"{figure(one('shift_kl', kind, k, ''))} after {k}" for k in counts)
        refused = "; ".join(
            f"{side} requests {figure(one('refusal_rate', kind, most, side))}" for side in sides
        )
        change = one("shift_kl_change", kind, most, "")
        told = f" Refused then, of {refused}." if refused else ""
        yield (
            f"Base shown {kind} examples: KL {kl}, where it is "
            f"{figure(one('shift_kl', 'careful', 0, ''))} without any (change by answer at {most}: "
            f"{figure(change, signed=True)}, p = {change['p']:.2g}).{told}"
        )
    before = "; ".join(
        f"{side} {figure(one('refusal_rate', 'careful', 0, side))}" for side in sides
    )
    own = plain(results[results["edit"] == ""], "refusal_rate")
    theirs = "; ".join(f"{r['behaviour']} {figure(r)}" for _, r in own.iterrows() if r["behaviour"])
    if before and theirs:
        yield f"Refused without examples: by base {before}; by the aligned model {theirs}."


def _layers(results: pd.DataFrame) -> Iterator[str]:
    top = plain(results, "patched_top_share")
    if top.empty:
        return
    shifted = top[top["reference"] == KINDS[-1]]
    rows = shifted if len(shifted) else top[(top["behaviour"] == "") & (top["reference"] == "")]
    told = "shifted" if len(shifted) else "not unshifted"
    names = depths(top)
    half = rows[rows["value"] >= 0.5]
    last = rows.iloc[-1]
    if half.empty:
        yield (
            f"Put into base, the aligned model's states at no block make half of the tokens that "
            f"are {told} rank first; at the last one {figure(last)} do."
        )
        return
    first = half.iloc[0]
    where = place(names[first["site"]])
    sentence = (
        f"Of tokens that are {told}, base ranks {figure(first)} first once the aligned model's "
        f"state of the one token before is put in at {where}, the first place where half do, and "
        f"{figure(last)} at {place(names[last['site']])}"
    )
    beside = []
    for name, said in (
        ("other_prompt", "its state before another token"),
        ("random_step", "random steps as long"),
    ):
        found = control(results, "patched_top_share", name)
        found = found[(found["site"] == first["site"]) & (found["reference"] == first["reference"])]
        found = found[found["behaviour"] == ""]
        if len(found):
            beside.append(f"{said} {figure(found.iloc[0])}")
    yield sentence + (f"; at {where}, {', '.join(beside)}." if beside else ".")
    lens = results[(results["measure"] == "lens_top_share") & (results["site"] == first["site"])]
    lens = lens[(lens["reference"] == first["reference"]) & (lens["behaviour"] == "")]
    both = {r["control"]: figure(r) for _, r in lens.iterrows()}
    if {"", "base"} <= set(both):
        yield (
            f"Read at once there by the logit lens, the aligned model's own state gives "
            f"{both['']} of them rank 1, and base's {both['base']}."
        )
