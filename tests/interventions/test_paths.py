"""Paths carry what runs by hand, products of weights and a circuit set by hand say they carry."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from activations import open_model
from interventions import (
    OUTPUT,
    AnswerLogProb,
    EditError,
    LogitDifference,
    Node,
    mediation,
    nodes_of,
    patch_sweep,
    path_sweep,
)

from .circuits import induction_model, induction_pairs, linear_model, place_by_place
from .conftest import _hf, _tokenizer

PAIRS = [("a b c d e f g", "a h c i e f g"), ("j k l m", "n k o p"), ("q r s t a", "b q r c a")]
METRIC = LogitDifference(["c"] * 3, ["d"] * 3)
HEADS, D_HEAD = 2, 8


class ByHand:
    """The plain model under PyTorch's own hooks: one text at a time, one state after another."""

    def __init__(self, kind: str) -> None:
        self.plain = _hf(kind).eval()
        self.gpt2 = kind == "gpt2"
        body = self.plain.transformer if self.gpt2 else self.plain.model
        self.blocks = body.h if self.gpt2 else body.layers

    def place(self, site: str) -> tuple[Any, str]:
        """(module, "in" or "out") for a site; joint projections are taken whole."""
        if site == "output":
            return self.blocks[-1], "out"
        block, rest = self.blocks[int(site.split(".")[1])], site.split(".", 2)[2]
        if rest == "hook_resid_pre":
            return block, "in"
        attention = block.attn if self.gpt2 else block.self_attn
        letter = rest[-1]
        if rest == "attn.hook_z":
            return (attention.c_proj if self.gpt2 else attention.o_proj), "in"
        if rest in ("attn.hook_q", "attn.hook_k", "attn.hook_v"):
            return (attention.c_attn if self.gpt2 else getattr(attention, f"{letter}_proj")), "out"
        if rest in ("hook_mlp_out", "hook_attn_out"):
            return (block.mlp if "mlp" in rest else attention), "out"
        assert rest == "mlp.hook_post"
        return (block.mlp.c_proj if self.gpt2 else block.mlp.down_proj), "in"

    def columns(self, node: Node) -> slice:
        """Where in the module's tensor the node's head lies."""
        start = 0
        if self.gpt2 and node.site[-1] in "qkv" and "attn" in node.site:
            start = "qkv".index(node.site[-1]) * HEADS * D_HEAD
            if node.head is None:
                return slice(start, start + HEADS * D_HEAD)
        if node.head is None:
            return slice(None)
        return slice(start + node.head * D_HEAD, start + (node.head + 1) * D_HEAD)

    @torch.no_grad()
    def run(self, ids: list[int], changes: dict[str, list[Any]], keep: list[str]) -> Any:
        """Logits at the end and what was kept, with (positions, columns, values) put in."""
        handles, kept = [], {}

        def through(site: str, x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            for positions, columns, values in changes.get(site, []):
                x[0, positions, columns] = values
            if site in keep:
                kept[site] = x[0].clone()
            return x

        for site in dict.fromkeys([*changes, *keep]):
            module, side = self.place(site)
            if side == "in":
                handles.append(
                    module.register_forward_pre_hook(
                        lambda _m, args, site=site: (through(site, args[0]), *args[1:])
                    )
                )
            else:

                def after(_m: Any, _a: Any, out: Any, site: str = site) -> Any:
                    first = through(site, out[0] if isinstance(out, tuple) else out)
                    return (first, *out[1:]) if isinstance(out, tuple) else first

                handles.append(module.register_forward_hook(after))
        try:
            return self.plain(torch.tensor([ids])).logits[0, -1].double(), kept
        finally:
            for handle in handles:
                handle.remove()

    def path(
        self, base: list[int], source: list[int], sender: Node, receiver: Node, frozen: bool
    ) -> torch.Tensor:
        """Logits of the third run, all by the book."""
        every = list(range(len(base)))
        held = [f"blocks.{i}.attn.hook_z" for i in range(3)]
        held += [f"blocks.{i}.hook_mlp_out" for i in range(3)] if frozen else []
        sent = self.run(source, {}, [sender.site])[1][sender.site]
        own = self.run(base, {}, held)[1]
        columns = self.columns(sender)
        changes = {site: [(every, slice(None), own[site])] for site in held}
        put = (every, columns, sent[:, columns])
        changes[sender.site] = [*changes.get(sender.site, []), put]
        got = self.run(base, changes, [receiver.site])[1][receiver.site]
        columns = self.columns(receiver)
        return self.run(base, {receiver.site: [(every, columns, got[:, columns])]}, [])[0]


SENDERS = [Node("blocks.0.attn.hook_z", 1), Node("blocks.1.attn.hook_z", 0),
           Node("blocks.0.hook_mlp_out"), Node("blocks.0.hook_resid_pre"),
           Node("blocks.1.attn.hook_z"), Node("blocks.1.hook_attn_out")]  # fmt: skip
RECEIVERS = [Node("blocks.1.attn.hook_q", 1), Node("blocks.2.attn.hook_k", 0),
             Node("blocks.2.attn.hook_v"), Node("blocks.1.mlp.hook_post"), OUTPUT]  # fmt: skip


@pytest.mark.parametrize("mlps", ["frozen", "run"])
def test_paths_are_those_of_three_runs_by_hand(kind: str, mlps: Any) -> None:
    by_hand, model = ByHand(kind), open_model(_hf(kind), tokenizer=_tokenizer())
    pairs, right = PAIRS[:2], model.encode("c d")
    receivers = [r for r in RECEIVERS if kind == "gpt2" or r.site[-1] not in "kv" or not r.head]
    found = path_sweep(
        model, pairs, SENDERS, receivers, mlps=mlps, metric=LogitDifference(["c"] * 2, ["d"] * 2),
        align=place_by_place,
    )  # fmt: skip
    rows = found.frame.set_index(["pair", "sender", "receiver"])
    assert len(rows) == 2 * len(SENDERS) * len(receivers)
    moved = 0
    for pair, sender, receiver in product(range(2), SENDERS, receivers):
        base, source = (model.encode(text) for text in pairs[pair])
        logits = by_hand.path(base, source, sender, receiver, mlps == "frozen")
        row = rows.loc[(pair, sender.name, receiver.name)]
        expected = float(logits[right[0]] - logits[right[1]])
        assert row["value"] == pytest.approx(expected, abs=2e-5)
        moved += abs(row["value"] - row["base"]) > 1e-3
    assert moved > 20


def test_the_total_is_that_of_patching_the_sender(model: Any) -> None:
    senders = nodes_of(model, "z", heads=True)
    found = path_sweep(model, PAIRS, senders, metric=METRIC, way="both")
    swept = patch_sweep(
        model, PAIRS, sites="z", heads=True, max_positions=1, metric=METRIC, way="both"
    )
    whole = swept.frame.copy()
    whole["sender"] = [f"{s}[{h}]" for s, h in zip(whole["site"], whole["head"], strict=True)]
    both = found.frame.merge(whole, on=["pair", "way", "sender"], suffixes=("", "_swept"))
    assert len(both) == len(found.frame) == len(whole)
    np.testing.assert_allclose(both["total"], both["value_swept"], atol=1e-5)
    # What is last before the end has no other way to it than the direct one.
    last = both[both["layer"] == 2]
    if model.hf.config.model_type == "gpt2":
        assert (last["total"] - last["value"]).abs().max() > 1e-4  # its MLP is another way
    unheld = path_sweep(model, PAIRS, senders, metric=METRIC, mlps="run", way="both").frame
    own = unheld["sender"].str.startswith("blocks.2")
    np.testing.assert_allclose(unheld["value"][own], unheld["total"][own], atol=1e-5)


@settings(max_examples=8)
@given(
    budget=st.integers(1, 40),
    senders=st.lists(st.sampled_from(SENDERS[:4]), min_size=1, max_size=3, unique=True),
    receivers=st.lists(st.sampled_from(RECEIVERS[2:]), min_size=1, max_size=2, unique=True),
    mlps=st.sampled_from(["frozen", "run"]),
)
def test_neither_batches_nor_forks_change_the_paths(
    model: Any, budget: int, senders: Any, receivers: Any, mlps: Any
) -> None:
    metric = AnswerLogProb(["b c", "d", "e f g"])
    options: dict[str, Any] = {"mlps": mlps, "metric": metric}
    one = path_sweep(model, PAIRS, senders, receivers, token_budget=budget, **options).frame
    other = path_sweep(model, PAIRS, senders, receivers, passes="whole", **options).frame
    for column in ("value", "total", "base", "source"):
        np.testing.assert_allclose(one[column], other[column], atol=1e-4)


def test_a_path_through_linear_layers_is_the_product_of_their_weights() -> None:
    model = linear_model(layers=3)
    hf = model.hf
    pairs, metric = [("a b e f", "g b h i")], LogitDifference(["c"], ["d"])
    ids = [model.encode(text)[-1] for text in pairs[0]]
    right, wrong = model.encode("c d")
    with torch.no_grad():
        change = (hf.transformer.wte.weight[ids[1]] - hf.transformer.wte.weight[ids[0]]).double()
        mlps = [
            (b.mlp.c_fc.weight.double(), b.mlp.c_proj.weight.double()) for b in hf.transformer.h
        ]
        read = (hf.lm_head.weight[right] - hf.lm_head.weight[wrong]).double()
    chain = [into @ out for into, out in mlps]
    stream = torch.eye(12, dtype=torch.float64)
    found = path_sweep(
        model, pairs, [Node("embed"), Node("blocks.0.hook_mlp_out")],
        [OUTPUT, Node("blocks.0.mlp.hook_post"), Node("blocks.2.mlp.hook_post")], metric=metric,
    )  # fmt: skip
    got = (found.frame["value"] - found.frame["base"]).to_numpy()
    rest = [stream + m for m in chain]
    written = change @ chain[0]
    expected = [
        change @ read,
        change @ chain[0] @ rest[1] @ rest[2] @ read,
        change @ chain[2] @ read,
        written @ read,
        0.0,  # block 0's MLP is before what it writes
        written @ chain[2] @ read,
    ]
    np.testing.assert_allclose(got, np.array(expected, dtype=float), atol=1e-5)
    assert np.abs(got).max() > 0.01


def test_all_paths_of_a_linear_model_add_up_to_the_whole_difference() -> None:
    model = linear_model(layers=3)
    pairs, metric = [("a b e f", "g b h i"), ("b c", "d e")], LogitDifference(["c"] * 2, ["d"] * 2)
    inputs = [Node(f"blocks.{layer}.mlp.hook_post") for layer in range(3)]
    frame = path_sweep(model, pairs, [Node("embed")], [OUTPUT, *inputs], metric=metric).frame
    moved, gap = frame["value"] - frame["base"], frame["source"] - frame["base"]
    np.testing.assert_allclose(frame["total"], frame["source"], atol=1e-5)
    # Every path begins with one step, to the end or to one of the MLPs.
    by_pair = gap.groupby(frame["pair"]).first()
    np.testing.assert_allclose(moved.groupby(frame["pair"]).sum(), by_pair, atol=1e-5)
    assert by_pair.abs().min() > 0.05


def test_sweeps_and_paths_find_the_circuit_that_was_built_and_nothing_else() -> None:
    model, circuit = induction_model()
    pairs, right, wrong = induction_pairs()
    options: dict[str, Any] = {
        "metric": LogitDifference(right, wrong), "align": place_by_place,
    }  # fmt: skip
    swept = patch_sweep(model, pairs, sites="z", heads=True, max_positions=1, **options).summary
    heads = dict(zip(zip(swept["site"], swept["head"]), swept["value"], strict=True))
    parts = {
        (circuit.previous, circuit.previous_head): 1.0,
        (circuit.induction, circuit.induction_head): 1.0,
    }
    for head, value in heads.items():
        assert value == pytest.approx(parts.get(head, 0.0), abs=1e-3)
    # Heads outside the circuit write something else in the other text, which nothing reads.
    spare = model.activations(*model.pad([model.encode(t) for t in pairs[0]]), [circuit.previous])
    assert (spare[circuit.previous][0, :, 1] - spare[circuit.previous][1, :, 1]).abs().max() > 0.1

    receivers = [Node(f"blocks.1.attn.hook_{part}", head) for part in "qkv" for head in range(2)]
    found = path_sweep(
        model, pairs, nodes_of(model, "z"), [OUTPUT, *receivers], **options
    ).array()  # fmt: skip
    first = f"{circuit.previous}[{circuit.previous_head}]"
    second = f"{circuit.induction}[{circuit.induction_head}]"
    edges = {(first, f"{circuit.keys}[{circuit.induction_head}]"), (second, "output")}
    for sender, receiver in product(found.index, found.columns):
        expected = float((sender, receiver) in edges)
        assert found.loc[sender, receiver] == pytest.approx(expected, abs=1e-3), (sender, receiver)

    # Only where the words stand whose neighbours changed places.
    at = {place: Node(circuit.previous, 0, (place,)) for place in range(6)}
    by_place = path_sweep(
        model, pairs, [*at.values(), (at[2], at[4])], [Node(circuit.keys, 1)], **options
    ).array()[f"{circuit.keys}[1]"]
    names = [at[place].name for place in (0, 1, 3, 5)]
    np.testing.assert_allclose(by_place[names], 0, atol=1e-3)
    np.testing.assert_allclose(by_place[[at[2].name, at[4].name]], 0.5, atol=1e-3)
    assert by_place.iloc[-1] == pytest.approx(1, abs=1e-3)


def test_mediation_of_the_circuit_is_complete_and_of_the_rest_is_none() -> None:
    model, circuit = induction_model()
    pairs, right, wrong = induction_pairs()
    first, second = Node(circuit.previous, 0), Node(circuit.induction, 1)
    spare = Node(circuit.previous, 1)
    found = mediation(
        model, pairs, [first, second, (first, second), spare],
        metric=LogitDifference(right, wrong), align=place_by_place,
    )  # fmt: skip
    for name in (first.name, second.name, f"{first.name} + {second.name}"):
        share = found.proportion(name)
        assert share.value == pytest.approx(1, abs=1e-3) and share.n == 4
        assert share.low <= share.value <= share.high
    assert found.proportion(spare.name).value == pytest.approx(0, abs=1e-3)
    frame = found.frame.set_index("mediator")
    np.testing.assert_allclose(frame.loc[first.name, "direct"], 0, atol=1e-2)
    np.testing.assert_allclose(
        frame.loc[spare.name, "direct"], frame.loc[spare.name, "total"], atol=1e-2
    )
    with pytest.raises(EditError, match="no mediator 'x'"):
        found.proportion("x")


@pytest.mark.parametrize("metric", ["kl", METRIC], ids=["kl", "logits"])
def test_effects_are_those_of_runs_under_edits(model: Any, metric: Any) -> None:
    from interventions import align_tokens, replace

    node = Node("blocks.1.hook_resid_post", positions=(0, 1))
    found = mediation(model, PAIRS, [node], metric=metric)
    right, wrong = model.encode("c d")
    for row in found.frame.itertuples():
        one, other = (model.encode(text) for text in PAIRS[row.pair])
        plain = [model.logits(*model.pad([ids]))[0, -1].double() for ids in (one, other)]

        def figure(logits: torch.Tensor, goal: torch.Tensor = plain[1]) -> float:
            if metric != "kl":
                return float(logits[right] - logits[wrong])
            p, q = goal.log_softmax(-1), logits.log_softmax(-1)
            return float((p.exp() * (p - q)).sum())

        crossed = []
        for base, source in ((one, other), (other, one)):
            aligned = align_tokens(base, source)
            states = model.activations(*model.pad([source]), [node.site])[node.site][0]
            at = [p for p in (len(base) - 1, len(base) - 2) if aligned[p] >= 0]
            with model.edited(replace(node.site, states[aligned[at]], at)):
                crossed.append(figure(model.logits(*model.pad([base]))[0, -1].double()))
        start, end = (figure(x) for x in plain)
        assert row.total == pytest.approx(end - start, abs=1e-5)
        assert row.indirect == pytest.approx(crossed[0] - start, abs=1e-5)
        assert row.direct == pytest.approx(crossed[1] - start, abs=1e-5)
        assert row.interaction == pytest.approx(row.total - row.direct - row.indirect, abs=1e-9)
    sums = found.frame[["indirect", "total"]].sum()
    assert found.proportion(node.name).value == pytest.approx(sums["indirect"] / sums["total"])
    means = found.summary.set_index("measure")["value"]
    assert means["direct"] == pytest.approx(found.frame["direct"].mean())


def test_effects_of_a_linear_model_add_up() -> None:
    model = linear_model()
    metric = LogitDifference(["c"], ["d"])
    frame = mediation(model, [("a b", "c d")], [Node("blocks.0.hook_mlp_out")], metric=metric).frame
    assert frame["interaction"].abs().max() < 1e-5 and frame["indirect"].abs().max() > 1e-3


def test_nothing_differs_nothing_is_carried(model: Any) -> None:
    same = [("a b c", "a b c")]
    found = path_sweep(model, same, SENDERS[:1], RECEIVERS)
    assert (found.frame["value"] == found.frame["base"]).all()
    assert found.summary["value"].isna().all() and "1 senders, 5 receivers" in repr(found)
    split = mediation(model, same, SENDERS[:1])
    assert (split.frame[["total", "direct", "indirect"]] == 0).all(axis=None)
    assert np.isnan(split.proportion(SENDERS[0].name).value)


@pytest.mark.parametrize(
    ("senders", "receivers", "message"),
    [
        ([], [OUTPUT], "list of nodes"),
        (Node("embed"), [OUTPUT], "list of nodes"),
        (["z"], [OUTPUT], "'z' is no node"),
        ([Node("z")], [OUTPUT], "stands for 3 sites"),
        ([Node("blocks.0.attn.hook_z", 9)], [OUTPUT], "heads 0 to 1"),
        ([Node("embed", 0)], [OUTPUT], "no heads"),
        ([Node("embed", positions=(-1,))], [OUTPUT], "numbers from 0"),
        ([Node("embed", positions=2)], [OUTPUT], "numbers from 0"),
        ([Node("blocks.1.attn.hook_q")], [OUTPUT], "sends nothing"),
        ([OUTPUT], [OUTPUT], "sends nothing"),
        ([Node("embed")], [Node("blocks.1.attn.hook_z")], "only takes in"),
        ([(Node("blocks.0.attn.hook_z"), Node("blocks.0.attn.hook_z", 1))], [OUTPUT], "shares"),
        ([Node("embed")], [(Node("blocks.0.hook_resid_post"), Node("blocks.1.hook_resid_pre"))],
         "shares"),
        ([Node("embed")], [(OUTPUT, Node("blocks.1.attn.hook_q"))], "takes the place of"),
    ],
)  # fmt: skip
def test_bad_paths_say_what_is_wrong(
    model: Any, senders: Any, receivers: Any, message: str
) -> None:
    with pytest.raises(EditError, match=message):
        path_sweep(model, PAIRS, senders, receivers)


def test_bad_options_say_what_is_wrong(model: Any) -> None:
    with pytest.raises(EditError, match="mlps is 'held'"):
        path_sweep(model, PAIRS, SENDERS, mlps="held")  # type: ignore[arg-type]
    for none in ([], SENDERS[0]):
        with pytest.raises(EditError, match="`mediators` is"):
            mediation(model, PAIRS, none)
    with pytest.raises(EditError, match="attention between positions"):
        mediation(model, PAIRS, [Node("blocks.1.attn.hook_pattern")])
    with pytest.raises(EditError, match="output mediates everything"):
        mediation(model, PAIRS, [OUTPUT])
    with pytest.raises(EditError, match="3 pairs and 1 groups"):
        mediation(model, PAIRS, SENDERS, groups=[1])
