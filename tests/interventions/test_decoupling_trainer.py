"""Decoupling under transformers' Trainer, and of LoRA's adapters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import Trainer, TrainingArguments

from interventions import EditError
from interventions.decoupling import Decoupling, DecouplingCallback, VarietyCollator
from tests.interventions.test_decoupling import (
    LAYERS,
    batch,
    gradients,
    hooks_of,
    made,
    plain,
    reference,
    settings,
    tuned,
)

pytest.importorskip("peft")


def adapted(kind: str) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = ["c_proj", "c_attn"] if kind == "gpt2" else ["o_proj", "down_proj", "q_proj"]
    torch.manual_seed(1)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=targets, fan_in_fan_out=kind == "gpt2")
    return get_peft_model(plain(kind), config)


def test_what_lora_adds_writes_nothing_into_the_subspace(kind: str) -> None:
    from peft.tuners.lora import LoraLayer

    shares: dict[str, list[float]] = {}
    for form in ("gradient", "l2"):  # the second is the positive control
        model = adapted(kind)
        with made(model, form=form, source="frozen", k=2, layers=(1,)) as decoupling:
            tuned(model, decoupling, 5, weight_decay=0.3)
            basis = torch.tensor(decoupling.subspaces[1].basis)
        for name, module in model.named_modules():
            writes = any(one in name for one in ("c_proj", "o_proj", "down_proj"))
            if writes and isinstance(module, LoraLayer) and any(f".{n}." in name for n in LAYERS):
                change = module.get_delta_weight("default").double()  # type: ignore[operator]
                change = change.T if kind == "gpt2" else change
                shares.setdefault(form, []).append(float((basis.T @ change).norm() / change.norm()))
    assert len(shares["gradient"]) == 4 and max(shares["gradient"]) <= 1e-5
    assert min(shares["l2"]) > 1e-2


def rows(count: int = 12) -> list[dict[str, Any]]:
    found = []
    for number in range(count):
        one = batch(number, rows=1)
        found.append({name: value[0] for name, value in one.items()})
        found[-1]["variety"] = ("east", "std")[number % 2]
    return found


def plainly(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([one[name] for one in items]) for name in items[0]}


def trained(
    folder: Path, model: Any, form: str, *, resume: bool = False, steps: int = 6, **told: Any
) -> tuple[Trainer, DecouplingCallback]:
    decoupling = Decoupling(
        model, reference(), standard="std", settings=settings(form=form, strength=0.5)
    )
    callback = DecouplingCallback(
        decoupling, varieties=("east", "std"), telemetry=folder / "telemetry.parquet"
    )
    args = TrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": steps,
            "save_steps": 3,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "remove_unused_columns": False,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            **told,
        },
    )
    trainer = Trainer(
        model,
        args,
        train_dataset=rows(),  # type: ignore[arg-type]
        data_collator=VarietyCollator(plainly, ("east", "std")),  # type: ignore[arg-type]
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback


@pytest.mark.parametrize("form", ["penalty", "gradient"])
def test_a_resumed_training_ends_with_the_same_bits(form: str, tmp_path: Path) -> None:
    whole = plain("llama")
    _, first = trained(tmp_path / "whole", whole, form)
    broken = plain("llama")
    trained(tmp_path / "broken", broken, form, steps=3)
    resumed = plain("llama")
    _, second = trained(tmp_path / "broken", resumed, form, resume=True)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
    assert first.decoupling.telemetry().equals(second.decoupling.telemetry())
    table = pd.read_parquet(tmp_path / "whole" / "telemetry.parquet")
    assert sorted(set(table["step"])) == [0, 2, 4, 6]
    assert table[table["step"] > 0]["task_loss"].notna().all()
    assert hooks_of(whole) == hooks_of(resumed) == 0


def test_the_penalty_reaches_the_gradients_once_a_batch(tmp_path: Path) -> None:
    """SGD's one step under Trainer against the same step by hand, two batches accumulated."""
    model = plain("llama")
    by_hand = copy.deepcopy(model)
    told = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "save_strategy": "no"}
    trained(tmp_path, model, "penalty", steps=1, data_seed=0, **told)
    with made(by_hand, form="penalty", strength=0.5) as decoupling:
        args = TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=2,
            use_cpu=True,
            remove_unused_columns=False,
            data_seed=0,
            report_to=[],
        )
        loader = Trainer(
            by_hand,
            args,
            train_dataset=rows(),  # type: ignore[arg-type]
            data_collator=VarietyCollator(plainly, ("east", "std")),  # type: ignore[arg-type]
        ).get_train_dataloader()
        from transformers import set_seed

        set_seed(42)
        taken = iter(loader)
        for _ in range(2):
            inputs = dict(next(taken))
            names = [("east", "std")[int(code)] for code in inputs.pop("varieties")]
            with decoupling.rows(names):
                loss = by_hand(**inputs).loss
            ((loss + decoupling.loss()) / 2).backward()
        wanted = [p - 0.1 * g for p, g in zip(by_hand.parameters(), gradients(by_hand))]
    for one, other in zip(model.parameters(), wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_lora_trains_under_trainer_with_checkpoints_and_bf16(tmp_path: Path) -> None:
    model = adapted("llama")
    frozen = model.base_model.model.model.layers[0].mlp.gate_proj.weight.clone()
    _, callback = trained(
        tmp_path,
        model,
        "penalty",
        steps=4,
        bf16=True,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    assert torch.equal(model.base_model.model.model.layers[0].mlp.gate_proj.weight, frozen)
    table = callback.decoupling.telemetry()
    assert table[table["step"] > 0]["decoupling_loss"].gt(0).all()
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_bad_batches_and_models_are_refused_in_one_sentence(tmp_path: Path) -> None:
    collator = VarietyCollator(plainly, ("east", "std"))
    with pytest.raises(EditError, match="remove_unused_columns=False"):
        collator([{"input_ids": torch.zeros(3)}])
    with pytest.raises(EditError, match="variety is 'north'"):
        collator([{"input_ids": torch.zeros(3), "variety": "north"}])
    model = plain("llama")
    callback = DecouplingCallback(made(model), varieties=("east", "std"))
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to=[])
    with pytest.raises(EditError, match="another model than the Trainer's"):
        Trainer(
            plain("llama"), args, train_dataset=rows(), data_collator=plainly, callbacks=[callback]
        ).train()  # type: ignore[arg-type]
    columns = [{k: v for k, v in row.items() if k != "variety"} for row in rows()]
    try:
        with pytest.raises(EditError, match="put VarietyCollator around"):
            Trainer(
                model, args, train_dataset=columns, data_collator=plainly, callbacks=[callback]
            ).train()  # type: ignore[arg-type]
    finally:
        callback.close()
    assert hooks_of(model) == 0
