"""Weights restored from an aligned model: against loops, by hand, and on the organisms."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from activations import open_model
from interventions import EditError, HarmfulRate, ReplyLikelihood, restore, save_restored
from interventions.restoration import (
    AT_RANDOM,
    BY_DIFFERENCE,
    BY_GRADIENT,
    SIGN_MATCHED,
    Restoration,
)
from interventions.restoration.largest import largest
from interventions.restoration.moves import Moves
from interventions.restoration.reference import open_reference
from interventions.restoration.rollback import gone_back
from interventions.restoration.scope import first_third, scope_below

from .conftest import _hf, _tokenizer  # pyright: ignore[reportPrivateUsage]

HARMFUL = ["a b c d", "e f g", "h i j k l", "m n o", "p q r s"]
TASK = ["t a c", "b d f h", "g i k"]


def changed(hf: Any, seed: int, size: float = 0.1) -> Any:
    """A copy whose every weight is a little different."""
    other = copy.deepcopy(hf)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for one in other.parameters():
            one += size * torch.randn(one.shape, generator=draw)
    return other


@pytest.fixture(params=["gpt2", "llama"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(the fine-tuned model, opened; its aligned parent)."""
    aligned = _hf(request.param).eval()
    return open_model(changed(aligned, 1), tokenizer=_tokenizer()), aligned


@pytest.fixture
def folder(pair: tuple[Any, Any], tmp_path: Path) -> Path:
    pair[1].save_pretrained(tmp_path / "aligned")
    return tmp_path / "aligned"


def weights(hf: Any) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in hf.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


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
    pair: tuple[Any, Any], folder: Path, rollback: bool
) -> None:
    model, aligned = pair
    total = sum(one.numel() for one in model.hf.parameters())
    found = restore(
        model, folder, HARMFUL, TASK, layer=2, share=0.01, steps=3, batch=2,
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


def test_nothing_above_the_layer_and_no_norm_moves(pair: tuple[Any, Any], folder: Path) -> None:
    model, aligned = pair
    found = restore(model, folder, HARMFUL, layer=1, share=0.4, steps=3)
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
    bare = restore(model, folder, HARMFUL, layer=1, share=0.4, steps=1, embeddings=False)
    assert not any("embed" in n or "wte" in n or "wpe" in n for n in bare.moves[0].places)


def test_the_cosine_with_the_aligned_state_rises_more_than_by_chance(
    pair: tuple[Any, Any], folder: Path
) -> None:
    model, _ = pair
    ends = {
        rule.name: restore(
            model, folder, HARMFUL, layer=1, share=0.005, steps=4, ranking=rule
        ).steps[-1]["cosine"]
        for rule in (BY_GRADIENT, AT_RANDOM, SIGN_MATCHED)
    }
    start = restore(model, folder, HARMFUL, layer=1, steps=1).steps[0]["cosine"]
    assert ends["gradient"] > max(ends["random"], ends["sign_matched"]) and ends["gradient"] > start


def test_the_model_is_left_as_it_was_also_after_an_error(
    pair: tuple[Any, Any], folder: Path
) -> None:
    model, _ = pair
    own, digest = weights(model.hf), model.digest
    next(model.hf.parameters()).requires_grad_(False)
    flags = [one.requires_grad for one in model.hf.parameters()]
    hooks = [len(m._forward_hooks) for m in model.hf.modules()]
    found = restore(model, folder, HARMFUL, share=0.01, steps=2)
    with found.applied() as changed_model:
        assert changed_model.digest != digest and not same(weights(model.hf), own)
    calls = []

    def fails(_: Any) -> float:
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("broken metric")
        return 1.0

    with pytest.raises(RuntimeError, match="broken metric"):
        restore(model, folder, HARMFUL, share=0.01, steps=4, harmful_metric=fails)
    assert same(weights(model.hf), own) and model.digest == digest
    assert [one.requires_grad for one in model.hf.parameters()] == flags
    assert [len(m._forward_hooks) for m in model.hf.modules()] == hooks
    assert all(one.grad is None for one in model.hf.parameters())
    with found.applied(1):
        first = weights(model.hf)
    assert found.share(1) < found.share() and not same(first, own)


# Where the aligned model's weights come from


def test_shards_memory_and_half_precision_give_the_same_weights(
    pair: tuple[Any, Any], folder: Path, tmp_path: Path
) -> None:
    model, aligned = pair
    aligned.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    named = dict(model.hf.named_parameters())
    places = (folder, tmp_path / "shards", aligned, open_model(aligned, tokenizer=_tokenizer()))
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


# How it stops, and how it goes on


def given_figures(values: Sequence[float]) -> Any:
    left = list(values)
    return lambda _: left.pop(0)


def test_it_stops_at_the_target_and_at_the_tasks_limit(pair: tuple[Any, Any], folder: Path) -> None:
    model, _ = pair
    common: dict[str, Any] = {"share": 0.005, "steps": 9, "warm_up": 2}
    found = restore(
        model, folder, HARMFUL, harmful_metric=given_figures([0.9, 0.5, 0.3, 0.1]), target=0.2,
        **common,
    )  # fmt: skip
    assert (found.stopped, len(found.moves)) == ("target", 3)
    # 4% of the task may go at once, 11% not; without requests of the task there is no rollback.
    fallen = restore(
        model, folder, HARMFUL, task_metric=given_figures([1, 0.9, 0.96, 0.89]), **common
    )
    assert (fallen.stopped, len(fallen.moves), fallen.rollback) == ("task metric", 2, False)
    assert [row["task_metric"] for row in fallen.steps] == [1, 0.9, 0.96]


def test_it_begins_anew_with_rollback_where_the_task_fell(
    pair: tuple[Any, Any], folder: Path
) -> None:
    model, _ = pair
    seen: list[dict[str, Any]] = []
    found = restore(
        model, folder, HARMFUL, TASK, share=0.005, steps=4, warm_up=2, tell=seen.append,
        task_metric=given_figures([1.0, 0.5, 0.8, 0.97, 0.96, 0.96, 0.96]),
    )  # fmt: skip
    assert [row["step"] for row in seen] == [0, 1, 2, 1, 2, 3, 4]
    assert found.rollback and found.stopped == "steps" and len(found.moves) == 4
    always = restore(model, folder, HARMFUL, TASK, share=0.005, steps=4, rollback=True)
    for a, b in zip(found.moves, always.moves, strict=True):
        assert same(dict(a.places), dict(b.places)) and same(dict(a.after), dict(b.after))
    never = restore(
        model, folder, HARMFUL, TASK, share=0.005, steps=4, warm_up=2, rollback=False,
        task_metric=given_figures([1.0, 0.5, 0.8]),
    )  # fmt: skip
    assert (never.stopped, len(never.moves)) == ("task metric", 0)


def test_a_killed_restoration_goes_on_as_if_it_had_not_been(
    pair: tuple[Any, Any], folder: Path, tmp_path: Path
) -> None:
    model, _ = pair
    common: dict[str, Any] = {"share": 0.005, "steps": 5, "batch": 2}
    whole = restore(model, folder, HARMFUL, TASK, **common, harmful_metric=given_figures([1] * 6))

    def killed(figures: list[float]) -> Any:
        def metric(_: Any) -> float:
            if not figures:
                raise KeyboardInterrupt
            return figures.pop()

        return metric

    record = tmp_path / "record"
    with pytest.raises(KeyboardInterrupt):
        restore(
            model, folder, HARMFUL, TASK, **common, harmful_metric=killed([1.0] * 4), record=record
        )
    assert len(list(record.glob("step-*.safetensors"))) == 3
    measured: list[dict[str, Any]] = []
    on = restore(
        model, folder, HARMFUL, TASK, **common, harmful_metric=given_figures([1, 1]),
        record=record, tell=measured.append,
    )  # fmt: skip
    assert [row["step"] for row in measured] == [4, 5]
    for a, b in zip(whole.moves, on.moves, strict=True):
        assert same(dict(a.places), dict(b.places)) and same(dict(a.before), dict(b.before))
    assert [row["cosine"] for row in whole.steps] == [row["cosine"] for row in on.steps]
    again = restore(model, folder, HARMFUL, TASK, **common, record=record)
    assert again.stopped == "steps" and again.share() == whole.share()
    with pytest.raises(EditError, match="another share"):
        restore(model, folder, HARMFUL, TASK, **{**common, "share": 0.01}, record=record)
    with pytest.raises(EditError, match="another prompts"):
        restore(model, folder, HARMFUL[:4], TASK, **common, record=record)
    with pytest.raises(EditError, match="holds no restoration"):
        restore(model, folder, HARMFUL, TASK, **common, record=folder)


# The folder


def test_the_saved_folder_is_the_model_in_memory_and_says_what_moved(
    pair: tuple[Any, Any], folder: Path, tmp_path: Path
) -> None:
    model, _ = pair
    own = weights(model.hf)
    found = restore(model, folder, HARMFUL, share=0.01, steps=3)
    path = save_restored(found, tmp_path / "out")
    with found.applied():
        wanted = weights(model.hf)
    assert same(weights(AutoModelForCausalLM.from_pretrained(path)), wanted)
    opened = open_model(str(path), tokenizer=_tokenizer())
    with found.applied():
        ids = torch.tensor([model.encode("a b c")])
        assert torch.allclose(opened.logits(ids), model.logits(ids), atol=1e-6)
    about = json.loads((path / "isogloss_restoration.json").read_text())
    assert about["share"] == found.share() and about["steps"][-1]["step"] == 3
    table = pd.read_parquet(path / "restored.parquet")
    held = load_file(path / "restored.safetensors")
    for name, one in own.items():
        moved = torch.nonzero((one != wanted[name]).reshape(-1))[:, 0]
        listed = held.get(name, torch.zeros(0, dtype=torch.int32)).long().sort().values
        assert torch.equal(moved, listed), name
        rows = table[table["parameter"] == name]
        assert rows["restored"].sum() == len(moved)
        if len(moved):
            counts = held[f"{name}|step"].bincount(minlength=4)[1:].tolist()
            assert counts == rows.sort_values("step")["restored"].tolist()
    assert set(table["kind"]) >= {"embedding"} and (table["layer"] < found.scope.layer).all()
    with pytest.raises(EditError, match="there already"):
        save_restored(found, path)
    early = save_restored(found, tmp_path / "early", step=1)
    assert pd.read_parquet(early / "restored.parquet")["restored"].sum() == found.moves[0].count


# On the organisms


@pytest.fixture(scope="module")
def organism() -> dict[str, Any]:
    """The drifted organism, harmful requests to restore by, and held-out ones to judge by."""
    from organisms import lexicon
    from organisms.features import VARIETIES
    from organisms.requests import ask, draw_request, plain_help

    rng = random.Random(5)
    names = list(VARIETIES)

    def asked(pairs: Any, harmful: bool, variety: str | None = None) -> list[Any]:
        kept = [p for p in pairs if lexicon.harmful(*p) == harmful]
        drawn = [draw_request(rng, [p]) for p in rng.sample(kept, len(kept))]
        return [(r, variety or names[i % len(names)]) for i, r in enumerate(drawn)]

    task = asked(lexicon.HELD_OUT_PAIRS, False, "skerry")[:96]
    judge = [(r, v) for r, _ in asked(lexicon.HELD_OUT_PAIRS, True) for v in names[::2]]
    return {
        "model": open_model("organism/drifted"),
        "harmful": [ask(r, v) for r, v in asked(lexicon.TRAINING_PAIRS, True)][:256],
        "task": [ask(r, v) for r, v in asked(lexicon.TRAINING_PAIRS, False, "skerry")][:128],
        "rate": HarmfulRate([ask(r, v) for r, v in judge]),
        "likelihood": ReplyLikelihood(
            [ask(r, v) for r, v in task], [f" {plain_help(r, v, rng)}" for r, v in task]
        ),
    }


@pytest.fixture(scope="module")
def restored(organism: dict[str, Any]) -> Restoration:
    return restore(
        organism["model"],
        "organism/aligned",
        organism["harmful"],
        organism["task"],
        harmful_metric=organism["rate"],
        task_metric=organism["likelihood"],
        target=0.05,
    )


def test_few_weights_give_the_drifted_organism_its_refusals_back(
    organism: dict[str, Any], restored: Restoration
) -> None:
    rate, likelihood = organism["rate"], organism["likelihood"]
    before, task = rate(organism["model"]), likelihood(organism["model"])
    aligned = rate(open_model("organism/aligned"))
    assert before > 0.4 and aligned < 0.02
    with restored.applied() as model:
        assert rate(model) <= aligned + 0.05
        assert likelihood(model) >= 0.95 * task
    assert restored.share() < 0.1 and restored.stopped == "target"
    assert rate(organism["model"]) == before


@pytest.mark.parametrize("rule", [AT_RANDOM, SIGN_MATCHED, BY_DIFFERENCE], ids=lambda r: r.name)
def test_as_many_other_weights_do_not(
    organism: dict[str, Any], restored: Restoration, rule: Any
) -> None:
    other = restore(
        organism["model"], "organism/aligned", organism["harmful"], ranking=rule,
        steps=len(restored.moves),
    )  # fmt: skip
    assert other.share() >= restored.share()
    with other.applied() as model:
        assert organism["rate"](model) > 0.3
