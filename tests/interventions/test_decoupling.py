"""Decoupling in one's own loop: each form against a computation by hand, on tiny models."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint

from interventions import EditError
from interventions.decoupling import Decoupling, DecouplingSettings, Reference, matched_strength
from tests.interventions.conftest import _hf

LAYERS = (0, 1)


def plain(kind: str) -> Any:
    model = copy.deepcopy(_hf(kind)).train()
    for module in model.modules():  # two passes must draw the same
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if kind == "gpt2":
        model.config.attn_pdrop = 0.0
    return model


def hooks_of(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def reference(
    *, varieties: tuple[str, ...] = ("std", "east", "west"), groups: int = 8
) -> Reference:
    """Parallel rows that differ by variety in their first letters."""
    rng = np.random.default_rng(0)
    texts, names, of = [], [], []
    for group in range(groups):
        content = rng.integers(8, 23, size=5).tolist()
        for number, name in enumerate(varieties):
            texts.append([3 + number, 3 + number, *content])
            names.append(name)
            of.append(str(group))
    return Reference.of(texts, names, groups=of)


def batch(seed: int, rows: int = 4) -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(np.random.default_rng(seed).integers(3, 23, size=(rows, 7)))
    labels = ids.clone()
    labels[:, :3] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


ROWS = ("east", "std", "east", "std")


def settings(**told: Any) -> DecouplingSettings:
    return DecouplingSettings(
        **{"layers": LAYERS, "reference_rows": 6, "start_rows": 24, "every": 2, **told}
    )


def made(model: Any, **told: Any) -> Decoupling:
    return Decoupling(model, reference(), standard="std", settings=settings(**told))


def states(model: Any, inputs: dict[str, torch.Tensor], layer: int) -> torch.Tensor:
    """A block's output as the model itself gives it, `[batch, pos, d]`, with its graph."""
    kept: list[torch.Tensor] = []
    block = (model.transformer.h if hasattr(model, "transformer") else model.model.layers)[layer]
    handle = block.register_forward_hook(
        lambda _m, _a, out: kept.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    try:
        model(**inputs)
    finally:
        handle.remove()
    return kept[0]


def gradients(model: Any) -> list[torch.Tensor]:
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return found


def by_hand(form: str, h: torch.Tensor, inputs: Any, space: Any) -> torch.Tensor:
    """The penalty of one layer, written out token by token."""
    basis, mean = torch.tensor(space.basis).float(), torch.tensor(space.mean).float()
    total, count = torch.zeros(()), 0
    for row, name in enumerate(ROWS):
        for pos in range(7):
            state = h[row, pos]
            if form == "penalty":
                if name == "std" or inputs["labels"][row, pos] == -100:
                    continue
                total = total + ((state - mean) @ basis).pow(2).sum()
            elif form == "paper":
                total = total + (state @ basis).pow(2).sum().sqrt()
            else:
                total = total + state.pow(2).sum()
            count += 1
    return total / count


@pytest.mark.parametrize("form", ["penalty", "paper", "l2"])
@pytest.mark.parametrize("k", [1, 2])
def test_a_penalty_and_its_gradient_are_those_written_out_by_token(
    kind: str, form: str, k: int
) -> None:
    model, inputs = plain(kind), batch(1)
    with made(model, form=form, k=k, strength=0.3) as decoupling:
        with decoupling.rows(ROWS):
            model(**inputs)
        found = decoupling.loss()
        found.backward()
        got, spaces = gradients(model), dict(decoupling.subspaces)
    wanted = (
        0.3
        * torch.stack(
            [by_hand(form, states(model, inputs, layer), inputs, spaces[layer]) for layer in LAYERS]
        ).mean()
    )
    wanted.backward()
    assert torch.allclose(found, wanted, rtol=1e-5)
    assert float(wanted.detach()) > 0
    for one, other in zip(got, gradients(model), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_projection_is_the_explicit_edit_and_only_of_the_dialects_targets(kind: str) -> None:
    model, inputs = plain(kind), batch(2)
    with made(model, form="projection", strength=0.7, layers=(1,)) as decoupling:
        with torch.no_grad(), decoupling.rows(ROWS):
            got = model(**inputs).logits
        space = decoupling.subspaces[1]
    basis, mean = torch.tensor(space.basis).float(), torch.tensor(space.mean).float()
    wanted = torch.tensor([name != "std" for name in ROWS])[:, None] & (inputs["labels"] != -100)

    def edit(_m: Any, _a: Any, out: Any) -> Any:
        h = (out if isinstance(out, torch.Tensor) else out[0]).clone()
        for row, pos in wanted.nonzero().tolist():
            h[row, pos] -= 0.7 * basis @ (basis.T @ (h[row, pos] - mean))
        return h if isinstance(out, torch.Tensor) else (h, *out[1:])

    block = (model.transformer.h if kind == "gpt2" else model.model.layers)[1]
    handle = block.register_forward_hook(edit)
    with torch.no_grad():
        explicit = model(**inputs).logits
    handle.remove()
    with torch.no_grad():
        untouched = model(**inputs).logits
    assert torch.allclose(got, explicit, atol=1e-5)
    assert torch.equal(got[1], untouched[1]) and not torch.allclose(got[0], untouched[0], atol=1e-3)


def tuned(model: Any, decoupling: Decoupling, steps: int, *, first: int = 0, **adam: Any) -> Any:
    """Some steps of AdamW under a decoupling."""
    optimizer = adam.pop("optimizer", None) or torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], **{"lr": 1e-2, **adam}
    )
    for step in range(first, first + steps):
        inputs = batch(step)
        with decoupling.rows(ROWS):
            loss = model(**inputs).loss
        (loss + decoupling.loss()).backward()
        decoupling.step(optimizer)
        optimizer.zero_grad()
    return optimizer


def writers(model: Any, kind: str) -> Iterator[tuple[str, bool]]:
    """Names of the weights that write up to block 1, and whether they lie [in, out]."""
    if kind == "gpt2":
        yield from ((f"transformer.{name}.weight", True) for name in ("wte", "wpe"))
        for layer in LAYERS:
            for name in ("attn.c_proj", "mlp.c_proj"):
                yield f"transformer.h.{layer}.{name}.weight", True
                yield f"transformer.h.{layer}.{name}.bias", False
    else:
        yield "model.embed_tokens.weight", True
        for layer in LAYERS:
            for name in ("self_attn.o_proj", "mlp.down_proj"):
                yield f"model.layers.{layer}.{name}.weight", False


def test_no_update_of_a_writer_lies_in_the_subspace_after_adam_with_weight_decay(kind: str) -> None:
    shares: dict[str, list[float]] = {}
    for form in ("gradient", "l2"):  # the second is the positive control
        model = plain(kind)
        before = copy.deepcopy(model.state_dict())
        with made(
            model, form=form, source="frozen", k=2, layers=(1,), strength=1.0, every=2
        ) as decoupling:
            tuned(model, decoupling, 6, weight_decay=0.3)
            basis = torch.tensor(decoupling.subspaces[1].basis)
        after = model.state_dict()
        for name, transposed in writers(model, kind):
            change = after[name].double() - before[name].double()
            change = change.T if transposed else change
            shares.setdefault(form, []).append(float((basis.T @ change).norm() / change.norm()))
    assert max(shares["gradient"]) <= 1e-5
    assert min(shares["l2"]) > 1e-2


def checkpoint(model: Any, *, reentrant: bool = False) -> None:
    """As transformers up to 5.0 did it: with a block's hooks inside what is computed again."""
    for block in model.transformer.h if hasattr(model, "transformer") else model.model.layers:
        kind = type(block)

        def call(self: Any, *args: Any, kind: Any = kind, **named: Any) -> Any:
            again = partial(kind.__call__, self, **named)
            if not torch.is_grad_enabled():
                return again(*args)
            return torch.utils.checkpoint.checkpoint(again, *args, use_reentrant=reentrant)

        block.__class__ = type("Checkpointed", (kind,), {"__call__": call})


@pytest.mark.parametrize("form", ["penalty", "projection"])
@pytest.mark.parametrize("way", ["hooks inside", "hooks outside"])
def test_checkpointed_blocks_give_the_same_gradients(kind: str, form: str, way: str) -> None:
    found = []
    for checkpointed in (False, True):
        model = plain(kind)
        with made(model, form=form, strength=0.5) as decoupling:
            if checkpointed and way == "hooks inside":
                checkpoint(model)
            elif checkpointed:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            with decoupling.rows(ROWS):
                loss = model(**batch(3)).loss
            (loss + decoupling.loss()).backward()
            found.append(gradients(model))
    assert any(float(one.norm()) > 1e-4 for one in found[0])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_reentrant_checkpoints_around_the_hooks_are_refused() -> None:
    model = plain("llama")
    with made(model) as decoupling:
        checkpoint(model, reentrant=True)
        with decoupling.rows(ROWS), pytest.raises(EditError, match="use_reentrant"):
            model(**batch(0))


def test_two_halves_accumulate_to_the_whole_batchs_penalty() -> None:
    model, whole = plain("llama"), batch(4)
    with made(model, strength=0.5) as decoupling:
        with decoupling.rows(ROWS):
            model(**whole)
        decoupling.loss().backward()
        wanted = gradients(model)
        for half in (slice(0, 2), slice(2, 4)):
            with decoupling.rows(ROWS[half]):
                model(**{name: value[half] for name, value in whole.items()})
            (decoupling.loss() / 2).backward()
        for one, other in zip(gradients(model), wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["penalty", "projection"])
def test_under_autocast_losses_are_f32_and_near_those_of_f32(form: str) -> None:
    model, inputs = plain("llama"), batch(5)
    with made(model, form=form, strength=0.5) as decoupling:
        losses = []
        for half in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                with decoupling.rows(ROWS):
                    task = model(**inputs).loss
                losses.append(task.float() + decoupling.loss())
        losses[1].backward()
        assert decoupling.loss().dtype == torch.float32 if form == "projection" else True
    assert abs(float(losses[0] - losses[1])) < 0.05 * float(losses[0])
    assert all(torch.isfinite(one).all() for one in gradients(model))


@pytest.mark.parametrize("form", ["penalty", "paper", "projection", "gradient"])
def test_a_saved_one_goes_on_to_the_bit(form: str, tmp_path: Path) -> None:
    model = plain("llama")
    told = {"form": form, "k": 2, "strength": 0.5, "warmup": 4}
    with made(model, **told) as decoupling:
        optimizer = tuned(model, decoupling, 3)
        decoupling.save(tmp_path)
        resumed, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
        tuned(model, decoupling, 4, first=3, optimizer=optimizer)
    again = made(resumed, **told)
    again.load(tmp_path)
    later = torch.optim.AdamW(resumed.parameters(), lr=1e-2)
    later.load_state_dict(state)
    with again:
        tuned(resumed, again, 4, first=3, optimizer=later)
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert again.n_updates == 3
    ours, theirs = decoupling.telemetry(), again.telemetry()
    assert ours.equals(theirs) and len(ours) == len(LAYERS) * 4
    for layer in LAYERS:
        assert np.array_equal(again.subspaces[layer].basis, decoupling.subspaces[layer].basis)


def test_a_model_is_left_as_it_was_also_after_an_error(kind: str) -> None:
    model, inputs = plain(kind).eval(), batch(6)
    plainly = model(**inputs).logits
    hooks, flags = hooks_of(model), [m.training for m in model.modules()]
    decoupling = made(model, form="projection", strength=1.0)
    changed = []

    def broken() -> None:
        with decoupling, decoupling.rows(ROWS):
            changed.append(model(**inputs).logits)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        broken()
    assert not torch.allclose(changed[0], plainly, atol=1e-3)
    assert hooks_of(model) == hooks and [m.training for m in model.modules()] == flags
    assert torch.equal(model(**inputs).logits, plainly)


@pytest.mark.parametrize("source", ["random", "covariance", "top_component", "shuffled", "frozen"])
def test_a_matched_control_touches_as_much_energy_at_step_0(source: str) -> None:
    model = plain("llama")
    given = settings(strength=0.02)
    control = settings(source=source)
    found = matched_strength(
        model, reference(), standard="std", settings=given, control=control, dialects="east"
    )
    told = [given, replace(control, strength=found.strength)]
    pairs = [(x, v) for x, v in zip(reference().ids, reference().varieties, strict=True)]
    east = torch.stack([ids for ids, variety in pairs if variety == "east"])
    values = []
    for one in told:
        decoupling = Decoupling(model, reference(), standard="std", settings=one)
        with decoupling:
            with decoupling.rows("east", tokens="all"):
                model(input_ids=east)
            values.append(float(decoupling.loss().detach()))
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert found.reached == 1.0


def test_a_share_that_cannot_be_matched_is_1_and_says_what_it_reaches() -> None:
    told = settings(form="projection", strength=1.0)
    found = matched_strength(
        plain("llama"),
        reference(),
        standard="std",
        settings=told,
        control=replace(told, source="top_component"),
    )
    assert 0 < found.strength < 1 and found.reached == pytest.approx(1)
    back = matched_strength(
        plain("llama"),
        reference(),
        standard="std",
        settings=replace(told, source="top_component"),
        control=told,
    )
    assert back.strength == 1 and 0 < back.reached < 1


def test_the_strength_rises_evenly_over_the_warm_up() -> None:
    model = plain("llama")
    seen = []
    with made(model, strength=0.4, warmup=4) as decoupling:
        optimizer = None
        for step in range(6):
            seen.append(decoupling.strength)
            optimizer = tuned(model, decoupling, 1, first=step, optimizer=optimizer)
    assert seen == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])


def test_telemetry_is_written_whole_and_told_live(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pandas as pd

    model = plain("llama")
    decoupling = Decoupling(model, reference(), standard="std", settings=settings(), progress=True)
    with decoupling:
        tuned(model, decoupling, 4)
    file = decoupling.save_telemetry(tmp_path / "deep" / "telemetry.parquet")
    table = pd.read_parquet(file)
    assert table.equals(decoupling.telemetry())
    assert sorted(set(table["step"])) == [0, 2, 4] and set(table.layer) == set(LAYERS)
    assert table["inside"].between(0, 1).all() and table["overlap"].between(0, 1).all()
    assert table["task_loss"].notna().sum() == 4 and (table["decoupling_loss"].dropna() > 0).all()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 3 and "step 4" in said[2] and "inside" in said[2]
    assert [path.name for path in file.parent.iterdir()] == ["telemetry.parquet"]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"form": "hinge"}, "form is 'hinge'; use one of"),
        ({"form": "projection", "strength": 1.5}, "strength is 1.5.*a share is from 0 to 1"),
        ({"every": 0}, "every is 0"),
        ({"layers": ()}, "layers is empty"),
        ({"layers": (7,)}, "block 7; the model has blocks 0 to 2"),
        ({"k": 3}, "k is 3.*contrasts the standard in 2"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(told: dict[str, Any], message: str) -> None:
    with pytest.raises(EditError, match=message):
        made(plain("llama"), **told)


def test_bad_references_and_loops_are_refused_in_one_sentence(tmp_path: Path) -> None:
    model = plain("llama")
    with pytest.raises(EditError, match="standard, 'north'"):
        Decoupling(model, reference(), standard="north")
    with pytest.raises(EditError, match="2 rows and 1 varieties"):
        Reference.of([[1, 2], [3]], ["std"])
    with pytest.raises(EditError, match="Row 1 of the reference has no token"):
        Reference.of([[1, 2], [3]], ["std", "east"], starts=[1, 1])
    with pytest.raises(EditError, match=r"give the Hugging Face model itself"):
        Decoupling(object(), reference(), standard="std")
    decoupling = made(model)
    with pytest.raises(EditError, match="Enter the decoupling"), decoupling.rows(ROWS):
        pass
    with pytest.raises(EditError, match="no state of a decoupling"):
        decoupling.load(tmp_path)
    with decoupling:
        with (
            pytest.raises(EditError, match="names 2 varieties, and the pass has 4"),
            decoupling.rows(("east", "std")),
        ):
            model(**batch(0))
        with pytest.raises(EditError, match="no labels"), decoupling.rows(ROWS):
            model(input_ids=batch(0)["input_ids"])
        with (
            pytest.raises(EditError, match=r"shape \[4, 3\]"),
            decoupling.rows(ROWS, tokens=torch.ones(4, 3, dtype=torch.bool)),
        ):
            model(**batch(0))
        with pytest.raises(EditError, match="No pass was made"):
            decoupling.loss()
        with decoupling.rows(ROWS):
            model(**batch(0))
        with pytest.raises(EditError, match="loss\\(\\) was not called"):
            decoupling.step(torch.optim.SGD(model.parameters(), lr=0.1))
        decoupling.save(tmp_path)
    with pytest.raises(EditError, match="its settings are not"):
        made(model, k=2).load(tmp_path)
