"""Every site, by TransformerLens name, on every family, against hooks that were placed by hand."""

from __future__ import annotations

import copy

import pytest
import torch

from activations import SiteError, open_model

from .by_hooks import Edit
from .conftest import tokenizer
from .families import D_HEAD, D_MODEL, FAMILIES, HEADS, LAYERS, by_hand, make

IDS = torch.tensor([[3, 5, 7, 9, 12, 20, 4, 8], [6, 6, 10, 22, 4, 3, 15, 11]])


@pytest.fixture(scope="module", params=FAMILIES)
def opened(request):
    plain = make(request.param)
    model = open_model(copy.deepcopy(plain), tokenizer=tokenizer(), device="cpu")
    return request.param, model, plain


def test_every_site_holds_what_hooks_placed_by_hand_find(opened):
    name, model, plain = opened
    expected = by_hand(name, plain, input_ids=IDS, attention_mask=torch.ones_like(IDS))
    assert len(expected) == LAYERS * (13 if FAMILIES[name].middle else 12) + 3
    for site, states in expected.items():
        got = model.activations(IDS, None, [site])[site]
        flat = got if site.endswith("pattern") else got.flatten(2)
        torch.testing.assert_close(flat, states, rtol=1e-4, atol=1e-5, msg=f"{name} {site}")
    together = model.activations(IDS, None, list(expected))
    for site, states in expected.items():
        flat = together[site] if site.endswith("pattern") else together[site].flatten(2)
        torch.testing.assert_close(flat, states, rtol=1e-4, atol=1e-5, msg=f"{name} {site}")


def test_hidden_states_are_the_stream_before_each_block(opened):
    _, model, plain = opened
    with torch.no_grad():
        hidden = plain(IDS, output_hidden_states=True).hidden_states
    got = model.activations(IDS, None, model.resolve_sites("resid_pre"))
    for layer, states in enumerate(got.values()):
        torch.testing.assert_close(states, hidden[layer], rtol=1e-5, atol=1e-5)


def test_shapes_are_those_that_the_table_of_sites_states(opened):
    _, model, _ = opened
    got = model.activations(IDS, None, model.sites)
    assert set(got) == set(model.sites)
    for name, states in got.items():
        site = model.site(name)
        shape = list(states.shape)
        assert (shape.pop(site.axis), shape.pop(0)) == (IDS.shape[1], 2), name
        assert tuple(shape[:-1]) == site.row[:-1], name
        assert site.over_keys or shape[-1] == site.row[-1], name
    at = "blocks.1."
    assert model.site(at + "hook_resid_post").row == (D_MODEL,)
    assert model.site(at + "attn.hook_z").row == (HEADS, D_HEAD)
    assert model.site(at + "attn.hook_result").row == (HEADS, D_MODEL)


def test_attention_rows_sum_to_one_and_heads_to_what_attention_writes(opened):
    name, model, plain = opened
    at = "blocks.1."
    got = model.activations(IDS, None, [at + "attn.hook_pattern", at + "attn.hook_result"])
    sums = got[at + "attn.hook_pattern"].sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    family = FAMILIES[name]
    bias = plain.get_submodule(f"{family.blocks}.1.{family.out}").bias
    written = model.activations(IDS, None, [at + "attn.o.hook_out"])[at + "attn.o.hook_out"]
    total = got[at + "attn.hook_result"].sum(2) + (0 if bias is None else bias)
    torch.testing.assert_close(total, written, rtol=1e-4, atol=1e-5)


def test_padding_on_either_side_changes_no_states(opened):
    _, model, _ = opened
    ids = [[3, 5, 7, 9, 12, 20, 4, 8], [6, 10, 22], [4]]
    sites = model.resolve_sites(["embed", "resid_post", "attn_out", "z"])
    for side in ("right", "left"):
        together = model.activations(*model.pad(ids, side=side), sites)
        for row, one in enumerate(ids):
            alone = model.activations(*model.pad([one]), sites)
            here = slice(0, len(one)) if side == "right" else slice(8 - len(one), 8)
            for site in sites:
                torch.testing.assert_close(
                    together[site][row, here], alone[site][0], rtol=1e-4, atol=1e-5
                )


def test_an_edit_of_the_plain_model_equals_the_same_edit_through_the_bridge(opened):
    _, model, _ = opened

    class Push:
        name = "push"

        def __init__(self, site):
            self.sites = [site]

        def __call__(self, x, site, positions):
            return x + 0.5 * torch.arange(x.shape[-1], dtype=x.dtype)

    last = "unembed.hook_out"
    for short in ("resid_pre", "z", "v", "mlp_post", "attn_out"):
        site = model.resolve_sites(short, [0])[0]
        native = model.site(site)
        assert native.place is not None, site
        with model.edited(Push(site)):
            changed = model.activations(IDS, None, [last])[last]
            # A site that only the bridge has sends the whole pass through it.
            through = model.activations(IDS, None, ["blocks.1.attn.hook_pattern", last])[last]
        assert (changed - model.activations(IDS, None, [last])[last]).abs().max() > 1e-3
        torch.testing.assert_close(changed, through, rtol=1e-4, atol=1e-4)


def test_an_edit_of_what_heads_write_is_seen_there_and_added_to_the_stream(opened):
    name, model, _ = opened
    site, stream = "blocks.0.attn.hook_result", "blocks.0.attn.o.hook_out"

    class Silence:
        name, sites = "silence", [site]

        def __call__(self, x, site, positions):
            return torch.cat([torch.zeros_like(x[..., :1, :]), x[..., 1:, :]], dim=-2)

    before = model.activations(IDS, None, [site, stream])
    if name in ("opt", "bert"):
        with model.edited(Silence()), pytest.raises(SiteError, match=r"edit attn\.hook_z instead"):
            model.activations(IDS, None, [site])
        return
    end = "blocks.0.hook_attn_out" if name == "gpt_neox" else "blocks.1.hook_resid_pre"
    plain = model.activations(IDS, None, [end])[end]
    with model.edited(Silence()):
        edited = model.activations(IDS, None, [site, end])
    assert not edited[site][..., 0, :].any()
    torch.testing.assert_close(edited[site][..., 1:, :], before[site][..., 1:, :])
    assert (edited[end] - plain).abs().max() > 1e-3
    if name == "gpt_neox":  # nothing else is added there
        lost = before[site][..., 0, :]
        torch.testing.assert_close(edited[end], plain - lost, rtol=1e-4, atol=1e-5)


def test_the_model_that_was_given_keeps_its_modules_and_its_attention():
    plain = make("llama")
    before = [(path, type(module)) for path, module in plain.named_modules()]
    model = open_model(plain, tokenizer=tokenizer(), device="cpu")
    model.activations(IDS, None, ["blocks.0.attn.hook_pattern"])
    assert [(path, type(module)) for path, module in plain.named_modules()] == before
    assert plain.config._attn_implementation == "sdpa"
    shared = {p.data_ptr() for p in model.engine.wrapped.parameters()}
    assert shared == {p.data_ptr() for p in plain.parameters()}


def test_a_site_that_fails_the_look_at_opening_is_refused_with_the_reason(monkeypatch):
    import activations.engines.survey as look

    monkeypatch.setattr(look, "_sums_to_one", lambda pattern: False)
    model = open_model(make("gpt2"), tokenizer=tokenizer(), device="cpu")
    with pytest.raises(SiteError, match="hook_pattern' cannot be read: its attention rows"):
        model.resolve_sites("pattern")
    assert model.resolve_sites("resid_post")


def test_a_place_that_holds_something_else_is_left_to_the_bridge(monkeypatch):
    import activations.engines.survey as look

    real = look.same
    monkeypatch.setattr(
        look, "same", lambda a, b: real(a, b) and (a.ndim != 3 or a.shape[-1] != D_MODEL)
    )
    model = open_model(make("llama"), tokenizer=tokenizer(), device="cpu")
    assert model.site("blocks.0.hook_resid_post").place is None
    expected = by_hand("llama", make("llama"), input_ids=IDS)["blocks.0.hook_resid_post"]
    got = model.activations(IDS, None, ["blocks.0.hook_resid_post"])
    torch.testing.assert_close(got["blocks.0.hook_resid_post"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ["transformer_lens", "nnsight"])
@pytest.mark.parametrize("family", [k for k, v in FAMILIES.items() if v.middle and k != "bert"])
def test_an_edit_in_the_middle_of_the_stream_stays_in_it(family, engine):
    model = open_model(make(family), tokenizer=tokenizer(), device="cpu", engine=engine)
    middle, wrote, after = (
        model.resolve_sites(kind, [0])[0] for kind in ("resid_mid", "mlp_out", "resid_post")
    )
    edit = Edit(middle, lambda x: x + torch.arange(x.shape[-1]).to(x))
    plain = model.activations(IDS, None, [middle])[middle]
    with model.edited(edit):
        got = model.activations(IDS, None, [middle, wrote, after])
    expected = plain + torch.arange(D_MODEL).to(plain)
    torch.testing.assert_close(got[middle], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got[after], expected + got[wrote], rtol=1e-4, atol=1e-4)
