"""What the main job asks of a model and its states before it measures anything."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.compare.bench import Bench, open_checked
from experiments.inputs import read_inputs
from experiments.settings import CompareSettings, ConfigError
from tests.activations.conftest import tokenizer
from tests.activations.families import make


def test_a_model_without_next_token_predictions_is_refused(tmp_path):
    make("bert").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no next-token predictions"):
        open_checked(CompareSettings(model=str(tmp_path)))


def test_a_site_without_one_vector_a_token_is_refused_before_anything_is_captured():
    with pytest.raises(ConfigError, match=r"attn\.hook_pattern has no single vector"):
        open_checked(CompareSettings(model="organism/base", sites=["pattern"]))


def test_heads_lie_side_by_side_in_the_states_that_are_compared():
    from activations import capture

    settings = CompareSettings(model="organism/base", sites=["z"], layers=[1])
    model, inputs = open_checked(settings), read_inputs(settings)
    small = inputs.corpus.take(range(6))
    store = capture(model, small, sites="z", layers=[1], progress=False)
    site = store.sites[0]
    states = Bench(settings, inputs, model, [site], store).states(site)
    assert states.shape == (6, 128) and store[site].shape == (6, 4, 32)
    np.testing.assert_array_equal(states[:, 32:64], store[site][:][:, 1].astype(float))
