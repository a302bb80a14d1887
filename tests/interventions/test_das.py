"""A search for a planted variable finds it, and what should fail fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from activations import ModelError, open_model
from geometry import Subspace
from interventions import EditError, distributed_alignment_search, interchange, patch_sweep
from interventions.interchanging import Interchanges, orthonormal

from .conftest import WORDS, _tokenizer

D, FIRST = 24, WORDS[:18]
YES, NO = "s", "t"
SITE = "blocks.0.hook_resid_post"


def planted(planes: int = 1) -> tuple[Any, np.ndarray]:
    """A model made by hand that answers by `planes` coordinates of its last word, and their basis.

    Words come in two kinds, that differ along the planted directions alone; the rest of each pair
    of words is random. Blocks write nothing, and the two answers' rows of the head read the sum.
    """
    generator = torch.Generator().manual_seed(0)
    config = GPT2Config(
        vocab_size=len(WORDS) + 3,
        n_positions=16,
        n_embd=D,
        n_layer=2,
        n_head=2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    hf = GPT2LMHeadModel(config).eval()
    axes = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    # Normalisation takes out the mean of the coordinates, so nothing is planted along it.
    axes = torch.linalg.qr(torch.cat([torch.ones(D, 1), axes], dim=1)).Q[:, 1:]
    own, rest = axes[:, :planes], axes[:, planes:]
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
        for module in hf.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(1)
        noise = 0.4 * torch.randn(config.vocab_size, rest.shape[1], generator=generator)
        noise[4::2] = noise[3::2]  # each word has a partner that differs in kind alone
        hf.transformer.wte.weight.copy_(noise @ rest.T)
        for i, word in enumerate(WORDS):
            sign = 1.0 if i % 2 == 0 else -1.0
            hf.transformer.wte.weight[3 + i] += sign * own.sum(1) * (2 / planes**0.5)
            if word in (YES, NO):
                hf.lm_head.weight[3 + i] = own.sum(1) * (0.5 if word == YES else -0.5)
    return open_model(hf, tokenizer=_tokenizer()), own.numpy()


def questions(n: int = 120, seed: int = 0) -> tuple[list[tuple[str, str]], list[str]]:
    rng = np.random.default_rng(seed)
    pairs, answers = [], []
    for _ in range(n):
        base, source = (" ".join(rng.choice(FIRST, 3)) for _ in range(2))
        pairs.append((base, source))
        answers.append(YES if FIRST.index(source.split()[-1]) % 2 == 0 else NO)
    return pairs, answers


def test_the_planted_direction_is_found_and_nothing_else_works() -> None:
    model, own = planted()
    pairs, answers = questions()
    found = distributed_alignment_search(model, pairs, answers, SITE)
    assert abs(float(own[:, 0] @ found.subspace.basis[:, 0])) > np.cos(np.radians(5))
    assert found.accuracy.value == 1 and found.accuracy.n == 48
    controls = found.controls.set_index("control")["value"]
    assert controls["whole_state"] == 1 and controls["class_means"] > 0.9
    for name in ("random_subspace", "shuffled_answers", "random_model"):
        assert np.max(controls[name]) < 0.8, name
    assert all(p.grad is None for p in model.hf.parameters())
    assert found.plain < 0.8 and found.in_data == pytest.approx(1, abs=0.05)
    assert found.curve["loss"].iloc[-20:].mean() < found.curve["loss"].iloc[0] / 2
    assert "should fail" in str(found) and found.subspace.site == SITE


def test_a_learned_boundary_stops_at_the_planted_size() -> None:
    model, own = planted()
    pairs, answers = questions(80)
    found = distributed_alignment_search(
        model, pairs, answers, SITE, k="learned", size_penalty=0.1, trained_controls=False
    )
    assert found.subspace.k <= 3 and found.accuracy.value > 0.95
    assert np.linalg.norm(own.T @ found.subspace.basis) > 0.95
    assert found.curve["k"].iloc[0] > found.curve["k"].iloc[-1]


def test_a_basis_is_orthonormal_and_turns_smoothly() -> None:
    free = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    basis = orthonormal(free)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3), atol=1e-5, rtol=0)
    assert torch.dist(orthonormal(free + 1e-5), basis) < 1e-3


def test_gradients_are_those_of_finite_differences(model: Any) -> None:
    pairs = [("a b c d", "e f g h"), ("b c a", "d e f")]
    data = Interchanges.of(model, pairs, ["a", "b"], "blocks.1.hook_resid_pre", (0, 1))
    rows = np.array([0, 1])
    free = torch.randn(16, 2, generator=torch.Generator().manual_seed(2)).requires_grad_()
    (gradient,) = torch.autograd.grad(data.loss(orthonormal(free), rows), [free])
    step = 1e-2
    for at in ((0, 0), (7, 1)):
        ahead, behind = free.detach().clone(), free.detach().clone()
        ahead[at] += step
        behind[at] -= step
        up, down = (float(data.loss(orthonormal(f), rows).detach()) for f in (ahead, behind))
        assert float(gradient[at]) == pytest.approx((up - down) / (2 * step), abs=2e-3)


def test_the_whole_space_is_the_whole_state(model: Any) -> None:
    pairs = [("a b c d", "e f g h"), ("b c a", "d e f")]
    whole = Subspace(np.eye(16), np.zeros(16), np.ones(16))
    options = {"sites": ["resid_pre", "mlp_out"], "max_positions": 3}
    within = patch_sweep(model, pairs, within=whole, **options).frame
    plain = patch_sweep(model, pairs, **options).frame
    np.testing.assert_allclose(within["value"], plain["value"], atol=1e-4)


def test_an_interchange_is_the_formula(model: Any) -> None:
    space = Subspace(
        np.linalg.qr(np.random.default_rng(0).normal(size=(16, 3)))[0], np.zeros(16), np.ones(3)
    )
    site = "blocks.1.hook_resid_post"
    frame = patch_sweep(model, [("a b c", "d e f")], sites=[site], within=space).frame
    states = model.activations(*model.pad([model.encode(t) for t in ("a b c", "d e f")]), [site])
    base, source = states[site]
    basis = torch.tensor(space.basis, dtype=base.dtype)
    new = base[1] + basis @ (basis.T @ (source[1] - base[1]))
    goal = model.logits(*model.pad([model.encode("d e f")]))[0, -1].double().log_softmax(-1)
    from interventions import replace

    with model.edited(replace(site, new, [1])):
        run = model.logits(*model.pad([model.encode("a b c")]))[0, -1].double().log_softmax(-1)
    cell = frame[frame["position"] == 1].iloc[0]
    assert cell["value"] == pytest.approx(float((goal.exp() * (goal - run)).sum()), abs=1e-5)


def test_the_planted_direction_carries_all_and_random_ones_little() -> None:
    model, own = planted()
    space = Subspace(own, np.zeros(D), np.ones(1), site=SITE)
    pairs, _ = questions(30)
    pairs = [p for p in pairs if FIRST.index(p[0][-1]) % 2 != FIRST.index(p[1][-1]) % 2]
    found = interchange(model, pairs, space, max_positions=1, align=lambda b, s: np.arange(len(b)))
    value = found.groupby("control")["value"].mean()
    assert value[""] > 0.9 * value["whole_state"]
    assert value["random_subspace"] < 0.5 * value[""]
    assert (found["control"] == "random_subspace").sum() == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": ["a"]}, "120 pairs and 1 answers"),
        ({"site": "resid_post"}, "is 2 sites"),
        ({"site": "blocks.0.attn.hook_z"}, "no single vector"),
        ({"positions": (9,)}, "shortest text has 3 tokens"),
        ({"k": 99}, "k is 99"),
        ({"groups": ["one"] * 120}, "at least 4 groups"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_bad_searches_say_what_is_wrong(changes: dict[str, Any], message: str) -> None:
    model, _ = planted()
    pairs, answers = questions()
    given = {"answers": answers, "site": SITE} | changes
    with pytest.raises(EditError, match=message):
        distributed_alignment_search(model, pairs, **given)


def test_what_cannot_fork_is_refused() -> None:
    model, _ = planted()
    pairs, answers = questions()
    with pytest.raises(ModelError), model.edited(*_some_edit(model)):
        distributed_alignment_search(model, pairs, answers, SITE)


def _some_edit(model: Any) -> Any:
    from interventions import scale

    return [scale(None, 1.0, sites=SITE)]


def test_an_interchange_needs_a_site_and_no_second_subspace() -> None:
    model, own = planted()
    space = Subspace(own, np.zeros(D), np.ones(1))
    with pytest.raises(EditError, match="no site of its own"):
        interchange(model, [("a", "b")], space)
    with pytest.raises(EditError, match="leave `within` out"):
        interchange(model, [("a", "b")], space, sites=[SITE], within=space)
    with pytest.raises(EditError, match="24"):
        patch_sweep(model, [("a", "b")], within=Subspace(np.eye(3), np.zeros(3), np.ones(3)))
