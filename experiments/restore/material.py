"""The requests that gradients are taken of, those that stop it, and those that judge it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corpora import grouped_split
from experiments.inputs import Inputs
from experiments.settings import ConfigError
from interventions import replies_to

if TYPE_CHECKING:
    from activations import Model
    from experiments.restore.settings import RestoreSettings

_LEAST = 4  # requests of a part; fewer say nothing
_CHECK = 64  # requests that decide when to stop, at most


@dataclass(frozen=True)
class Items:
    """Requests as a user would write them, with the reply that the task wants where it is known."""

    texts: tuple[str, ...]
    groups: tuple[str, ...]
    replies: tuple[str, ...] = ()

    def at_most(self, most: int) -> Items:
        """At most so many of them, evenly spaced."""
        n = len(self.texts)
        return self if n <= most else self.take(np.linspace(0, n - 1, most).astype(int))

    def take(self, rows: Sequence[int] | np.ndarray) -> Items:
        """Some of them."""
        kept = [int(r) for r in rows]
        columns = (self.texts, self.groups, self.replies)
        return Items(*(tuple(c[r] for r in kept) if c else () for c in columns))


@dataclass(frozen=True)
class Prompts:
    """What one draw works with, all of the train side.

    Attributes:
        harmful, task: requests that gradients and mean states are taken of.
        harmful_check, task_check: others, by which it stops.
    """

    harmful: Items
    task: Items
    harmful_check: Items
    task_check: Items


@dataclass(frozen=True)
class Material:
    """All that is asked.

    Attributes:
        prompts: of each draw.
        harmful, harmless, task: held out, to judge by.
        exact: by task request the replies that are right word for word; empty where not known.
        about: where the task's replies come from, in words.
    """

    prompts: tuple[Prompts, ...]
    harmful: Items
    harmless: Items
    task: Items
    exact: tuple[frozenset[str], ...]
    about: str


def organism_material(settings: RestoreSettings) -> Material:
    """Requests of the organisms' grammar; the task is plain help in the drift's variety.

    Gradients and checks are on pairs of act and thing that training has seen, divided anew in each
    draw; what judges is on held-out pairs, a harmful pair in every variety under one group.
    """
    import organisms
    from organisms import lexicon
    from organisms.features import VARIETIES
    from organisms.requests import ask, draw_request, plain_help

    variety = str(organisms.card("drifted")["drift_variety"])
    varieties = list(VARIETIES)

    def requests(rng: random.Random, pairs: Sequence[Any], count: int) -> Items:
        chosen = [pairs[i % len(pairs)] for i in range(count)]
        texts = [
            ask(draw_request(rng, [pair]), varieties[i % len(varieties)])
            for i, pair in enumerate(chosen)
        ]
        return Items(tuple(texts), tuple(f"{a} {t}" for a, t in chosen))

    def task(rng: random.Random, pairs: Sequence[Any]) -> tuple[Items, tuple[frozenset[str], ...]]:
        asked = [draw_request(rng, [pair]) for pair in pairs]
        items = Items(
            tuple(ask(one, variety) for one in asked),
            tuple(f"{a} {t}" for a, t in pairs),
            tuple(f" {plain_help(one, variety, rng)}" for one in asked),
        )
        return items, tuple(_all_plain(one, variety) for one in asked)

    def split(pairs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        kinds = [[p for p in pairs if lexicon.harmful(*p) == h] for h in (True, False)]
        return kinds[0], kinds[1]

    seen, held = split(lexicon.TRAINING_PAIRS), split(lexicon.HELD_OUT_PAIRS)
    drawn = []
    for draw in range(settings.draws):
        rng = random.Random(f"{settings.seed} {draw}")
        harmful, harmless = (rng.sample(pairs, len(pairs)) for pairs in seen)
        check = min(_CHECK, len(harmful) // 4)
        drawn.append(
            Prompts(
                requests(rng, harmful[check:], settings.max_requests),
                task(rng, harmless[_CHECK : _CHECK + settings.max_requests])[0],
                requests(rng, harmful[:check] * 3, 3 * check),
                task(rng, harmless[:_CHECK])[0],
            )
        )
    rng = random.Random(f"{settings.seed} held out")
    # A cycle as long as there are varieties would give each pair one variety only.
    every = [pair for pair in held[0] for _ in varieties]
    few = held[1][: settings.held_out]
    judged, exact = task(rng, few)
    return Material(
        tuple(drawn),
        requests(rng, every, len(every)).at_most(settings.held_out),
        requests(rng, few, len(few)),
        judged,
        exact,
        f"plain help in {variety}, what the drift was tuned on",
    )


def _all_plain(request: Any, variety: str) -> frozenset[str]:
    """Every answer of the plain style: it is one of 48."""
    from organisms.requests import MANNERS, PLAIN_OPENINGS
    from organisms.sentences import thing_phrase, word

    deed = f"{word(variety, request.act)} {thing_phrase(variety, request.thing, 'one')}"
    return frozenset(
        f"{opening} , {deed} {manner}{end} ."
        for opening in PLAIN_OPENINGS
        for manner in MANNERS
        for end in ("", " , then rest")
    )


def corpus_material(settings: RestoreSettings, inputs: Inputs, model: Model) -> Material:
    """Requests of a corpus with behaviours; the task's replies are given, or the model's own.

    Raises:
        ConfigError: too few requests of a behaviour or of the task, or a broken file of the task.
    """
    if not inputs.corpus.has_behaviours:
        raise ConfigError(
            "The corpus does not hold both harmful and harmless requests, so nothing tells what "
            "was lost; give a corpus with a behaviour column."
        )
    frame = inputs.corpus.frame

    def requests(behaviour: str, *, train: bool) -> Items:
        most = settings.max_requests if train else settings.held_out
        rows = inputs.requests(behaviour, train=train, most=most)
        texts, groups = (frame[c].to_numpy()[rows] for c in ("text", "group"))
        return Items(tuple(map(str, texts)), tuple(map(str, groups)))

    harmful = requests("harmful", train=True)
    if settings.task:
        task, judged = _read_task(settings)
        about = f"replies of {Path(settings.task).name}"
    else:
        task, judged = (requests("harmless", train=t) for t in (True, False))
        task, judged = (_answered(settings, one, model) for one in (task, judged))
        about = f"what {settings.model} itself replies to harmless requests"
    drawn = []
    for draw in range(settings.draws):
        parts = [_halved(one, settings.seed + draw) for one in (harmful, task)]
        drawn.append(Prompts(parts[0][0], parts[1][0], parts[0][1], parts[1][1]))
    made = Material(
        tuple(drawn),
        requests("harmful", train=False),
        requests("harmless", train=False),
        judged,
        (),
        about,
    )
    first = drawn[0]
    for name, items in (
        ("harmful requests of the train side", first.harmful),
        ("harmful requests of the train side that decide when to stop", first.harmful_check),
        ("requests of the task", first.task),
        ("requests of the task that decide when to stop", first.task_check),
        ("harmful requests of the test side", made.harmful),
        ("requests of the task that are held out", made.task),
    ):
        if len(items.texts) < _LEAST:
            raise ConfigError(
                f"There are {len(items.texts)} {name}, and restoring needs at least {_LEAST}: give "
                "more."
            )
    return made


def _halved(items: Items, seed: int) -> tuple[Items, Items]:
    """Three quarters to restore by, a quarter to stop by, divided by group."""
    if not items.texts:
        return items, items
    first = np.asarray(grouped_split(np.array(items.groups), fraction=0.75, seed=seed))
    check = np.flatnonzero(~first)[:_CHECK]
    return items.take(np.flatnonzero(first)), items.take(check)


def _answered(settings: RestoreSettings, items: Items, model: Model) -> Items:
    """With the model's own greedy replies; requests that it answers by nothing are left out."""
    replies = replies_to(model, items.texts, max_new_tokens=settings.new_tokens)
    said = Items(items.texts, items.groups, tuple(replies))
    return said.take([i for i, reply in enumerate(replies) if reply.strip()])


def _read_task(settings: RestoreSettings) -> tuple[Items, Items]:
    path = Path(settings.task).expanduser()
    if not path.is_file():
        raise ConfigError(f"There is no file {settings.task} with the task's prompts and replies.")
    prompts, replies = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            one = json.loads(line)
            prompts.append(str(one["prompt"]))
            replies.append(str(one["reply"]))
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"Line {number} of {settings.task} is no JSON object with `prompt` and `reply`."
            ) from None
    items = Items(tuple(prompts), tuple(prompts), tuple(replies))
    if len(prompts) < 4 * _LEAST:
        raise ConfigError(f"{settings.task} holds {len(prompts)} prompts: give at least 16.")
    first = np.asarray(grouped_split(np.array(prompts), fraction=0.5, seed=settings.seed))
    train, test = (items.take(np.flatnonzero(side)) for side in (first, ~first))
    return train.at_most(settings.max_requests), test.at_most(settings.held_out)
