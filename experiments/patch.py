"""Which states carry the difference between varieties: patching by layer, position and head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from evidence import Estimate
from experiments.inputs import Inputs
from experiments.job import conduct, say
from experiments.results import row
from experiments.runner import Run
from experiments.settings import ConfigError, CorpusSettings

if TYPE_CHECKING:
    from activations import Model

_UNIT = "share of the gap in KL"


class PatchSettings(CorpusSettings):
    """Settings of `isogloss run patch`."""

    varieties: list[str] = Field(default=[], description="dialects to patch; all if empty")
    way: Literal["denoise", "noise", "both"] = Field(
        default="both",
        description="denoise: the standard's states into dialect runs; noise: the other way",
    )
    pairs: int = Field(
        default=8, ge=2, description="groups of parallel sentences, the same for all"
    )
    positions: int = Field(
        default=16, ge=1, description="segments that a text is taken in, at most"
    )
    heads: bool = Field(default=False, description="patch each attention head too")
    shuffled: bool = Field(
        default=True, description="patch from other groups' sentences as control"
    )


@dataclass(frozen=True)
class Work:
    """What is patched: `pairs[variety]` are (group, dialect's text, standard's text)."""

    settings: PatchSettings
    inputs: Inputs
    model: Model
    sites: list[str]
    pairs: dict[str, list[tuple[str, str, str]]]
    left_out: tuple[str, ...]

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways asked for, sufficiency first."""
        return ("denoise", "noise") if self.settings.way == "both" else (self.settings.way,)


def run_patch(
    settings: PatchSettings, *, out: str | Path | None = None, progress: bool = True
) -> Run:
    """Patch states between a corpus's standard and its dialects; write the run directory.

    Raises:
        CorpusError, ConfigError, ModelError, SiteError: bad input, in one sentence.
    """
    from experiments.patch_report import report

    return conduct(
        "patch",
        settings,
        out=out,
        progress=progress,
        prepare=lambda inputs, model: prepare(settings, inputs, model),
        measure=lambda work, run: _measure(work, run, progress=progress),
        report=report,
    )


def prepare(settings: PatchSettings, inputs: Inputs, model: Model) -> Work:
    """Choose the pairs: the same groups for every dialect as far as they have them.

    Raises:
        ConfigError: no varieties, an unknown dialect, heads where the model has none, or fewer
            than two pairs of different texts.
    """
    if not inputs.corpus.has_varieties:
        raise ConfigError(
            "The corpus holds fewer than two varieties, so there is nothing to patch."
        )
    wanted = settings.varieties or list(inputs.dialects)
    unknown = [v for v in wanted if v not in inputs.dialects]
    if unknown:
        raise ConfigError(
            f"Setting 'varieties': {unknown[0]!r} is no dialect of the corpus, which has "
            f"{', '.join(inputs.dialects)}."
        )
    sites = model.resolve_sites(settings.sites, layers=settings.layers or None)
    if settings.heads:
        model.resolve_sites("z", layers=settings.layers or None)
    left_out = list(inputs.left_out)
    pairs = {}
    for variety in wanted:
        found = parallel(inputs, variety, settings.pairs, settings.seed)
        if len(found) < 2:
            left_out.append(
                f"{variety} has fewer than two sentences that differ from the standard."
            )
        else:
            pairs[variety] = found
    if not pairs:
        raise ConfigError(
            "No dialect has two sentences that differ from the standard's, so there is no gap."
        )
    # That no behaviour question is asked is no news here: none was.
    said = tuple(s for s in left_out if "behaviour" not in s)
    return Work(settings, inputs, model, sites, pairs, said)


def parallel(inputs: Inputs, variety: str, most: int, seed: int) -> list[tuple[str, str, str]]:
    """(group, dialect's text, standard's text) of `most` groups drawn by the seed."""
    frame = inputs.corpus.frame.iloc[inputs.variety_rows]
    table = frame.pivot_table(index="group", columns="variety", values="text", aggfunc="first")
    table = table[[variety, inputs.standard]].dropna()
    table = table[table[variety] != table[inputs.standard]]
    # One order for all dialects, so that they are compared on the same sentences.
    order = np.random.default_rng(seed).permutation(sorted(frame["group"].unique()))
    chosen = [group for group in order if group in table.index][:most]
    return [(str(g), table.loc[g, variety], table.loc[g, inputs.standard]) for g in chosen]


def _measure(work: Work, run: Run, *, progress: bool) -> list[pd.DataFrame]:
    frames = []
    for way in work.ways:
        told = {"denoise": "standard into dialects", "noise": "dialects into standard"}[way]
        say(progress, f"Patching {told}")
        frames.append(run.stage(way, lambda way=way: _way(work, run, way, progress=progress)))
        if work.settings.heads:
            name = f"heads-{way}"
            frames.append(
                run.stage(name, lambda way=way: _heads(work, run, way, progress=progress))
            )
    return frames


def _way(work: Work, run: Run, way: str, *, progress: bool) -> Iterator[dict[str, Any]]:
    """Rows of one way: each dialect's map, all dialects pooled, and the same from other groups."""
    for control in ("", "shuffled_pairs") if work.settings.shuffled else ("",):
        cells, groups, varieties = _sweep(
            work,
            way,
            shuffled=bool(control),
            sites=work.sites,
            max_positions=work.settings.positions,
            store=run.path / "stages" / "sweeps" / f"{way}-{control or 'own'}",
            progress=progress,
        )
        whose = varieties[cells["pair"].to_numpy()]
        for variety in work.pairs:
            own = cells[whose == variety]
            yield from _rows(work, own, groups, way, variety, control, "recovered_fraction")
        yield from _rows(work, cells, groups, way, "", control, "recovered_fraction_pooled")
        if not control:
            yield from _best(work, cells, groups, way)


def _heads(work: Work, run: Run, way: str, *, progress: bool) -> Iterator[dict[str, Any]]:
    """Rows of each head, patched at all positions together; `position` counts the heads."""
    cells, groups, _ = _sweep(
        work,
        way,
        shuffled=False,
        sites=work.model.resolve_sites("z", layers=work.settings.layers or None),
        heads=True,
        max_positions=1,
        store=run.path / "stages" / "sweeps" / f"heads-{way}",
        progress=progress,
    )
    # The one segment is the whole text; the head takes the place of the position.
    cells = cells.assign(position=cells["head"], head=-1)
    yield from _rows(work, cells, groups, way, "", "", "head_recovered_fraction")


def _sweep(
    work: Work, way: str, *, shuffled: bool, **options: Any
) -> tuple[pd.DataFrame, list[str], np.ndarray]:
    """The cells of all pairs one way, with the group and the dialect of each pair.

    The run that is patched is the pair's base. Shuffled, the states come from the source of another
    pair of the same dialect, and the gap is still that to the pair's own source: what any sentence
    of the source's variety would close.
    """
    from interventions import patch_sweep
    from interventions.readings import KLFromSource

    texts, own_sources, groups, varieties = [], [], [], []
    for variety, pairs in work.pairs.items():
        ends = [(own, other) if way == "denoise" else (other, own) for _, own, other in pairs]
        for i, (base, source) in enumerate(ends):
            texts.append((base, ends[i - 1][1] if shuffled else source))
            own_sources.append(source)
        groups += [group for group, *_ in pairs]
        varieties += [variety] * len(pairs)
    metric = _kl_from_own(work.model, own_sources) if shuffled else KLFromSource()
    found = patch_sweep(work.model, texts, metric=metric, seed=work.settings.seed, **options)
    # A run that predicts as the own source's does has KL 0 to it, whoever gave the states.
    return found.frame.assign(source=0.0), groups, np.array(varieties, dtype=object)


def _kl_from_own(model: Model, sources: Sequence[str]) -> Any:
    """KL from each pair's own source run, in nats, whatever run the states come from."""
    from interventions.readings import KLFromSource, Reading, kl_from_source

    # One at a time: the logits of all tokens of many texts are large, and only the last is kept.
    ends = [model.logits(*model.pad([model.encode(text)]))[0, -1].clone() for text in sources]

    class KLFromOwn(KLFromSource):
        name = "kl_from_own"

        def reading(self, model: Model, pair: int) -> Reading:
            own = ends[pair]
            return Reading(lambda run, source, base: kl_from_source(run[:, 0], own, base[0]))

    return KLFromOwn()


def _rows(
    work: Work,
    cells: pd.DataFrame,
    groups: Sequence[str],
    way: str,
    variety: str,
    control: str,
    measure: str,
) -> Iterator[dict[str, Any]]:
    from interventions.patching import summarise

    for cell in summarise(cells, groups, seed=work.settings.seed).itertuples():
        yield row(
            measure,
            Estimate(
                float(cell.value),  # type: ignore[arg-type]
                float(cell.low),  # type: ignore[arg-type]
                float(cell.high),  # type: ignore[arg-type]
                n=int(cell.n),  # type: ignore[arg-type]
                seed=work.settings.seed,
            ),
            site=str(cell.site),
            layer=int(cell.layer),  # type: ignore[arg-type]
            position=int(cell.position),  # type: ignore[arg-type]
            control=control,
            unit=_UNIT,
            **_sides(work, way, variety),
        )


def _sides(work: Work, way: str, variety: str) -> dict[str, str]:
    """Whose run is patched, and whose states go in; `dialects` where they are pooled."""
    standard, dialect = work.inputs.standard, variety or "dialects"
    base, source = (dialect, standard) if way == "denoise" else (standard, dialect)
    return {"variety": base, "reference": source, "edit": f"patch({source}→{base})"}


def _best(
    work: Work, pooled: pd.DataFrame, groups: Sequence[str], way: str
) -> Iterator[dict[str, Any]]:
    """The best cell before the last token, chosen on half of the groups, told on the others."""
    from interventions.patching import summarise

    names = sorted(set(groups))
    chosen_on = set(names[::2])
    own = np.array(groups, dtype=object)[pooled["pair"].to_numpy()]
    first = np.isin(own, list(chosen_on)) & (pooled["position"].to_numpy() > 0)
    if not first.any():
        return
    table = summarise(pooled[first], groups, seed=work.settings.seed)
    best = table.loc[table["value"].idxmax()]
    there = (pooled["site"] == best["site"]) & (pooled["position"] == best["position"])
    rest = pooled[there.to_numpy() & ~np.isin(own, list(chosen_on))]
    if len(rest):
        yield from _rows(work, rest, groups, way, "", "", "recovered_fraction_best")
