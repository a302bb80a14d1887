"""The requests of a model in three parts, its states at each place, and what it refuses by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from activations import capture
from corpora import grouped_split
from experiments.directions.settings import DirectionsSettings
from experiments.inputs import Inputs, Rows
from experiments.settings import ConfigError
from interventions import is_refusal
from interventions.next_token import last_logits, refusal_score, refusal_tokens
from interventions.selection import Place, template_tokens

if TYPE_CHECKING:
    from activations import Model

_LEAST = 4  # requests of a behaviour in a part; fewer say nothing
BEHAVIOURS = ("harmful", "harmless")


@dataclass(frozen=True)
class Requests:
    """What is measured on. Parts are rows of the corpus by (part, behaviour).

    Attributes:
        parts: "fit" and "validation" of the train side, without requests that the model takes the
            wrong way, and "test".
        dropped: how many requests of the train side were left out for that.
        places: the places of `states`.
        states: by place `[rows, d]`, of the rows in `order`.
    """

    settings: DirectionsSettings
    inputs: Inputs
    model: Model
    tokens: tuple[int, ...]
    parts: dict[tuple[str, str], Rows]
    dropped: int
    order: Rows
    states: dict[Place, np.ndarray]
    left_out: tuple[str, ...] = ()

    def at(self, place: Place, part: str, behaviour: str) -> np.ndarray:
        """States of one part at a place, f64 `[n, d]`."""
        rows = np.searchsorted(self.order, self.parts[part, behaviour])
        return self.states[place][rows].astype(np.float64)

    def prompts(self, part: str, behaviour: str) -> list[str]:
        """The requests of one part, in the chat template."""
        return [self.model.render(text) for text in self.texts(part, behaviour)]

    def texts(self, part: str, behaviour: str) -> list[str]:
        """The requests of one part as a user would write them."""
        texts = self.inputs.corpus.frame["text"]
        return [str(texts.iloc[int(r)]) for r in self.parts[part, behaviour]]

    def groups(self, part: str, behaviour: str) -> np.ndarray:
        """The group of each request of one part."""
        return self.inputs.corpus.frame["group"].to_numpy()[self.parts[part, behaviour]]


def gather(
    settings: DirectionsSettings, inputs: Inputs, model: Model, *, progress: bool
) -> Requests:
    """Divide the requests, ask the plain model, and read its states at every place.

    Raises:
        ConfigError: no requests of both behaviours, a model that refuses none of them, or parts
            that are too small.
    """
    if not inputs.corpus.has_behaviours:
        raise ConfigError(
            "The corpus does not hold both harmful and harmless requests, so there is no direction "
            "between them; give a corpus with a behaviour column."
        )
    train = {b: inputs.requests(b, train=True, most=settings.max_requests) for b in BEHAVIOURS}
    test = {b: inputs.requests(b, train=False, most=settings.max_requests) for b in BEHAVIOURS}
    texts = inputs.corpus.frame["text"]
    both = np.concatenate(list(train.values()))
    asked = [model.render(str(texts.iloc[int(r)])) for r in both]
    logits = last_logits(model, asked)
    tokens = _tokens(settings, model, asked, logits)
    # Requests that the plain model takes the wrong way would blur both means and scores.
    score = refusal_score(logits, tokens)
    harmful = np.isin(both, train["harmful"])
    right = np.where(harmful, score > 0, score < 0)
    groups = inputs.corpus.frame["group"].to_numpy()
    share = min(settings.validation / max(len(both) / 2, 1), 1 / 3)
    fit = np.asarray(grouped_split(groups[both], fraction=1 - share, seed=settings.seed))
    parts: dict[tuple[str, str], Rows] = {}
    for behaviour in BEHAVIOURS:
        own = right & (harmful if behaviour == "harmful" else ~harmful)
        parts["fit", behaviour] = np.sort(both[own & fit])
        parts["validation", behaviour] = np.sort(both[own & ~fit])
        parts["test", behaviour] = np.sort(test[behaviour])
    for (part, behaviour), rows in parts.items():
        if len(rows) < _LEAST:
            raise ConfigError(
                f"Of the {behaviour} requests {len(rows)} are left to {_USES[part]}, once those "
                f"that {settings.model} takes the wrong way are dropped; it takes {_LEAST}."
            )
    order = np.unique(np.concatenate(list(parts.values())))
    states = read_states(settings, inputs, model, order, progress=progress)
    return Requests(
        settings, inputs, model, tokens, parts, int((~right).sum()), order, states, _left(inputs)
    )


_USES = {"fit": "estimate from", "validation": "choose by", "test": "test on"}


def _left(inputs: Inputs) -> tuple[str, ...]:
    # That no variety question is asked is no news here: none was.
    return tuple(said for said in inputs.left_out if "requests" in said)


def _tokens(
    settings: DirectionsSettings, model: Model, asked: Sequence[str], logits: object
) -> tuple[int, ...]:
    if settings.refusal_tokens:
        found = []
        for word in settings.refusal_tokens:
            ids = model.tokenizer(word, add_special_tokens=False)["input_ids"]
            if not ids:
                raise ConfigError(f"Setting 'refusal_tokens': {word!r} has no token.")
            found.append(int(ids[0]))
        return tuple(dict.fromkeys(found))
    replies = model.generate(
        asked, max_new_tokens=settings.new_tokens, rendered=model.has_chat_template
    )
    refused = [is_refusal(reply) for reply in replies]
    if not any(refused):
        raise ConfigError(
            f"{settings.model} refuses none of {len(asked)} requests, so it has no refusal to find "
            "a direction of; give a model that refuses, or say what refusals begin with by "
            "--set refusal_tokens='[\"I\"]'."
        )
    return refusal_tokens(logits, refused)  # type: ignore[arg-type]


def read_states(
    settings: DirectionsSettings, inputs: Inputs, model: Model, order: Rows, *, progress: bool
) -> dict[Place, np.ndarray]:
    """States `[rows, d]` at the input of each layer and each of the last tokens."""
    count = settings.token_positions or template_tokens(model)
    sites = model.resolve_sites("resid_pre", layers=settings.layers or None)

    def last(text: str, ids: Sequence[int], offsets: object) -> range:
        return range(max(0, len(ids) - count), len(ids))

    store = capture(
        model,
        inputs.corpus.take(order),
        sites=sites,
        tokens=last,
        store=settings.store or None,
        progress=progress,
    )
    example = store.rows["example"].to_numpy()
    at = store.rows["position"].to_numpy()
    ends = np.array([at[example == e].max() for e in range(len(order))])
    from_end = ends[example] - at
    # A text shorter than the positions asked for lacks the first of them.
    full = [p for p in range(count) if np.sum(from_end == p) == len(order)]
    states = {}
    for site in sites:
        x = np.asarray(store[site], dtype=np.float32)
        layer = int(site.split(".")[1])
        for position in full:
            here = from_end == position
            states[layer, position] = x[here][np.argsort(example[here])]
    return states
