"""The questions that a corpus and a model allow: refusal, and each dialect from the standard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from activations import capture
from experiments.compare.bench import choose_sites
from experiments.inputs import Inputs, Rows, evenly
from experiments.settings import ConfigError
from experiments.steer.question import Question, together
from experiments.steer.settings import SteerSettings
from interventions import is_refusal, replies_to
from interventions.fluency import Refusals, TextLosses
from interventions.next_token import last_logits, refusal_tokens
from interventions.steering import steering_direction
from interventions.text_variety import Continuations, TextVarieties

if TYPE_CHECKING:
    from activations import Model

_LEAST = 4


@dataclass(frozen=True)
class Work:
    """The questions that are asked, and why others are not."""

    settings: SteerSettings
    inputs: Inputs
    model: Model
    questions: tuple[Question, ...]
    left_out: tuple[str, ...]


def ask(settings: SteerSettings, inputs: Inputs, model: Model, *, progress: bool) -> Work:
    """Set up the questions asked for.

    Raises:
        ConfigError: none of them can be asked of this corpus and model, or an unknown dialect.
    """
    sites = [s for s in choose_sites(model, settings) if s != model.embedding_site]
    left_out: list[str] = []
    questions: list[Question] = []
    refusing = None
    if inputs.corpus.has_behaviours:
        refusing = _tokens(settings, inputs, model)
        if refusing is None and settings.target != "variety":
            left_out.append(f"{settings.model} refuses next to nothing: refusal was not steered.")
    if settings.target != "variety" and refusing:
        questions.append(_refusal(settings, inputs, model, sites, refusing, progress=progress))
    if settings.target != "refusal" and inputs.corpus.has_varieties:
        questions += _varieties(settings, inputs, model, sites, refusing, progress=progress)
    if not questions:
        wanted = {"all": "refusal or a variety"}.get(settings.target, settings.target)
        reason = left_out[0] if left_out else "The corpus has neither both behaviours nor dialects."
        raise ConfigError(f"There is no {wanted} to steer. {reason}")
    return Work(settings, inputs, model, tuple(questions), (*inputs.left_out, *left_out))


def _texts(inputs: Inputs, rows: Rows) -> list[str]:
    return inputs.corpus.frame["text"].iloc[rows].astype(str).tolist()


def _column(inputs: Inputs, name: str, rows: Rows) -> np.ndarray:
    return inputs.corpus.frame[name].to_numpy()[rows]


def _tokens(settings: SteerSettings, inputs: Inputs, model: Model) -> tuple[int, ...] | None:
    """What begins a refusal; None where the model refuses fewer than four train requests."""
    rows = np.concatenate(
        [
            inputs.requests(b, train=True, most=settings.max_requests)
            for b in ("harmful", "harmless")
        ]
    )
    texts = _texts(inputs, rows)
    replies = replies_to(model, texts, max_new_tokens=settings.new_tokens)
    refused = [is_refusal(reply) for reply in replies]
    if sum(refused) < _LEAST:
        return None
    asked = [model.render(text) for text in texts]
    return refusal_tokens(last_logits(model, asked), refused)


def _refusal(
    settings: SteerSettings,
    inputs: Inputs,
    model: Model,
    sites: list[str],
    tokens: tuple[int, ...],
    *,
    progress: bool,
) -> Question:
    """Harmful less harmless requests at the last token, added at every token of the request."""
    rows = {
        (b, train): inputs.requests(b, train=train, most=settings.max_requests)
        for b in ("harmful", "harmless")
        for train in (True, False)
    }
    high, low = rows["harmful", True], rows["harmless", True]
    states = _states(inputs, model, sites, [high, low], "last", progress=progress)

    def observe(train: bool, new_tokens: int) -> Any:
        return together(
            *(
                Refusals(
                    _texts(inputs, rows[b, train]),
                    _column(inputs, "group", rows[b, train]).tolist(),
                    b,
                    tokens,
                    new_tokens,
                )
                for b in ("harmless", "harmful")
            )
        )

    losses = {train: _losses(settings, inputs, train=train) for train in (True, False)}
    return Question(
        name="refusal",
        kind="add" if settings.kind == "auto" else settings.kind,
        positions="prompt",
        directions=_directions(settings, states),
        within=_within(states),
        train=together(observe(True, settings.new_tokens), losses[True]),
        test=together(observe(False, settings.new_tokens), losses[False]),
        beside=together(observe(False, 0), losses[False]),
        effects=(
            ("refusal_rate", "", "harmless"),
            ("refusal_score", "", "harmless"),
            ("refusal_rate", "", "harmful"),
        ),
    )


def _varieties(
    settings: SteerSettings,
    inputs: Inputs,
    model: Model,
    sites: list[str],
    refusing: tuple[int, ...] | None,
    *,
    progress: bool,
) -> list[Question]:
    """A dialect's less the standard's sentences, states averaged over tokens, at every token."""
    unknown = [v for v in settings.towards if v not in inputs.dialects]
    if unknown:
        raise ConfigError(
            f"Setting 'towards': {unknown[0]!r} is no dialect of the corpus, which has "
            f"{', '.join(inputs.dialects)}."
        )
    most = np.linspace(0, len(inputs.dialects) - 1, min(settings.targets, len(inputs.dialects)))
    wanted = settings.towards or [inputs.dialects[int(i)] for i in most]
    rows = inputs.variety_rows
    train = inputs.train[rows]
    reader = TextVarieties(
        _texts(inputs, rows[train]), _column(inputs, "variety", rows[train]).tolist()
    )
    questions = []
    for variety in wanted:
        high, low = _pairs(inputs, variety, train=True)
        if len(high) < _LEAST:
            raise ConfigError(
                f"{variety} and {inputs.standard} share {len(high)} groups on the train side; it "
                f"takes {_LEAST}."
            )
        states = _states(inputs, model, sites, [high, low], "mean", progress=progress)
        pair = (variety, inputs.standard)
        _, prompts = _pairs(inputs, variety, train=False)
        prompts = evenly(prompts, settings.text_groups)
        writes = Continuations(
            _texts(inputs, prompts),
            _column(inputs, "group", prompts).tolist(),
            variety,
            reader,
            settings.new_tokens,
        )
        losses = _losses(settings, inputs, train=False, pair=pair)
        beside = _losses(settings, inputs, train=False, pair=pair, only=pair)
        behaviour = _requests(settings, inputs, refusing)
        questions.append(
            Question(
                name=f"variety:{variety}",
                kind="affine" if settings.kind == "auto" else settings.kind,
                positions="all_but_first",
                directions=_directions(settings, states),
                within=_within(states),
                train=_losses(settings, inputs, train=True, pair=pair, only=pair),
                test=together(losses, writes, *behaviour),
                beside=beside,
                effects=(
                    ("variety_log_odds", variety, ""),
                    ("variety_probability", variety, ""),
                ),
            )
        )
    return questions


def _requests(
    settings: SteerSettings, inputs: Inputs, refusing: tuple[int, ...] | None
) -> list[Refusals]:
    """Held-out requests of both behaviours, as a side effect; of a model that refuses."""
    if not refusing:
        return []
    rows = {
        b: inputs.requests(b, train=False, most=settings.max_requests)
        for b in ("harmful", "harmless")
    }
    return [
        Refusals(_texts(inputs, r), _column(inputs, "group", r).tolist(), b, refusing)
        for b, r in rows.items()
        if len(r)
    ]


def _losses(
    settings: SteerSettings,
    inputs: Inputs,
    *,
    train: bool,
    pair: tuple[str, str] | None = None,
    only: tuple[str, ...] | None = None,
) -> TextLosses:
    """Losses of a few groups of sentences of each variety; of harmless requests where none are."""
    frame = inputs.corpus.frame
    if inputs.corpus.has_varieties:
        rows = inputs.variety_rows[inputs.train[inputs.variety_rows] == train]
        if pair is not None:
            # Groups that hold the pair, so that its log-odds can be told.
            shared = set(_column(inputs, "group", _pairs(inputs, pair[0], train=train)[0]))
            rows = rows[[g in shared for g in _column(inputs, "group", rows)]]
        groups = evenly(np.unique(_column(inputs, "group", rows)), settings.text_groups)
        rows = rows[np.isin(_column(inputs, "group", rows), groups)]
        if only is not None:
            rows = rows[np.isin(_column(inputs, "variety", rows), only)]
    else:
        rows = inputs.requests("harmless", train=train, most=settings.text_groups)
    variety = frame["variety"].to_numpy()[rows].tolist()
    return TextLosses(_texts(inputs, rows), variety, _column(inputs, "group", rows).tolist(), pair)


def _pairs(inputs: Inputs, variety: str, *, train: bool) -> tuple[Rows, Rows]:
    """Rows of a dialect and of the standard in the groups that have both, in one order."""
    rows = inputs.variety_rows[inputs.train[inputs.variety_rows] == train]
    frame = inputs.corpus.frame.iloc[rows][["variety", "group"]].assign(row=rows)
    table = frame.pivot_table(index="group", columns="variety", values="row", aggfunc="first")
    if variety not in table or inputs.standard not in table:
        return np.array([], dtype=int), np.array([], dtype=int)
    whole = table[[variety, inputs.standard]].dropna().astype(int)
    return whole[variety].to_numpy(), whole[inputs.standard].to_numpy()


def _states(
    inputs: Inputs,
    model: Model,
    sites: list[str],
    sides: list[Rows],
    tokens: Any,
    *,
    progress: bool,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By site, states of the positive and of the negative rows, f64."""
    rows = np.concatenate(sides)
    store = capture(model, inputs.corpus.take(rows), sites=sites, tokens=tokens, progress=progress)
    found = {}
    for site in sites:
        x = np.asarray(store[site], dtype=np.float64).reshape(len(rows), -1)
        found[site] = x[: len(sides[0])], x[len(sides[0]) :]
    return found


def _directions(settings: SteerSettings, states: dict[str, Any]) -> dict[str, Any]:
    return {
        site: steering_direction(high, low, estimator=settings.estimator, site=site)
        for site, (high, low) in states.items()
    }


def _within(states: dict[str, Any]) -> dict[str, np.ndarray]:
    return {
        site: np.concatenate([x - x.mean(axis=0) for x in sides]) for site, sides in states.items()
    }
