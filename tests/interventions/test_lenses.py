"""Lenses against the model's own logits, the norm and unembedding written out, and closed forms."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import entropy

from activations import open_model
from geometry import Subspace, random_subspace
from interventions import (
    EditError,
    add,
    lens_divergence,
    lens_logits,
    logit_lens,
    promoted_tokens,
)
from tests.activations.conftest import tiny, tokenizer
from tests.activations.families import D_MODEL, FAMILIES, LAYERS, make

IDS = torch.tensor([[3, 5, 7, 9, 12, 20, 4, 8], [6, 6, 10, 22, 4, 3, 15, 11]])
LAST = f"blocks.{LAYERS - 1}.hook_resid_post"
TEXTS = ["the cat sat on the mat .", "a dog ran .", "yon bird"]
#: Path of the last norm, and what is done to the logits at the end.
ENDS = {
    "gpt2": ("transformer.ln_f", None),
    "llama": ("model.norm", None),
    "gemma2": ("model.norm", 30.0),
    "gpt_neox": ("gpt_neox.final_layer_norm", None),
}


def shaken(name: str) -> Any:
    """The tiny model with no weight at its usual start, so that gains and biases count."""
    plain = make(name)
    drawn = torch.Generator().manual_seed(7)
    for parameter in plain.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=drawn)
    return plain


@pytest.fixture(scope="module", params=ENDS)
def opened(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    plain = shaken(request.param)
    model = open_model(copy.deepcopy(plain), tokenizer=tokenizer(), device="cpu")
    return request.param, model, plain


@pytest.fixture(scope="module")
def model() -> Any:
    return open_model(tiny("llama"), tokenizer=tokenizer(), device="cpu")


def gain_of(name: str, plain: Any) -> np.ndarray:
    """What the last norm multiplies each dimension by."""
    weight = plain.get_submodule(ENDS[name][0]).weight.detach().double().numpy()
    return 1 + weight if name.startswith("gemma") else weight


def by_hand(name: str, plain: Any, h: np.ndarray) -> np.ndarray:
    """Norm, unembedding and cap of one state, from their formulas, in f64."""
    path, cap = ENDS[name]
    norm = plain.get_submodule(path)
    if hasattr(norm, "bias"):
        bias = norm.bias.detach().double().numpy()
        x = (h - h.mean()) / np.sqrt(h.var() + norm.eps) * gain_of(name, plain) + bias
    else:
        eps = getattr(norm, "eps", None) or norm.variance_epsilon
        x = h / np.sqrt((h**2).mean() + eps) * gain_of(name, plain)
    logits = plain.get_output_embeddings().weight.detach().double().numpy() @ x
    return logits if cap is None else cap * np.tanh(logits / cap)


@torch.no_grad()
def streams(plain: Any, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """States before each block `[blocks, pos, d]`, and logits `[pos, vocabulary]`, of one text."""
    out = plain(torch.tensor([ids]), output_hidden_states=True)
    hidden = [h[0].double().numpy() for h in out.hidden_states[:-1]]
    return np.stack(hidden), out.logits[0].double().numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_lens_at_the_last_block_is_the_models_own_prediction(name: str) -> None:
    model = open_model(make(name), tokenizer=tokenizer(), device="cpu")
    states = model.activations(IDS, None, [LAST, "blocks.0.hook_resid_post"])
    torch.testing.assert_close(lens_logits(model, states[LAST]), model.logits(IDS))
    earlier = lens_logits(model, states["blocks.0.hook_resid_post"])
    assert (earlier - model.logits(IDS)).abs().max() > 0.1


def test_a_naive_loop_over_texts_positions_and_blocks_gives_the_same_frame(opened: Any) -> None:
    name, model, plain = opened
    frame = logit_lens(model, TEXTS, "resid_pre", top=3)
    rows = []
    for text, ids in enumerate(model.encode_many(TEXTS)):
        hidden, _ = streams(plain, ids)
        for layer in range(LAYERS):
            for position in range(len(ids)):
                logits = by_hand(name, plain, hidden[layer, position])
                for rank, token in enumerate(np.argsort(-logits)[:3], start=1):
                    rows.append((text, layer, position, ids[position], rank, token,
                                 logits[token], softmax(logits)[token]))  # fmt: skip
    naive = pd.DataFrame(rows, columns=["text", "layer", "position", "read", "rank", "token_id",
                                        "logit", "probability"])  # fmt: skip
    whole = ["text", "layer", "position", "rank", "token_id"]
    assert frame[whole].to_numpy().tolist() == naive[whole].to_numpy().tolist()
    np.testing.assert_allclose(frame["logit"], naive["logit"], atol=1e-4)
    np.testing.assert_allclose(frame["probability"], naive["probability"], atol=1e-5)
    words = model.tokenizer.convert_ids_to_tokens
    assert frame["input"].tolist() == words(naive["read"].tolist())
    assert frame["token"].tolist() == words(naive["token_id"].tolist())
    assert set(frame["site"]) == {f"blocks.{layer}.hook_resid_pre" for layer in range(LAYERS)}


def test_the_divergence_is_scipys_relative_entropy_averaged_over_groups(opened: Any) -> None:
    name, model, plain = opened
    groups = ["one", "two", "two"]
    frame = lens_divergence(model, TEXTS, ["resid_pre", LAST], groups=groups).set_index("site")
    naive: dict[int, dict[str, list[float]]] = {layer: {} for layer in range(LAYERS)}
    for group, ids in zip(groups, model.encode_many(TEXTS), strict=True):
        hidden, logits = streams(plain, ids)
        for layer in range(LAYERS):
            for position in range(1, len(ids)):
                said = softmax(by_hand(name, plain, hidden[layer, position]))
                kl = float(entropy(softmax(logits[position]), said))
                naive[layer].setdefault(group, []).append(kl)
    for layer, values in naive.items():
        row = frame.loc[f"blocks.{layer}.hook_resid_pre"]
        assert row["value"] == pytest.approx(np.mean([np.mean(v) for v in values.values()]), 1e-4)
        assert row["n"] == 2 and row["low"] <= row["value"] <= row["high"]
        assert row["value"] > 0.01
    assert frame.loc[LAST, "value"] == pytest.approx(0, abs=1e-9)


def test_without_the_norm_a_row_of_the_unembedding_promotes_its_token_most(opened: Any) -> None:
    # |w_t · w_s| ≤ |w_t| |w_s|, so the longest row is its own best match.
    _, model, plain = opened
    rows = plain.get_output_embeddings().weight.detach().double().numpy()
    token = int(np.linalg.norm(rows, axis=1).argmax())
    length = np.linalg.norm(rows[token])
    space = Subspace((rows[token] / length)[:, None], np.zeros(D_MODEL), np.ones(1), site=LAST)
    frame = promoted_tokens(model, space, top=len(rows), gain=False)
    up, down = (frame[frame["sign"] == sign].set_index("token_id") for sign in (1, -1))
    assert up.index[0] == token and up["logit"].iloc[0] == pytest.approx(length, rel=1e-5)
    assert down.index[-1] == token and up["probability"].isna().all()
    np.testing.assert_allclose(up["logit"].sort_index(), rows @ rows[token] / length, atol=1e-4)
    np.testing.assert_allclose(down["logit"].sort_index(), -up["logit"].sort_index())
    assert (frame["layer"] == LAYERS - 1).all() and (frame["site"] == LAST).all()


def test_with_the_norm_it_is_the_closed_form_of_gain_and_unembedding(opened: Any) -> None:
    name, model, plain = opened
    rows = plain.get_output_embeddings().weight.detach().double().numpy()
    space = random_subspace(D_MODEL, 2, seed=4)
    frame = promoted_tokens(model, {"chance": space}, top=len(rows))
    for axis in range(2):
        u = space.basis[:, axis]
        if hasattr(plain.get_submodule(ENDS[name][0]), "bias"):
            u = u - u.mean()
        expected = rows @ (gain_of(name, plain) * u) * np.sqrt(D_MODEL) / np.linalg.norm(u)
        for sign in (1, -1):
            own = frame[(frame["axis"] == axis) & (frame["sign"] == sign)].set_index("token_id")
            own = own.sort_index()
            np.testing.assert_allclose(own["logit"], sign * expected, atol=1e-3)
            np.testing.assert_allclose(own["probability"], softmax(sign * expected), atol=1e-4)


def test_a_large_dose_of_a_direction_leads_to_the_tokens_that_it_promotes(model: Any) -> None:
    space = random_subspace(16, 1, seed=2)
    best = promoted_tokens(model, space, top=1).set_index("sign")["token_id"]
    for sign in (1, -1):
        with model.edited(add(space, "blocks.2.hook_resid_post", scale=sign * 1e5)):
            assert (model.logits(IDS).argmax(-1) == best[sign]).all()
    assert (model.logits(IDS).argmax(-1) != best[1]).any()


def test_open_edits_are_seen_and_those_after_the_blocks_are_refused(model: Any) -> None:
    space = random_subspace(16, 1, seed=2)
    last = "blocks.2.hook_resid_post"
    plain = logit_lens(model, TEXTS, last, top=1)
    with model.edited(add(space, "blocks.0.hook_resid_post", scale=9.0)):
        seen = logit_lens(model, TEXTS[:1], last, top=1)
        own = model.logits(torch.tensor([model.encode(TEXTS[0])]))[0]
    assert seen["token_id"].tolist() == own.argmax(-1).tolist()
    assert seen["logit"].tolist() != plain[plain["text"] == 0]["logit"].tolist()
    with (
        model.edited(add(space, "ln_final.hook_out")),
        pytest.raises(EditError, match=r"ln_final\.hook_out is open, after the last block"),
    ):
        logit_lens(model, TEXTS)


def test_neighbours_in_a_batch_change_nothing_and_positions_choose_tokens(model: Any) -> None:
    together = logit_lens(model, TEXTS, ["embed", "mlp_out"], positions="last", top=2)
    for number, text in enumerate(TEXTS):
        alone = logit_lens(model, [text], ["embed", "mlp_out"], positions="last", top=2)
        own = together[together["text"] == number].reset_index(drop=True).assign(text=0)
        pd.testing.assert_frame_equal(own, alone, rtol=1e-4)
        assert (own["position"] == len(model.encode(text)) - 1).all()
    assert set(logit_lens(model, TEXTS, positions=slice(1, 3))["position"]) == {1, 2}
    assert lens_divergence(model, ["cat"], layers=[0])["tokens"].tolist() == [1]


def test_a_lens_leaves_the_model_as_it_was(model: Any) -> None:
    before, forwards = model.logits(IDS), [vars(m).get("forward") for m in model.hf.modules()]
    logit_lens(model, TEXTS)
    promoted_tokens(model, random_subspace(16, 1, seed=0))
    assert torch.equal(model.logits(IDS), before)
    assert [vars(m).get("forward") for m in model.hf.modules()] == forwards
    assert not any(m._forward_hooks for m in model.hf.modules())


def test_few_states_at_a_time_or_all_at_once_give_the_same(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = logit_lens(model, TEXTS), lens_divergence(model, TEXTS)
    monkeypatch.setattr("interventions.readout._LOGITS", 50)
    for one, other in zip(whole, (logit_lens(model, TEXTS), lens_divergence(model, TEXTS))):
        pd.testing.assert_frame_equal(one, other, rtol=1e-4, atol=1e-4)


def test_tokens_beyond_the_tokenizers_own_are_shown_by_number() -> None:
    plain = tiny("llama")
    plain.resize_token_embeddings(64)
    padded = open_model(plain, tokenizer=tokenizer(), device="cpu")
    shown = promoted_tokens(padded, random_subspace(16, 1, seed=0), top=64)
    assert "[63]" in set(shown["token"]) and "cat" in set(shown["token"])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: logit_lens(m, []), "No texts were given"),
        (lambda m: logit_lens(m, "the cat"), "No texts were given"),
        (lambda m: logit_lens(m, TEXTS, top=0), "`top` is 0"),
        (lambda m: logit_lens(m, TEXTS, positions=99), "No token lies at positions 99"),
        (lambda m: logit_lens(m, TEXTS, "z"), r"holds \(4, 4\) for each token"),
        (lambda m: logit_lens(m, TEXTS, "final_norm"), "after the last block"),
        (lambda m: lens_divergence(m, TEXTS, groups=[1]), "3 texts and 1 groups"),
        (lambda m: lens_logits(m, torch.zeros(3, 5)), r"shape \(3, 5\) and the stream"),
        (lambda m: promoted_tokens(m, {}), "No direction was given"),
        (lambda m: promoted_tokens(m, random_subspace(8, 1, seed=0)), "is 16 wide"),
        (lambda m: promoted_tokens(m, np.zeros(16)), "No direction was given"),
        (lambda m: promoted_tokens(m, {"r": np.zeros(16)}), "'r' is a ndarray"),
    ],
)
def test_what_no_lens_can_show_is_refused_in_a_sentence(model: Any, call: Any, said: str) -> None:
    with pytest.raises(EditError, match=said):
        call(model)


def test_a_model_without_a_head_has_no_lens() -> None:
    from transformers import GPT2Model

    headless = GPT2Model(tiny("gpt2").config).eval()
    opened = open_model(headless, tokenizer=tokenizer(), device="cpu")
    with pytest.raises(EditError, match="has no head"):
        logit_lens(opened, TEXTS)
