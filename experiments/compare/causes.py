"""What follows when a subspace or a direction is taken out of a running model, or put in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from activations import layer_of
from evidence import Estimate, cluster_mean
from experiments.compare.bench import Bench, averaged
from experiments.compare.directions import harmful_direction, request_rows
from experiments.compare.subspaces import pair_up, variety_subspace
from experiments.inputs import Rows
from experiments.results import row
from geometry import Subspace, random_subspace
from interventions import ablate, add, is_refusal, replies_to

_SEARCHED = 4  # sites tried for the addition, evenly spaced over depth


def answer(bench: Bench) -> Iterator[dict[str, Any]]:
    """What the plain model does with each request; `position` is the request's row."""
    if not bench.inputs.corpus.has_behaviours:
        return
    for train in (True, False):
        rows = np.concatenate(request_rows(bench, train=train))
        for number, refused in zip(rows, _refusals(bench, rows), strict=True):
            yield row("refused", float(refused), position=int(number), unit="0 or 1")


def remove_varieties(bench: Bench, *, progress: bool) -> Iterator[dict[str, Any]]:
    """Loss on held-out sentences of each variety, plain and without each variety's subspace.

    The subspaces come from the train groups' states averaged over tokens, since the edit acts
    at every token (one estimated at the last token alone sets the others far off their course).
    They are set to the standard's mean at every block output, at every token but the first.
    Random subspaces of the same size stand beside them.
    """
    if not bench.inputs.corpus.has_varieties:
        return
    rows = _held_out(bench)
    if not len(rows):
        return
    bench = averaged(bench, progress=progress)
    plain = _losses(bench, rows)
    yield from _loss_rows(bench, rows, plain, None, "", "")
    edits = [(v, "", _variety_edit(bench, v)) for v in bench.inputs.dialects]
    edits += [("", "random_subspace", e) for e in _random_edits(bench)]
    drawn = []
    for variety, control, edit in tqdm(edits, desc="ablate varieties", disable=not progress):
        with bench.model.edited(edit):
            changed = _losses(bench, rows)
        if control:
            drawn.append(changed)
        else:
            name = f"ablate(variety:{variety})"
            yield from _loss_rows(bench, rows, changed, plain, name, "")
    pooled = tuple(np.mean([d[i] for d in drawn], axis=0) for i in (0, 1))
    yield from _loss_rows(bench, rows, pooled, plain, "ablate(variety:random)", "random_subspace")


def remove_and_add_refusal(bench: Bench, *, progress: bool) -> Iterator[dict[str, Any]]:
    """Refusal rate on held-out requests under each change to the refusal direction."""
    if not bench.inputs.corpus.has_behaviours:
        return
    sites = [s for s in bench.sites if s != bench.model.embedding_site]
    found = {s: harmful_direction(bench, s) for s in sites}
    tasks: list[tuple[str, str, Any]] = [("", "", None)]
    tasks.append(("ablate(refusal)", "", ablate(found, name="ablate(refusal)")))
    zero = ablate(found, to="zero", name="ablate_to_zero(refusal)")
    tasks.append(("ablate_to_zero(refusal)", "", zero))
    site, scale = _best_addition(bench, found)
    tasks.append(("add(refusal)", "", add({site: found[site]}, scale=scale, name="add(refusal)")))
    for draw in range(bench.settings.ablation_controls):
        chance = {s: _random_like(bench, d, draw) for s, d in found.items()}
        tasks.append(("ablate(refusal)", "random_subspace", ablate(chance, name="ablate(random)")))
        pushed = add({site: chance[site]}, scale=scale, name="add(random)")
        tasks.append(("add(refusal)", "random_subspace", pushed))
    yield from _refusal_rows(bench, tasks, site, progress=progress)
    yield row(
        "addition_scale",
        scale,
        edit="add(refusal)",
        site=site,
        layer=layer_of(site),
        unit="differences in means",
    )


def _refusal_rows(
    bench: Bench, tasks: Sequence[tuple[str, str, Any]], site: str, *, progress: bool
) -> Iterator[dict[str, Any]]:
    """Random draws of one edit are pooled: each request then counts by its share of refusals."""
    harmful, harmless = request_rows(bench, train=False)
    sides: dict[str, Rows] = {"harmful": harmful, "harmless": harmless}
    frame = bench.inputs.corpus.frame
    flags: dict[tuple[str, str, str], list[np.ndarray]] = {}
    for name, control, edit in tqdm(tasks, desc="refusal", disable=not progress):
        for behaviour, rows in sides.items():
            if edit is None:
                refused = np.array([bench.answers[int(r)] for r in rows], dtype=float)
            else:
                with bench.model.edited(edit):
                    refused = _refusals(bench, rows).astype(float)
            flags.setdefault((name, control, behaviour), []).append(refused)
    for (name, control, behaviour), drawn in flags.items():
        rows = sides[behaviour]
        estimate = cluster_mean(
            np.mean(drawn, axis=0), frame["group"].to_numpy()[rows], bounds=(0, 1)
        )
        place = {"site": site, "layer": layer_of(site)} if name.startswith("add") else {}
        yield row(
            "refusal_rate",
            estimate,
            behaviour=behaviour,
            edit=name,
            control=control,
            unit="share of requests",
            **place,
        )


def _best_addition(bench: Bench, found: dict[str, Subspace]) -> tuple[str, float]:
    """Site and scale at which adding the direction makes most harmless *train* requests refused.

    The smallest scale wins a tie: a larger one tends to break the reply.
    """
    _, harmless = request_rows(bench, train=True)
    rows = harmless[: max(8, len(harmless) // 4)]
    rates = {}
    for scale in sorted(bench.settings.add_scales):
        for site in _spread(list(found), _SEARCHED):
            with bench.model.edited(add({site: found[site]}, scale=scale, name="add(refusal)")):
                rates[site, scale] = _refusals(bench, rows).mean()
    return max(rates, key=lambda place: rates[place])


def _refusals(bench: Bench, rows: Rows) -> np.ndarray:
    texts = bench.inputs.corpus.frame["text"]
    prompts = [texts.iloc[int(r)] for r in rows]
    replies = replies_to(bench.model, prompts, max_new_tokens=bench.settings.new_tokens)
    return np.array([is_refusal(reply) for reply in replies], dtype=bool)


def _random_like(bench: Bench, direction: Subspace, draw: int) -> Subspace:
    """A random direction with the same mean and the same length."""
    seed = [bench.settings.seed, 7, draw]
    rng = np.random.default_rng([*seed, max(layer_of(direction.site), 0)])
    chance = random_subspace(direction.d, 1, seed=int(rng.integers(2**31)), mean=direction.mean)
    return Subspace(chance.basis, direction.mean, direction.singular_values, site=direction.site)


def _variety_edit(bench: Bench, variety: str) -> Any:
    spaces = {s: _removed(bench, s, variety) for s in bench.block_sites}
    return ablate(spaces, positions=_after_first(bench), name=f"ablate(variety:{variety})")


def _after_first(bench: Bench) -> range:
    """Every position but the first, whose state is a resting place of attention, not language."""
    texts = bench.inputs.corpus.frame["text"].iloc[_held_out(bench)]
    return range(1, max(len(bench.model.encode(text)) for text in texts))


def _removed(bench: Bench, site: str, variety: str) -> Subspace:
    k = bench.settings.removal_k
    return variety_subspace(bench, site, variety, k=k, train_only=True)


def _random_edits(bench: Bench) -> Iterator[Any]:
    """Random subspaces of the varieties' size through the standard's mean."""
    like = {s: _removed(bench, s, bench.inputs.dialects[0]) for s in bench.block_sites}
    for draw in range(bench.settings.ablation_controls):
        rng = np.random.default_rng([bench.settings.seed, 8, draw])
        yield ablate(
            {
                s: random_subspace(m.d, m.k, seed=int(rng.integers(2**31)), mean=m.mean)
                for s, m in like.items()
            },
            positions=_after_first(bench),
            name="ablate(random)",
        )


def _held_out(bench: Bench) -> Rows:
    """Rows of the test groups that every variety has, at most `loss_groups` groups."""
    pairing = pair_up(bench)
    kept = ~bench.inputs.train[pairing.rows[bench.inputs.standard]]
    columns = [r[kept][: bench.settings.loss_groups] for r in pairing.rows.values()]
    return np.concatenate(columns) if columns else np.array([], dtype=int)


def _losses(bench: Bench, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    texts = bench.inputs.corpus.frame["text"].iloc[rows].tolist()
    return bench.model.losses(texts)


def _loss_rows(
    bench: Bench,
    rows: Rows,
    found: tuple[np.ndarray, ...],
    plain: tuple[np.ndarray, ...] | None,
    edit: str,
    control: str,
) -> Iterator[dict[str, Any]]:
    """Mean loss a token by variety; against `plain` also the paired change."""
    frame = bench.inputs.corpus.frame.iloc[rows]
    variety, group = frame["variety"].to_numpy(), frame["group"].to_numpy()
    for name in dict.fromkeys(variety):
        at = variety == name
        per_token = found[0][at] / found[1][at]
        told = {"variety": name, "edit": edit, "control": control, "unit": "nats per token"}
        yield row("loss", cluster_mean(per_token, group[at]), **told)
        if plain is not None:
            change = per_token - plain[0][at] / plain[1][at]
            yield row("loss_change", cluster_mean(change, group[at]), **told)


def _spread(sites: list[str], most: int) -> list[str]:
    """At most `most` of the sites, evenly spaced, the last among them."""
    if len(sites) <= most:
        return sites
    return [sites[i] for i in np.linspace(0, len(sites) - 1, most).round().astype(int)]


def patch(bench: Bench, *, progress: bool) -> Iterator[dict[str, Any]]:
    """Standard states put into dialect runs, by layer and position: the share of the gap closed."""
    from interventions import patch_sweep

    if not bench.inputs.corpus.has_varieties or bench.settings.patch_pairs == 0:
        return
    texts = bench.inputs.corpus.frame["text"]
    sites = _spread(bench.block_sites, bench.settings.patch_layers)
    for variety in bench.inputs.dialects:
        pairing = pair_up(bench, (variety,))
        own, other = pairing.rows[variety], pairing.rows[bench.inputs.standard]
        length = texts.iloc[own].str.len().to_numpy()
        chosen = np.argsort(length, kind="stable")[: bench.settings.patch_pairs]
        pairs = [(texts.iloc[int(own[i])], texts.iloc[int(other[i])]) for i in chosen]
        pairs = [(base, source) for base, source in pairs if base != source]
        if not pairs:
            continue
        sweep = patch_sweep(
            bench.model,
            pairs,
            sites=sites,
            max_positions=bench.settings.patch_positions,
            progress=progress,
        )
        for cell in sweep.summary.itertuples():
            n = int(cell.n)
            estimate = Estimate(float(cell.value), float(cell.low), float(cell.high), n=n)
            yield row(
                "recovered_fraction",
                estimate,
                site=str(cell.site),
                layer=int(cell.layer),
                position=int(cell.position),
                variety=variety,
                reference=bench.inputs.standard,
                edit=f"patch({bench.inputs.standard}→{variety})",
                unit="share of the gap in KL",
            )
