"""Weights restored from an aligned model: against loops, by hand, and from files of every kind."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from activations import open_model
from interventions import EditError, restore
from interventions.restoration import (
    AT_RANDOM,
    BY_DIFFERENCE,
    BY_GRADIENT,
    SIGN_MATCHED,
)
from interventions.restoration.largest import largest
from interventions.restoration.moves import Moves
from interventions.restoration.reference import open_reference
from interventions.restoration.rollback import gone_back
from interventions.restoration.scope import first_third, scope_below

from .conftest import _hf, _tokenizer  # pyright: ignore[reportPrivateUsage]
from .restorable import HARMFUL, TASK, changed, same, weights

# The largest of many


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 1e-30, 0.5, 0.5000001, 1.0, 3e38]), max_size=12),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 40),
)
@settings(deadline=None)
def test_largest_is_a_stable_sort_of_all_joined_ties_included(
    rows: list[list[float]], count: int
) -> None:
    scores = {str(i): torch.tensor(row, dtype=torch.float32) for i, row in enumerate(rows)}
    joined = torch.cat(list(scores.values())).double()
    order = torch.sort(joined, descending=True, stable=True).indices[:count]
    wanted = sorted(int(i) for i in order if joined[i] > 0)
    starts = np.cumsum([0, *(len(row) for row in rows)])
    found = largest(scores, count)
    assert wanted == [int(i + starts[int(name)]) for name, there in found.items() for i in there]


def test_largest_of_distinct_scores_is_topk_in_f64(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    scores = {n: torch.rand(s, generator=draw) for n, s in (("a", (70, 33)), ("b", (5,)))}
    joined = torch.cat([one.reshape(-1).double() for one in scores.values()])
    for count in (1, 7, 1000, 2315, 9999):
        wanted = set(torch.topk(joined, min(count, len(joined))).indices.tolist())
        for piece in (1 << 24, 64):
            monkeypatch.setattr("interventions.restoration.largest._PIECE", piece)
            found = largest(scores, count)
            flat = [i + (2310 if n == "b" else 0) for n, one in found.items() for i in one.tolist()]
            assert set(flat) == wanted and len(flat) == len(wanted)


def test_two_weights_worked_by_hand() -> None:
    own, aligned = torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([0.0, 2.0, 0.0, 1.0])
    # Falling by 1 with slope 0.2 lowers the loss, rising by 1 with slope -0.3 lowers it more;
    # the third would rise with its fall, the fourth is where it should be.
    gradient = torch.tensor([0.2, -0.3, -9.0, 9.0])
    draw = torch.Generator().manual_seed(0)
    scores = BY_GRADIENT.score(gradient.clone(), own, aligned, draw)
    assert scores.tolist() == pytest.approx([0.2, 0.3, 0, 0])
    assert largest({"w": scores}, 1)["w"].tolist() == [1]
    assert largest({"w": scores}, 4)["w"].tolist() == [0, 1]
    matched = SIGN_MATCHED.score(gradient, own, aligned, draw)
    assert (matched > 0).tolist() == [True, True, False, False]
    assert (AT_RANDOM.score(None, own, aligned, draw) > 0).tolist() == [True, True, True, False]
    assert BY_DIFFERENCE.score(None, own, aligned, draw).tolist() == [1, 1, 1, 0]


def test_what_goes_back_is_worked_by_hand() -> None:
    place = torch.arange(5, dtype=torch.int32)
    before, after = torch.tensor([1.0, 1, 1, 1, 1]), torch.tensor([0.0, 0, 0, 3, 0])
    # Going back changes the task's loss by slope * (F - A): -.1, +.5, -.4, -.6 (.3 * -2), 0.
    slopes = {"w": torch.tensor([-0.1, 0.5, -0.4, 0.3, 0.0])}
    moves = Moves({"w": place}, {"w": before}, {"w": after})
    assert gone_back(moves, slopes, 0.2)["w"].tolist() == [False, False, False, True, False]
    assert gone_back(moves, slopes, 0.4)["w"].tolist() == [False, False, True, True, False]
    assert gone_back(moves, slopes, 1.0)["w"].tolist() == [True, False, True, True, False]
    kept = moves.without(gone_back(moves, slopes, 1.0))
    assert kept.count == 2 and kept.places["w"].tolist() == [1, 4]


# The whole against loops


def last_states(hf: Any, model: Any, prompts: Sequence[str], layer: int) -> Tensor:
    """State of each prompt's last token before block `layer`, one prompt at a time."""
    rows = []
    for text in prompts:
        ids = torch.tensor([model.encode(text)])
        rows.append(hf(input_ids=ids, output_hidden_states=True).hidden_states[layer][0, -1])
    return torch.stack(rows)


def slopes_by_loop(
    hf: Any, model: Any, prompts: Sequence[str], direction: Tensor, layer: int, batch: int
) -> dict[str, Tensor]:
    total = {n: torch.zeros(p.shape, dtype=torch.float64) for n, p in hf.named_parameters()}
    for start in range(0, len(prompts), batch):
        own = prompts[start : start + batch]
        mean = last_states(hf, model, own, layer).mean(0)
        loss = -(mean @ direction) / (mean.norm() * direction.norm())
        found = torch.autograd.grad(loss, list(hf.parameters()), allow_unused=True)
        for (name, _), one in zip(hf.named_parameters(), found, strict=True):
            if one is not None:
                total[name] += len(own) * one.double()
    return total


def restored_by_loop(
    model: Any, aligned: Any, steps: int, count: int, layer: int, batch: int, back: float
) -> dict[str, Tensor]:
    """Recovery and rollback weight by weight, in f64 throughout."""
    hf, theirs = copy.deepcopy(model.hf).double(), copy.deepcopy(aligned).double()
    start = weights(hf)
    target = dict(theirs.named_parameters())
    direction = last_states(theirs, model, HARMFUL, layer).mean(0).detach()
    benign = last_states(hf, model, TASK, layer).mean(0).detach()
    for _ in range(steps):
        slopes = slopes_by_loop(hf, model, HARMFUL, direction, layer, batch)
        found = []
        for name, own in hf.named_parameters():
            if ".ln_" in name or "norm" in name:
                continue
            for i, (f, a, g) in enumerate(
                zip(own.reshape(-1).tolist(), target[name].reshape(-1).tolist(),
                    slopes[name].reshape(-1).tolist(), strict=True)
            ):  # fmt: skip
                if np.sign(f - a) == np.sign(g) != 0:
                    found.append((abs(g), name, i))
        chosen = sorted(found, reverse=True)[:count]
        named = dict(hf.named_parameters())
        with torch.no_grad():
            for _, name, i in chosen:
                named[name].view(-1)[i] = target[name].view(-1)[i]
        if back:
            slopes = slopes_by_loop(hf, model, TASK, benign, layer, batch)
            change = []
            for _, name, i in chosen:
                f, a = start[name].view(-1)[i], target[name].view(-1)[i]
                change.append((float(slopes[name].view(-1)[i] * (f - a).detach()), name, i))
            going = [c for c in sorted(change)[: round(back * len(chosen))] if c[0] < 0]
            with torch.no_grad():
                for _, name, i in going:
                    named[name].view(-1)[i] = start[name].view(-1)[i]
    return weights(hf)


@pytest.mark.parametrize("rollback", [False, True])
def test_recovery_and_rollback_are_the_loops_over_weights_in_f64(
    tuned_pair: tuple[Any, Any], parent: Path, rollback: bool
) -> None:
    model, aligned = tuned_pair
    total = sum(one.numel() for one in model.hf.parameters())
    found = restore(
        model, parent, HARMFUL, TASK, layer=2, share=0.01, steps=3, batch=2,
        rollback=rollback, rollback_share=0.3,
    )  # fmt: skip
    wanted = restored_by_loop(
        model, aligned, 3, round(0.01 * total), 2, 2, 0.3 if rollback else 0.0
    )
    with found.applied():
        for name, one in model.hf.named_parameters():
            assert torch.equal(one, wanted[name].float()), name
    full = round(0.01 * total)
    counts = [one.count for one in found.moves]
    assert all(full * 0.69 < n < full for n in counts) if rollback else counts == [full] * 3
    assert rollback == found.rollback and found.stopped == "steps"


def test_nothing_above_the_layer_and_no_norm_moves(
    tuned_pair: tuple[Any, Any], parent: Path
) -> None:
    model, aligned = tuned_pair
    found = restore(model, parent, HARMFUL, layer=1, share=0.4, steps=3)
    own, theirs = weights(model.hf), weights(aligned)
    with found.applied():
        now = weights(model.hf)
    moved = {name for name in own if not torch.equal(own[name], now[name])}
    assert moved == set(found.scope.movable) - {
        name for name in found.scope.movable if not any(name in m.places for m in found.moves)
    }
    assert not any("norm" in n or ".ln_" in n or ".1." in n or ".2." in n for n in moved)
    for name in own:
        back = now[name] != own[name]
        assert torch.equal(now[name][back], theirs[name][back])
    # With every candidate taken, only weights whose return would raise the loss are left.
    assert found.stopped in ("steps", "no candidates")
    bare = restore(model, parent, HARMFUL, layer=1, share=0.4, steps=1, embeddings=False)
    assert not any("embed" in n or "wte" in n or "wpe" in n for n in bare.moves[0].places)


def test_the_cosine_with_the_aligned_state_rises_more_than_by_chance(
    tuned_pair: tuple[Any, Any], parent: Path
) -> None:
    model, _ = tuned_pair
    ends = {
        rule.name: restore(
            model, parent, HARMFUL, layer=1, share=0.005, steps=4, ranking=rule
        ).steps[-1]["cosine"]
        for rule in (BY_GRADIENT, AT_RANDOM, SIGN_MATCHED)
    }
    start = restore(model, parent, HARMFUL, layer=1, steps=1).steps[0]["cosine"]
    assert ends["gradient"] > max(ends["random"], ends["sign_matched"]) and ends["gradient"] > start


def test_the_model_is_left_as_it_was_also_after_an_error(
    tuned_pair: tuple[Any, Any], parent: Path
) -> None:
    model, _ = tuned_pair
    own, digest = weights(model.hf), model.digest
    next(model.hf.parameters()).requires_grad_(False)
    flags = [one.requires_grad for one in model.hf.parameters()]
    hooks = [len(m._forward_hooks) for m in model.hf.modules()]
    found = restore(model, parent, HARMFUL, share=0.01, steps=2)
    with found.applied() as changed_model:
        assert changed_model.digest != digest and not same(weights(model.hf), own)
    calls = []

    def fails(_: Any) -> float:
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("broken metric")
        return 1.0

    with pytest.raises(RuntimeError, match="broken metric"):
        restore(model, parent, HARMFUL, share=0.01, steps=4, harmful_metric=fails)
    assert same(weights(model.hf), own) and model.digest == digest
    assert [one.requires_grad for one in model.hf.parameters()] == flags
    assert [len(m._forward_hooks) for m in model.hf.modules()] == hooks
    assert all(one.grad is None for one in model.hf.parameters())
    with found.applied(1):
        first = weights(model.hf)
    assert found.share(1) < found.share() and not same(first, own)


# Where the aligned model's weights come from


def test_shards_memory_and_half_precision_give_the_same_weights(
    tuned_pair: tuple[Any, Any], parent: Path, tmp_path: Path
) -> None:
    model, aligned = tuned_pair
    aligned.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    named = dict(model.hf.named_parameters())
    places = (parent, tmp_path / "shards", aligned, open_model(aligned, tokenizer=_tokenizer()))
    for place in places:
        reference = open_reference(place, model.hf, "F")
        for name, one in named.items():
            assert torch.equal(reference.read(name, one), dict(aligned.named_parameters())[name])
    half = copy.deepcopy(aligned).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    reference = open_reference(tmp_path / "half", model.hf, "F")
    for name, one in named.items():
        wanted = dict(half.named_parameters())[name].float()
        assert torch.equal(reference.read(name, one), wanted)
    found = restore(model, tmp_path / "half", HARMFUL, share=0.01, steps=1)
    assert found.moves[0].count > 0


def test_tied_embeddings_are_one_weight_counted_once_under_either_name(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    aligned = LlamaForCausalLM(config).eval()
    model = open_model(changed(aligned, 1), tokenizer=_tokenizer())
    assert model.hf.lm_head.weight is model.hf.model.embed_tokens.weight
    scope = scope_below(model.hf, 1, "F")
    assert scope.total == sum(one.numel() for one in model.hf.parameters())
    assert scope.kinds["model.embed_tokens.weight"] == "embedding"
    aligned.save_pretrained(tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    held = load_file(file)
    held["lm_head.weight"] = held.pop("model.embed_tokens.weight")
    save_file(held, file, metadata={"format": "pt"})
    found = restore(model, tmp_path / "a", HARMFUL, share=0.05, steps=1)
    with found.applied():
        assert model.hf.lm_head.weight is model.hf.model.embed_tokens.weight
        index = found.moves[0].places["model.embed_tokens.weight"].long()
        theirs = aligned.model.embed_tokens.weight.reshape(-1)[index]
        assert torch.equal(model.hf.lm_head.weight.reshape(-1)[index], theirs)


def test_a_lora_adapter_is_merged_as_w_plus_scale_b_a(tmp_path: Path) -> None:
    aligned = _hf("llama").eval()
    aligned.save_pretrained(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    path = "model.layers.0.self_attn.q_proj"
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    stem = f"base_model.model.{path}"
    held = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    save_file(held, adapter / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none"}
    told |= {"base_model_name_or_path": str(tmp_path / "base")}

    def say(**more: Any) -> None:
        (adapter / "adapter_config.json").write_text(json.dumps(told | more))

    say()
    model = open_model(changed(aligned, 1), tokenizer=_tokenizer())
    named = dict(model.hf.named_parameters())
    reference = open_reference(adapter, model.hf, "F")
    base = dict(aligned.named_parameters())
    q = f"{path}.weight"
    assert torch.allclose(reference.read(q, named[q]), base[q] + 4.0 * up @ down, atol=1e-5)
    k = q.replace("q_proj", "k_proj")
    assert torch.equal(reference.read(k, named[k]), base[k])
    for wrong, match in (
        ({"use_dora": True}, "use_dora.*merge_and_unload"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias"),
    ):
        say(**wrong)
        with pytest.raises(EditError, match=match):
            open_reference(adapter, model.hf, "F")
    say()
    save_file(
        {**held, f"{stem}x.lora_A.weight": down + 1, f"{stem}x.lora_B.weight": up + 1},
        adapter / "adapter_model.safetensors",
    )
    with pytest.raises(EditError, match="q_projx, which its base does not have"):
        open_reference(adapter, model.hf, "F")


def test_models_that_do_not_fit_are_refused_by_name_of_what_differs(tmp_path: Path) -> None:
    plain = _hf("llama").eval()
    model = open_model(changed(plain, 1), tokenizer=_tokenizer())

    def made(**changes: Any) -> Any:
        return LlamaForCausalLM(LlamaConfig(**{**plain.config.to_dict(), **changes}))

    for changes, match in (
        ({"intermediate_size": 48}, r"gate_proj.weight is \[48, 16\].*\[32, 16\]"),
        ({"num_hidden_layers": 2}, "has no weight model.layers.2"),
        ({"num_hidden_layers": 4}, "has a weight model.layers.3.*lacks"),
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps is 0.001"),
        ({"num_key_value_heads": 2}, "num_key_value_heads is 2"),
    ):
        with pytest.raises(EditError, match=match):
            restore(model, made(**changes), HARMFUL)
    broken = copy.deepcopy(plain)
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    broken.save_pretrained(tmp_path / "nan")
    with pytest.raises(EditError, match=r"layers.0.mlp.up_proj.weight of .*NaN"):
        restore(model, tmp_path / "nan", HARMFUL)
    own = open_model(changed(plain, 1), tokenizer=_tokenizer())
    with torch.no_grad():
        own.hf.lm_head.weight[0, 0] = float("inf")
    with pytest.raises(EditError, match=r"lm_head.weight of .* holds NaN or infinity"):
        restore(own, plain, HARMFUL)
    wide = copy.deepcopy(plain)
    with torch.no_grad():
        wide.lm_head.weight[0, 0] = 1e6
    named = dict(plain.half().named_parameters())
    with pytest.raises(EditError, match=r"values that torch.float16 does not: open"):
        open_reference(wide, plain, "F").read("lm_head.weight", named["lm_head.weight"])
    plain.float().save_pretrained(tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(EditError, match="broken or cut off"):
        restore(model, tmp_path / "cut", HARMFUL)
    plain.save_pretrained(tmp_path / "lost", max_shard_size="4KB")
    next((tmp_path / "lost").glob("model-00002*")).unlink()
    with pytest.raises(EditError, match="lacks model-00002"):
        restore(model, tmp_path / "lost", HARMFUL)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"share": 0.0}, "`share` is 0.0"),
        ({"share": 1e-9}, "is none"),
        ({"steps": 0}, "`steps` is 0"),
        ({"layer": 9}, "has 3 blocks: give one from 1 to 3"),
        ({"layer": 0}, "`layer` is 0"),
        ({"target": 0.1}, "`target` is a value of `harmful_metric`"),
        ({"rollback": True}, "give them as `task`"),
        ({"task_fall": 2.0}, "`task_fall` is 2.0"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any], match: str) -> None:
    aligned = _hf("llama").eval()
    model = open_model(changed(aligned, 1), tokenizer=_tokenizer())
    with pytest.raises(EditError, match=match):
        restore(model, aligned, HARMFUL, **options)
    with pytest.raises(EditError, match="no harmful requests"):
        restore(model, aligned, [])
    with pytest.raises(EditError, match="open it by open_model"):
        restore(model.hf, aligned, HARMFUL)


def test_the_layer_is_the_first_third() -> None:
    assert [first_third(n) for n in (1, 2, 4, 6, 28, 32, 80)] == [1, 1, 1, 2, 9, 11, 27]
