"""One tiny random model of each family, and where a person who read its code finds each site."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .conftest import WORDS

VOCABULARY = len(WORDS) + 3
HEADS, D_HEAD, D_MODEL, LAYERS = 4, 4, 16, 2


@dataclass(frozen=True)
class Family:
    """Config of a tiny model, and dotted paths: of the blocks, and within a block."""

    model: str
    config: str
    options: dict[str, Any]
    blocks: str
    attention: str
    out: str
    mlp_in: str
    mlp_out: str
    embed: str
    norm: str
    middle: str = ""  # the norm that reads the stream between attention and MLP
    joint: str = ""  # the projection that makes q, k and v at once
    layout: str = ""
    attention_writes: str = ""  # what attention adds to the stream
    mlp_writes: str = ""


_USUAL = {
    "vocab_size": VOCABULARY, "hidden_size": D_MODEL, "intermediate_size": 24,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "max_position_embeddings": 24,
    "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
_GROUPED = {**_USUAL, "num_key_value_heads": 2}
_LLAMA = {
    "blocks": "model.layers", "attention": "self_attn", "out": "self_attn.o_proj",
    "mlp_in": "mlp.gate_proj", "mlp_out": "mlp.down_proj", "embed": "model.embed_tokens",
    "norm": "model.norm", "middle": "post_attention_layernorm", "attention_writes": "self_attn",
    "mlp_writes": "mlp",
}  # fmt: skip
_GEMMA = {
    **_LLAMA, "middle": "pre_feedforward_layernorm", "mlp_writes": "post_feedforward_layernorm",
    "attention_writes": "post_attention_layernorm",
}  # fmt: skip
FAMILIES = {
    "gpt2": Family(
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": VOCABULARY, "n_positions": 24, "n_embd": D_MODEL, "n_layer": LAYERS,
         "n_head": HEADS, "bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.3},
        blocks="transformer.h", attention="attn", out="attn.c_proj", mlp_in="mlp.c_fc",
        mlp_out="mlp.c_proj", embed="transformer.wte", norm="transformer.ln_f", middle="ln_2",
        joint="attn.c_attn", layout="thirds", attention_writes="attn", mlp_writes="mlp",
    ),
    "llama": Family("LlamaForCausalLM", "LlamaConfig", _GROUPED, **_LLAMA),
    "mistral": Family(
        "MistralForCausalLM", "MistralConfig", {**_GROUPED, "sliding_window": 6}, **_LLAMA
    ),
    "qwen2": Family("Qwen2ForCausalLM", "Qwen2Config", _GROUPED, **_LLAMA),
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", {**_GROUPED, "head_dim": 4}, **_LLAMA),
    "gemma": Family("GemmaForCausalLM", "GemmaConfig", {**_GROUPED, "head_dim": 4}, **_LLAMA),
    "gemma2": Family(
        "Gemma2ForCausalLM", "Gemma2Config", {**_GROUPED, "head_dim": 4, "sliding_window": 6},
        **_GEMMA,
    ),
    "gemma3": Family(
        "Gemma3ForCausalLM", "Gemma3TextConfig", {**_GROUPED, "head_dim": 4, "sliding_window": 6},
        **_GEMMA,
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM", "GPTNeoXConfig", _USUAL,
        blocks="gpt_neox.layers", attention="attention", out="attention.dense",
        mlp_in="mlp.dense_h_to_4h", mlp_out="mlp.dense_4h_to_h", embed="gpt_neox.embed_in",
        norm="gpt_neox.final_layer_norm", joint="attention.query_key_value",
        layout="within heads", attention_writes="attention", mlp_writes="mlp",
    ),
    "opt": Family(
        "OPTForCausalLM", "OPTConfig",
        {"vocab_size": VOCABULARY, "hidden_size": D_MODEL, "word_embed_proj_dim": D_MODEL,
         "ffn_dim": 24, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
         "max_position_embeddings": 24, "init_std": 0.3, "bos_token_id": 1, "eos_token_id": 1,
         "pad_token_id": 0},
        blocks="model.decoder.layers", attention="self_attn", out="self_attn.out_proj",
        mlp_in="fc1", mlp_out="fc2", embed="model.decoder.embed_tokens",
        norm="model.decoder.final_layer_norm", middle="final_layer_norm",
        attention_writes="self_attn", mlp_writes="fc2",
    ),
    "bloom": Family(
        "BloomForCausalLM", "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": D_MODEL, "n_layer": LAYERS, "n_head": HEADS,
         "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0},
        blocks="transformer.h", attention="self_attention", out="self_attention.dense",
        mlp_in="mlp.dense_h_to_4h", mlp_out="mlp.dense_4h_to_h",
        embed="transformer.word_embeddings_layernorm", norm="transformer.ln_f",
        middle="post_attention_layernorm", joint="self_attention.query_key_value",
        layout="within heads", attention_writes="self_attention.dense",
        mlp_writes="mlp.dense_4h_to_h",
    ),
    "bert": Family(
        "BertForMaskedLM", "BertConfig", _USUAL,
        blocks="bert.encoder.layer", attention="attention.self", out="attention.output.dense",
        mlp_in="intermediate.dense", mlp_out="output.dense",
        embed="bert.embeddings.LayerNorm", norm="cls.predictions.transform.LayerNorm",
        middle="attention.output.LayerNorm",
        attention_writes="attention.output.dense", mlp_writes="output.dense",
    ),
}  # fmt: skip


def make(name: str) -> Any:
    """The tiny model, in evaluation mode, the same each time."""
    import transformers

    family = FAMILIES[name]
    torch.manual_seed(3)
    config = getattr(transformers, family.config)(**family.options)
    return getattr(transformers, family.model)(config).eval()


def by_hand(name: str, model: Any, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """States at every site that the family's paths name, by hooks on the plain model, and its
    attention patterns by `output_attentions`.
    """
    family = FAMILIES[name]
    got: dict[str, torch.Tensor] = {}
    handles = []

    def keep(site: str, value: Any) -> None:
        got[site] = (value if isinstance(value, torch.Tensor) else value[0]).detach().clone()

    def out(site: str, path: str) -> None:
        module = model.get_submodule(path)
        handles.append(module.register_forward_hook(lambda _m, _a, o: keep(site, o)))

    def inside(site: str, path: str) -> None:
        module = model.get_submodule(path)

        def before(_m: Any, args: Any, named: Any) -> None:
            keep(site, args[0] if args else named["hidden_states"])

        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))

    out("hook_embed", family.embed)
    for layer in range(LAYERS):
        block, at = f"{family.blocks}.{layer}", f"blocks.{layer}"
        inside(f"{at}.hook_resid_pre", block)
        out(f"{at}.hook_resid_post", block)
        out(f"{at}.hook_attn_out", f"{block}.{family.attention_writes}")
        out(f"{at}.hook_mlp_out", f"{block}.{family.mlp_writes}")
        inside(f"{at}.attn.hook_z", f"{block}.{family.out}")
        out(f"{at}.mlp.hook_pre", f"{block}.{family.mlp_in}")
        inside(f"{at}.mlp.hook_post", f"{block}.{family.mlp_out}")
        if family.middle:
            inside(f"{at}.hook_resid_mid", f"{block}.{family.middle}")
        if family.joint:
            out(f"{at}.joint", f"{block}.{family.joint}")
        else:
            for letter, word in {"q": "query", "k": "key", "v": "value"}.items():
                path = f"{block}.{family.attention}."
                found = f"{letter}_proj" if name != "bert" else word
                out(f"{at}.attn.hook_{letter}", path + found)
    out("ln_final.hook_out", family.norm)
    head = model.get_output_embeddings()
    handles.append(head.register_forward_hook(lambda _m, _a, o: keep("unembed.hook_out", o)))
    was = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    model.set_attn_implementation(was)
    for handle in handles:
        handle.remove()
    batch, length = inputs["input_ids"].shape
    for layer in range(LAYERS):
        at = f"blocks.{layer}"
        got[f"{at}.attn.hook_pattern"] = output.attentions[layer]
        if family.joint:
            joint = got.pop(f"{at}.joint")
            for number, letter in enumerate("qkv"):
                if family.layout == "thirds":
                    part = joint[..., number * D_MODEL : (number + 1) * D_MODEL]
                else:
                    heads = joint.reshape(batch, length, HEADS, 3, D_HEAD)
                    part = heads[..., number, :]
                got[f"{at}.attn.hook_{letter}"] = part
        project = model.get_submodule(f"{family.blocks}.{layer}.{family.out}")
        matrix = project.weight.detach()
        matrix = matrix if name == "gpt2" else matrix.T  # [heads * d_head, d_model]
        z = got[f"{at}.attn.hook_z"].reshape(batch, length, HEADS, D_HEAD)
        got[f"{at}.attn.hook_result"] = torch.stack(
            [z[:, :, h] @ matrix[h * D_HEAD : (h + 1) * D_HEAD] for h in range(HEADS)], dim=2
        )
    return {site: value.reshape(batch, length, -1) if value.shape[:2] != (batch, HEADS)
            else value for site, value in got.items()}  # fmt: skip
