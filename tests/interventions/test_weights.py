"""Edited weights against run-time edits, and against the formula in NumPy; files read back."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from activations import open_model
from geometry import Subspace, random_subspace
from interventions import (
    EditError,
    ablate,
    add,
    control_vector,
    orthogonalise,
    project_out,
    save_edited,
)
from tests.activations.conftest import tiny, tokenizer
from tests.activations.families import D_MODEL, VOCABULARY, make

IDS = torch.tensor([[3, 5, 7, 9, 12, 20, 4, 8], [6, 6, 10, 22, 4, 3, 15, 11]])
STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
WRITES = ("blocks.0.hook_resid_pre", "hook_attn_out", "hook_mlp_out")
#: Families whose weights can equal the projection, and how many tables of embeddings they have.
EXACT = {"gpt2": 2, "llama": 1, "qwen3": 1, "gemma": 1, "gpt_neox": 1, "opt": 2}


def shaken(plain: Any) -> Any:
    """No weight at its usual start, so that biases and gains count; what is tied stays so."""
    drawn = torch.Generator().manual_seed(7)
    for parameter in plain.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=drawn)
    return plain.eval()


def off_centre(k: int = 2, d: int = D_MODEL) -> Subspace:
    mean = 2 * np.random.default_rng(0).normal(size=d)
    return random_subspace(d, k, seed=1, mean=mean)


@torch.no_grad()
def logits(hf: Any) -> torch.Tensor:
    return hf(IDS).logits


@pytest.fixture(scope="module", params=EXACT)
def opened(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """A model, and an untouched copy of what it was made from."""
    plain = shaken(make(request.param))
    return open_model(copy.deepcopy(plain), tokenizer=tokenizer(), device="cpu"), plain


@pytest.mark.parametrize("ends", [WRITES, STREAM], ids=["every write", "every state"])
def test_edited_weights_compute_what_zero_ablation_computes_at(opened: Any, ends: Any) -> None:
    model, _ = opened
    space = off_centre()
    with model.edited(project_out(space, [s for s in model.sites if s.endswith(ends)])):
        expected = model.logits(IDS)
    edited = orthogonalise(model, space)
    assert (logits(edited.hf) - expected).abs().max() <= 1e-4
    assert (model.logits(IDS) - expected).abs().max() > 0.1


def test_with_the_mean_they_compute_what_mean_ablation_of_the_stream_computes(opened: Any) -> None:
    model, _ = opened
    space = off_centre()
    with model.edited(ablate(space, [s for s in model.sites if s.endswith(STREAM)])):
        expected = model.logits(IDS)
    edited = orthogonalise(model, space, to="mean")
    assert (logits(edited.hf) - expected).abs().max() <= 1e-4
    assert (logits(orthogonalise(model, space).hf) - expected).abs().max() > 0.1


def test_no_state_of_the_stream_has_anything_left_in_the_subspace(opened: Any) -> None:
    model, _ = opened
    space = off_centre()
    sites = [s for s in model.sites if s.endswith(STREAM)]
    for to, target in (("zero", np.zeros(2)), ("mean", space.mean @ space.basis)):
        again = orthogonalise(model, space, to=to).open(device="cpu")
        for states in again.activations(IDS, None, sites).values():
            found = states.double().numpy() @ space.basis
            np.testing.assert_allclose(found, np.broadcast_to(target, found.shape), atol=1e-5)
    before = model.activations(IDS, None, sites[-1:])[sites[-1]].double().numpy() @ space.basis
    assert np.abs(before).max() > 0.1


def test_writers_are_projected_as_in_numpy_and_all_else_keeps_its_bits(opened: Any) -> None:
    model, plain = opened
    space = off_centre()
    edited = orthogonalise(model, space)
    away = np.eye(D_MODEL) - space.basis @ space.basis.T
    written = edited.provenance["weights"]
    before, after = plain.state_dict(), edited.hf.state_dict()
    assert before.keys() == after.keys()
    for name, was in before.items():
        path, _, kind = name.rpartition(".")
        if path not in written:
            assert torch.equal(after[name], was), name
            continue
        values = was.double().numpy()
        linear = isinstance(plain.get_submodule(path), torch.nn.Linear) and kind == "weight"
        expected = away @ values if linear else values @ away
        np.testing.assert_allclose(after[name].numpy(), expected, atol=1e-5, err_msg=name)
    assert len(written) == EXACT[plain.config.model_type] + 2 * model.n_layers
    head = plain.get_output_embeddings().weight
    assert torch.equal(edited.hf.get_output_embeddings().weight, head)


def test_the_model_that_was_given_stays_as_it_was(opened: Any) -> None:
    model, plain = opened
    tied = model.hf.get_input_embeddings().weight is model.hf.get_output_embeddings().weight
    edited = orthogonalise(model, off_centre())
    for name, was in plain.state_dict().items():
        assert torch.equal(model.hf.state_dict()[name], was), name
    again = model.hf.get_input_embeddings().weight is model.hf.get_output_embeddings().weight
    assert again == tied == bool(edited.provenance["untied"])
    assert model.hf.config.tie_word_embeddings == plain.config.tie_word_embeddings
    assert not any(m._forward_hooks for m in edited.hf.modules())


def test_projecting_twice_is_projecting_once() -> None:
    plain, space = shaken(make("gpt2")), off_centre()
    once = orthogonalise(plain, space)
    twice = orthogonalise(once, space)
    for name, was in once.hf.state_dict().items():
        torch.testing.assert_close(twice.hf.state_dict()[name], was, rtol=1e-5, atol=1e-6)
    assert twice.provenance["source"]["edited"] == once.provenance


def test_a_layer_that_adds_next_to_nothing_in_one_block_is_found_by_the_others() -> None:
    plain = shaken(make("llama"))
    plain.model.layers[1].mlp.down_proj.weight.data *= 1e-7
    written = orthogonalise(plain, off_centre()).provenance["weights"]
    assert "model.layers.1.mlp.down_proj" in written and len(written) == 5


def test_scalar_scales_of_embeddings_and_of_what_blocks_write_do_no_harm() -> None:
    config = transformers.GraniteConfig(
        vocab_size=VOCABULARY, hidden_size=D_MODEL, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, residual_multiplier=0.22,
        embedding_multiplier=12.0, logits_scaling=0.5, attention_multiplier=0.25,
    )  # fmt: skip
    torch.manual_seed(0)
    plain = shaken(transformers.GraniteForCausalLM(config))
    model = open_model(plain, tokenizer=tokenizer(), device="cpu")
    sites = [s for s in model.sites if s.endswith(STREAM)]
    for to in ("zero", "mean"):
        with model.edited(ablate(off_centre(), sites, to=to)):
            expected = model.logits(IDS)
        assert (logits(orthogonalise(model, off_centre(), to=to).hf) - expected).abs().max() < 1e-4
        assert (model.logits(IDS) - expected).abs().max() > 0.01


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gemma2", r"a norm \(model.layers.0.post_attention_layernorm\), which acts after"),
        ("gemma3", r"a norm \(model.layers.0.post_attention_layernorm\), which acts after"),
        ("bloom", r"a norm \(transformer.word_embeddings_layernorm\) makes the stream"),
        ("bert", r"a norm \(bert.embeddings.LayerNorm\) makes the stream"),
    ],
)
def test_where_a_norm_stands_between_the_weights_and_the_stream_it_is_named(
    name: str, said: str
) -> None:
    with pytest.raises(EditError, match=f"{said}.*at run time instead"):
        orthogonalise(shaken(make(name)), off_centre())


def test_experts_and_fixed_positions_are_refused() -> None:
    small: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": D_MODEL}
    mixtral = transformers.MixtralConfig(
        **small, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    with pytest.raises(EditError, match="block 0 adds something else than linear layers"):
        orthogonalise(shaken(transformers.MixtralForCausalLM(mixtral)), off_centre())
    xglm = transformers.XGLMConfig(
        vocab_size=VOCABULARY, d_model=D_MODEL, ffn_dim=24, num_layers=2, attention_heads=4
    )
    with pytest.raises(EditError, match="no sum of tables of embeddings"):
        orthogonalise(shaken(transformers.XGLMForCausalLM(xglm)), off_centre())


def test_quantised_and_absent_weights_are_refused() -> None:
    quantised = make("llama")
    quantised.hf_quantizer = object()
    with pytest.raises(EditError, match="LlamaForCausalLM are quantised"):
        orthogonalise(quantised, off_centre())
    with pytest.raises(EditError, match="not all on this machine"):
        orthogonalise(make("llama").to("meta"), off_centre())


@pytest.mark.parametrize(
    ("model", "space", "options", "said"),
    [
        (None, random_subspace(8, 1, seed=0), {}, "8 dimensions and the stream of .* has 16"),
        (None, np.zeros(16), {}, "A ndarray was given"),
        (None, "no/such.safetensors", {}, "no file"),
        (None, off_centre(), {"to": "nothing"}, "`to` is 'nothing'"),
        (torch.nn.Linear(2, 2), off_centre(), {}, "A Linear has no weights to edit"),
    ],
)
def test_what_cannot_be_edited_is_said(model: Any, space: Any, options: Any, said: str) -> None:
    with pytest.raises(EditError, match=said):
        orthogonalise(make("llama") if model is None else model, space, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_f32_edit_rounded_once(dtype: torch.dtype) -> None:
    plain = shaken(make("llama")).to(dtype)
    edited = orthogonalise(plain, off_centre())
    whole = orthogonalise(copy.deepcopy(plain).float(), off_centre())
    written = {f"{path}.weight" for path in edited.provenance["weights"]}
    for name, now in edited.hf.state_dict().items():
        assert now.dtype == dtype
        assert torch.equal(now, whole.hf.state_dict()[name].to(dtype)), name
        assert name in written or torch.equal(now, plain.state_dict()[name])
    kept = dict(plain.named_buffers())
    assert all(torch.equal(b, kept[n]) for n, b in edited.hf.named_buffers())


@pytest.mark.parametrize("name", EXACT)
def test_a_saved_folder_opens_in_transformers_and_here_with_the_same_logits(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    space = off_centre()
    file = space.save(tmp_path / "variety.safetensors")
    model = open_model(shaken(make(name)), tokenizer=tokenizer(), device="cpu")
    edited = orthogonalise(model, file)
    folder = save_edited(edited, tmp_path / "edited")
    assert capfd.readouterr() == ("", "")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded), logits(edited.hf))
    ours = open_model(str(folder), device="cpu")
    torch.testing.assert_close(ours.logits(IDS), logits(edited.hf))
    assert ours.encode("the cat") == model.encode("the cat")
    said = json.loads((folder / "isogloss_edit.json").read_text(encoding="utf-8"))
    assert said == edited.provenance
    assert said["subspace"]["file"] == "variety.safetensors"
    assert said["subspace"]["file_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert said["source"]["digest"] == model.digest
    assert said["versions"]["transformers"] == transformers.__version__


def test_a_save_that_fails_leaves_nothing_and_one_that_would_overwrite_is_refused(
    tmp_path: Path,
) -> None:
    edited = orthogonalise(make("llama"), off_centre())
    with pytest.raises(EditError, match="has no tokenizer"):
        save_edited(edited, tmp_path / "edited")

    class Broken:
        def save_pretrained(self, folder: Any) -> None:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        save_edited(edited, tmp_path / "edited", tokenizer=Broken())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "edited").mkdir()
    save_edited(edited, tmp_path / "edited", tokenizer=tokenizer())
    with pytest.raises(EditError, match="is there already"):
        save_edited(edited, tmp_path / "edited", tokenizer=tokenizer())


def test_a_control_vector_reads_back_as_what_add_adds(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model = open_model(tiny("llama"), tokenizer=tokenizer(), device="cpu")
    drawn = np.random.default_rng(3).normal(size=(2, 16))
    units = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    spaces = {
        site: Subspace(unit[:, None], np.zeros(16), np.array([length]), site=site)
        for site, unit, length in zip(
            ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"], units, [2.5, 0.5]
        )
    }
    path = control_vector(spaces, tmp_path / "new" / "v.gguf", architecture="llama", scale=3.0)
    assert [one.name for one in path.parent.iterdir()] == ["v.gguf"]
    read = gguf.GGUFReader(path)
    kept = {tensor.name: tensor for tensor in read.tensors}
    assert list(kept) == ["direction.1", "direction.2"]
    fields = {name: field.contents() for name, field in read.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 2
    edit = add(spaces, scale=3.0)
    for number, site in ((1, "blocks.1.hook_resid_post"), (2, "blocks.2.hook_resid_post")):
        tensor = kept[f"direction.{number}"]
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32 and tensor.shape.tolist() == [16]
        before = model.activations(IDS, None, [site])[site]
        moved = (edit(before, site) - before)[0, 0].numpy()
        np.testing.assert_allclose(tensor.data, moved, atol=1e-5)


def test_what_block_n_gives_and_block_n_plus_one_takes_is_one_place(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    ways = [{2: np.arange(4.0)}, {"blocks.2.hook_resid_post": np.arange(4.0)},
            {"blocks.3.hook_resid_pre": np.arange(4.0)}]  # fmt: skip
    for number, way in enumerate(ways):
        path = control_vector(way, tmp_path / f"{number}.gguf", architecture="qwen2")
        (tensor,) = gguf.GGUFReader(path).tensors
        assert tensor.name == "direction.2" and tensor.data.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("directions", "said"),
    [
        ({}, "No direction was given"),
        ({0: np.ones(4)}, "0 lies before the output of block 1"),
        ({"blocks.1.hook_resid_pre": np.ones(4)}, "lies before the output of block 1"),
        ({"blocks.1.hook_mlp_out": np.ones(4)}, "no place where llama.cpp adds"),
        ({2: np.ones(4), "blocks.2.hook_resid_post": np.ones(4)}, "Two directions"),
        ({1: np.ones(4), 2: np.ones(5)}, "are 4 and 5 wide"),
        ({1: np.ones((4, 1))}, r"has shape \(4, 1\)"),
        ({1: np.array([1.0, np.inf])}, "values that f32 does not"),
        ({1: np.array([1.0, 1e300])}, "values that f32 does not"),
        ({1: off_centre(2)}, "has 2 dimensions and a control vector is one"),
        (random_subspace(4, 1, seed=0), "'' is no place"),
    ],
)
def test_a_control_vector_that_llama_cpp_could_not_add_is_refused(
    directions: Any, said: str, tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    with pytest.raises(EditError, match=said):
        control_vector(directions, tmp_path / "v.gguf", architecture="llama")
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_gguf_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interventions.weights.control_vectors.find_spec", lambda _name: None)
    with pytest.raises(EditError, match=r"needs the package gguf: pip install"):
        control_vector({1: np.ones(4)}, tmp_path / "v.gguf", architecture="llama")
