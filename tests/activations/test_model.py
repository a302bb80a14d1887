"""An opened model gives the numbers of the model it was made from, whatever the batch."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from activations import CaptureError, ModelError, SiteError, layer_of, open_model

from .conftest import tiny, tokenizer


def hooked(plain, ids, modules):
    """Outputs (or, with "in:", inputs) of plain modules, by ordinary hooks."""
    got, handles = {}, []
    for key, (module, of_input) in modules.items():

        def keep(_m, args, output, key=key, of_input=of_input):
            value = args[0] if of_input else output
            got[key] = (value[0] if isinstance(value, tuple) else value).detach().clone()

        handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        plain(ids)
    for handle in handles:
        handle.remove()
    return got


def places(plain):
    modules = {}
    inner = getattr(plain, "transformer", None)
    blocks = inner.h if inner is not None else plain.model.layers
    for i, block in enumerate(blocks):
        at = f"blocks.{i}"
        modules[f"{at}.hook_resid_pre"] = (block, True)
        modules[f"{at}.hook_resid_post"] = (block, False)
        if inner is not None:
            modules[f"{at}.hook_attn_out"] = (block.attn, False)
            modules[f"{at}.attn.hook_z"] = (block.attn.c_proj, True)
            modules[f"{at}.hook_resid_mid"] = (block.ln_2, True)
            modules[f"{at}.mlp.hook_post"] = (block.mlp.c_proj, True)
        else:
            modules[f"{at}.hook_attn_out"] = (block.self_attn, False)
            modules[f"{at}.attn.hook_z"] = (block.self_attn.o_proj, True)
            modules[f"{at}.attn.hook_k"] = (block.self_attn.k_proj, False)
            modules[f"{at}.hook_resid_mid"] = (block.post_attention_layernorm, True)
            modules[f"{at}.mlp.hook_post"] = (block.mlp.down_proj, True)
        modules[f"{at}.hook_mlp_out"] = (block.mlp, False)
    return modules


def test_states_equal_those_of_plain_hooks(both):
    model, plain = both
    ids = torch.tensor([[3, 5, 7, 9, 12, 20]])
    expected = hooked(plain, ids, places(plain))
    got = model.activations(ids, None, list(expected))
    assert got.keys() == expected.keys()
    for site, states in expected.items():
        torch.testing.assert_close(
            got[site].reshape(states.shape), states, rtol=1e-5, atol=1e-5, msg=site
        )


def test_logits_equal_those_of_the_plain_model(both):
    model, plain = both
    ids = torch.tensor([[3, 5, 7, 9], [4, 4, 8, 20]])
    with torch.no_grad():
        expected = plain(ids).logits
    torch.testing.assert_close(model.logits(ids), expected, rtol=1e-5, atol=1e-5)


def test_states_do_not_depend_on_the_batch(model, texts):
    sites = model.resolve_sites(["embed", "resid_post"])
    ids = [model.encode(text) for text in texts]
    together = model.activations(*model.pad(ids), sites)
    for row, one in enumerate(ids):
        alone = model.activations(*model.pad([one]), sites)
        for site in sites:
            torch.testing.assert_close(
                together[site][row, : len(one)], alone[site][0], rtol=1e-5, atol=1e-5
            )


def test_an_early_stop_changes_nothing_and_leaves_no_hook(model):
    ids = torch.tensor([[3, 5, 7, 9]])
    early = model.activations(ids, None, ["blocks.0.hook_resid_post"])
    late = model.activations(ids, None, model.resolve_sites())
    torch.testing.assert_close(
        early["blocks.0.hook_resid_post"], late["blocks.0.hook_resid_post"], rtol=0, atol=0
    )
    assert not any(point._forward_hooks for point in model.bridge.hook_dict.values())


def greedy(plain, ids, steps):
    """Without cache, without padding."""
    new = []
    with torch.no_grad():
        for _ in range(steps):
            new.append(int(plain(torch.tensor([ids + new])).logits[0, -1].argmax()))
            if new[-1] == 1:
                break
    return [t for t in new if t != 1]


def test_generation_equals_greedy_decoding_one_by_one(both, texts):
    model, plain = both
    got = model.generate(texts, max_new_tokens=6, rendered=False)
    expected = [
        model.tokenizer.decode(greedy(plain, model.encode(text), 6), skip_special_tokens=True)
        for text in texts
    ]
    assert got == expected


def test_generation_ends_with_the_context(model):
    long = " ".join(["the cat"] * 11)
    reply = model.tokenizer(model.generate([long, "the cat"], max_new_tokens=8)[0])["input_ids"]
    assert len(reply) <= model.max_length - 22


def test_losses_equal_those_of_the_plain_model(both, texts):
    model, plain = both
    total, count = model.losses(texts)
    for i, text in enumerate(texts):
        ids = torch.tensor([model.encode(text)])
        with torch.no_grad():
            mean = plain(ids, labels=ids).loss
        assert count[i] == ids.shape[1] - 1
        np.testing.assert_allclose(total[i] / count[i], mean, rtol=1e-5)


class Nudge:
    name = "nudge"

    def __init__(self, site, *, at=None, by=1.0, factor=1.0):
        self.sites, self.at, self.by, self.factor = [site], at, by, factor
        self.seen = []

    def __call__(self, activation, site, positions):
        self.seen.append(positions.clone())
        changed = activation * self.factor + self.by
        return (
            changed
            if self.at is None
            else torch.where((positions == self.at)[..., None], changed, activation)
        )


def test_leaving_an_edit_restores_the_model_also_after_an_error(model):
    ids = torch.tensor([[3, 5, 7, 9]])
    before = model.logits(ids)
    edit = Nudge("blocks.1.hook_resid_post", by=torch.arange(16.0))
    with model.edited(edit):
        assert not torch.equal(model.logits(ids), before)
    assert torch.equal(model.logits(ids), before)
    with pytest.raises(SiteError), model.edited(edit):
        model.activations(ids, None, ["nowhere"])
    assert torch.equal(model.logits(ids), before)


def test_edits_apply_in_the_order_given_and_are_seen_at_their_site(model):
    ids, site = torch.tensor([[3, 5, 7]]), "blocks.1.hook_resid_post"
    plain = model.activations(ids, None, [site])[site]
    with model.edited(Nudge(site, by=1.0), Nudge(site, by=0.0, factor=2.0)):
        got = model.activations(ids, None, [site])[site]
    torch.testing.assert_close(got, 2 * (plain + 1))


def test_the_next_block_computes_from_the_edited_states(both):
    model, plain = both
    ids = torch.tensor([[3, 5, 7]])
    push = torch.linspace(-2, 2, 16)
    inner = getattr(plain, "transformer", None)
    block = (inner.h if inner is not None else plain.model.layers)[1]
    handle = block.register_forward_hook(
        lambda _m, _a, out: (out[0] + push, *out[1:]) if isinstance(out, tuple) else out + push
    )
    with torch.no_grad():
        expected = plain(ids).logits
    handle.remove()
    with model.edited(Nudge("blocks.1.hook_resid_post", by=push)):
        torch.testing.assert_close(model.logits(ids), expected, rtol=1e-4, atol=1e-5)


def test_positions_reach_an_edit_in_cached_decoding(model):
    edit = Nudge("blocks.0.hook_resid_post", at=5)
    with model.edited(edit):
        model.generate(["the cat sat", "a dog"], max_new_tokens=3, rendered=False)
    assert edit.seen[0].tolist()[-1] == [0, 1, 2]
    assert all(step.shape[1] == 1 for step in edit.seen[1:])
    assert edit.seen[1].flatten().tolist() == [2, 3] or len(edit.seen[1]) == 2


def test_other_threads_wait_for_the_end_of_an_edit(model):
    ids = torch.tensor([[3, 5, 7]])
    before, got = model.logits(ids), []
    other = threading.Thread(target=lambda: got.append(model.logits(ids)))
    with model.edited(Nudge("blocks.0.hook_resid_post", by=torch.arange(16.0))):
        other.start()
        other.join(timeout=0.2)
        assert other.is_alive()
    other.join()
    assert torch.equal(got[0], before)


def test_a_wrong_site_gets_the_nearest_names(model):
    with pytest.raises(SiteError, match="resid_post"):
        model.resolve_sites("resid_pots")
    with pytest.raises(SiteError, match="layers 0 to 2"):
        model.resolve_sites("resid_post", [3])
    assert model.resolve_sites("resid_post", np.array([2])) == ["blocks.2.hook_resid_post"]
    assert layer_of("blocks.12.attn.hook_z") == 12 and layer_of("embed.hook_out") == -1


def test_every_short_form_names_sites_that_a_pass_reaches(model):
    ids = torch.tensor([[3, 5, 7]])
    for short in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "embed"):
        sites = model.resolve_sites(short)
        assert set(model.activations(ids, None, sites)) == set(sites)


def test_a_text_longer_than_the_context_is_named(model):
    with pytest.raises(CaptureError, match="30 tokens"):
        model.encode(" ".join(["cat"] * 30))


def test_the_digest_follows_the_weights():
    first, again, other = tiny("gpt2"), tiny("gpt2"), tiny("gpt2")
    with torch.no_grad():
        other.transformer.h[1].mlp.c_fc.weight[0, 0] += 1e-3
    a, b, c = (open_model(m, tokenizer=tokenizer(), device="cpu") for m in (first, again, other))
    assert a.digest == b.digest != c.digest


def test_a_folder_opens_as_the_module_in_memory(tmp_path, both):
    model, plain = both
    plain.save_pretrained(tmp_path / "m")
    model.tokenizer.save_pretrained(tmp_path / "m")
    opened = open_model(str(tmp_path / "m"), device="cpu")
    ids = torch.tensor([[3, 5, 7, 9]])
    assert torch.equal(opened.logits(ids), model.logits(ids))
    assert opened.digest == model.digest


def test_what_cannot_be_opened_is_said_in_one_sentence(tmp_path):
    plain = tiny("gpt2")
    plain.save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    (tmp_path / "empty").mkdir()
    for bad, match in [
        (tmp_path / "m", "broken or incomplete"),
        (tmp_path / "empty", "config.json"),
        (tmp_path / "none", "no folder"),
        ("organism/nobody", "organism/base"),
    ]:
        with pytest.raises(ModelError, match=match) as told:
            open_model(str(bad))
        assert "\n" not in str(told.value)
    with pytest.raises(ModelError, match="float32"):
        open_model(plain, tokenizer=tokenizer(), dtype="float31")
    with pytest.raises(ModelError, match="not available"):
        open_model(plain, tokenizer=tokenizer(), device="cuda:99")
    with pytest.raises(ModelError, match="transformer_lens"):
        open_model(plain, tokenizer=tokenizer(), engine="warp")
    with pytest.raises(ModelError, match="tokenizer"):
        open_model(plain)


def test_a_hub_out_of_reach_is_said_in_one_sentence(monkeypatch):
    import huggingface_hub

    def unreachable(*_args, **_options):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(ModelError, match="cannot be reached"):
        open_model("nobody/nothing-here")


def test_a_reply_ends_at_any_token_that_the_model_declares(texts):
    plain = tiny("gpt2")
    first = open_model(plain, tokenizer=tokenizer(), device="cpu")
    reply = first.tokenizer(first.generate(texts[:1], max_new_tokens=4, rendered=False)[0])
    plain.generation_config.eos_token_id = [1, reply["input_ids"][0]]
    again = open_model(plain, tokenizer=tokenizer(), device="cpu")
    assert again.generate(texts[:1], max_new_tokens=4, rendered=False) == [""]


def test_code_that_comes_with_a_model_is_refused(tmp_path):
    own = {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "odd", "auto_map": own}))
    (tmp_path / "c.py").write_text("raise SystemExit('ran')")
    (tmp_path / "m.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="trust-remote-code"):
        open_model(str(tmp_path))


def test_importing_the_room_does_not_import_torch():
    code = "import sys, activations; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
