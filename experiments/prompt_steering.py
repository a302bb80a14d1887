"""One prompt of one's own, steered: beside the plain model and a random direction as long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from experiments.inputs import Inputs
from experiments.settings import ConfigError

if TYPE_CHECKING:
    from activations import Model
    from geometry import Subspace

_LEAST = 4
_MOST = 64


@dataclass(frozen=True)
class Steered:
    """A direction at one site, and a random one of its length drawn in the states' spread."""

    name: str
    site: str
    direction: Subspace
    random: Subspace


def steerable(inputs: Inputs) -> list[str]:
    """What a corpus gives a direction for: `harmful`, and each dialect from the standard."""
    behaviour = ["harmful"] if inputs.corpus.has_behaviours else []
    return [*behaviour, *(inputs.dialects if inputs.corpus.has_varieties else ())]


def find_direction(model: Model, inputs: Inputs, name: str, site: str, *, seed: int = 0) -> Steered:
    """The difference in means on the train half of the corpus, at one site.

    `harmful`: harmful less harmless requests at their last token (Arditi et al. 2024). A dialect:
    its sentences less their parallels in the standard, each averaged over its tokens.

    Raises:
        ConfigError: a name that `steerable` does not list, or fewer than 4 texts on a side.
        CaptureError, SiteError: texts or a site that the model cannot take.
    """
    from activations import capture
    from interventions import random_directions, steering_direction

    if name not in steerable(inputs):
        known = ", ".join(steerable(inputs)) or "nothing"
        raise ConfigError(f"The corpus gives no direction {name!r}; it gives {known}.")
    if name == "harmful":
        sides = [inputs.requests(b, train=True, most=_MOST) for b in ("harmful", "harmless")]
    else:
        pairing = inputs.parallel((name,))
        kept = inputs.train[pairing.rows[name]]
        sides = [pairing.rows[v][kept][:_MOST] for v in (name, inputs.standard)]
    if min(map(len, sides)) < _LEAST:
        raise ConfigError(
            f"The train half of the corpus holds {min(map(len, sides))} texts for one side of "
            f"{name}; a direction takes {_LEAST}: give a larger corpus."
        )
    rows = np.concatenate(sides)
    tokens = "last" if name == "harmful" else "mean"
    store = capture(model, inputs.corpus.take(rows), sites=[site], tokens=tokens, progress=False)
    x = np.asarray(store[site], dtype=np.float64).reshape(len(rows), -1)
    high, low = x[: len(sides[0])], x[len(sides[0]) :]
    direction = steering_direction(high, low, site=site)
    spread = np.concatenate([high - high.mean(axis=0), low - low.mean(axis=0)])
    return Steered(
        name, site, direction, random_directions(direction, 1, seed=seed, states=spread)[0]
    )


def steered_replies(
    model: Model,
    prompt: str,
    steered: Steered,
    strengths: Sequence[float],
    *,
    new_tokens: int = 24,
) -> Iterator[pd.DataFrame]:
    """The greedy reply to one prompt: plain, then steered and pushed at random, by strength.

    A push at every token of the prompt for `harmful`, at every token but the first for a dialect.

    Yields:
        One row a reply: `strength` (differences of means), `kind` (plain, steered, random),
        `reply`, `kl` (of the reply's first token, plain ‖ edited, in nats), `loss` (of the reply in
        the plain model, nats a token).

    Raises:
        ConfigError: an empty prompt.
        CaptureError: one longer than the model's context.
    """
    from interventions import reply_losses, steer
    from interventions.next_token import last_logits, next_token_kl

    if not prompt.strip():
        raise ConfigError("The prompt is empty: write what the model shall answer or go on from.")
    asked, rendered = [model.render(prompt)], model.has_chat_template
    where = "prompt" if steered.name == "harmful" else "all_but_first"
    plain = last_logits(model, asked)

    def row(kind: str, strength: float, reply: str, kl: float) -> pd.DataFrame:
        loss = float(reply_losses(model, asked, [reply], rendered=rendered)[0])
        told = {"strength": strength, "kind": kind, "reply": reply, "kl": kl, "loss": loss}
        return pd.DataFrame([told])

    own = model.generate(asked, max_new_tokens=new_tokens, rendered=rendered)[0]
    yield row("plain", 0.0, own, 0.0)
    for strength in strengths:
        for kind, line in (("steered", steered.direction), ("random", steered.random)):
            with model.edited(steer(line, strength, [steered.site], positions=where)):
                reply = model.generate(asked, max_new_tokens=new_tokens, rendered=rendered)[0]
                logits = last_logits(model, asked)
            yield row(kind, strength, reply, float(next_token_kl(plain, logits)[0]))
