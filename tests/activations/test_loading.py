"""What can be opened is opened with the weights as they were saved, and the rest is refused in one
sentence.
"""

from __future__ import annotations

import copy
import hashlib
import logging

import numpy as np
import pytest
import torch

from activations import ModelError, open_model
from activations.engines.offload import sharing_copy

from .conftest import WORDS, tiny, tokenizer
from .families import make

IDS = torch.tensor([[3, 5, 7, 9, 12, 20], [6, 6, 10, 22, 4, 3]])
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def saved(model, folder, *, words=True):
    model.save_pretrained(folder)
    if words:
        tokenizer().save_pretrained(folder)
    return str(folder)


def encoder(pooler=True):
    from transformers import BertConfig, BertModel

    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(WORDS) + 3,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        initializer_range=0.3,
    )
    return BertModel(config, add_pooling_layer=pooler).eval()


# Quiet


def test_opening_prints_nothing_and_leaves_model_and_tokenizer_as_they_are(
    tmp_path, capfd, caplog, recwarn
):
    from transformers import PreTrainedTokenizerFast

    words = tokenizer()
    words.bos_token = "<eos>"
    words.pad_token = None
    before = dict(words.special_tokens_map), words.padding_side, copy.deepcopy(words.init_kwargs)
    plain = tiny("llama")
    for engine in ("auto", "auto", "nnsight", "transformer_lens"):
        model = open_model(plain, tokenizer=words, device="cpu", engine=engine)
        assert isinstance(model.tokenizer, PreTrainedTokenizerFast)
    after = dict(words.special_tokens_map), words.padding_side, words.init_kwargs
    assert after == before
    assert not any("forward" in vars(module) for module in plain.modules())
    saved(tiny("llama"), tmp_path / "m")
    saved(encoder(), tmp_path / "e")
    capfd.readouterr()
    open_model(str(tmp_path / "m"), device="cpu")
    open_model(str(tmp_path / "e"), device="cpu", engine="nnsight")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records and not [w for w in recwarn if "nnsight" in str(w.message)]


# Encoders


def test_a_masked_language_model_opens_with_its_own_head(tmp_path):
    plain = make("bert")
    model = open_model(saved(plain, tmp_path / "m"), device="cpu")
    mask = torch.ones_like(IDS)
    mask[1, 4:] = 0
    with torch.no_grad():
        expected = plain(IDS, attention_mask=mask).logits
    got = model.logits(IDS, mask)
    torch.testing.assert_close(got[mask > 0], expected[mask > 0], **TOLERANCE)
    assert not model.is_causal and model.engine.name == "transformer_lens"
    assert open_model(plain, tokenizer=tokenizer(), device="cpu").digest == model.digest
    with pytest.raises(ModelError, match="is an encoder: its tokens see those after them") as told:
        model.losses(["the cat sat"])
    assert "\n" not in str(told.value)
    with pytest.raises(ModelError, match="it has no continuations; use a decoder"):
        model.generate(["the cat"])


@pytest.mark.parametrize("pooler", [True, False])
def test_an_encoder_without_a_head_opens_without_one(tmp_path, pooler, caplog):
    plain = encoder(pooler)
    folder = saved(plain, tmp_path / "m")
    model, again = open_model(folder, device="cpu"), open_model(folder, device="cpu")
    assert model.engine.name == "nnsight" and not model.is_causal
    assert model.digest == again.digest
    assert sorted(model.hf.state_dict()) == sorted(plain.state_dict())
    told = caplog.records[0].getMessage()
    assert "does not know the architecture BertModel" in told
    assert "read through engine nnsight, at 11 sites." in told and "\n" not in told
    with torch.no_grad():
        hidden = plain(IDS, output_hidden_states=True).hidden_states
    got = model.activations(IDS, None, model.resolve_sites(["embed", "resid_post"]))
    for states, expected in zip(got.values(), hidden, strict=True):
        torch.testing.assert_close(states, expected, **TOLERANCE)
    with pytest.raises(ModelError, match="has no head and so no logits"):
        model.logits(IDS)
    with pytest.raises(ModelError, match="is an encoder"):
        model.losses(["the cat sat"])


def test_a_decoder_without_a_head_is_causal_and_has_no_losses(tmp_path):
    plain = tiny("llama")
    folder = saved(plain.model, tmp_path / "m")
    model = open_model(folder, device="cpu")
    assert type(model.hf).__name__ == "LlamaModel" and model.is_causal
    with pytest.raises(ModelError, match=r"\(LlamaModel\) has no head"):
        model.losses(["the cat sat"])
    with pytest.raises(ModelError, match="has no head"):
        model.generate(["the cat"])


@pytest.mark.parametrize("sees", ["before", "both"])
def test_whether_a_token_sees_those_after_it_is_tried_out(sees):
    from transformers import BertConfig, BertLMHeadModel

    config = BertConfig(**{**encoder().config.to_dict(), "is_decoder": sees == "before"})
    torch.manual_seed(0)
    plain = BertLMHeadModel(config).eval()
    model = open_model(plain, tokenizer=tokenizer(), device="cpu")
    assert model.is_causal == (sees == "before")


def test_positions_are_counted_as_the_model_counts_them(tmp_path):
    from transformers import RobertaConfig, RobertaForMaskedLM

    torch.manual_seed(1)
    config = RobertaConfig(
        vocab_size=len(WORDS) + 3,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=26,
        initializer_range=0.3,
        pad_token_id=1,
    )
    plain = RobertaForMaskedLM(config).eval()
    model = open_model(saved(plain, tmp_path / "m"), device="cpu")
    assert model.max_length == 24
    mask = torch.ones_like(IDS)
    mask[1, 4:] = 0
    ids = IDS.masked_fill(mask == 0, 1)
    with torch.no_grad():
        expected = plain(ids, attention_mask=mask).logits
    got = model.logits(ids, mask)
    torch.testing.assert_close(got[mask > 0], expected[mask > 0], **TOLERANCE)
    left = model.logits(*model.pad([IDS[1, :4].tolist(), IDS[0].tolist()], side="left"))
    torch.testing.assert_close(left[0, 2:], expected[1, :4], **TOLERANCE)


def test_weights_that_a_folder_lacks_are_not_made_up(tmp_path):
    import json

    folder = tmp_path / "m"
    saved(encoder(pooler=False), folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["BertForMaskedLM"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lacks weights that BertForMaskedLM needs, such as cls"):
        open_model(str(folder), device="cpu")


def test_encoder_decoders_are_refused(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=23, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4, pad_token_id=0
    )
    plain = T5ForConditionalGeneration(config)
    with pytest.raises(ModelError, match=r"is an encoder-decoder \(t5\)"):
        open_model(saved(plain, tmp_path / "m"), device="cpu")
    with pytest.raises(ModelError, match="is an encoder-decoder"):
        open_model(plain, tokenizer=tokenizer(), device="cpu")


# Weights that lie elsewhere


def spread(folder, **options):
    """One block on the disk, the rest in memory."""
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {"model.layers.2": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    return open_model(folder, device_map={**places, "lm_head": "cpu"}, **options)


@pytest.mark.parametrize("engine", ["transformer_lens", "nnsight"])
def test_a_block_on_the_disk_changes_no_state_and_no_digest(tmp_path, engine, capfd, caplog):
    plain = tiny("llama")
    folder = saved(plain, tmp_path / "m")
    capfd.readouterr()
    model = spread(folder, engine=engine)
    assert capfd.readouterr() == ("", "") and not caplog.records
    assert model.hf.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    assert model.device == torch.device("cpu") and model.dtype == torch.float32
    whole = open_model(folder, engine=engine, device="cpu")
    assert model.sites == whole.sites and model.digest == whole.digest
    assert any(site.startswith("blocks.1.attn.hook_result") for site in model.sites)
    got, expected = (one.activations(IDS, None, one.sites) for one in (model, whole))
    for site, states in expected.items():
        torch.testing.assert_close(got[site], states, **TOLERANCE, msg=site)
    texts = ["the cat sat on the mat .", "a dog ran ."]
    np.testing.assert_allclose(model.losses(texts)[0], whole.losses(texts)[0], rtol=1e-5)
    assert model.generate(texts, max_new_tokens=3) == whole.generate(texts, max_new_tokens=3)
    assert model.hf.model.layers[1].mlp.up_proj.weight.device.type == "meta"


def test_weights_in_memory_that_accelerate_holds_are_shared_and_not_copied():
    from accelerate import cpu_offload

    plain, whole = tiny("llama"), tiny("llama")
    values = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    spread_out = cpu_offload(plain, execution_device="cpu", state_dict=values)
    assert all(parameter.device.type == "meta" for parameter in spread_out.parameters())
    model = open_model(spread_out, tokenizer=tokenizer())
    expected = open_model(whole, tokenizer=tokenizer(), device="cpu")
    assert model.device == torch.device("cpu") and model.digest == expected.digest
    torch.testing.assert_close(model.logits(IDS), expected.logits(IDS), **TOLERANCE)
    pairs = list(zip(spread_out.modules(), sharing_copy(spread_out).modules(), strict=True))
    maps = [
        (own._hf_hook.weights_map, copied._hf_hook.weights_map)
        for own, copied in pairs
        if getattr(getattr(own, "_hf_hook", None), "weights_map", None) is not None
    ]
    assert maps and all(own is copied for own, copied in maps)


@pytest.mark.parametrize("engine", ["transformer_lens", "nnsight"])
def test_a_joint_projection_and_tied_weights_may_lie_on_the_disk(tmp_path, engine):
    plain = tiny("gpt2")
    folder = saved(plain, tmp_path / "m")
    places = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "lm_head": "cpu"}
    places |= {"transformer.h.0": "cpu", "transformer.h.1": "disk", "transformer.h.2": "cpu"}
    places |= {"transformer.ln_f": "cpu", "transformer.drop": "cpu"}
    model = open_model(folder, device_map=places, engine=engine)
    assert model.hf.transformer.h[1].attn.c_attn.weight.device.type == "meta"
    whole = open_model(folder, device="cpu", engine=engine)
    assert model.digest == whole.digest and model.sites == whole.sites
    got, expected = (one.activations(IDS, None, one.sites) for one in (model, whole))
    for site, states in expected.items():
        torch.testing.assert_close(got[site], states, **TOLERANCE, msg=site)


def test_what_cannot_be_spread_is_said(tmp_path, monkeypatch):
    folder = saved(tiny("llama"), tmp_path / "m")
    with pytest.raises(ModelError, match="device or device_map, not both"):
        open_model(folder, device="cpu", device_map="auto")
    with pytest.raises(ModelError, match="device_map spreads weights while they are read"):
        open_model(tiny("llama"), tokenizer=tokenizer(), device_map="auto")
    with pytest.raises(ModelError, match="cannot be opened with this device_map") as told:
        open_model(folder, device_map="everywhere")
    assert "\n" not in str(told.value)
    import activations.loading as loading

    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs the package accelerate: pip install accelerate"):
        open_model(folder, device_map="auto")


def test_the_folder_for_the_disk_goes_with_the_model(tmp_path, monkeypatch):
    import gc
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    model = spread(saved(tiny("llama"), tmp_path / "m"))
    assert len(list((tmp_path / "t").iterdir())) == 1
    model.logits(IDS)
    del model
    gc.collect()
    assert not list((tmp_path / "t").iterdir())


# The digest


def test_the_digest_is_of_names_shapes_dtypes_and_bytes():
    plain = tiny("gpt2")  # embedding and head are one tensor
    lines = []
    for name, tensor in sorted(plain.state_dict().items()):
        content = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
        lines.append(f"{name} {tuple(tensor.shape)} {tensor.dtype} {content}\n")
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert open_model(plain, tokenizer=tokenizer(), device="cpu").digest == expected


def test_the_digest_tells_precisions_apart(tmp_path):
    folder = saved(tiny("llama"), tmp_path / "m")
    kinds = ("float32", "bfloat16", "float16")
    digests = {open_model(folder, device="cpu", dtype=kind).digest for kind in kinds}
    assert len(digests) == 3


# Which engine


def test_auto_goes_to_nnsight_where_the_bridge_gives_other_logits(monkeypatch, caplog):
    import activations.engines.survey as look

    real = look.same
    monkeypatch.setattr(look, "same", lambda a, b: real(a, b) and a.shape[-1] != len(WORDS) + 3)
    plain = tiny("llama")
    model = open_model(plain, tokenizer=tokenizer(), device="cpu")
    assert model.engine.name == "nnsight"
    assert "gives other logits than the plain model" in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    with torch.no_grad():
        torch.testing.assert_close(model.logits(IDS), plain(IDS).logits, **TOLERANCE)
    with pytest.raises(ModelError, match="gives other logits than the plain model"):
        open_model(plain, tokenizer=tokenizer(), device="cpu", engine="transformer_lens")
    with pytest.raises(ModelError, match="Unknown engine 'warp'"):
        open_model(plain, tokenizer=tokenizer(), engine="warp")
