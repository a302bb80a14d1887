"""Readers who share a model: none meets another's edits, and none leaves a hook behind."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from streamlit.testing.v1 import AppTest

from activations import Model
from apps import models
from apps.background import Job
from experiments.prompt_pair import changed_words, pair_map

SCRIPT = Path(__file__).resolve().parents[2] / "apps" / "explorer.py"
NAME = "organism/aligned"
BASE, SOURCE = "in winter the clever boy", "that there clever boy"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def visit() -> Iterator[Callable[[str], AppTest]]:
    """Opens a page in a session of its own; all are of one server's process."""

    def opened(page: str) -> AppTest:
        at = AppTest.from_file(str(SCRIPT), default_timeout=60)
        return at.switch_page(f"views/{page}.py").run()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["explorer", "no-such-folder", "--model", NAME, "--example"])
        yield opened


def begun(at: AppTest, key: str) -> Job:
    """The job that the page's button begins."""
    at.button(key="go").click().run()
    assert not at.exception and not at.error
    return at.session_state[key]


def plain(model: Model) -> list[Any]:
    """What a second reader asks: logits, states, a reply, a map, and what one patch changes."""
    ids = torch.tensor([model.encode(BASE)])
    middle = "blocks.2.hook_resid_post"
    return [
        model.logits(ids),
        model.activations(ids, None, ["blocks.3.hook_resid_post"])["blocks.3.hook_resid_post"],
        model.generate([model.render(SOURCE)], max_new_tokens=8),
        next(iter(pair_map(model, BASE, SOURCE, [middle]))),
        changed_words(model, BASE, SOURCE, middle, 0),
    ]


def same(one: Any, other: Any) -> bool:
    """To the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one.equals(other) if isinstance(one, pd.DataFrame) else one == other


def test_a_reader_gets_the_plain_models_numbers_while_another_steers(
    visit: Callable[[str], AppTest],
) -> None:
    steering, patching = visit("steer"), visit("patch")
    begun(steering, "steer_job").join(120)  # finds the direction, which is kept
    shared = models.opened(NAME)
    alone = plain(shared)
    undisturbed = begun(patching, "patch_job")
    undisturbed.join(60)
    rounds = 0
    job = begun(steering, "steer_job")
    while job.alive:
        at, found = job.done, plain(shared)
        assert [same(*pair) for pair in zip(found, alone, strict=True)] == [True] * len(alone)
        rounds += job.done > at
    assert job.error is None and rounds >= 3  # replies were being written meanwhile
    job = begun(steering, "steer_job")
    disturbed = begun(patching, "patch_job")
    assert job.alive
    disturbed.join(60)
    job.join(120)
    assert disturbed.error is None and job.error is None
    assert disturbed.frame().equals(undisturbed.frame())
    assert models.opened(NAME) is shared


def test_without_the_models_lock_that_reader_would_meet_the_edits(
    visit: Callable[[str], AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    steering, shared = visit("steer"), models.opened(NAME)
    begun(steering, "steer_job").join(120)
    ids = torch.tensor([shared.encode(BASE)])
    alone = shared.logits(ids)
    monkeypatch.setattr(shared, "lock", contextlib.nullcontext())
    job, other = begun(steering, "steer_job"), 0
    while job.alive:
        other += not torch.equal(shared.logits(ids), alone)
    assert other > 0


def hooks() -> dict[int, int]:
    """Hooks on every module there is, the model's copies that share its weights among them."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    gc.unfreeze()  # what is frozen, as an opened model is, would not be listed
    modules = [one for one in gc.get_objects() if issubclass(type(one), torch.nn.Module)]
    return {id(one): sum(len(getattr(one, kind)) for kind in kinds) for one in modules}


@pytest.mark.parametrize("page", ["patch", "steer"])
def test_no_hook_is_left_after_a_pages_work(visit: Callable[[str], AppTest], page: str) -> None:
    at, key = visit(page), f"{page}_job"
    begun(at, key).join(120)  # makes what copies of the modules it takes
    shared = models.opened(NAME)
    before = hooks()
    job = begun(at, key)
    job.join(120)
    at.run()  # after a map, the page's own pass for one cell
    stopped = begun(at, key)
    stopped.stop()
    stopped.join(120)
    assert job.error is None and stopped.error is None and job.done == job.count >= stopped.done
    after = hooks()
    assert {one: after.get(one, 0) for one in before} == before
    assert sum(after.values()) == sum(before.values())
    assert not any(after[id(module)] for module in shared.hf.modules())


def test_no_hook_is_left_after_an_edit_that_fails() -> None:
    class Broken:
        name, sites = "broken", ("blocks.1.hook_resid_post",)

        def __call__(self, activation: Any, site: str, positions: Any) -> Any:
            raise RuntimeError("no")

    shared = models.opened(NAME)
    ids = torch.tensor([shared.encode(BASE)])
    alone, before = shared.logits(ids), hooks()
    with pytest.raises(RuntimeError), shared.edited(Broken()):
        shared.logits(ids)
    assert torch.equal(shared.logits(ids), alone)
    assert hooks() == before
