"""What `isogloss run decouple` is made of: pairs, losses, scores, paired intervals, the plant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from activations import Model, open_model
from evidence import EvidenceError
from experiments import ConfigError
from experiments.decouple import DecoupleSettings
from experiments.decouple.arms import arms, main_arms
from experiments.decouple.judging import (
    example_losses,
    target_loss,
    translate,
    translation_scores,
)
from experiments.decouple.opening import reference_texts
from experiments.decouple.pairs import Task, Writer, make_task
from experiments.decouple.planted import (
    ENTANGLED,
    OTHERS,
    SETTINGS,
    STANDARD,
    VARIETIES,
    Planted,
    make_entangled,
)
from experiments.decouple.summary import compared, paired_over_seeds, verdict
from experiments.decouple.tuning import Weights, batches
from experiments.results import as_frame, row
from geometry import haar_overlap_sample
from interventions.decoupling import Decoupling, DecouplingSettings

SAID = {
    f"g{i}": {"arden": f"the boy has {word} .", "tarn": f"the lad he is after {word} ."}
    for i, word in enumerate(("cracked", "mended", "painted", "sold", "kept", "lost"))
}


@pytest.fixture(scope="module")
def base() -> Model:
    return open_model("organism/base")


def task_of(model: Model, **changed: Any) -> Task:
    told: dict[str, Any] = {
        "dialect": "tarn",
        "standard": "arden",
        "against": ["tarn"],
        "train": ["g0", "g1", "g2", "g3"],
        "test": ["g4", "g5"],
        "longest": 160,
    }
    writer = Writer(model.tokenizer, ("arden", "tarn"), "{standard}\n")
    return make_task(writer, SAID, **told | changed)


def test_pairs_are_written_as_the_organisms_training_wrote_them(base: Model) -> None:
    example = task_of(base).train[0][0]
    text = base.tokenizer.decode(list(example.ids))
    squeezed = "".join(text.split())
    wanted = "<s><arden> the boy has cracked . <tarn> the lad he is after cracked .</s>"
    assert squeezed == "".join(wanted.split())
    assert base.tokenizer.decode(list(example.ids[example.start :])).strip().startswith("the lad")
    from organisms.documents import BOS, EOS
    from organisms.tokenizer import encode

    document = (
        (f"{BOS}<arden> the boy has cracked . <tarn> the lad he is after cracked .{EOS}", True),
    )
    assert list(example.ids) == encode(base.tokenizer, document)[0]


def test_a_model_without_tags_is_given_the_template(base: Model) -> None:
    writer = Writer(base.tokenizer, ("arden", "nowhere"), "{standard} so ")
    assert not writer.tagged
    pair = writer.pair("the boy", "the lad", standard="arden", dialect="nowhere", group="g")
    assert "the boy so" in base.tokenizer.decode(list(pair.ids[: pair.start]))
    with pytest.raises(ConfigError, match=r"template 'so' has no \{standard\}"):
        Writer(base.tokenizer, ("arden", "nowhere"), "so")


def test_contamination_takes_the_rounded_share_and_seeds_repeat(base: Model) -> None:
    task = task_of(base)
    drawn = task.drawn(3, count=4, contamination=0.4)
    foreign = [e for e in drawn if e in {b for _, b in task.train}]
    assert len(foreign) == 2 and drawn == task.drawn(3, count=4, contamination=0.4)
    assert all(e in {a for a, _ in task.train} for e in task.drawn(3, count=4, contamination=0.0))
    orders = {tuple(e.group for e in task.drawn(s, count=4, contamination=0.0)) for s in range(9)}
    assert len(orders) > 1


def test_every_text_is_seen_once_before_any_comes_again(base: Model) -> None:
    task = task_of(base)
    settings = DecoupleSettings(steps=4, batch=2)
    drawn = task.drawn(0, count=4, contamination=0.0)
    seen = [b.ids for b in batches(drawn, settings, 0)]
    first = [tuple(r[r != 0].tolist()) for ids in seen[:2] for r in ids]
    assert sorted(first) == sorted(tuple(i for i in e.ids if i) for e in drawn)
    again = [b.ids for b in batches(drawn, settings, 0)]
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))


def test_losses_equal_a_loop_over_single_tokens(base: Model) -> None:
    examples = [*task_of(base).test, *task_of(base).standard, task_of(base).train[0][1]]
    found = example_losses(base.hf, examples)
    for example, loss in zip(examples, found, strict=True):
        with torch.no_grad():
            logits = base.hf(input_ids=torch.tensor([example.ids])).logits[0].double()
        said = logits.log_softmax(-1)
        places = range(example.start, len(example.ids))
        wanted = -np.mean([said[t - 1, example.ids[t]].item() for t in places])
        assert loss == pytest.approx(wanted, abs=1e-5)


def test_pairs_that_are_too_long_are_left_out_or_refused(base: Model) -> None:
    with pytest.raises(ConfigError, match="at least 2 of each are needed"):
        task_of(base, longest=8)


def test_chrf_and_bleu_are_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    said = ["the lad he is after mending the gate", "life went on ."]
    wanted = ["the lad he is after cracking the gate", "life goes on ."]
    found = translation_scores(said, wanted)
    assert found.chrf == pytest.approx(sacrebleu.corpus_chrf(said, [wanted], word_order=2).score)
    assert found.bleu == pytest.approx(sacrebleu.corpus_bleu(said, [wanted]).score)
    assert "nw:2" in found.signatures[0]
    assert translation_scores(wanted, wanted).chrf == pytest.approx(100)
    with pytest.raises(ConfigError, match="1 translations for 2 references"):
        translation_scores(said[:1], wanted)


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=9), st.integers(0, 2**31))
def test_paired_interval_is_scipys_paired_t(values: list[float], seed: int) -> None:
    other = np.asarray(values)
    one = other + np.random.default_rng(seed).normal(0.3, 1.0, len(other))
    found = paired_over_seeds(one, other)
    wanted = stats.ttest_rel(one, other)
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-6)
    interval = wanted.confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], [interval.low, interval.high])
    assert found.n == len(values)


def test_one_seed_has_no_interval() -> None:
    with pytest.raises(EvidenceError, match="at least 2"):
        paired_over_seeds(np.ones(1), np.zeros(1))


def cells(effect: float, control: float, noise: float = 0.01) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(6):
        level = rng.normal(1.0, 0.5)
        for edit, name, shift in (
            ("tune", "", 0.0),
            ("tune+penalty(k=1, 1)", "", effect),
            ("tune+penalty(k=1, 1)", "random_subspace", control),
        ):
            value = level + shift + rng.normal(0, noise)
            about = {"variety": "d", "edit": edit, "control": name, "seed": seed}
            rows += [row(m, value, **about) for m in ("dialect_loss", "standard_loss")]
    return as_frame(rows)


@pytest.mark.parametrize(
    ("effect", "control", "wanted"),
    [
        (-0.2, 0.0, "gain"),
        (-0.2, -0.2, "unspecific gain"),
        (0.0, 0.0, "none"),
        (0.2, 0.0, "loss"),
    ],
)
def test_the_verdict_is_that_of_planted_effects(effect: float, control: float, wanted: str) -> None:
    found = compared(cells(effect, control))
    assert verdict(found, "d", "tune+penalty(k=1, 1)") == wanted
    change = found[(found["measure"] == "dialect_loss_change") & (found["control"] == "")].iloc[0]
    assert change["low"] <= effect <= change["high"] and change["n"] == 6


def test_seeds_differ_more_than_arms_and_pairing_sees_through_it() -> None:
    found = compared(cells(-0.2, 0.0))
    change = found[(found["measure"] == "dialect_loss_change") & (found["control"] == "")].iloc[0]
    assert change["high"] - change["low"] < 0.1


def test_arms_are_told_apart_and_controls_stand_beside_the_first_form() -> None:
    settings = DecoupleSettings(
        forms=["penalty", "paper"],
        k=[1, 2],
        strengths=[0.1, 0.3],
        controls=["random", "frozen", "covariance", "top_component", "shuffled"],
    )
    found = arms(settings)
    assert len({a.slug for a in found}) == len(found) == len({(a.edit, a.control) for a in found})
    assert found[0].plain and sum(a.control != "" for a in found) == 6
    assert {a.edit for a in found if a.control} == {main_arms(settings)[0].edit}
    assert {(a.k, a.strength) for a in found if a.form == "paper"} == {(1, 0.1), (1, 0.3), (2, 0.1)}


def test_weights_come_back_and_only_the_named_blocks_train(base: Model) -> None:
    weights = Weights(base, [1])
    before = {n: p.detach().clone() for n, p in base.hf.named_parameters()}
    with weights as trained, torch.no_grad():
        assert {n for n, p in base.hf.named_parameters() if p.requires_grad} == {
            n for n in before if ".layers.1." in n
        }
        for parameter in trained:
            parameter.add_(1.0)
    weights.restore()
    for name, parameter in base.hf.named_parameters():
        assert torch.equal(parameter, before[name]), name
    with pytest.raises(ConfigError, match="blocks 0 to 3"):
        Weights(base, [9])


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return make_entangled(tmp_path_factory.mktemp("planted"))


def planted_task(model: Model, plant: Planted, dialect: str) -> Task:
    frame = pd.read_csv(plant.corpus)
    said = {g: dict(zip(x["variety"], x["text"])) for g, x in frame.groupby("group")}
    groups = list(said)
    return make_task(
        Writer(model.tokenizer, VARIETIES, ""),
        said,
        dialect=dialect,
        standard=STANDARD,
        against=OTHERS,
        train=groups[:20],
        test=groups[20:60],
        longest=60,
    )


def test_the_planted_direction_alone_sets_the_forms(plant: Planted) -> None:
    model = open_model(str(plant.folder))
    u = torch.tensor(plant.direction, dtype=torch.float32)
    entangled, free = (planted_task(model, plant, v).test for v in (ENTANGLED, OTHERS[0]))
    # Two words may follow each word, whatever the form: log 2 is the floor but for the first word.
    assert example_losses(model.hf, free).mean() == pytest.approx(
        (np.log(12) + 7 * np.log(2)) / 8, abs=0.02
    )
    held = example_losses(model.hf, entangled).mean()
    assert held == pytest.approx(6 + example_losses(model.hf, free).mean(), abs=0.3)

    def without(direction: torch.Tensor) -> float:
        def reject(_m: Any, _i: Any, out: Any) -> Any:
            h = out[0] if isinstance(out, tuple) else out
            h = h - (h @ direction)[..., None] * direction
            return (h, *out[1:]) if isinstance(out, tuple) else h

        handle = model.hf.model.layers[0].register_forward_hook(reject)
        try:
            return float(example_losses(model.hf, entangled).mean())
        finally:
            handle.remove()

    assert without(u) == pytest.approx(example_losses(model.hf, free).mean(), abs=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        other = torch.randn(len(u), generator=generator)
        other -= (other @ u) * u
        assert without(other / other.norm()) > held - 1.0


def test_the_plant_is_the_same_of_one_seed_and_turned_of_another(
    plant: Planted, tmp_path: Path
) -> None:
    again, other = make_entangled(tmp_path / "a"), make_entangled(tmp_path / "b", seed=1)
    np.testing.assert_array_equal(plant.direction, again.direction)
    assert abs(plant.direction @ other.direction) < 0.6
    assert again.corpus.read_bytes() == plant.corpus.read_bytes()
    assert set(pd.read_csv(plant.corpus)["variety"]) == set(VARIETIES)


def test_translations_equal_the_models_own_greedy_replies(base: Model) -> None:
    examples = [*task_of(base).test, *(a for a, _ in task_of(base).train)]
    found = translate(base.hf, base.tokenizer, examples, new_tokens=12)
    ids = base.generate_ids([e.ids[: e.start] for e in examples], max_new_tokens=12)
    assert found == [base.tokenizer.decode(i, skip_special_tokens=True).strip() for i in ids]


@pytest.mark.parametrize("strength", [0.0, 30.0])
def test_the_followed_subspace_holds_the_planted_direction_throughout(
    plant: Planted, strength: float
) -> None:
    """Beyond the 99% quantile of uniform directions at every update, plain and under a penalty."""
    model = open_model(str(plant.folder), device="cpu")
    task = planted_task(model, plant, ENTANGLED)
    told = DecoupleSettings.model_validate(
        SETTINGS | {"steps": 30, "model": str(plant.folder), "standard": STANDARD}
    )
    decoupling = Decoupling(
        model.hf,
        reference_texts(task, told, 0),
        standard=STANDARD,
        settings=DecouplingSettings(strength=strength, every=5, layers=(0,), reference_rows=48),
    )
    chance = np.quantile(haar_overlap_sample(model.d_model, 1, 1, draws=2000, seed=0), 0.99)
    found = []
    with Weights(model, told.trained_blocks) as trained, decoupling:
        optimizer = torch.optim.AdamW(trained, lr=told.rate, weight_decay=0.0)
        for batch in batches(task.drawn(0, count=64, contamination=0.4), told, 0):
            with decoupling.rows(batch.varieties, batch.target):
                logits = model.hf(input_ids=batch.ids, attention_mask=batch.mask).logits
            (target_loss(logits, batch).mean() + decoupling.loss()).backward()
            decoupling.step(optimizer)
            optimizer.zero_grad()
            axis = decoupling.subspaces[0].basis[:, 0]
            found.append(float(axis @ plant.direction) ** 2)
    assert len(found) == 30 and decoupling.n_updates == 6
    assert min(found) > chance, found
