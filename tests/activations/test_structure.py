"""Architectures that TransformerLens does not know are found by their modules and by arithmetic."""

from __future__ import annotations

import pytest
import torch

from activations import ModelError, SiteError, open_model

from .by_hooks import IDS, TOLERANCE, Edit, hooked, logits
from .conftest import WORDS, tokenizer


def odd(blocks=3, width=16):
    """A decoder of our own whose modules are called as no library calls them."""
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    class Config(PretrainedConfig):
        model_type = "odd"

    class Mixer(nn.Module):
        def __init__(self):
            super().__init__()
            self.all = nn.Linear(width, 3 * width)
            self.back = nn.Linear(width, width)

        def forward(self, x):
            q, k, v = self.all(x).chunk(3, -1)
            seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.back(seen), None

    class Storey(nn.Module):
        def __init__(self):
            super().__init__()
            self.tidy_a, self.tidy_b = nn.LayerNorm(width), nn.LayerNorm(width)
            self.self_attn_unit = Mixer()
            self.ffn_unit = nn.Sequential(nn.Linear(width, 24), nn.GELU(), nn.Linear(24, width))
            self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(8))

        def forward(self, x):
            x = x + self.self_attn_unit(self.tidy_a(x))[0]
            return (x + self.ffn_unit(self.tidy_b(x)),)

    class Odd(PreTrainedModel):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.words = nn.Embedding(config.vocab_size, width)
            self.house = nn.Module()
            self.house.storeys = nn.ModuleList(Storey() for _ in range(blocks))
            self.roof_norm = nn.LayerNorm(width)
            self.speak = nn.Linear(width, config.vocab_size)
            self.post_init()

        def get_input_embeddings(self):
            return self.words

        def get_output_embeddings(self):
            return self.speak

        def forward(self, input_ids, attention_mask=None):
            x = self.words(input_ids)
            for storey in self.house.storeys:
                x = storey(x)[0]
            return CausalLMOutput(logits=self.speak(self.roof_norm(x)))

    torch.manual_seed(0)
    model = Odd(Config(vocab_size=len(WORDS) + 3)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_a_decoder_with_odd_names_is_found_by_its_structure(caplog):
    plain = odd()
    model = open_model(plain, tokenizer=tokenizer(), device="cpu")
    assert model.engine.name == "nnsight" and model.is_causal and model.n_layers == 3
    assert [record.getMessage() for record in caplog.records] == [
        "TransformerLens does not know the architecture Odd of in memory; it is read through "
        "engine nnsight, at 18 sites."
    ]
    places = {"hook_embed": ("words", "out"), "ln_final.hook_out": ("roof_norm", "out")}
    places["unembed.hook_out"] = ("speak", "out")
    for i in range(3):
        at = f"house.storeys.{i}"
        places[f"blocks.{i}.hook_resid_pre"] = (at, "in")
        places[f"blocks.{i}.hook_attn_out"] = (f"{at}.self_attn_unit", "out")
        places[f"blocks.{i}.hook_resid_mid"] = (f"{at}.tidy_b", "in")
        places[f"blocks.{i}.hook_mlp_out"] = (f"{at}.ffn_unit", "out")
        places[f"blocks.{i}.hook_resid_post"] = (at, "out")
    check(model, plain, places)
    with pytest.raises(SiteError, match="do not show where it lies"):
        model.resolve_sites("z")
    push = torch.linspace(-2, 2, 16)
    handle = hooked(plain, "house.storeys.1.self_attn_unit", lambda x: x + push)
    expected = logits(plain)
    handle.remove()
    with model.edited(Edit("blocks.1.hook_attn_out", lambda x: x + push)):
        torch.testing.assert_close(model.logits(IDS), expected, **TOLERANCE)


def check(model, plain, places):
    """The sites are these, and hold what ordinary hooks on the plain model find there."""
    got: dict[str, torch.Tensor] = {}
    handles = []
    for site, (path, side) in places.items():
        module = plain.get_submodule(path)

        def after(_m, _a, out, site=site):
            got[site] = (out if isinstance(out, torch.Tensor) else out[0]).clone()

        def before(_m, args, named, site=site):
            got[site] = (args[0] if args else named["hidden_states"]).clone()

        handles.append(
            module.register_forward_hook(after)
            if side == "out"
            else module.register_forward_pre_hook(before, with_kwargs=True)
        )
    logits(plain)
    for handle in handles:
        handle.remove()
    assert set(model.sites) == set(places)
    found = model.activations(IDS, None, model.sites)
    for site, states in got.items():
        torch.testing.assert_close(found[site], states, **TOLERANCE, msg=site)


_SMALL = {
    "vocab_size": len(WORDS) + 3, "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "max_position_embeddings": 64, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 1,
}  # fmt: skip
_POST_NORM = ("attention.output.dense", "attention.output.LayerNorm", "output.dense")
#: Architectures that TransformerLens 4.3 lacks: options, path of the blocks, and within a block
#: what attention writes, what reads the stream after it, what the MLP writes; embedding, last norm,
#: head.
REAL = {
    "Helium": (
        "HeliumForCausalLM", {}, "model.layers",
        ("self_attn", "post_attention_layernorm", "mlp"),
        ("model.embed_tokens", "model.norm", "lm_head"),
    ),
    "BioGpt": (
        "BioGptForCausalLM", {}, "biogpt.layers", ("self_attn", "final_layer_norm", "fc2"),
        ("biogpt.embed_tokens", "biogpt.layer_norm", "output_projection"),
    ),
    "HunYuanMoEV1": (  # experts, in a list that is longer than the blocks'
        "HunYuanMoEV1ForCausalLM", {"num_experts": 4, "moe_topk": 2}, "model.layers",
        ("self_attn", "post_attention_layernorm", "mlp"),
        ("model.embed_tokens", "model.norm", "lm_head"),
    ),
    "Cohere2Moe": (  # attention and MLP read one stream
        "Cohere2MoeForCausalLM", {"num_experts": 4, "num_experts_per_tok": 2}, "model.layers",
        ("self_attn", "", "mlp"), ("model.embed_tokens", "model.norm", "lm_head"),
    ),
    "Electra": (
        "ElectraForMaskedLM", {"embedding_size": 16}, "electra.encoder.layer", _POST_NORM,
        ("electra.embeddings.word_embeddings", "generator_predictions.LayerNorm",
         "generator_lm_head"),
    ),
    "ModernBert": (
        "ModernBertForMaskedLM", {"global_attn_every_n_layers": 2}, "model.layers",
        ("attn", "mlp_norm", "mlp"),
        ("model.embeddings.tok_embeddings", "head.norm", "decoder"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_architectures_that_transformer_lens_lacks_are_found(name, caplog):
    import transformers

    kind, more, blocks, parts, ends = REAL[name]
    config_class = getattr(transformers, f"{name}Config")
    known = set(config_class().to_dict()) | set(config_class.attribute_map)
    torch.manual_seed(2)
    config = config_class(**{k: v for k, v in _SMALL.items() if k in known}, **more)
    plain = getattr(transformers, kind)(config).eval()
    model = open_model(plain, tokenizer=tokenizer(), device="cpu")
    assert model.engine.name == "nnsight" and f"architecture {kind}" in caplog.text
    assert model.is_causal == kind.endswith("CausalLM") and model.n_layers == 2
    places = dict(
        zip(("hook_embed", "ln_final.hook_out", "unembed.hook_out"), [(p, "out") for p in ends])
    )
    for i in range(2):
        at = f"{blocks}.{i}"
        places[f"blocks.{i}.hook_resid_pre"] = (at, "in")
        places[f"blocks.{i}.hook_resid_post"] = (at, "out")
        places[f"blocks.{i}.hook_attn_out"] = (f"{at}.{parts[0]}", "out")
        places[f"blocks.{i}.hook_mlp_out"] = (f"{at}.{parts[2]}", "out")
        if parts[1]:
            places[f"blocks.{i}.hook_resid_mid"] = (f"{at}.{parts[1]}", "in")
    check(model, plain, places)


def test_models_without_a_row_of_blocks_are_refused():
    from transformers import AlbertConfig, AlbertForMaskedLM

    config = AlbertConfig(
        vocab_size=23, hidden_size=16, intermediate_size=24, num_attention_heads=4,
        num_hidden_layers=3, embedding_size=16,
    )  # fmt: skip
    plain = AlbertForMaskedLM(config).eval()  # one block, passed three times
    with pytest.raises(ModelError, match="finds no blocks in in memory") as told:
        open_model(plain, tokenizer=tokenizer(), device="cpu")
    assert "does not know the architecture AlbertForMaskedLM" in str(told.value)
    assert "\n" not in str(told.value)
