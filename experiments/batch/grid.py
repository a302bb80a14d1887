"""The grid file: which runs a batch has. Every mistake in it is found before anything is run."""

from __future__ import annotations

import difflib
import itertools
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from experiments.registry import find
from experiments.settings import ConfigError, Settings


class Grid(BaseModel):
    """A grid file as it is written.

    Attributes:
        common: settings of every run that has them.
        grid: lists that multiply: `experiment`, `model`, `corpus`, `seed`, or any other setting.
        runs: further runs, one by one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    common: dict[str, Any] = {}
    grid: dict[str, Any] = {}
    runs: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Planned:
    """One run of a batch: an experiment and everything that it is told."""

    experiment: str
    settings: Settings

    @property
    def name(self) -> str:
        """Names the run below the batch's folder: the same settings always have the same name."""
        model = re.sub(r"[^\w.]+", "-", self.settings.model.rstrip("/")).strip("-.")[-40:]
        return f"{self.experiment}-{model}-{self.settings.digest()}"


@dataclass(frozen=True)
class _Asked:
    """What a grid says of one run: where, and the values there; `shared` if a list gave them."""

    where: str
    own: Mapping[str, Any]
    shared: bool


def read_grid(path: str | Path) -> Grid:
    """The grid in a TOML file.

    Raises:
        ConfigError: no such file, broken TOML, or tables that a grid does not have.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"There is no grid file {file}.")
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}.") from None
    for key in values:
        if key not in Grid.model_fields:
            raise ConfigError(
                f"{file} has {key!r} outside the tables [common], [grid] and [[runs]]: settings of "
                "every run go into [common]."
            )
    try:
        return Grid(**values)
    except ValidationError as error:
        table = str(error.errors()[0]["loc"][0])
        form = "[[runs]], one table for each run" if table == "runs" else f"a table, [{table}]"
        raise ConfigError(f"{file}: {table!r} must be {form}.") from None


def plan(grid: Grid) -> list[Planned]:
    """All runs of a grid, each once, in the order of the file.

    The lists of `[grid]` multiply, the last one fastest. A setting of `[common]` or `[grid]` goes
    to the experiments that have it, so that several experiments share a grid; one that no
    experiment of the batch has is refused.

    Raises:
        ConfigError: what is wrong, with the run where it is.
    """
    common = _flat(grid.common, "[common]")
    axes = {key: _axis(key, value) for key, value in _flat(grid.grid, "[grid]").items()}
    combinations = [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]
    asked = [_Asked(f"The run of [grid] with {_told(one)}", one, True) for one in combinations]
    asked = asked if axes else []
    for number, table in enumerate(grid.runs, start=1):
        where = f"[[runs]] number {number}"
        asked.append(_Asked(where, _flat(table, where), False))
    if not asked:
        raise ConfigError("The grid has no run: give lists in [grid], or tables [[runs]].")
    known = {"experiment"}.union(*(_kind(common, one).model_fields for one in asked))
    for key in (*common, *axes):
        if key not in known:
            raise ConfigError(f"There is no setting {key!r}{_nearest(key, known)}.")
    found: dict[str, Planned] = {}
    for one in asked:
        run = _planned(common, one)
        found.setdefault(run.name, run)
    return list(found.values())


def varying(runs: Sequence[Planned]) -> list[str]:
    """Settings that differ between runs of one experiment, but for those with their own columns."""
    values: dict[str, dict[str, set[str]]] = {}
    for run in runs:
        for name in type(run.settings).model_fields:
            own = values.setdefault(name, {}).setdefault(run.experiment, set())
            own.add(repr(getattr(run.settings, name)))
    return [
        name
        for name, by_experiment in values.items()
        if name not in ("model", "corpus", "store")
        and any(len(own) > 1 for own in by_experiment.values())
    ]


def share(runs: Sequence[Planned], only: str) -> list[Planned]:
    """The runs that fall to one of several jobs: `i/n` takes every n-th, beginning with the i-th.

    `i` counts from 0 to n - 1, or from 1 to n: `n/n` is what `0/n` is. Either way the n jobs
    together take every run, and none twice.

    Raises:
        ConfigError: no such form, or a number beyond n.
    """
    form = re.fullmatch(r"(\d+)/(\d+)", only.strip())
    if not form or not int(form[2]) or int(form[1]) > int(form[2]):
        raise ConfigError(f"--only takes i/n with i from 0 or 1 up to n, as 2/8, not {only!r}.")
    i, n = int(form[1]), int(form[2])
    return list(runs[i % n :: n])


def _flat(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`settings.k` and `k` mean the same."""
    more = table.get("settings", {})
    if not isinstance(more, Mapping):
        raise ConfigError(f"{where}: settings are given as settings.NAME = …, not {more!r}.")
    own = {key: value for key, value in table.items() if key != "settings"}
    twice = set(own) & set(more)
    if twice:
        raise ConfigError(f"{where} gives {min(twice)!r} twice: as itself and under settings.")
    return own | dict(more)


def _axis(key: str, value: Any) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ConfigError(f"[grid] {key} is an empty list: give at least one value.")
    return values


def _planned(common: Mapping[str, Any], asked: _Asked) -> Planned:
    kind, own = _kind(common, asked), asked.own
    given = {k: v for k, v in common.items() if k in kind.model_fields and k not in own}
    given |= {k: v for k, v in own.items() if k in kind.model_fields or not asked.shared}
    given.pop("experiment", None)
    try:
        return Planned(_experiment(common, asked), kind.read(options=given))
    except ConfigError as error:
        lists = [k for k in given if asked.shared and f"'{k}'" in str(error) and _is_list(kind, k)]
        hint = "".join(f" It is a list itself: give a list of lists for {key}." for key in lists)
        raise ConfigError(f"{asked.where}: {error}{hint}") from None


def _is_list(kind: type[Settings], key: str) -> bool:
    return isinstance(kind.model_fields[key].get_default(), list)


def _kind(common: Mapping[str, Any], asked: _Asked) -> type[Settings]:
    return find(_experiment(common, asked)).settings


def _experiment(common: Mapping[str, Any], asked: _Asked) -> str:
    name = asked.own.get("experiment", common.get("experiment"))
    if not isinstance(name, str):
        raise ConfigError(f'{asked.where} names no experiment: say experiment = "compare".')
    return name


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value!r}" for key, value in values.items())


def _nearest(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=3)
    return f"; did you mean {', '.join(near)}" if near else f"; known: {', '.join(sorted(known))}"
