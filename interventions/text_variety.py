"""Which variety a text is in, judged by its letters alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from interventions.dose import Outcome
from interventions.errors import EditError
from interventions.fluency import reply_losses

if TYPE_CHECKING:
    from activations import Model
    from activations.edit import Edit


class TextVarieties:
    """Logistic regression on character 1- to 4-grams, as the text baseline of the probes is.

    It sees no model, so it can judge what an edited model writes. What is in none of the varieties
    still gets one: nonsense is told by its loss, not here.
    """

    def __init__(self, texts: Sequence[str], varieties: Sequence[str], *, C: float = 10.0) -> None:
        """Fits on texts and their varieties, of the train side.

        Raises:
            EditError: fewer than two varieties, or texts that do not match them.
        """
        if len(texts) != len(varieties) or len(set(varieties)) < 2:
            raise EditError(
                f"There are {len(texts)} texts in {len(set(varieties))} varieties: give texts of "
                "two varieties or more, and the variety of each."
            )
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        self._reader: Any = make_pipeline(
            TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True),
            LogisticRegression(C=C, max_iter=2000),
        ).fit(list(texts), [str(v) for v in varieties])

    @property
    def varieties(self) -> tuple[str, ...]:
        """In the order of `probabilities`."""
        return tuple(str(c) for c in self._reader.classes_)

    def probabilities(self, texts: Sequence[str]) -> Float[np.ndarray, "n varieties"]:
        """The probability of each variety."""
        return self._reader.predict_proba(list(texts))

    def accuracy(self, texts: Sequence[str], varieties: Sequence[str]) -> float:
        """The share of texts whose variety is told."""
        return float(self._reader.score(list(texts), [str(v) for v in varieties]))


@dataclass(frozen=True, eq=False)
class Continuations:
    """Observes which variety the model goes on in after texts, and how naturally.

    `variety_probability` is that of `target` by `reader`, `reply_loss` the plain model's loss on
    what was written.
    """

    prompts: Sequence[str]
    groups: Sequence[str]
    target: str
    reader: TextVarieties
    new_tokens: int = 20

    def __call__(self, model: Model, edit: Edit | None) -> list[Outcome]:
        """The outcomes under an edit."""
        with model.edited(edit) if edit is not None else nullcontext():
            written = model.generate(
                list(self.prompts), max_new_tokens=self.new_tokens, rendered=False
            )
        column = self.reader.varieties.index(self.target)
        told = self.reader.probabilities(written)[:, column]
        group = np.asarray(self.groups, dtype=object)
        loss = reply_losses(model, self.prompts, written, rendered=False)
        bounds = (0.0, 1.0)
        return [
            Outcome("variety_probability", told, group, "probability", self.target, "", bounds),
            Outcome("reply_loss", loss, group, "nats per token", self.target),
        ]
