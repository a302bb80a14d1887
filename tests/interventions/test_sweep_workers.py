"""Pieces of a sweep shared among processes give the very figures that one process gives."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from activations import CaptureError, Workers, open_model
from interventions import AnswerLogProb, EditError, LogitDifference, patch_sweep, scale

from .conftest import WORDS, _hf, _tokenizer
from .own_measures import from_the_end, gap_of_largest

PAIRS = [
    (f"a {WORDS[i]} c d {WORDS[-i]} f g", f"a h {WORDS[i + 1]} i {WORDS[-i]} b")
    for i in range(1, 13)
]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that other processes can open."""
    folder = tmp_path_factory.mktemp("model")
    _hf("llama").save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return open_model(str(folder), device="cpu")


def pieces(folder: Path) -> dict[str, bytes]:
    """The bytes of all pieces in a store."""
    return {file.name: file.read_bytes() for file in folder.glob("*.parquet")}


@pytest.mark.slow
def test_processes_give_the_same_bits_although_one_is_killed(named: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "way": "both",
        "sites": ["resid_post", "z"],
        "metric": gap_of_largest,
        "align": from_the_end,
        "token_budget": 20,
    }
    alone = patch_sweep(named, PAIRS, store=tmp_path / "alone", **options)
    together, killed = tmp_path / "together", []

    def kill_one() -> None:
        until = time.monotonic() + 120
        while not killed and time.monotonic() < until:
            mine = multiprocessing.active_children()
            if mine and any(together.glob("*.parquet")):
                os.kill(mine[0].pid, signal.SIGKILL)  # type: ignore[arg-type]
                killed.append(mine[0].pid)
            time.sleep(0.002)

    killer = threading.Thread(target=kill_one)
    killer.start()
    shared = patch_sweep(named, PAIRS, store=together, workers=Workers(2), **options)
    killer.join()
    assert killed
    assert len(pieces(tmp_path / "alone")) > 10
    assert pieces(together) == pieces(tmp_path / "alone")
    assert shared.frame.equals(alone.frame) and shared.summary.equals(alone.summary)
    assert shared.work == alone.work
    in_memory = patch_sweep(named, PAIRS, **options)
    assert in_memory.frame.equals(alone.frame)


@pytest.mark.slow
def test_without_a_store_workers_meet_in_one_that_goes_afterwards(
    named: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answers = [f"{WORDS[i]} c" for i in range(len(PAIRS))]
    options: dict[str, Any] = {"metric": AnswerLogProb(answers), "layers": [1]}
    alone = patch_sweep(named, PAIRS, **options)
    shared = patch_sweep(named, PAIRS, workers=Workers(1), **options)
    assert shared.frame.equals(alone.frame)
    assert not list(tmp_path.glob("isogloss-sweep-*"))


def test_a_store_keeps_the_pieces_that_it_was_begun_with(
    named: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = patch_sweep(named, PAIRS, store=tmp_path, token_budget=20)
    (tmp_path / "00003.parquet").unlink()
    monkeypatch.setattr("interventions.patching._PIECE_BYTES", 1)
    again = patch_sweep(named, PAIRS, store=tmp_path, token_budget=20)
    torch.testing.assert_close(
        torch.tensor(again.frame["value"]), torch.tensor(whole.frame["value"]), atol=1e-5, rtol=0
    )
    columns = ["pair", "site", "position"]
    assert again.frame[columns].equals(whole.frame[columns])


def test_pieces_are_few_passes_each(named: Any, tmp_path: Path) -> None:
    small = patch_sweep(named, PAIRS, store=tmp_path / "small", token_budget=10).work
    large = patch_sweep(named, PAIRS, store=tmp_path / "large").work
    assert len(pieces(tmp_path / "small")) == len(PAIRS) > len(pieces(tmp_path / "large")) == 1
    assert small == large


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": lambda logits, source, base: logits[:, 0]}, "the metric <lambda>: define it"),
        ({"align": lambda base, source: [0] * len(base)}, "the align <lambda>: define it"),
        ({"workers": Workers(2, engine="ray", address="auto")}, "name one with `store`"),
    ],
)
def test_what_workers_cannot_share_is_refused(
    named: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EditError, match=message):
        patch_sweep(named, PAIRS, **({"workers": Workers(2)} | options))


def test_workers_need_a_name_and_no_edits(named: Any, model: Any) -> None:
    with pytest.raises(CaptureError, match="save it to a folder"):
        patch_sweep(model, PAIRS[:1], workers=Workers(1))
    half = scale(None, 0.5, sites=named.resolve_sites("resid_post", [1])[0])
    with named.edited(half), pytest.raises(CaptureError, match="Edits of the model are open"):
        patch_sweep(named, PAIRS[:1], workers=Workers(1))
    metric = LogitDifference(["a"], ["b"])
    with pytest.raises(CaptureError, match="0 workers can do nothing"):
        patch_sweep(named, PAIRS[:1], metric=metric, workers=Workers(0))
