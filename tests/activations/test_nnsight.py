"""Engine nnsight, site by site, against hooks that were placed by hand on the plain model."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from activations import ModelError, SiteError, open_model

from .by_hooks import IDS, TOLERANCE, Edit, hooked, logits
from .conftest import tiny, tokenizer
from .families import D_HEAD, D_MODEL, FAMILIES, HEADS, LAYERS, by_hand, make

TEXTS = ["the cat sat on the mat .", "a dog ran .", "youse sat on the big red log now"]


def nnsight(plain):
    return open_model(copy.deepcopy(plain), tokenizer=tokenizer(), device="cpu", engine="nnsight")


@pytest.fixture(scope="module", params=FAMILIES)
def opened(request):
    plain = make(request.param)
    return request.param, nnsight(plain), plain


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
