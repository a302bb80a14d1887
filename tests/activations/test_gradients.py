"""Gradients in states are what finite differences of edited runs give."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from activations import ModelError, open_model
from activations.gradients import gradients

from .conftest import tokenizer
from .families import make

IDS = torch.tensor([[3, 4, 5, 6, 7], [9, 8, 7, 6, 5]])
KINDS = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_post", "z", "q", "k",
         "v", "result", "pattern"]  # fmt: skip


def difference(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1, 7] - logits[:, -1, 9]


class _Shift:
    """Moves the states at a site by a multiple of a direction."""

    name = "shift"

    def __init__(self, site: str, by: torch.Tensor) -> None:
        self.sites, self._by = (site,), by

    def __call__(self, activation: torch.Tensor, site: str, positions: Any) -> torch.Tensor:
        return activation + self._by


class _Stop:
    """Lets the states through, and no gradient."""

    name = "stop"

    def __init__(self, *sites: str) -> None:
        self.sites = sites

    def __call__(self, activation: torch.Tensor, site: str, positions: Any) -> torch.Tensor:
        return activation.detach()


def open_family(name: str) -> Any:
    return open_model(make(name).double(), tokenizer=tokenizer(), device="cpu")


# Norms and rotary embeddings of Llama and its kin run in f32 whatever the model's precision.
@pytest.mark.parametrize(("family", "step", "tolerance"), [
    ("gpt2", 1e-5, 1e-6), ("gpt_neox", 1e-5, 1e-6), ("llama", 2e-3, 1e-2), ("qwen3", 2e-3, 1e-2),
])  # fmt: skip
def test_gradients_are_central_differences_in_f64(
    family: str, step: float, tolerance: float
) -> None:
    model = open_family(family)
    sites = [s for kind in KINDS for s in model.sites if s == f"blocks.0.{_hook(kind)}"]
    assert len(sites) >= 11
    figures, found = gradients(model, IDS, None, sites, difference)
    torch.testing.assert_close(figures, difference(model.logits(IDS)), rtol=1e-4, atol=1e-5)
    states = model.activations(IDS, None, sites)
    drawn = torch.Generator().manual_seed(0)
    for site in sites:
        by = torch.randn(states[site].shape, generator=drawn, dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            with model.edited(_Shift(site, sign * step * by)):
                ends.append(difference(model.logits(IDS)))
        expected = (ends[0] - ends[1]) / (2 * step)
        slope = (found[site] * by).flatten(1).sum(1)
        torch.testing.assert_close(slope, expected, rtol=tolerance, atol=tolerance, msg=site)


def _hook(kind: str) -> str:
    from activations.sites import SHORT

    return SHORT[kind]


def test_an_edit_made_after_stops_the_gradient_and_one_that_is_open_is_seen() -> None:
    model = open_family("gpt2")
    early, late = model.resolve_sites("resid_post")[:2]
    writes = ("blocks.1.hook_attn_out", "blocks.1.hook_mlp_out")
    whole = gradients(model, IDS, None, [early], difference)[1][early]
    skip, at_end = (
        gradients(model, IDS, None, [early, late], difference, after=[_Stop(*writes)])[1][site]
        for site in (early, late)
    )
    torch.testing.assert_close(skip, at_end)  # what is left is the stream, which adds
    assert (whole - skip).abs().max() > 1e-3
    gone = gradients(model, IDS, None, [early], difference, after=[_Stop(late)])[1]
    assert (gone[early] == 0).all()
    with model.edited(_Shift(early, torch.arange(16.0, dtype=torch.float64))):
        moved = gradients(model, IDS, None, [early], difference)[1][early]
    assert (whole - moved).abs().max() > 1e-3


def test_nothing_is_left_behind_and_what_has_no_gradient_is_said() -> None:
    model = open_family("gpt2")
    site = model.resolve_sites("resid_post")[0]
    before = model.logits(IDS)
    with pytest.raises(ModelError, match="no gradient"):
        gradients(model, IDS, None, [site], lambda logits: logits[:, -1, 0].detach())
    with torch.inference_mode():
        gradients(model, IDS, None, [site], difference)
    assert all(parameter.grad is None for parameter in model.hf.parameters())
    after = model.logits(IDS)
    assert torch.equal(before, after) and not after.requires_grad
    other = open_model(make("gpt2"), tokenizer=tokenizer(), device="cpu", engine="nnsight")
    with pytest.raises(ModelError, match="engine='transformer_lens'"):
        gradients(other, IDS, None, [site], difference)
