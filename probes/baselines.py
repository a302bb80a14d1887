"""What can be read without a model's having learned anything: the commonest label, the length of
the text, the token at the position that is read, the letters. All on the folds of the probes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from evidence import Estimate, balanced_accuracy_interval
from probes.checks import codes, names
from probes.errors import ProbeError
from probes.linear import LinearProbe
from probes.readout import scales
from probes.splits import grouped_folds

#: From training rows, their classes and test rows to the classes that are guessed.
_Guess = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def baselines(
    texts: Sequence[str],
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    token_ids: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    n_folds: int = 5,
    seed: int,
) -> dict[str, Estimate]:
    """Balanced accuracy of every reader here, by name; what a model adds must be more.

    `majority`, `text_length`, `read_token` (where `token_ids` are given) and `text_ngrams`, as the
    column `control` of a run's results calls them. States of the embedding, and of a model with
    random weights (`activations.random_like`), are read by `probe_sites` as any others are.

    Args:
        texts, labels, groups: `[n]`.
        token_ids: `[n]`, the token whose states the probe reads. With states averaged over tokens
            there is no such token; leave it out.
        lengths: `[n]`, tokens in each text; characters are counted here.

    Raises:
        ProbeError: as `grouped_folds`, or lengths that differ.
    """
    folds = {"n_folds": n_folds, "seed": seed}
    written = names(np.asarray(texts, dtype=object), what="texts")
    sizes = [np.array([len(text) for text in written])]
    if lengths is not None:
        sizes.append(names(lengths, what="lengths", n=len(written)))
    found = {"majority": majority_baseline(labels, groups, **folds)}
    found["text_length"] = length_baseline(np.column_stack(sizes), labels, groups, **folds)
    if token_ids is not None:
        found["read_token"] = token_baseline(token_ids, labels, groups, **folds)
    found["text_ngrams"] = text_baseline(texts, labels, groups, **folds)
    return found


def majority_baseline(
    labels: ArrayLike, groups: ArrayLike, *, n_folds: int = 5, seed: int
) -> Estimate:
    """Balanced accuracy of always saying the commonest class of the training rows.

    One over the number of classes where every fold finds the same class commonest, and less where
    they differ: what is common in training is then rare in the test.

    Raises:
        ProbeError: as `grouped_folds`.
    """

    def guess(_own: np.ndarray, code: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.full(len(other), np.bincount(code).argmax())

    nothing = np.zeros(len(codes(labels)[1]))
    return _read(nothing, labels, groups, guess, n_folds=n_folds, seed=seed)


def length_baseline(
    lengths: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    n_folds: int = 5,
    C: float = 10.0,
    seed: int,
) -> Estimate:
    """Balanced accuracy of logistic regression on how long the text is.

    On lengths, their squares and their products, so that a class of middling length is found too.

    Args:
        lengths: `[n]`, or `[n, m]` for lengths counted in several ways.

    Raises:
        ProbeError: as `grouped_folds`, or lengths that are not finite numbers.
    """
    try:
        counted = np.asarray(lengths, dtype=np.float64)
    except (TypeError, ValueError):
        raise ProbeError("Some lengths are no numbers; give how long each text is.") from None
    if counted.ndim not in (1, 2) or counted.size == 0:
        raise ProbeError(f"The lengths have shape {counted.shape}; give one or more for each row.")
    if not np.isfinite(counted).all():
        raise ProbeError("Some lengths are not finite; leave those rows out.")
    x = counted.reshape(len(counted), -1)

    def guess(own: np.ndarray, code: np.ndarray, other: np.ndarray) -> np.ndarray:
        centre, spread = own.mean(axis=0), scales(own)
        fitted = LinearProbe(C).fit(_curved((own - centre) / spread), code)
        return fitted.predict(_curved((other - centre) / spread))

    return _read(x, labels, groups, guess, n_folds=n_folds, seed=seed)


def token_baseline(
    token_ids: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    n_folds: int = 5,
    C: float = 10.0,
    seed: int,
) -> Estimate:
    """Balanced accuracy of logistic regression on which token stands where the probe reads.

    Varieties may end in other words or marks, and then a probe on the last token's states may read
    no more than that. Tokens are one-hot; one that is new in the test says nothing.

    Args:
        token_ids: `[n]`, as numbers or as words.

    Raises:
        ProbeError: as `grouped_folds`, or missing tokens.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    def guess(own: np.ndarray, code: np.ndarray, other: np.ndarray) -> np.ndarray:
        reader = make_pipeline(
            OneHotEncoder(handle_unknown="ignore"), LogisticRegression(C=C, max_iter=2000)
        )
        return reader.fit(own[:, None], code).predict(other[:, None])

    tokens = names(token_ids, what="token ids")
    return _read(tokens, labels, groups, guess, n_folds=n_folds, seed=seed)


def text_baseline(
    texts: Sequence[str],
    labels: ArrayLike,
    groups: ArrayLike,
    *,
    n_folds: int = 5,
    C: float = 10.0,
    seed: int,
) -> Estimate:
    """Balanced accuracy of logistic regression on character 1- to 4-grams, on the same folds.

    What a model's states add must be more than what the letters say. TF-IDF weights are fitted
    within each fold.

    Raises:
        ProbeError: as `grouped_folds`, or texts that do not match the labels.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    def guess(own: np.ndarray, code: np.ndarray, other: np.ndarray) -> np.ndarray:
        reader = make_pipeline(
            TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True),
            LogisticRegression(C=C, max_iter=2000),
        )
        return reader.fit(own, code).predict(other)

    written = names(np.asarray(texts, dtype=object), what="texts")
    if not any(written):
        raise ProbeError("All texts are empty, so there are no letters to read.")
    return _read(written, labels, groups, guess, n_folds=n_folds, seed=seed)


def _read(
    x: np.ndarray, labels: ArrayLike, groups: ArrayLike, guess: _Guess, *, n_folds: int, seed: int
) -> Estimate:
    """Held-out balanced accuracy of what `guess` makes of the rows `x`, over groups."""
    _, code = codes(labels, n=len(x))
    correct = np.zeros(len(code))
    for train, test in grouped_folds(labels, groups, n_folds=n_folds, seed=seed):
        correct[test] = guess(x[train], code[train], x[test]) == code[test]
    return balanced_accuracy_interval(correct, code, groups, seed=seed)


def _curved(z: np.ndarray) -> np.ndarray:
    """`z` `[n, m]` beside all products of two of its columns."""
    first, second = np.triu_indices(z.shape[1])
    return np.hstack([z, z[:, first] * z[:, second]])
