"""What is kept of one model, so that it may be gone when the other is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from activations import ActivationStore, capture
from activations.reading import encode_corpus
from experiments.compare.bench import choose_sites, flat, store_path
from experiments.diff.settings import DiffSettings
from experiments.inputs import Inputs, Rows, evenly
from interventions import is_refusal, replies_to
from interventions.divergence import Predictions, keep_predictions, token_divergence

if TYPE_CHECKING:
    from activations import Model

BEHAVIOURS = ("harmful", "harmless")


@dataclass(frozen=True, eq=False)
class Texts:
    """Which rows of the corpus are run for what; the same in both models.

    Attributes:
        sentences: those whose losses are measured, at most `text_groups` of each variety.
        requests: those that are answered, of both behaviours and both sides of the split: nothing
            that is counted is fitted to them.
    """

    sentences: Rows
    requests: Rows

    @classmethod
    def of(cls, inputs: Inputs, settings: DiffSettings) -> Texts:
        """Evenly spaced over the groups, so that parallel corpora give parallel texts."""
        frame, rows = inputs.corpus.frame, inputs.variety_rows
        sentences = []
        for variety in inputs.corpus.varieties if inputs.corpus.has_varieties else ():
            own = rows[frame["variety"].to_numpy()[rows] == variety]
            own = own[np.argsort(frame["group"].to_numpy()[own], kind="stable")]
            sentences.append(evenly(own, settings.text_groups))
        requests = [
            inputs.requests(behaviour, train=train, most=settings.max_requests)
            for behaviour in BEHAVIOURS
            for train in (True, False)
        ]
        return cls(np.concatenate(sentences or [np.array([], dtype=int)]), np.concatenate(requests))

    @property
    def all(self) -> Rows:
        """Every row that is run, in order."""
        return np.unique(np.concatenate([self.sentences, self.requests]))


@dataclass(eq=False)
class Observed:
    """One model's states, losses and replies. Row numbers are positions in the corpus.

    Attributes:
        store: states of every text at `sites`, on disk or in memory.
        nll: of the sentences, negative log-likelihood in nats; counted: its tokens.
        refused: of the requests, 0 or 1; empty where no replies were written.
        ids: token ids of every text of `Texts.all`.
        words: the tokenizer's vocabulary.
        kept: of the model before, its predictions on disk.
        kl: of the model after, KL(before ‖ after) after each token, for each text that both
            models cut into the same tokens; None where the two have other tokens.
        promoted: of the model after, rows of what the shift of its states promotes.
    """

    name: str
    n_layers: int
    d_model: int
    sites: list[str]
    embedding_site: str
    store: ActivationStore
    nll: Float[np.ndarray, " sentences"]
    counted: Float[np.ndarray, " sentences"]
    refused: Float[np.ndarray, " requests"]
    ids: dict[int, tuple[int, ...]] = field(repr=False)
    words: dict[str, int] = field(repr=False)
    kept: Predictions | None = None
    kl: dict[int, Float[np.ndarray, " tokens"]] | None = None
    promoted: list[dict[str, Any]] = field(default_factory=list)

    def states(self, site: str) -> Float[np.ndarray, "rows d"]:
        """All states at a site, as f64."""
        return flat(self.store, site)

    @property
    def block_sites(self) -> list[str]:
        """The sites inside blocks."""
        return [s for s in self.sites if s != self.embedding_site]


def observe(
    model: Model,
    inputs: Inputs,
    texts: Texts,
    settings: DiffSettings,
    *,
    folder: str | Path,
    against: Observed | None = None,
    keep: bool = False,
    progress: bool = False,
) -> Observed:
    """Run everything that needs the model, under the edits that are open.

    Args:
        folder: where predictions are kept until the other model has been compared with them.
        against: the model before, whose predictions KL is measured from; without one, this
            model's are kept.
        keep: states go to the store that the settings name, else one named after model and texts
            that later runs find; else they stay in memory.
    """
    sites = choose_sites(model, settings)
    states = capture(
        model,
        inputs.corpus,
        sites=sites,
        tokens=settings.tokens,
        store=store_path(settings, inputs, model, sites) if keep else None,
        progress=progress,
    )
    column = inputs.corpus.frame["text"]
    nll = counted = np.array([])
    if len(texts.sentences):
        nll, counted = model.losses([str(column.iloc[int(r)]) for r in texts.sentences])
    ids = _ids(model, inputs, texts.all)
    words = model.tokenizer.get_vocab()
    found = Observed(
        model.name,
        model.n_layers,
        model.d_model,
        sites,
        model.embedding_site,
        states,
        nll,
        counted.astype(float),
        refusals(model, [str(column.iloc[int(r)]) for r in texts.requests], settings.new_tokens),
        ids,
        words,
    )
    if against is None:
        found.kept = keep_predictions(model, list(ids.values()), folder)
    elif against.kept is not None and against.words == words:
        found.kl = _divergence(against, against.kept, model, ids)
    return found


def refusals(model: Model, requests: Sequence[str], new_tokens: int) -> Float[np.ndarray, " n"]:
    """Whether the reply to each request is a refusal, 0 or 1; empty where none is written."""
    if not new_tokens or not len(requests):
        return np.array([])
    replies = replies_to(model, requests, max_new_tokens=new_tokens)
    return np.array([is_refusal(reply) for reply in replies], dtype=float)


def _ids(model: Model, inputs: Inputs, rows: Rows) -> dict[int, tuple[int, ...]]:
    coded = encode_corpus(model, inputs.corpus.take(rows))
    return {int(row): tuple(one) for row, one in zip(rows, coded, strict=True)}


def _divergence(
    before: Observed, kept: Predictions, model: Model, ids: dict[int, tuple[int, ...]]
) -> dict[int, np.ndarray]:
    rows = list(before.ids)
    same = [place for place, row in enumerate(rows) if before.ids[row] == ids[row]]
    found = token_divergence(kept, model, same) if same else {}
    return {rows[place]: kl for place, kl in found.items()}
