"""Engine nnsight, site by site, against hooks that were placed by hand on the plain model."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from activations import ModelError, SiteError, open_model

from .conftest import WORDS, tiny, tokenizer
from .families import D_HEAD, D_MODEL, FAMILIES, HEADS, LAYERS, by_hand, make

IDS = torch.tensor([[3, 5, 7, 9, 12, 20, 4, 8], [6, 6, 10, 22, 4, 3, 15, 11]])
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
TEXTS = ["the cat sat on the mat .", "a dog ran .", "youse sat on the big red log now"]


class Edit:
    name = "edit"

    def __init__(self, site, change):
        self.sites, self.change = [site], change

    def __call__(self, x, site, positions):
        return self.change(x)


def nnsight(plain):
    return open_model(copy.deepcopy(plain), tokenizer=tokenizer(), device="cpu", engine="nnsight")


@pytest.fixture(scope="module", params=FAMILIES)
def opened(request):
    plain = make(request.param)
    return request.param, nnsight(plain), plain


def hooked(plain, path, change, *, before=False):
    """A change made by an ordinary hook on the plain model."""
    module = plain.get_submodule(path)
    if before:
        return module.register_forward_pre_hook(lambda _m, args: (change(args[0]), *args[1:]))

    def after(_module, _args, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    return module.register_forward_hook(after)


def logits(plain, ids=IDS):
    with torch.no_grad():
        return plain(ids, attention_mask=torch.ones_like(ids)).logits


# Reading


def test_every_site_holds_what_hooks_placed_by_hand_find(opened):
    name, model, plain = opened
    expected = by_hand(name, plain, input_ids=IDS, attention_mask=torch.ones_like(IDS))
    expected = {site: x for site, x in expected.items() if not site.endswith("pattern")}
    assert model.engine.name == "nnsight"
    together = model.activations(IDS, None, list(reversed(expected)))
    for site, states in expected.items():
        assert model.site(site).row == tuple(together[site].shape[2:]), site
        torch.testing.assert_close(together[site].flatten(2), states, **TOLERANCE, msg=site)
        alone = model.activations(IDS, None, [site])[site]
        torch.testing.assert_close(alone, together[site], rtol=0, atol=0)
    torch.testing.assert_close(model.logits(IDS), logits(plain), **TOLERANCE)


def test_the_names_and_shapes_are_those_of_the_other_engine(opened):
    _, model, plain = opened
    other = open_model(copy.deepcopy(plain), tokenizer=tokenizer(), device="cpu")
    readable = {s for s in other.sites if other.site(s).place is not None}
    assert set(model.sites) == readable and (model.n_layers, model.d_model) == (LAYERS, D_MODEL)
    assert all(model.site(s).row == other.site(s).row for s in readable)
    assert model.is_causal == other.is_causal


def test_what_lies_inside_a_module_is_left_to_the_other_engine(opened):
    _, model, _ = opened
    with pytest.raises(
        SiteError, match="hook_pattern' cannot be read: it lies inside a module"
    ) as e:
        model.resolve_sites("pattern", [0])
    assert "engine transformer_lens" in str(e.value)


def test_rows_are_selected_before_heads_are_multiplied_out(opened):
    name, model, plain = opened
    expected = by_hand(name, plain, input_ids=IDS, attention_mask=torch.ones_like(IDS))
    site, seen = "blocks.1.attn.hook_result", []

    def last(x, _site):
        seen.append(tuple(x.shape))
        return x[:, -1]

    got = model.activations(IDS, None, [site], select=last)[site]
    assert seen == [(2, 8, HEADS, D_HEAD)] and got.shape == (2, HEADS, D_MODEL)
    torch.testing.assert_close(got.flatten(1), expected[site][:, -1], **TOLERANCE)


# Editing


def test_edits_equal_those_of_ordinary_hooks(opened):
    name, model, plain = opened
    family = FAMILIES[name]
    block = f"{family.blocks}.0"
    ramp = torch.linspace(-1, 1, D_MODEL)
    heads = torch.linspace(1, 2, D_MODEL)
    changes = {
        "blocks.0.hook_resid_post": (block, lambda x: x + ramp, False),
        "blocks.0.mlp.hook_post": (f"{block}.{family.mlp_out}", lambda x: x * 2 - 1, True),
        "blocks.0.hook_attn_out": (f"{block}.{family.attention_writes}", lambda x: x * 3, False),
    }
    for site, (path, change, before) in changes.items():
        handle = hooked(plain, path, change, before=before)
        expected = logits(plain)
        handle.remove()
        with model.edited(Edit(site, change)):
            torch.testing.assert_close(model.logits(IDS), expected, **TOLERANCE, msg=site)
        assert (expected - logits(plain)).abs().max() > 1e-3
    handle = hooked(plain, f"{block}.{family.out}", lambda x: x * heads, before=True)
    expected = logits(plain)
    handle.remove()
    with model.edited(Edit("blocks.0.attn.hook_z", lambda z: z * heads.reshape(HEADS, D_HEAD))):
        torch.testing.assert_close(model.logits(IDS), expected, **TOLERANCE)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.joint])
def test_a_part_of_a_joint_projection_is_edited_alone(name):
    family, plain = FAMILIES[name], make(name)
    model = nnsight(plain)

    def second_third(x):
        new = x.clone()
        part = (
            new.chunk(3, -1)[1]
            if family.layout == "thirds"
            else new.unflatten(-1, (HEADS, 3, D_HEAD))[..., 1, :]
        )
        part += 1
        return new

    handle = hooked(plain, f"{family.blocks}.0.{family.joint}", second_third)
    expected = logits(plain)
    handle.remove()
    with model.edited(Edit("blocks.0.attn.hook_k", lambda k: k + 1)):
        torch.testing.assert_close(model.logits(IDS), expected, **TOLERANCE)


def test_what_one_head_writes_is_edited_as_if_it_were_a_step_of_the_pass(opened):
    name, model, plain = opened
    family = FAMILIES[name]
    keep = torch.ones(HEADS, D_HEAD)
    keep[1] = 0
    handle = hooked(
        plain, f"{family.blocks}.1.{family.out}", lambda x: x * keep.flatten(), before=True
    )
    expected = logits(plain)
    handle.remove()
    site = "blocks.1.attn.hook_result"
    silent = Edit(site, lambda r: r * keep[:, :1])
    with model.edited(silent):
        torch.testing.assert_close(model.logits(IDS), expected, **TOLERANCE)
        got = model.activations(IDS, None, [site])[site]
    assert got[:, :, 1].abs().max() == 0 < got[:, :, 0].abs().max()
    twice = Edit(site, lambda r: r / keep[:, :1].clamp(min=0.5))
    with model.edited(silent, twice):
        torch.testing.assert_close(model.logits(IDS), expected, **TOLERANCE)


def test_reads_and_edits_share_a_pass_and_reads_see_the_edits(opened):
    _, model, _ = opened
    first, last = "blocks.0.hook_resid_pre", "blocks.1.hook_resid_post"
    plain = model.activations(IDS, None, [first, last])
    with model.edited(Edit(first, lambda x: x + 1), Edit(first, lambda x: x * 2)):
        got = model.activations(IDS, None, [last, first])
    torch.testing.assert_close(got[first], 2 * (plain[first] + 1))
    assert (got[last] - plain[last]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_decoding_with_a_cache_under_an_edit_equals_decoding_without(kind):
    plain = tiny(kind)
    model = nnsight(plain)
    push = torch.linspace(-2, 2, 16)
    block = "transformer.h.1" if kind == "gpt2" else "model.layers.1"
    handle = hooked(plain, block, lambda x: x + push)
    expected = []
    for text in TEXTS:
        ids = model.encode(text)
        new: list[int] = []
        for _ in range(6):
            new.append(int(logits(plain, torch.tensor([ids + new]))[0, -1].argmax()))
        expected.append(model.tokenizer.decode(new, skip_special_tokens=True))
    handle.remove()
    with model.edited(Edit("blocks.1.hook_resid_post", lambda x: x + push)):
        got = model.generate(TEXTS, max_new_tokens=6, rendered=False)
    assert got == expected != model.generate(TEXTS, max_new_tokens=6, rendered=False)


# Leaving nothing behind


def test_the_pass_ends_after_the_last_site(opened):
    name, model, _ = opened
    later = model.engine.root._module.get_submodule(f"{FAMILIES[name].blocks}.1")
    calls = []
    handle = later.register_forward_pre_hook(lambda *_: calls.append(1))
    model.activations(IDS, None, ["blocks.0.hook_resid_post"])
    assert not calls
    model.activations(IDS, None, ["blocks.1.hook_resid_post"])
    assert calls
    handle.remove()


def test_an_error_in_an_edit_leaves_the_model_as_it_was(opened):
    _, model, plain = opened
    before = [(path, type(module), set(vars(module))) for path, module in model.hf.named_modules()]

    def fail(_x):
        raise ValueError("no such thing")

    for site in ("blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "unembed.hook_out"):
        with pytest.raises(ValueError, match="no such thing"), model.edited(Edit(site, fail)):
            model.logits(IDS)
        with pytest.raises(ValueError, match="no such thing"):
            model.activations(IDS, None, [site], select=lambda x, _site: fail(x))
    torch.testing.assert_close(model.logits(IDS), logits(plain), **TOLERANCE)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
    assert not model.engine.root.interleaver.mediators
    now = [(path, type(module), set(vars(module))) for path, module in model.hf.named_modules()]
    assert now == before
    assert not any("forward" in vars(module) for module in model.hf.modules())


def test_threads_wait_for_each_other():
    plain = make("llama")
    model = nnsight(plain)
    expected, edited = logits(plain), []
    with model.edited(Edit("blocks.0.hook_resid_post", lambda x: x * 0)):
        silent = model.logits(IDS)

    def work(number):
        if number % 2:
            edited.append(torch.equal(model.logits(IDS), expected))
        else:
            with model.edited(Edit("blocks.0.hook_resid_post", lambda x: x * 0)):
                edited.append(torch.equal(model.logits(IDS), silent))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert edited == [True] * 8


def test_a_site_that_nnsight_serves_wrongly_is_refused(monkeypatch):
    import activations.engines.nnsight_engine as look

    real = look.same
    monkeypatch.setattr(look, "same", lambda a, b: real(a, b) and a.shape[-1] != 24)
    model = nnsight(make("llama"))
    with pytest.raises(SiteError, match="nnsight serves other states there than the plain model"):
        model.resolve_sites("mlp_post")
    assert model.resolve_sites("resid_post")
    monkeypatch.setattr(look, "same", lambda a, b: False)
    with pytest.raises(ModelError, match="nnsight's pass through in memory gives other logits"):
        nnsight(make("llama"))


# Architectures that TransformerLens does not know


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
