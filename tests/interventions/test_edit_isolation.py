"""Edits leave nothing behind, whatever happens, and are seen by no other thread."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch

from activations import SiteError, open_model
from geometry import mean_difference, random_subspace
from interventions import EditError, ablate, add, project_out, resample, scale, zero_ablate

from .by_hand import RESID, D, Z, hook_count, logits
from .conftest import _hf, _tokenizer

rng = np.random.default_rng(0)
SPACE = random_subspace(D, 8, seed=0, mean=rng.normal(size=D))
LINE = mean_difference(rng.normal(size=(5, D)) + 1, rng.normal(size=(5, D)))
IDS = torch.tensor([[3, 5, 7, 9, 12], [6, 6, 10, 20, 4]])
#: One that goes by plain hooks, one that needs the bridge, where there is one.
EDITS = {
    "stream": lambda: add(LINE, RESID) + ablate(SPACE, RESID),
    "heads": lambda: zero_ablate(Z, heads=[1]) + scale(SPACE, 2, RESID),
    "result": lambda: zero_ablate("blocks.1.attn.hook_result", heads=[1]),
    "drawn": lambda: resample({RESID: rng.normal(size=(4, D))}, seed=0),
}


class Boom(Exception):
    """Raised by an edit."""


class Failing:
    """Works on the first call, and fails on the second."""

    name, sites = "failing", (RESID, "blocks.2.hook_resid_post")

    def __call__(self, x: torch.Tensor, site: str, positions: Any) -> torch.Tensor:
        if site == self.sites[1]:
            raise Boom
        return x + 1


def everything(model: Any) -> dict[str, torch.Tensor]:
    """Logits, states that plain hooks read, and states that only the bridge reads."""
    sites = [RESID, Z, "blocks.1.attn.hook_result"]
    if "blocks.1.attn.hook_pattern" in model.sites:
        sites.append("blocks.1.attn.hook_pattern")
    return {"logits": model.logits(IDS), **model.activations(IDS, None, sites)}


def enter_unknown_site(model: Any) -> None:
    with model.edited(ablate(SPACE, RESID), ablate(SPACE, "blocks.9.hook_resid_post")):
        pass


def raise_inside(model: Any) -> None:
    with model.edited(ablate(SPACE, RESID)):
        model.logits(IDS)
        raise Boom


def raise_in_an_edit(model: Any) -> None:
    with model.edited(ablate(SPACE, RESID), Failing()):
        model.logits(IDS)


def raise_in_decoding(model: Any) -> None:
    with model.edited(Failing()):
        model.generate(["a b c"])


def raise_nested(model: Any) -> None:
    with model.edited(add(LINE, RESID)):
        with pytest.raises(EditError), model.edited(ablate(random_subspace(8, 1, seed=0), RESID)):
            model.logits(IDS)
        within = model.logits(IDS)
        with model.edited(Failing()), pytest.raises(Boom):
            model.logits(IDS)
        assert torch.equal(model.logits(IDS), within)
        with model.edited(zero_ablate(Z, heads=[7])):
            model.logits(IDS)


def raise_in_a_read(model: Any) -> None:
    def fail(_x: torch.Tensor, _site: Any) -> torch.Tensor:
        raise Boom

    with model.edited(*[make() for make in EDITS.values()]):
        model.activations(IDS, None, [RESID], select=fail)


@pytest.mark.parametrize("name", EDITS)
def test_after_an_edit_all_is_bit_for_bit_as_before(opened: Any, name: str) -> None:
    model, plain = opened
    before, hooks = everything(model), hook_count(model)
    weights = {n: p.clone() for n, p in model.hf.named_parameters()}
    for _ in range(2):
        with model.edited(EDITS[name]()):
            assert not torch.equal(model.logits(IDS), before["logits"])
            model.generate(["a b c", "d"], max_new_tokens=2)
            everything(model)
        assert hook_count(model) == hooks
        after = everything(model)
        assert all(torch.equal(after[site], x) for site, x in before.items())
    assert all(torch.equal(p, weights[n]) for n, p in model.hf.named_parameters())
    torch.testing.assert_close(before["logits"][0], logits(plain, IDS[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fail", "error"),
    [
        (enter_unknown_site, SiteError),
        (raise_inside, Boom),
        (raise_in_an_edit, Boom),
        (raise_in_decoding, Boom),
        (raise_nested, EditError),
        (raise_in_a_read, Boom),
    ],
)
def test_after_an_exception_all_is_bit_for_bit_as_before(
    opened: Any, fail: Callable[[Any], None], error: type[Exception]
) -> None:
    model, _ = opened
    before, hooks = everything(model), hook_count(model)
    with pytest.raises(error):
        fail(model)
    assert hook_count(model) == hooks
    after = everything(model)
    assert all(torch.equal(after[site], x) for site, x in before.items())
    assert not model._edits
    free = threading.Thread(target=lambda: model.logits(IDS))  # the lock was given back
    free.start()
    free.join(timeout=30)
    assert not free.is_alive()


def test_contexts_that_are_left_one_by_one_take_only_their_own_edits_away(opened: Any) -> None:
    model, _ = opened
    edits = [add(LINE, RESID), project_out(SPACE, RESID), zero_ablate(Z, heads=[0])]
    expected = []
    for n in range(4):
        with model.edited(*edits[:n]):
            expected.append(model.logits(IDS))
    held = [ExitStack() for _ in edits]
    for n, (stack, edit) in enumerate(zip(held, edits, strict=True)):
        assert torch.equal(model.logits(IDS), expected[n])
        stack.enter_context(model.edited(edit))
    for n in (3, 2, 1):
        assert torch.equal(model.logits(IDS), expected[n])
        held[n - 1].close()
    assert torch.equal(model.logits(IDS), expected[0])


def together(work: list[Callable[[], Any]], *, rounds: int) -> list[list[Any]]:
    """What each of `work` gives, each in its own thread, all at once and again and again."""
    found: list[list[Any]] = [[] for _ in work]
    failed: list[BaseException] = []
    start = threading.Barrier(len(work))

    def run(number: int) -> None:
        try:
            start.wait()
            for _ in range(rounds):
                found[number].append(work[number]())
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not failed
    return found


def test_threads_get_what_each_would_get_alone(opened: Any) -> None:
    model, _ = opened
    before = hook_count(model)

    def clean() -> torch.Tensor:
        return model.logits(IDS)

    def read() -> torch.Tensor:
        return model.activations(IDS, None, ["blocks.2.hook_resid_post"])[
            "blocks.2.hook_resid_post"
        ]

    def say() -> list[str]:
        return model.generate(["a b c", "d"], max_new_tokens=3)

    def under(make: Callable[[], Any], then: Callable[[], Any]) -> Callable[[], Any]:
        def edited() -> Any:
            with model.edited(make()), model.edited(add(LINE, "blocks.0.hook_resid_post")):
                return then()

        return edited

    def fails() -> str:
        try:
            raise_in_an_edit(model)
        except Boom:
            return "boom"
        return "no boom"

    work = [clean, read, say, clean, fails]
    work += [
        under(EDITS["stream"], clean),
        under(EDITS["heads"], read),
        under(EDITS["result"], say),
    ]
    alone = [one() for one in work]
    for expected, found in zip(alone, together(work, rounds=8), strict=True):
        assert len(found) == 8
        for got in found:
            same = torch.equal(got, expected) if torch.is_tensor(expected) else got == expected
            assert same
    assert hook_count(model) == before


def test_a_module_in_use_elsewhere_sees_no_edits_of_another_thread(kind: str) -> None:
    """Two models over one module have two locks, and its owner may call it with none."""
    hf = _hf(kind).eval()
    models = [open_model(hf, tokenizer=_tokenizer()) for _ in range(2)]
    plain = copy.deepcopy(hf)
    with torch.no_grad():
        expected = plain(IDS, attention_mask=torch.ones_like(IDS)).logits

    def bare() -> torch.Tensor:
        with torch.no_grad():
            return hf(IDS, attention_mask=torch.ones_like(IDS)).logits

    def edited() -> torch.Tensor:
        with models[0].edited(add(LINE, RESID, scale=3)):
            return models[0].logits(IDS)

    changed = edited()
    assert (changed - expected).abs().max() > 1e-2
    found = together([bare, edited, lambda: models[1].logits(IDS)], rounds=30)
    for answers, right in zip(found, (expected, changed, expected), strict=True):
        for got in answers:
            torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("guarded", [True, False])
def test_a_pass_of_another_thread_in_the_midst_of_an_edit_is_clean(
    kind: str, guarded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not where hooks do not ask whose pass they are in."""
    hf = _hf(kind).eval()
    model, own = open_model(hf, tokenizer=_tokenizer()), threading.get_ident()
    expected, seen = logits(hf, IDS[0]), []
    if not guarded:
        monkeypatch.setattr("activations.engines.local.get_ident", lambda: 0)

    class Visited:
        name, sites = "visited", (RESID,)

        def __call__(self, x: torch.Tensor, site: str, positions: Any) -> torch.Tensor:
            if threading.get_ident() == own:
                other = threading.Thread(target=lambda: seen.append(logits(hf, IDS[0])))
                other.start()
                other.join(timeout=30)
            return x * torch.arange(D)

    with model.edited(Visited()):
        model.logits(IDS)
    assert len(seen) == 1
    assert torch.equal(seen[0], expected) == guarded
