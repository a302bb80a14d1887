"""A GGUF file opens as the model that it was made from, or is refused in one sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from activations import ModelError, open_model, random_like

from .conftest import WORDS, tiny, tokenizer

IDS = torch.tensor([[3, 5, 7, 9, 12, 20], [6, 6, 10, 22, 4, 3]])
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}

_GGUF = {
    "model.embed_tokens": "token_embd", "model.layers": "blk", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm",
    "model.norm": "output_norm", "lm_head": "output",
}  # fmt: skip


def write_gguf(model, path):
    """A llama as llama.cpp keeps it: other names, other order of the rotated pairs."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *("▁" + word for word in WORDS)])
    writer.add_token_scores([0.0] * (len(WORDS) + 3))
    writer.add_token_types([2, 3, 3] + [1] * len(WORDS))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        for part, n in heads.items():
            if part in name:
                pairs = values.reshape(n, 2, len(values) // n // 2, -1).swapaxes(1, 2)
                values = pairs.reshape(values.shape)
        for ours, theirs in _GGUF.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_opens_as_the_model_that_it_was_made_from(tmp_path, capfd):
    plain = tiny("llama")
    write_gguf(plain, tmp_path / "tiny.gguf")
    capfd.readouterr()
    model = open_model(str(tmp_path / "tiny.gguf"), device="cpu")
    assert capfd.readouterr() == ("", "")
    with torch.no_grad():
        expected = plain(IDS, output_hidden_states=True)
    torch.testing.assert_close(model.logits(IDS), expected.logits, **TOLERANCE)
    got = model.activations(IDS, None, model.resolve_sites("resid_pre"))
    for states, hidden in zip(got.values(), expected.hidden_states):
        torch.testing.assert_close(states, hidden, **TOLERANCE)
    assert model.tokenizer.convert_tokens_to_ids("▁cat") == 3 + WORDS.index("cat")
    assert open_model(str(tmp_path), device="cpu").digest == model.digest
    assert open_model(plain, tokenizer=tokenizer(), device="cpu").digest == model.digest


def test_random_weights_are_not_drawn_in_the_form_of_a_gguf_file(tmp_path):
    write_gguf(tiny("llama"), tmp_path / "tiny.gguf")
    model = open_model(str(tmp_path / "tiny.gguf"), device="cpu")
    with pytest.raises(ModelError, match="is quantised, and random weights have no such form"):
        random_like(model, seed=0)
    with pytest.raises(ModelError, match="is a GGUF file, and random weights have no such form"):
        open_model(str(tmp_path / "tiny.gguf"), device="cpu", random_seed=0)


def test_gguf_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    write_gguf(tiny("llama"), tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    for length in (0, 10, 300, 3000, len(whole) - 500):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf is broken, cut off") as told:
            open_model(str(tmp_path / "cut.gguf"), device="cpu")
        assert "\n" not in str(told.value)
    with pytest.raises(ModelError, match="holds 2 GGUF files; give one of them"):
        open_model(str(tmp_path))
    with pytest.raises(ModelError, match="There is no file"):
        open_model(str(tmp_path / "none.gguf"))
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="no GGUF file; give the model's folder"):
        open_model(str(tmp_path / "model.bin"))
    import activations.sources as sources

    monkeypatch.setattr(sources, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(ModelError, match=r"needs the package gguf: pip install"):
        open_model(str(tmp_path / "tiny.gguf"))
