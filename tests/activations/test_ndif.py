"""Models that NDIF runs: everything up to the network call and after it, with a stand-in behind
NDIF's own protocol. What a real server does differently is not known here.
"""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from activations import ModelError, SiteError, capture, open_model, random_like
from corpora import Corpus
from geometry import LeaceEraser, paired_differences
from interventions import ablate, add, clamp, project_out, resample, rotate, zero_ablate
from interventions import replace as put

from .conftest import tokenizer
from .families import LAYERS, by_hand, make
from .ndif import FakeNdif, stand_in

IDS = torch.tensor([[3, 5, 7, 9, 12, 20, 4, 8], [6, 6, 10, 22, 4, 3, 15, 11]])
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
TEXTS = ["the cat sat on the mat .", "a dog ran ."]


def folder_of(name, folder):
    make(name).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def served(folder, *, task="text-generation", words=None):
    from nnsight import TransformersModel

    words = words or tokenizer()
    return FakeNdif(TransformersModel(folder, task=task, tokenizer=words, dispatch=True))


@pytest.fixture(params=["llama", "gpt2", "gpt_neox", "gemma2", "bloom"])
def opened(request, tmp_path, monkeypatch):
    """A model without weights here, the stand-in that has them, and the plain model."""
    folder = folder_of(request.param, tmp_path / "m")
    fake = stand_in(monkeypatch, served(folder))
    return request.param, open_model(folder, remote=True, api_key="secret"), fake


def test_random_weights_are_not_drawn_on_ndif(opened):
    with pytest.raises(ModelError, match=r"NDIF runs .*, and no random weights; open_model"):
        random_like(opened[1], seed=0)


def here(name):
    return open_model(copy.deepcopy(make(name)), tokenizer=tokenizer(), device="cpu")


def test_states_come_back_as_hooks_placed_by_hand_find_them(opened):
    name, model, fake = opened
    expected = by_hand(name, make(name), input_ids=IDS, attention_mask=torch.ones_like(IDS))
    expected = {site: x for site, x in expected.items() if not site.endswith("pattern")}
    assert all(parameter.device.type == "meta" for parameter in model.hf.parameters())
    assert model.n_layers == LAYERS and model.device == torch.device("cpu")
    got = model.activations(IDS, None, list(reversed(expected)))
    for site, states in expected.items():
        assert model.site(site).row == tuple(got[site].shape[2:]), site
        torch.testing.assert_close(got[site].flatten(2), states, **TOLERANCE, msg=site)
    assert fake.headers[0]["ndif-api-key"] == "secret"
    with pytest.raises(SiteError, match="it lies inside a module"):
        model.resolve_sites("pattern")


def test_rows_are_selected_over_there(opened):
    _, model, fake = opened
    sites = model.resolve_sites("resid_post")
    whole = model.activations(IDS, None, sites)
    got = model.activations(IDS, None, sites, select=lambda x, _site: x[:, -1])
    for site in sites:
        torch.testing.assert_close(got[site], whole[site][:, -1], rtol=0, atol=0)
    assert fake.sent == [2 * 2 * 8 * 16, 2 * 2 * 16]


def test_logits_losses_and_replies_are_those_of_the_model_here(opened):
    name, model, _ = opened
    local = here(name)
    with torch.no_grad():
        expected = make(name)(IDS).logits
    torch.testing.assert_close(model.logits(IDS), expected, **TOLERANCE)
    np.testing.assert_allclose(model.losses(TEXTS)[0], local.losses(TEXTS)[0], rtol=1e-5)
    options = {"max_new_tokens": 4, "rendered": False}
    assert model.generate(TEXTS, **options) == local.generate(TEXTS, **options)


def test_edits_are_sent_along_and_do_the_same(opened):
    name, model, _ = opened
    local, numbers = here(name), np.random.default_rng(0)
    site = "blocks.1.hook_resid_post"
    x, y = numbers.normal(size=(2, 20, 16))
    plane = paired_differences(x, y, k=2, site=site)
    line = paired_differences(x + 3, y, k=1, site=site)
    for edit in (
        ablate(plane),
        add(line, scale=2.0),
        ablate(plane, positions=[1, 2]),
        put("blocks.0.hook_resid_pre", numbers.normal(size=(1, 16)), [2]),
        rotate(plane, 1.0, positions="prompt") + clamp(line, (None, 0.5), positions=slice(1, None)),
        project_out(LeaceEraser.fit(np.vstack([x, y]), np.repeat([0, 1], 20)), site),
        zero_ablate("blocks.0.attn.hook_z", heads=[1]),
        resample({site: numbers.normal(size=(5, 16))}, seed=0, positions="generated")
        + add(line, positions="last"),
    ):
        with model.edited(edit), local.edited(edit):
            expected = local.logits(IDS)
            torch.testing.assert_close(model.logits(IDS), expected, **TOLERANCE)
            options = {"max_new_tokens": 3, "rendered": False}
            assert model.generate(TEXTS, **options) == local.generate(TEXTS, **options)
        assert (expected - local.logits(IDS)).abs().max() > 1e-3


def test_losses_bring_back_one_number_a_token(tmp_path, monkeypatch):
    folder = folder_of("llama", tmp_path / "m")
    fake = stand_in(monkeypatch, served(folder))
    model = open_model(folder, remote=True, api_key="secret")
    model.losses(["the cat sat on the mat .", "a dog"])
    assert fake.sent == [2 * 6]


@pytest.mark.parametrize("rule", ["last", "mean", "all"])
def test_a_capture_on_ndif_holds_what_one_here_holds(tmp_path, monkeypatch, rule):
    folder = folder_of("llama", tmp_path / "m")
    stand_in(monkeypatch, served(folder))
    frame = pd.DataFrame({"text": TEXTS, "variety": ["a", "b"], "group": ["1", "1"]})
    corpus = Corpus.from_frame(frame, standard="a")
    options = {"sites": ["resid_post", "z", "result"], "tokens": rule, "progress": False}
    there = capture(open_model(folder, remote=True, api_key="secret"), corpus, **options)
    expected = capture(here("llama"), corpus, **options)
    assert there.sites == expected.sites
    for site in expected.sites:
        np.testing.assert_allclose(there[site][:], expected[site][:], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*nnsight already serves")
@pytest.mark.parametrize("head", [True, False])
def test_an_encoder_on_ndif_is_read_like_one_here(tmp_path, monkeypatch, head):
    words, folder = tokenizer(), str(tmp_path / "m")
    words.mask_token = "<unk>"
    plain = make("bert") if head else make("bert").bert
    plain.save_pretrained(folder)
    words.save_pretrained(folder)
    task = "fill-mask" if head else "feature-extraction"
    stand_in(monkeypatch, served(folder, task=task, words=words))
    model = open_model(folder, remote=True, api_key="secret")
    with torch.no_grad():
        hidden = plain(IDS, output_hidden_states=True).hidden_states
    got = model.activations(IDS, None, model.resolve_sites(["embed", "resid_post"]))
    for states, expected in zip(got.values(), hidden, strict=True):
        torch.testing.assert_close(states, expected, **TOLERANCE)
    assert not model.is_causal and model.engine.has_head == head


def test_the_name_of_the_weights_stands_for_them(tmp_path, monkeypatch):
    folder = folder_of("llama", tmp_path / "m")
    stand_in(monkeypatch, served(folder))
    model = open_model(folder, remote=True, api_key="secret")
    assert model.digest == open_model(folder, remote=True, api_key="other").digest
    assert model.digest != here("llama").digest
    assert model.origin is not None and "secret" not in str(model.origin)
    assert "secret" not in repr(model.engine.ndif)


def test_only_models_that_ndif_runs_are_opened(tmp_path, monkeypatch):
    import nnsight
    from nnsight.schema.config import CONFIG

    folder = folder_of("llama", tmp_path / "m")
    fake = served(folder)
    stand_in(monkeypatch, fake, deployed=False)
    with pytest.raises(ModelError, match=r"at the moment; it runs someone/else\.$"):
        open_model(folder, remote=True, api_key="secret")
    fake.deployments = {}
    with pytest.raises(ModelError, match="it runs none"):
        open_model(folder, remote=True, api_key="secret")
    monkeypatch.setattr(nnsight, "status", lambda raw: {})
    with pytest.raises(ModelError, match=r"NDIF at https://api\.ndif\.us cannot be reached"):
        open_model(folder, remote=True, api_key="secret")
    monkeypatch.setattr(CONFIG.API, "APIKEY", None)
    with pytest.raises(ModelError, match="NDIF asks for a key") as told:
        open_model(folder, remote=True)
    assert "NDIF_API_KEY" in str(told.value) and "\n" not in str(told.value)


def test_a_hub_out_of_reach_is_said(tmp_path, monkeypatch):
    import huggingface_hub

    folder = folder_of("llama", tmp_path / "m")
    stand_in(monkeypatch, served(folder))

    def unreachable(*_args, **_options):
        raise ConnectionError("no route")

    from nnsight.modeling import huggingface

    monkeypatch.setattr(huggingface, "_ID_CACHE", {})
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(ModelError, match=r"hub does not say what .* is called"):
        open_model(folder, remote=True, api_key="secret")


def test_what_goes_wrong_on_the_way_is_one_sentence(tmp_path, monkeypatch):
    import websocket

    folder = folder_of("llama", tmp_path / "m")
    fake = stand_in(monkeypatch, served(folder))
    model = open_model(folder, remote=True, api_key="secret")

    def told(match):
        with pytest.raises(ModelError, match=match) as error:
            model.logits(IDS)
        assert "\n" not in str(error.value)

    fake.refuses = 401
    told(r"NDIF did not take the request for .*: Invalid API key\.")
    fake.refuses, fake.error = 0, "Traceback (most recent call last):\n  x\nRuntimeError: too big"
    told(r"failed on NDIF: RuntimeError: too big\.")
    fake.error = ""

    def closed(*_args, **_options):
        raise websocket.WebSocketConnectionClosedException("socket is already closed")

    monkeypatch.setattr(websocket, "create_connection", closed)
    told("cannot be reached: socket is already closed; check the network")

    def refused(*_args, **_options):
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(websocket, "create_connection", refused)
    told("cannot be reached: refused")


def test_an_edit_that_cannot_be_sent_is_refused(tmp_path, monkeypatch):
    import threading

    folder = folder_of("llama", tmp_path / "m")
    stand_in(monkeypatch, served(folder))
    model = open_model(folder, remote=True, api_key="secret")

    class Locked:
        name, sites = "locked", ("blocks.0.hook_resid_post",)
        lock = threading.Lock()

        def __call__(self, x, site, positions):
            with self.lock:
                return x

    with pytest.raises(ModelError, match=r"cannot be sent to NDIF \("), model.edited(Locked()):
        model.logits(IDS)


def test_what_ndif_cannot_be_asked_is_said(tmp_path):
    folder = folder_of("llama", tmp_path / "m")
    for options, match in [
        ({"engine": "transformer_lens"}, "run through engine nnsight"),
        ({"device": "cpu"}, "NDIF decides where its models lie"),
        ({"device_map": "auto"}, "NDIF decides where its models lie"),
    ]:
        with pytest.raises(ModelError, match=match):
            open_model(folder, remote=True, **options)
    with pytest.raises(ModelError, match="give the model's id, not a module"):
        open_model(make("llama"), tokenizer=tokenizer(), remote=True)
    with pytest.raises(ModelError, match="NDIF does not run organism/base"):
        open_model("organism/base", remote=True)


def test_a_model_wider_than_its_twin_has_its_own_shapes():
    """The twin has narrow layers; the shapes are of the configuration that was asked for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from activations.engines.local import LocalEngine
    from activations.engines.twin import twin_table

    config = LlamaConfig(
        hidden_size=1024, intermediate_size=2816, num_hidden_layers=3, num_attention_heads=16,
        num_key_value_heads=4, vocab_size=32000,
    )  # fmt: skip
    with torch.device("meta"):
        real = LlamaForCausalLM(config)
    table, order = twin_table(
        LlamaForCausalLM,
        config,
        real,
        lambda small: LocalEngine(small, tokenizer(), "x").table,
        "x",
    )
    assert (table.n_layers, table.d_model) == (3, 1024)
    rows = {
        "hook_resid_post": (1024,), "hook_attn_out": (1024,), "hook_mlp_out": (1024,),
        "attn.hook_q": (16, 64), "attn.hook_k": (4, 64), "attn.hook_z": (16, 64),
        "attn.hook_result": (16, 1024), "mlp.hook_pre": (2816,), "mlp.hook_post": (2816,),
    }  # fmt: skip
    for name, row in rows.items():
        assert table.sites[f"blocks.2.{name}"].row == row, name
    assert table.sites["unembed.hook_out"].row == (32000,)
    assert order["model.layers.0", "in"] < order["model.layers.2", "out"]


def test_a_configuration_with_no_twin_is_refused(tmp_path):
    from transformers import LlamaConfig

    from activations.engines.twin import twin_table

    def fails(_config):
        raise ValueError("no such width")

    with pytest.raises(ModelError, match=r"cannot be built \(no such width\)"):
        twin_table(fails, LlamaConfig(), make("llama"), lambda small: small, "x")
