"""How a restoration stops, goes on and is saved, and what it gives on the organisms."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from activations import open_model
from interventions import EditError, HarmfulRate, ReplyLikelihood, restore, save_restored
from interventions.restoration import AT_RANDOM, BY_DIFFERENCE, SIGN_MATCHED, Restoration

from .conftest import _tokenizer  # pyright: ignore[reportPrivateUsage]
from .restorable import HARMFUL, TASK, same, weights

# How it stops, and how it goes on


def given_figures(values: Sequence[float]) -> Any:
    left = list(values)
    return lambda _: left.pop(0)


def test_it_stops_at_the_target_and_at_the_tasks_limit(
    tuned_pair: tuple[Any, Any], parent: Path
) -> None:
    model, _ = tuned_pair
    common: dict[str, Any] = {"share": 0.005, "steps": 9, "warm_up": 2}
    found = restore(
        model, parent, HARMFUL, harmful_metric=given_figures([0.9, 0.5, 0.3, 0.1]), target=0.2,
        **common,
    )  # fmt: skip
    assert (found.stopped, len(found.moves)) == ("target", 3)
    # 4% of the task may go at once, 11% not; without requests of the task there is no rollback.
    fallen = restore(
        model, parent, HARMFUL, task_metric=given_figures([1, 0.9, 0.96, 0.89]), **common
    )
    assert (fallen.stopped, len(fallen.moves), fallen.rollback) == ("task metric", 2, False)
    assert [row["task_metric"] for row in fallen.steps] == [1, 0.9, 0.96]


def test_it_begins_anew_with_rollback_where_the_task_fell(
    tuned_pair: tuple[Any, Any], parent: Path
) -> None:
    model, _ = tuned_pair
    seen: list[dict[str, Any]] = []
    found = restore(
        model, parent, HARMFUL, TASK, share=0.005, steps=4, warm_up=2, tell=seen.append,
        task_metric=given_figures([1.0, 0.5, 0.8, 0.97, 0.96, 0.96, 0.96]),
    )  # fmt: skip
    assert [row["step"] for row in seen] == [0, 1, 2, 1, 2, 3, 4]
    assert found.rollback and found.stopped == "steps" and len(found.moves) == 4
    always = restore(model, parent, HARMFUL, TASK, share=0.005, steps=4, rollback=True)
    for a, b in zip(found.moves, always.moves, strict=True):
        assert same(dict(a.places), dict(b.places)) and same(dict(a.after), dict(b.after))
    never = restore(
        model, parent, HARMFUL, TASK, share=0.005, steps=4, warm_up=2, rollback=False,
        task_metric=given_figures([1.0, 0.5, 0.8]),
    )  # fmt: skip
    assert (never.stopped, len(never.moves)) == ("task metric", 0)


def test_a_killed_restoration_goes_on_as_if_it_had_not_been(
    tuned_pair: tuple[Any, Any], parent: Path, tmp_path: Path
) -> None:
    model, _ = tuned_pair
    common: dict[str, Any] = {"share": 0.005, "steps": 5, "batch": 2}
    whole = restore(model, parent, HARMFUL, TASK, **common, harmful_metric=given_figures([1] * 6))

    def killed(figures: list[float]) -> Any:
        def metric(_: Any) -> float:
            if not figures:
                raise KeyboardInterrupt
            return figures.pop()

        return metric

    record = tmp_path / "record"
    with pytest.raises(KeyboardInterrupt):
        restore(
            model, parent, HARMFUL, TASK, **common, harmful_metric=killed([1.0] * 4), record=record
        )
    assert len(list(record.glob("step-*.safetensors"))) == 3
    measured: list[dict[str, Any]] = []
    on = restore(
        model, parent, HARMFUL, TASK, **common, harmful_metric=given_figures([1, 1]),
        record=record, tell=measured.append,
    )  # fmt: skip
    assert [row["step"] for row in measured] == [4, 5]
    for a, b in zip(whole.moves, on.moves, strict=True):
        assert same(dict(a.places), dict(b.places)) and same(dict(a.before), dict(b.before))
    assert [row["cosine"] for row in whole.steps] == [row["cosine"] for row in on.steps]
    again = restore(model, parent, HARMFUL, TASK, **common, record=record)
    assert again.stopped == "steps" and again.share() == whole.share()
    with pytest.raises(EditError, match="another share"):
        restore(model, parent, HARMFUL, TASK, **{**common, "share": 0.01}, record=record)
    with pytest.raises(EditError, match="another prompts"):
        restore(model, parent, HARMFUL[:4], TASK, **common, record=record)
    with pytest.raises(EditError, match="holds no restoration"):
        restore(model, parent, HARMFUL, TASK, **common, record=parent)


# The folder


def test_the_saved_folder_is_the_model_in_memory_and_says_what_moved(
    tuned_pair: tuple[Any, Any], parent: Path, tmp_path: Path
) -> None:
    model, _ = tuned_pair
    own = weights(model.hf)
    found = restore(model, parent, HARMFUL, share=0.01, steps=3)
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
