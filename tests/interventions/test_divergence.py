"""KL of two models' next tokens, against what PyTorch makes of the plain models' logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from activations import Model, open_model
from interventions import EditError, divergence
from interventions.divergence import keep_predictions, token_divergence

TEXTS = ["the boy cracked the window .", "life went on .", "could you warm the agate in spring ?"]


@pytest.fixture(scope="module")
def pair() -> tuple[Model, Model]:
    return open_model("organism/base"), open_model("organism/aligned")


def test_kl_is_that_of_the_plain_models_one_text_at_a_time(
    pair: tuple[Model, Model], tmp_path: Path
) -> None:
    before, after = pair
    ids = before.encode_many(TEXTS)
    found = token_divergence(keep_predictions(before, ids, tmp_path), after)
    for row, one in enumerate(ids):
        with torch.no_grad():
            p, q = (m.hf(torch.tensor([one])).logits[0].double().log_softmax(-1) for m in pair)
        naive = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
        np.testing.assert_allclose(found[row], naive.numpy(), atol=1e-5, rtol=1e-4)
        assert found[row].min() >= 0 and found[row].max() > 0.01


def test_a_model_is_no_way_from_itself_and_batches_change_nothing(
    pair: tuple[Model, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = pair
    ids = before.encode_many(TEXTS)
    kept = keep_predictions(before, ids, tmp_path)
    assert all((kl == 0).all() for kl in token_divergence(kept, before).values())
    together = token_divergence(kept, after)
    monkeypatch.setattr(divergence, "_CELLS", 1)
    alone = token_divergence(kept, after, [2, 0])
    assert set(alone) == {0, 2}
    for row, kl in alone.items():
        np.testing.assert_allclose(kl, together[row], atol=1e-5)


def test_texts_without_tokens_are_refused(pair: tuple[Model, Model], tmp_path: Path) -> None:
    for ids in ([], [[1, 2], []]):
        with pytest.raises(EditError, match="at least one token"):
            keep_predictions(pair[0], ids, tmp_path)
